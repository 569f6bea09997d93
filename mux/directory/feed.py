"""What one listener has not heard yet: a bounded queue that says when it could not keep everything."""

from collections import deque
from collections.abc import AsyncIterator
from typing import Generic, TypeVar

import anyio

Item = TypeVar("Item")


class Feed(Generic[Item]):
    """An endless iterator of items. When more than `bound` wait, `lost` stands for all of them."""

    def __init__(self, bound: int, lost: Item) -> None:
        self._items: deque[Item] = deque()
        self._bound = bound
        self._lost = lost
        self._news = anyio.Event()

    def tell(self, item: Item) -> None:
        """Add an item."""
        if len(self._items) == self._bound:
            self._items.clear()
            item = self._lost
        self._items.append(item)
        self._news.set()

    def lose(self) -> None:
        """Items may have been missed."""
        self.tell(self._lost)

    def __aiter__(self) -> AsyncIterator[Item]:
        return self

    async def __anext__(self) -> Item:
        while not self._items:
            self._news = anyio.Event()
            await self._news.wait()
        return self._items.popleft()
