"""Which of a client's wires a connection goes on with, and for how long one that lost its connection is kept.

All wires here carry everything. A wire is found by what its client says of it; where several could be meant, none is:
they may be those of two clients (guarantee G3).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Final

from .duplex import Duplex
from .event_log import Stream
from .tally import Tally

if TYPE_CHECKING:
    from .workflow import Workflow

MAX_LEFT: Final = 16
"""Wires that lost their connection and owe no answer, for which a client may come back; older ones are forgotten."""


class Duplexes:
    """The wires of one workflow, oldest first; those without a connection for as long as it may come back."""

    __slots__ = ("_all", "_workflow")

    def __init__(self, workflow: Workflow) -> None:
        self._workflow = workflow
        self._all: list[Duplex] = []

    def new(self) -> Duplex:
        """A wire for a client that begins on it."""
        left = [duplex for duplex in self._all if not duplex.is_attached and not duplex.owes]
        for duplex in left[: max(0, len(left) - MAX_LEFT)]:
            self._forget(duplex)
        self._workflow.stir()
        duplex = Duplex(self._workflow)
        self._all.append(duplex)
        return duplex

    def restore(self, stream: Stream, connections: Sequence[Tally]) -> None:
        """A wire that another worker carried: its stream, and its connections, the newest one last."""
        self._all.append(Duplex(self._workflow, (stream, connections)))

    # Which is meant.

    @property
    def left(self) -> Duplex | None:
        """The wire that lost its connection without a good-bye; None, too, where it could be one of several."""
        return _newest([duplex for duplex in self._all if not duplex.is_attached and not duplex.said_goodbye])

    @property
    def cut(self) -> Duplex | None:
        """The wire that a client means which names none but says that it was cut; None where it could be several.

        The gateway may not have noticed yet that the connection is gone.
        """
        left = [duplex for duplex in self._all if not duplex.is_attached]
        cut = [duplex for duplex in left if not duplex.said_goodbye]
        return _newest(cut or left or self._all)

    @property
    def newest(self) -> Duplex | None:
        """The newest wire, connected or not."""
        return self._all[-1] if self._all else None

    def named(self, name: str) -> Duplex | None:
        """The wire that a connection of this name carried."""
        return next((duplex for duplex in self._all if name in duplex.names), None)

    def find(self, stream: int) -> Duplex | None:
        """The wire whose messages are this stream; None where the stream is another's."""
        return next((duplex for duplex in self._all if duplex.stream.number == stream), None)

    # How long they are kept.

    def expire(self) -> None:
        """Forget those that nobody came back to."""
        for duplex in [duplex for duplex in self._all if duplex.is_idle and duplex.stream.is_given_up]:
            self._forget(duplex)

    def repeat(self) -> None:
        """Note once more what another worker would have to know of them."""
        for duplex in self._all:
            duplex.repeat()

    def _forget(self, duplex: Duplex) -> None:
        self._all.remove(duplex)
        self._workflow.streams.forget(duplex.stream)


def _newest(duplexes: Sequence[Duplex]) -> Duplex | None:
    """The newest of these, if it came after all others had gone."""
    newest = duplexes[-1] if duplexes else None
    if newest is None or any(older.is_attached or older.left > newest.made for older in duplexes[:-1]):
        return None
    return newest
