"""Which worker serves a request of a workflow that does not live here: this one, the one that holds it, or none. Pure.

Calls over an HTTP session go to the server from any worker, each under ids of its own (rule E4). Everything else of a
workflow (its streams, its questions, its end) is served by the worker that holds it, and by its successor once it is
dead.
"""

from typing import Literal

from .record import WorkflowRecord

Decision = Literal["beside", "forward", "take_over", "gone"]
"""`beside`: serve it here, beside the worker that holds it. `forward`: hand it to that worker. `take_over`: become the
one that holds it. `gone`: the upstream session died with its worker, and may not be begun anew in silence (L18)."""


def decide(record: WorkflowRecord, *, me: str, holder_lives: bool, is_call: bool, stateless: bool) -> Decision:
    """What becomes of a request for this record.

    `me` is this worker's id, `holder_lives` whether the worker that the record names does. `is_call` is true for
    requests that the server answers by themselves; `stateless` where a lost session may be begun anew in silence.
    """
    is_open = record.revision != ""
    is_movable = record.upstream_session != ""
    if record.worker == me:
        return "gone"  # it would live here: its end is under way
    if record.worker and holder_lives:
        return "beside" if is_call and is_open and is_movable else "forward"
    if is_open and (is_movable or stateless):
        return "take_over"
    return "gone"
