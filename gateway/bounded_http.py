"""uvicorn's HTTP protocol, with a bound on the head of a request: its parser has none."""

from typing import Final

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

MAX_HEAD_BYTES: Final = 131_072
"""The request line and the headers together; a client that sends more is cut."""


class BoundedHTTP(HttpToolsProtocol):
    """A connection whose requests have heads of bounded size."""

    _head = 0
    _is_in_head = True

    def data_received(self, data: bytes) -> None:
        """See the base class."""
        super().data_received(data)
        if self._is_in_head:
            self._head += len(data)
            if self._head > MAX_HEAD_BYTES:
                self.transport.abort()

    def on_message_begin(self) -> None:
        """See the base class."""
        self._head = 0
        self._is_in_head = True
        super().on_message_begin()

    def on_headers_complete(self) -> None:
        """See the base class."""
        self._is_in_head = False
        super().on_headers_complete()
