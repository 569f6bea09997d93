"""Which worker serves a request of a workflow that does not live here: this one, the one that holds it, or none. Pure.

Calls over an HTTP session go to the server from any worker, each under ids of its own (rule E4). Everything else of a
workflow (its streams, its questions, its end) is served by the worker that holds it, and by its successor once it is
dead.
"""

from typing import Final, Literal, NamedTuple

from .limits import Reuse
from .record import WorkflowRecord

Decision = Literal["beside", "forward", "take_over", "gone"]
"""`beside`: serve it here, beside the worker that holds it. `forward`: hand it to that worker. `take_over`: become the
one that holds it. `gone`: the upstream session died with its worker, and may not be begun anew in silence (L18)."""


class Concern(NamedTuple):
    """What a request is about, as far as it tells which worker may serve it."""

    are_calls: bool = False
    """True for requests alone, which the server answers by themselves."""
    worker: int = 0
    """The number of the worker that gave what the request names: a stream, a question; 0 where it names nothing."""


WHOLE: Final = Concern()
"""All that a workflow is: the worker that holds it is asked for."""

CALLS: Final = Concern(are_calls=True)


def decide(
    record: WorkflowRecord, *, holder_lives: bool, is_call: bool, stateless: bool, reuse: Reuse = "workflow"
) -> Decision:
    """What becomes of a request for this record, which does not live here.

    `holder_lives` tells whether the worker that the record names is another one that lives. `is_call` is true for
    requests that the server answers by themselves; `stateless` where a lost session may be begun anew in silence. With
    the reuse `none` there is no session that could be lost.
    """
    is_open = record.revision != ""
    is_movable = record.upstream_session != "" or reuse == "none"
    if record.worker and holder_lives:
        return "beside" if is_call and is_open and is_movable and reuse != "user" else "forward"
    if is_open and (is_movable or stateless):
        return "take_over"
    return "gone"
