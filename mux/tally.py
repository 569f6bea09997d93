"""What a client counts on one connection of a wire: the wire's own messages, and those of others between them. Pure.

Places of the wire's messages follow each other; where another worker goes on, they leap (see `event_log.EPOCH`).
Each change is noted, so that a count means the same to the worker that comes after this one.
"""

from collections.abc import Callable, Sequence
from typing import Final, Literal

import msgspec

MAX_OTHERS: Final = 1000
"""Messages of others on one connection whose places are kept; beyond that a count may lead to a repetition."""

Note = Callable[[Literal["tally", "other"], int, bytes], None]
"""Hears of changes: `tally` with a connection's number and all that there is to know of it, `other` with the place of a
message of others and the connection's number, spelled."""


class _Kept(msgspec.Struct, array_like=True):
    began: int
    skipped: int
    others: list[int]
    is_met: bool
    leaps: Sequence[tuple[int, int]] = ()
    name: str = ""


class Tally:
    """The counts of one connection; connections of a wire are numbered from 1 on."""

    def __init__(
        self, began: int, connection: int = 0, note: Note | None = None, leaps: Sequence[tuple[int, int]] = ()
    ) -> None:
        """`leaps`: after so many of the wire's messages, the place from which the wire goes on."""
        self.began = began
        """The position after which the connection goes on with the wire."""
        self.connection = connection
        self.is_met = False
        """True once the client has shown itself on it."""
        self.name = ""
        """What the connection is known by, where its client names it with each message."""
        self.note = note
        self._others: list[int] = []
        self._skipped = 0
        self._leaps = leaps

    @classmethod
    def read(cls, connection: int, text: bytes) -> "Tally":
        """The tally of which this was noted."""
        kept = msgspec.json.decode(text, type=_Kept)
        tally = cls(kept.began, connection, leaps=kept.leaps)
        tally.is_met, tally.name = kept.is_met, kept.name
        tally._skipped, tally._others = kept.skipped, kept.others
        return tally

    def tell(self) -> None:
        """Note all of it."""
        if self.note is not None:
            kept = _Kept(self.began, self._skipped, self._others, self.is_met, self._leaps, self.name)
            self.note("tally", self.connection, msgspec.json.encode(kept))

    def meet(self) -> None:
        """The client has shown itself. Idempotent."""
        if not self.is_met:
            self.is_met = True
            self.tell()

    def skip(self, count: int) -> None:
        """So many messages had been sent on the connection before it came to the wire."""
        if count:
            self._skipped += count
            self.tell()

    def add_other(self, ordinal: int) -> None:
        """The message that a client counts as this one is none of the wire's."""
        self._others.append(ordinal)
        if len(self._others) > MAX_OTHERS:
            del self._others[0]
            self._skipped += 1
        if self.note is not None:
            self.note("other", ordinal, b"%d" % self.connection)

    def position(self, count: int) -> int:
        """Where a client stands on the wire that has received so many messages on the connection."""
        others = self._skipped + sum(ordinal <= count for ordinal in self._others)
        own, place, before = max(0, count - others), self.began, 0
        for after, leap in self._leaps:
            if own > after:
                place, before = leap, after
        return place + own - before
