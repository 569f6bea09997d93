"""What the event log of a dead worker says to the one that comes after it: streams to go on with, questions that wait.

Pure. A log may hold an entry twice, or one that a worker wrote after it had been succeeded: places tell. What is
missing tells as well: what came before a gap cannot be replayed.
"""

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import NamedTuple

import msgspec

from . import envelope as wire_format
from .directory import Entry
from .envelope import IdKey, id_key
from .errors import TrunklineError
from .event_log import EPOCH
from .limits import MAX_EVENT_BYTES
from .tally import Tally


@dataclass(slots=True)
class KeptStream:
    """One stream, as far as it was kept."""

    number: int
    events: list[tuple[int, bytes]] = field(default_factory=list)
    """Places and messages, without a gap."""
    trimmed: int = 0
    """The place up to which nothing is held any longer."""
    ended: bool = False
    tallies: dict[int, Tally] = field(default_factory=dict)
    """How the client counts on each connection, where it is the stream of a wire that carries everything."""
    waiting: dict[IdKey, bytes] = field(default_factory=dict)
    """The requests whose answers it owes, as they were spelled."""

    @property
    def is_wire(self) -> bool:
        """True for the stream of a wire that carries everything."""
        return bool(self.tallies)

    @property
    def connections(self) -> list[Tally]:
        """The connections of that wire, the newest one last."""
        return [self.tallies[number] for number in sorted(self.tallies)]

    @property
    def last(self) -> int:
        """The place of the newest event that is known of."""
        return self.events[-1][0] if self.events else self.trimmed


@dataclass(slots=True)
class Kept:
    """All that was kept of a workflow."""

    streams: dict[int, KeptStream] = field(default_factory=dict)
    questions: dict[int, Entry] = field(default_factory=dict)
    """What the server asked and nobody has answered: the ids that the client knows, and what was written of each."""
    home: int = 0
    """The stream on which what belongs to no request went last."""
    epoch: int = 0
    """That of the record which its writer knew: who has been succeeded does not know of later ones."""

    def stream(self, number: int) -> KeptStream:
        """The stream of this number."""
        if number not in self.streams:
            self.streams[number] = KeptStream(number)
        return self.streams[number]

    def is_wire(self, number: int) -> bool:
        """True for the stream of a wire that carries everything: whoever holds the workflow has all of those."""
        return number in self.streams and self.streams[number].is_wire


class Known(NamedTuple):
    """How much of an event log is known where a workflow lives."""

    reading: int
    """The reading of who lives that came before: whoever did not live then has left what was found, if not more since.
    """
    is_own: bool
    """Whether that holds for what its own worker had left, too."""


def recover(entries: Iterable[Entry]) -> Kept:
    """Read an event log, oldest entry first."""
    kept = Kept()
    for entry in entries:
        match entry.kind:
            case "opened":
                _open(kept, entry)
            case "event":
                _add(kept.stream(entry.stream), entry)
            case "tally":
                if not kept.epoch:  # builds that did not note it: the newest wire is where it went
                    kept.home = entry.stream
                kept.stream(entry.stream).tallies[entry.n] = Tally.read(entry.n, entry.message)
            case "other":
                _count(kept.stream(entry.stream), entry)
            case "asked":
                kept.questions[entry.n] = entry
            case _:
                kept.questions.pop(entry.n, None)
    return kept


def _open(kept: Kept, entry: Entry) -> None:
    stream, ids = kept.stream(entry.stream), msgspec.json.decode(entry.message, type=list[msgspec.Raw])
    if not ids and entry.n >= kept.epoch:
        kept.home, kept.epoch = entry.stream, entry.n
    for raw in ids:
        stream.waiting[id_key(bytes(raw))] = bytes(raw)


def _count(stream: KeptStream, entry: Entry) -> None:
    tally = stream.tallies.get(int(entry.message))
    if tally is not None:  # else it was trimmed
        tally.add_other(entry.n)


def _add(stream: KeptStream, entry: Entry) -> None:
    if entry.n <= stream.last:
        return
    is_next = entry.n == stream.last + 1 or entry.n == (entry.n // EPOCH) * EPOCH + 1
    if not is_next:
        stream.events.clear()
        stream.trimmed = entry.n - 1
    stream.events.append((entry.n, entry.message))
    stream.ended = entry.last
    answered = _answered(entry.message)
    if answered is not None:
        stream.waiting.pop(answered, None)


def _answered(message: bytes) -> IdKey | None:
    """The request that a message answers; None where it is no response."""
    if not message:
        return None
    try:
        read = wire_format.parse(message, limit=MAX_EVENT_BYTES)
    except TrunklineError:
        return None
    return id_key(read.id) if read.kind == "response" and read.id else None
