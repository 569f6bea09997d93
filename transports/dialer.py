"""The connections of a WebSocket client: opened with the session's headers, or refused with a word on why."""

import ssl as tls
from collections.abc import Mapping
from contextlib import suppress
from typing import Any, Final
from urllib.parse import urlsplit

from websockets.asyncio.client import ClientConnection
from websockets.exceptions import InvalidHandshake, InvalidStatus

from ..mux import envelope as wire_format
from ..mux.errors import InvalidMessage
from ..mux.limits import MAX_EVENT_BYTES
from .headers import WORKFLOW
from .upstream.http import HeaderBlock, words_of
from .upstream.upgrade import PING_SECONDS, OtherProtocol, Upgrade

TRY_AGAIN: Final = frozenset({408, 425, 429, 500, 502, 503, 504})
"""Statuses of an upgrade that may be another one the next time."""

MAX_TOLD: Final = 200
"""Characters of a server's own words that an error repeats."""


class CannotConnect(ConnectionError):
    """The server could not be reached, or refused the connection; `status` is that of its answer, where it gave one."""

    def __init__(self, message: str, *, status: int | None = None, retry_after: float = 0.0) -> None:
        super().__init__(message)
        self.status = status
        self.retry_after = retry_after
        """Seconds that the server asks to wait."""

    @property
    def may_pass(self) -> bool:
        """True where another try may have another outcome."""
        return self.status is None or self.status in TRY_AGAIN


class Dialer:
    """Opens the connections of one session."""

    def __init__(self, url: str, headers: Mapping[str, str], workflow: str | None, ssl: tls.SSLContext | None) -> None:
        self._upgrade = Upgrade(url, lambda: ssl or tls.create_default_context())
        parts = urlsplit(url)
        self._shown = f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}{parts.path}"
        self._headers = HeaderBlock(headers).with_({WORKFLOW: workflow} if workflow is not None else {})
        self.is_keyed = any(name.lower() == WORKFLOW for name in self._headers.headers)

    async def dial(self, headers: Mapping[str, str], patience: float) -> ClientConnection:
        """One connection, in at most `patience` seconds.

        Raises:
            CannotConnect: it did not come about.
        """
        block = self._headers.with_(headers)
        try:
            return await self._upgrade.open(block, _Connection, patience=max(patience, 0.1), ping_seconds=PING_SECONDS)
        except OtherProtocol as error:
            raise CannotConnect(f"{self._shown} {error}", status=200) from None
        except CannotConnect as error:
            raise CannotConnect(f"{self._shown} {error}", status=error.status, retry_after=error.retry_after) from None
        except TimeoutError as error:
            raise CannotConnect(f"{self._shown} gave no answer in time") from error
        except InvalidHandshake as error:
            raise CannotConnect(f"{self._shown} broke the opening handshake: {type(error).__name__}") from error
        except OSError as error:
            raise CannotConnect(f"{self._shown} cannot be reached: {words_of(error)}") from error


class _Connection(ClientConnection):
    """A connection that takes a redirect for the refusal that it is: headers are for one server only."""

    async def handshake(self, *arguments: Any, **options: Any) -> None:
        """See `ClientConnection.handshake`."""
        try:
            await super().handshake(*arguments, **options)
        except InvalidStatus as refused:
            response = refused.response
            after = response.headers.get("Retry-After", "")
            raise CannotConnect(
                f"answered HTTP {response.status_code}{_told(bytes(response.body or b''))}",
                status=response.status_code,
                retry_after=float(after) if after.isascii() and after.isdigit() else 0.0,
            ) from None


def _told(body: bytes) -> str:
    """What a server says of a refusal, where it is one of JSON-RPC."""
    with suppress(InvalidMessage):
        error = wire_format.parse(body, limit=MAX_EVENT_BYTES).members.get("error")
        members = wire_format.members_of(error) if error is not None else None
        words = wire_format.string_of((members or {}).get("message")) or ""
        return f": {words[:MAX_TOLD]}" if words.isprintable() and words else ""
    return ""
