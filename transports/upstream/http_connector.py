"""What connectors by HTTP have in common: a client, the headers of every request, and what is counted."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import ClassVar, Final, Literal

from ...mux.ports import NONE, Headers
from ...mux.statistics import Statistics
from ..unfinished import Unfinished
from .answers import lingering
from .credentials import Credential
from .http import Answer, HeaderBlock, HTTPClient, proof_in
from .http_client import Trusted, http_client
from .http_delivery import Deliveries, Send

Kind = Literal["initialize", "initialized", "call", "notification", "response", "get", "delete", "probe"]


VERSION_HEADER_SINCE: Final = "2025-06-18"
"""The first revision that is named in a header."""


class HTTPConnector:
    """The way to one server. `headers` and the `credential` go with every request.

    What the server sends counts to what is `unfinished` of it, where others lead there as well. One HTTP client serves
    all sessions, `http` where it is given; `close` it after they have ended.

    Raises:
        ValueError: a URL or headers that cannot be used.
    """

    always: ClassVar[Headers] = NONE
    """Headers of the transport's own."""

    def __init__(
        self,
        server: str,
        url: str,
        statistics: Statistics,
        *,
        headers: Headers | None = None,
        ca: Trusted = "",
        credential: Credential | None = None,
        http: HTTPClient | None = None,
        unfinished: Unfinished | None = None,
    ) -> None:
        self.server = server
        self.url = url
        self.http = http or http_client(url, ca, credential)
        self.headers = self._with_own(headers or NONE)
        self.unfinished = unfinished or Unfinished()
        """What the server has sent of large messages that are not complete."""
        self.lingering = lingering()
        self._statistics = statistics

    def rotate(self, headers: Headers) -> None:
        """See `RotatingConnector.rotate`. Open sessions find them here, too."""
        self.headers = self._with_own(headers)

    def _with_own(self, headers: Headers) -> HeaderBlock:
        return HeaderBlock(proof_in(self.url)).with_(headers).with_({**self.always, "User-Agent": "trunkline"})

    async def close(self) -> None:
        """Close the HTTP client. Idempotent."""
        await self.http.close()

    def count(self, kind: Kind) -> None:
        """One HTTP request goes to the server."""
        self._statistics.count("upstream_requests", self.server, kind)

    def deliver(
        self, deliveries: Deliveries, kind: Kind, size: int, send: Send, over: Callable[[asyncio.Future[int]], None]
    ) -> None:
        """Have one message without an answer sent in its turn, which is counted, as `Deliveries.put`."""

        def counted(answer: Answer) -> Callable[[], None]:
            self.count(kind)
            return send(answer)

        if not deliveries.put(size, counted, over):
            self.count_dropped()

    def count_dropped(self) -> None:
        """The server has not taken what it should, or there is no room for more."""
        self._statistics.count("undelivered", self.server)

    def count_fault(self) -> None:
        """The server broke the protocol."""
        self._statistics.count("upstream_faults", self.server)
