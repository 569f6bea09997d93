"""How a WebSocket to a server is opened: by the library, through TLS and proxies, with the subprotocol `mcp`."""

from __future__ import annotations

import asyncio
import logging
import ssl
from collections.abc import Callable
from functools import partial
from typing import Any, Final, TypeVar, cast
from urllib.parse import urlsplit

from websockets.asyncio.client import ClientConnection, connect
from websockets.typing import Subprotocol

from ...mux.limits import MAX_EVENT_BYTES
from .addresses import Addresses
from .http import HeaderBlock, NotProxied, host_of
from .proxy import proxy_of

SUBPROTOCOL: Final = Subprotocol("mcp")

CLOSE_SECONDS: Final = 5.0
"""How long what is unsent and the closing handshake may take, together."""

PING_SECONDS: Final = 20.0
"""A ping goes out this often; a server that does not answer it for as long is gone."""

_PORTS: Final = {"ws": 80, "wss": 443}

quiet: Final = logging.getLogger(f"{__name__}.frames")
quiet.setLevel(logging.WARNING)  # the library's debug lines hold headers and messages

Connection = TypeVar("Connection", bound=ClientConnection)


class OtherProtocol(Exception):
    """The server took the upgrade, but not the subprotocol."""


class Upgrade:
    """Opens connections to one URL; `context` makes what TLS needs, where it is used.

    Raises:
        ValueError: a URL that cannot be used.
    """

    def __init__(self, url: str, context: Callable[[], ssl.SSLContext]) -> None:
        parts = urlsplit(url)
        host = host_of(parts)
        if parts.scheme not in _PORTS or not host or parts.fragment:
            raise ValueError("the URL must be ws:// or wss:// with a host and without a fragment")
        self._url = url
        proxy = proxy_of(parts._replace(scheme=parts.scheme.replace("ws", "http")).geturl())
        self._options: dict[str, Any] = {"proxy": proxy}
        if parts.scheme == "wss":
            self._options |= {"ssl": context(), "server_hostname": host}
        self._addresses = None if proxy is not None else Addresses(host, parts.port or _PORTS[parts.scheme])

    async def open(
        self, headers: HeaderBlock, kind: type[Connection], *, patience: float, ping_seconds: float | None
    ) -> Connection:
        """One connection, in at most `patience` seconds; the library pings on it so often, where that is its part.

        Raises:
            OtherProtocol: the server does not speak MCP.
            OSError, WebSocketException: it did not come about; `NotProxied` where the proxy is to blame.
        """
        async with asyncio.timeout(patience):
            if self._addresses is None:  # the proxy looks for it itself
                connection = await self._through_proxy(headers, kind, ping_seconds)
            else:
                reach = partial(self._connect, headers, kind, ping_seconds)
                connection = await self._addresses.first(lambda address: reach(host=address))
        if connection.subprotocol != SUBPROTOCOL:
            connection.transport.abort()
            raise OtherProtocol(f"does not speak the subprotocol {SUBPROTOCOL}")
        return connection

    async def _through_proxy(
        self, headers: HeaderBlock, kind: type[Connection], ping_seconds: float | None
    ) -> Connection:
        is_through = False

        def make(*arguments: Any, **options: Any) -> Connection:
            nonlocal is_through
            is_through = True
            return kind(*arguments, **options)

        try:
            return await self._connect(headers, make, ping_seconds)
        except Exception:
            if is_through:
                raise
            # It is away, refuses, is none, or wants a package that need not be there (SOCKS). Its words may be secret.
            raise NotProxied from None

    async def _connect(
        self, headers: HeaderBlock, kind: Callable[..., Connection], ping_seconds: float | None, **where: Any
    ) -> Connection:
        connection = await connect(
            self._url,
            additional_headers=headers.headers,
            user_agent_header="trunkline",
            subprotocols=[SUBPROTOCOL],
            compression=None,
            max_size=MAX_EVENT_BYTES,
            open_timeout=None,  # `open` bounds it
            close_timeout=CLOSE_SECONDS,
            ping_interval=ping_seconds,
            ping_timeout=ping_seconds,
            create_connection=cast(Any, kind),
            logger=quiet,
            **self._options,
            **where,
        )
        return cast(Connection, connection)
