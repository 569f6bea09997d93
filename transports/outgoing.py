"""What is due on a connection that carries everything: what is said on it, then what its readers bring, in order.

It is counted as the client counts, which counts messages (see `Tally`).
"""

import asyncio
from collections.abc import Callable

import msgspec

from ..mux.event_log import Event, Stream
from ..mux.streams import Reader
from ..mux.tally import Tally


class Due(msgspec.Struct, frozen=True, gc=False):
    """One message for the client."""

    message: bytes
    position: int = 0
    """On the wire; 0 where no workflow logged it, or for another stream."""
    logged: tuple[Reader, Event] | None = None
    """Who read it from the log."""

    @property
    def event_id(self) -> str:
        """Empty where no workflow logged it."""
        return self.logged[0].event_id(self.logged[1]) if self.logged is not None else ""


class Outgoing:
    """What is due on one connection."""

    __slots__ = ("_handed", "_waiter", "early", "on_change", "readers", "tally")

    def __init__(self) -> None:
        self.early: list[bytes] = []
        """What was said and is not yet sent."""
        self.readers: list[Reader] = []
        """The rest of an exchange that the client came back to, and last that of its wire."""
        self.tally = Tally(0)
        """How its client counts."""
        self.on_change: Callable[[], None] | None = None
        """Called when something may be due: for a transport that asks for it by itself."""
        self._handed = 0
        """Messages that this connection has carried, as its client counts them."""
        self._waiter: asyncio.Future[None] | None = None

    def say(self, message: bytes) -> None:
        """A message that no workflow logs."""
        self.early.append(message)
        self.change()

    def read(self, reader: Reader) -> None:
        """Send what this one brings, too."""
        reader.on_wake = self.change
        self.readers.append(reader)
        self.change()

    def count_by(self, tally: Tally) -> None:
        """Count for another wire from here on."""
        self.tally = tally
        tally.skip(self._handed)

    def change(self) -> None:
        """Something may be due."""
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)
        if self.on_change is not None:
            self.on_change()

    async def changed(self, until: float) -> None:
        """Wait until something may be due, or it is so late by the loop's clock."""
        loop = asyncio.get_running_loop()
        self._waiter = loop.create_future()
        timer = loop.call_at(until, self.change)
        try:
            await self._waiter
        finally:
            timer.cancel()
            self._waiter = None

    def due(self, own: Stream | None, *, is_held: bool) -> list[Due] | None:
        """What is due now; None where the last reader has come to its end. What is returned counts as sent.

        `own` is the stream of the connection's wire. Where it `is_held`, readers bring nothing.
        """
        due: list[Due] = []
        if self.early:
            due += self._count([Due(message) for message in self.early])
            self.early.clear()
        if is_held:
            return due
        for reader in tuple(self.readers):
            events = reader.due()
            if events is not None:
                is_own = reader.stream is own
                due += self._count([Due(e.message, e.n if is_own else 0, (reader, e)) for e in events])
            elif reader is not self.readers[-1]:
                self.readers.remove(reader)
                reader.close()
            elif not due:
                return None
        return due

    def _count(self, due: list[Due]) -> list[Due]:
        """Count as the client does, which counts messages: an event that only primes a stream has none."""
        for one in due:
            self._handed += bool(one.message)
            if one.message and not one.position:
                self.tally.add_other(self._handed)
        return due
