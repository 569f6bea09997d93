"""A relay of bytes that keeps a copy: what two peers said to each other, without a word of its own.

async with Tee(port) as tee:
    ...  # a client connects to tee.port instead
tee.sent, tee.answered
"""

import contextlib
import re

import anyio
import anyio.abc

from harness.relay import Relay


class Tee(Relay):
    """A relay that keeps what it relayed."""

    def __init__(self, target: int) -> None:
        super().__init__(target)
        self._conversations: list[tuple[bytearray, bytearray]] = []

    @property
    def sent(self) -> list[bytes]:
        """What clients said, one entry for each connection."""
        return [bytes(sent) for sent, _ in self._conversations]

    @property
    def answered(self) -> list[bytes]:
        """What the server said, one entry for each connection."""
        return [bytes(answered) for _, answered in self._conversations]

    def session_ids(self) -> set[str]:
        """The session ids that the server gave out."""
        return {
            found.decode()
            for answered in self.answered
            for found in re.findall(rb"(?im)^mcp-session-id: *([!-~]+)\r?$", answered)
        }

    async def _relay(self, client: anyio.abc.SocketStream) -> None:
        conversation = (bytearray(), bytearray())
        self._conversations.append(conversation)
        server = await anyio.connect_tcp("127.0.0.1", self._target)
        async with client, server, anyio.create_task_group() as tasks:

            async def copy(source: anyio.abc.ByteStream, sink: anyio.abc.ByteStream, kept: bytearray) -> None:
                with contextlib.suppress(anyio.BrokenResourceError, anyio.ClosedResourceError):
                    async for chunk in source:
                        kept.extend(chunk)
                        await sink.send(chunk)
                # Neither side half-closes a connection in HTTP: the end of one is the end of both.
                tasks.cancel_scope.cancel()

            tasks.start_soon(copy, client, server, conversation[0])
            tasks.start_soon(copy, server, client, conversation[1])
