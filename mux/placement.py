"""Which worker serves a request of a workflow that does not live here: this one, the one that holds it, or none. Pure.

Calls over an HTTP session go to the server from any worker, each under ids of its own (rule E4). Everything else of a
workflow (its streams, its questions, its end) is served by the worker that holds it, and by its successor once it is
dead.
"""

from collections.abc import Sequence
from typing import Final, Literal, NamedTuple

import msgspec

from .envelope import Envelope, minted
from .limits import Reuse
from .record import Terms, WorkflowRecord

Decision = Literal["beside", "forward", "take_over", "gone"]
"""`beside`: serve it here, beside the worker that holds it. `forward`: hand it to that worker. `take_over`: become the
one that holds it. `gone`: nobody holds it, and none may: the upstream session died with its worker and may not be begun
anew in silence (L18), it never opened, or it began under another reuse."""


NAMES: Final = 1 << 32
"""Streams and questions that one worker may name: the names of the next one follow."""

WIRES: Final = NAMES - (1 << 28)
"""Those from here on are of wires that carry everything."""


class Concern(NamedTuple):
    """What a request is about, as far as it tells which worker may serve it."""

    are_calls: bool = False
    """True for requests alone, which the server answers by themselves."""
    name: int = 0
    """The number of the stream or of the question that it names; 0 where it names none, or what each worker has."""

    is_stream: bool = False
    """True where that is a stream."""

    @property
    def giver(self) -> int:
        """The number of the worker that gave the name."""
        return self.name // NAMES

    @property
    def worker(self) -> int:
        """The number of the worker that may have what is named beside the holder; 0 for wires, which are that one's."""
        return 0 if self.is_stream and self.name % NAMES >= WIRES else self.giver


WHOLE: Final = Concern()
"""All that a workflow is: the worker that holds it is asked for."""

CALLS: Final = Concern(are_calls=True)


def concern_of(messages: Sequence[Envelope]) -> Concern:
    """What the messages of one request are about."""
    for message in messages:
        if message.kind == "response":
            return Concern(name=minted(message.id))
        if message.kind == "notification":
            if message.method != "notifications/progress":
                return WHOLE
            return Concern(name=minted(bytes((message.params() or {}).get("progressToken", b""))))
    return CALLS


def decide(
    record: WorkflowRecord,
    *,
    holder_lives: bool,
    is_call: bool,
    stateless: bool,
    reuse: Reuse = "workflow",
    settings: Terms | None = None,
) -> Decision:
    """What becomes of a request for this record, which does not live here.

    `holder_lives` tells whether the worker that the record names is another one that lives. `is_call` is true for
    requests that the server answers by themselves; `stateless` where a lost session may be begun anew in silence. With
    the reuse `none` there is no session that could be lost. What began under another reuse ends with who has it: its
    session is not what others would take it for. What began under other `settings` goes on with who has it, while that
    one lives.
    """
    if record.worker and holder_lives:
        is_alike = record.settings in (settings, msgspec.UNSET)
        return "beside" if is_call and is_alike and may_have_parts(record, reuse) else "forward"
    return "take_over" if may_be_taken_over(record, reuse, stateless=stateless) else "gone"


def may_be_taken_over(record: WorkflowRecord, reuse: Reuse, *, stateless: bool) -> bool:
    """Whether another worker can go on with it once its holder is gone."""
    return bool(record.revision) and record.reuse == reuse and (_is_movable(record, reuse) or stateless)


def may_have_parts(record: WorkflowRecord, reuse: Reuse) -> bool:
    """Whether others may serve calls beside the worker that holds it; else it has all, whoever named it before."""
    return bool(record.revision) and record.reuse == reuse != "user" and _is_movable(record, reuse)


def _is_movable(record: WorkflowRecord, reuse: Reuse) -> bool:
    return record.upstream_session != "" or reuse == "none"
