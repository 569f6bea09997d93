"""What an application sees of one conversation with a client, whatever transport carries it."""

from abc import ABC, abstractmethod
from collections.abc import AsyncIterator, Mapping
from typing import Any

Message = Mapping[str, Any]
"""A JSON-RPC message."""


class Transport(ABC):
    """One conversation with a client: it outlives connections, and a client that comes back has the same one.

    Made by a `Host` for each client that begins; see there. Messages are delivered in order and once.
    """

    @property
    @abstractmethod
    def session_id(self) -> str:
        """The conversation's id, as its client knows it: a secret."""

    @abstractmethod
    async def connect(self) -> None:
        """Begin to take messages. The client's handshake follows as the first of them."""

    @abstractmethod
    async def disconnect(self) -> None:
        """End the conversation: its client has to begin anew. Idempotent."""

    @abstractmethod
    async def send_message(self, message: Message, *, request_id: int | None = None) -> None:
        """Send one message: the response to a request, or with the application's own id a request, or a notification.

        `request_id` is the id, as received, of the client's request that it belongs to, so that it reaches the client
        where it asked (rule R1); a response needs none. Where the client has no connection, the message waits.

        Raises:
            RuntimeError: the transport is not connected.
            TypeError, ValueError: it has no `"jsonrpc": "2.0"`, or cannot be written as JSON; nothing was sent.
        """

    @abstractmethod
    def receive_message(self) -> AsyncIterator[dict[str, Any]]:
        """The client's messages as they come, until the conversation ends. Who gives up waiting for one loses none.

        Raises:
            RuntimeError: the transport is not connected.
        """

    @abstractmethod
    async def is_connected(self) -> bool:
        """True while the client has a connection: a stream or socket that it reads, or a request that it waits for."""
