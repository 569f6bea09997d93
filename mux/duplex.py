"""A client's wire that carries everything both ways: HTTP+SSE, WebSocket.

All that is sent on it is one stream of the workflow's event log, so that it outlives the connection: another one goes
on where the client says, or where it has acknowledged.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Final

from . import envelope as wire_format
from .envelope import IdKey, Text, id_key
from .errors import TrunklineError
from .event_log import Stream, Trimmed
from .streams import Reader
from .tally import Tally

if TYPE_CHECKING:
    from .workflow import Workflow

MAX_NAMES: Final = 16
"""Connections of one wire whose names still mean it."""


class Duplex:
    """The calls of one such wire, and what is sent on it. Request ids belong to it (guarantee G1)."""

    is_open = True
    is_lost = False

    def __init__(self, workflow: Workflow, kept: tuple[Stream, Sequence[Tally]] | None = None) -> None:
        """`kept` is the stream of a wire that another worker carried, and its connections, the newest one last."""
        self._workflow = workflow
        self._ids: dict[IdKey, bytes] = {}
        """The requests whose answers are due, as they were spelled."""
        tallies = kept[1] if kept is not None else [Tally(0)]
        self.tally = tallies[-1]
        """Of its newest connection."""
        self._met = next((tally for tally in reversed(tallies) if tally.is_met), self.tally)
        """Of the newest connection on which its client has shown itself: until then, its counts mean an older one."""
        self._acknowledged: int | None = None
        """None as long as nothing can tell what the client has."""
        self.said_goodbye = False
        """True once its client has closed it in order: another connection is not its continuation."""
        self.names = [tally.name for tally in tallies if tally.name]
        """What its connections are known by, where their client names one with each message."""
        self.made = workflow.now()
        self.stream = workflow.streams.open(is_wire=True) if kept is None else kept[0]
        self.stream.left = self.made
        self.stream.covered = self.stream.is_wire = True
        for tally in tallies:
            tally.note = workflow.streams.noting(self.stream)

    @property
    def is_attached(self) -> bool:
        """True while a connection carries it."""
        return self.stream.is_read

    @property
    def left(self) -> float:
        """When its last connection went, or it was made."""
        return self.stream.left

    @property
    def owes(self) -> bool:
        """True while an answer is due."""
        return bool(self._ids)

    @property
    def is_idle(self) -> bool:
        """True when nothing is owed and nothing is kept."""
        return not self._ids and not self.stream.events and not self.is_attached

    def admit(self, id: bytes) -> bool:
        """Take a request's id; False while the same one is in flight here: the first goes on."""
        key = id_key(id)
        if key in self._ids:
            return False
        self._ids[key] = id
        self._workflow.streams.note_opened(self.stream, [id])
        return True

    def carrier(self) -> int:
        """The number of its stream."""
        return self.stream.number

    def add(self, message: bytes) -> None:
        """A message that is no answer."""
        self._workflow.streams.append(self.stream, message)

    def answer(self, message: Text, id: bytes) -> None:
        """The answer to the request of this id."""
        self._ids.pop(id_key(id), None)
        self.add(bytes(message))

    def fail(self, error: TrunklineError, id: bytes) -> None:
        """There is no answer of the server's to the request of this id; why."""
        self.answer(wire_format.failure(id, error), id)

    def repeat(self) -> None:
        """Note once more what another worker would have to know of it."""
        for tally in dict.fromkeys((self._met, self.tally)):
            tally.tell()
        if self._ids:
            self._workflow.streams.note_opened(self.stream, tuple(self._ids.values()))

    # Connections.

    def attach(self) -> Reader:
        """A connection that says nothing of what it has: it goes on after what was acknowledged, as far as is known.

        Raises:
            Trimmed: what followed is no longer held; the workflow is ended with that reason.
        """
        if self._acknowledged is None:
            return self._begin(self.stream.trimmed)
        return self.attach_at(self._acknowledged)

    def attach_after(self, count: int) -> Reader:
        """A connection of a client that received so many messages on the last one that it knows of.

        A client may never have heard of the newest one: as long as it has not shown itself there, nothing is sent on
        it (see `meet`), so a count can only be that of the one before, or 0.

        Raises:
            Trimmed: what followed is no longer held, or was never sent; the workflow is ended with that reason.
        """
        return self.attach_at((self._met if count else self.tally).position(count))

    def attach_at(self, position: int) -> Reader:
        """A connection of a client that has everything up to this position.

        Raises:
            Trimmed: what followed is no longer held; the workflow is ended with that reason.
        """
        try:
            reader = self._begin(position)
        except Trimmed as trimmed:
            self._workflow.fail(trimmed.reason)
            raise
        self.acknowledge(position)
        return reader

    def meet(self, tally: Tally) -> None:
        """The client has shown itself on the connection that this tally is of."""
        if tally is self.tally and not tally.is_met:
            tally.meet()
            self._met = tally

    def name(self, name: str) -> None:
        """A connection carries it that is known by this name, also to the worker that comes after this one."""
        self.tally.name = name
        self.tally.tell()
        self.names.append(name)
        del self.names[:-MAX_NAMES]

    def say_goodbye(self) -> None:
        """Its client has closed it in order: what it did not wait for is no loss. It may come back all the same."""
        self.said_goodbye = True
        self.stream.covered = False

    def detach(self, reader: Reader) -> None:
        """A connection has gone."""
        reader.close()

    def acknowledge_sent(self) -> None:
        """The transport vouches for all that was handed to it."""
        self.acknowledge(self.stream.sent)

    def acknowledge(self, position: int) -> None:
        """The client surely has everything up to this position."""
        self._acknowledged = max(self._acknowledged or 0, position)

    def _begin(self, position: int) -> Reader:
        reader = self._workflow.streams.replay(self.stream, position, listens=True)
        note, leaps = self._workflow.streams.noting(self.stream), self.stream.leaps_after(position)
        self.tally = Tally(position, self.tally.connection + 1, note, leaps)
        self.tally.tell()
        return reader
