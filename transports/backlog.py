"""Messages that wait for somebody who takes them one by one: a number and a size bound them."""

import asyncio
from typing import Generic, TypeVar

Text = TypeVar("Text", str, bytes)


class Backlog(Generic[Text]):
    """So many messages, and so much of them; one by itself may be of any size."""

    def __init__(self, most: int, most_size: int) -> None:
        self._most = most
        self._most_size = most_size
        self._size = 0
        self._waiting: asyncio.Queue[Text | None] = asyncio.Queue()
        """None behind the last."""

    def put(self, text: Text) -> bool:
        """Let a message wait. False where too much waits: then it does not."""
        size = self._size + len(text)
        if self._waiting.qsize() >= self._most or (self._size and size > self._most_size):
            return False
        self._size = size
        self._waiting.put_nowait(text)
        return True

    def end(self) -> None:
        """None follows what waits: one for each call."""
        self._waiting.put_nowait(None)

    async def take(self) -> Text | None:
        """The next one, once there is one; None at the end."""
        text = await self._waiting.get()
        if text is not None:
            self._size -= len(text)
        return text
