"""Who is looked after when: soon, or not before some time. Pure: times are seconds of the pool's clock.

A look costs the same however many there are that need none.
"""

import heapq
from typing import Final, Generic, TypeVar

SOON_SECONDS: Final = 2.0
"""What is due within this is looked after at every look, rather than be moved about."""

LONGEST_SECONDS: Final = 3600.0
"""Nothing is put off for longer at once."""

T = TypeVar("T")


class Rota(Generic[T]):
    """Each that was added is due soon, or later; who does not know when it will be has it be soon."""

    def __init__(self) -> None:
        self._soon: dict[T, None] = {}
        self._second_of: dict[T, int] = {}
        """Those that are due later, and in which second: from its begin on they are due soon."""
        self._in_second: dict[int, dict[T, None]] = {}
        self._seconds: list[int] = []
        """The keys of that, as a heap."""

    def __len__(self) -> int:
        return len(self._soon) + len(self._second_of)

    def __repr__(self) -> str:
        return f"Rota({len(self._soon)} soon, {len(self._second_of)} later)"

    def add(self, one: T) -> None:
        """From now on it is looked after: soon, for the first time."""
        self._soon[one] = None

    def remove(self, one: T) -> None:
        """It is looked after no longer. Does nothing where it was not."""
        self.stir(one)
        self._soon.pop(one, None)

    def stir(self, one: T) -> None:
        """Something happened to it: it is due soon. Does nothing where it was not added."""
        second = self._second_of.pop(one, None)
        if second is not None:
            del self._in_second[second][one]
            self._soon[one] = None

    def put_off(self, one: T, due: float, now: float) -> None:
        """It was looked after, and if nothing happens to it need not be again before it is `due`."""
        if one not in self._soon or due - now < SOON_SECONDS:
            return
        del self._soon[one]
        second = self._second_of[one] = int(min(due, now + LONGEST_SECONDS))
        there = self._in_second.get(second)
        if there is None:
            there = self._in_second[second] = {}
            heapq.heappush(self._seconds, second)
        there[one] = None

    def due(self, now: float) -> list[T]:
        """Those that are to be looked after now; they stay so until they are put off."""
        while self._seconds and self._seconds[0] <= now:
            for one in self._in_second.pop(heapq.heappop(self._seconds)):
                del self._second_of[one]
                self._soon[one] = None
        return list(self._soon)
