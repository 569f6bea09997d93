"""Which worker serves what: every combination that makes a difference."""

import msgspec
import pytest
from trunkline.mux.placement import Decision, decide
from trunkline.mux.principal import ANONYMOUS
from trunkline.mux.record import Handshake, WorkflowRecord

OPENING = WorkflowRecord("id", ANONYMOUS, "x", None, Handshake("2025-11-25", b"{}", b"{}"), worker="b")
OWNED = msgspec.structs.replace(OPENING, revision="2025-11-25")
MOVABLE = msgspec.structs.replace(OWNED, upstream_session=":u")


@pytest.mark.parametrize("stateless", [False, True])
@pytest.mark.parametrize(
    ("record", "is_call", "expected"),
    [
        (MOVABLE, True, "beside"),
        (MOVABLE, False, "forward"),
        (OWNED, True, "forward"),
        (OWNED, False, "forward"),
        (OPENING, True, "forward"),
        (OPENING, False, "forward"),
    ],
)
def test_while_its_holder_lives(record: WorkflowRecord, is_call: bool, stateless: bool, expected: Decision) -> None:
    assert decide(record, me="a", holder_lives=True, is_call=is_call, stateless=stateless) == expected


@pytest.mark.parametrize("is_call", [False, True])
@pytest.mark.parametrize(
    ("record", "stateless", "expected"),
    [
        (MOVABLE, False, "take_over"),
        (MOVABLE, True, "take_over"),
        (OWNED, False, "gone"),
        (OWNED, True, "take_over"),
        (OPENING, False, "gone"),
        (OPENING, True, "gone"),
    ],
)
def test_once_its_holder_is_dead(record: WorkflowRecord, is_call: bool, stateless: bool, expected: Decision) -> None:
    assert decide(record, me="a", holder_lives=False, is_call=is_call, stateless=stateless) == expected


def test_a_released_one_is_taken_over_whoever_seems_to_live() -> None:
    released = msgspec.structs.replace(MOVABLE, worker="")
    assert decide(released, me="a", holder_lives=True, is_call=True, stateless=False) == "take_over"


def test_what_this_worker_held_and_does_not_hold_is_gone() -> None:
    mine = msgspec.structs.replace(MOVABLE, worker="a")
    assert decide(mine, me="a", holder_lives=True, is_call=True, stateless=True) == "gone"
