"""Which worker serves what: every combination that makes a difference."""

from typing import Any

import msgspec
import pytest
from trunkline.mux.envelope import parse
from trunkline.mux.limits import Reuse
from trunkline.mux.placement import CALLS, NAMES, WHOLE, WIRES, Concern, Decision, concern_of, decide
from trunkline.mux.principal import ANONYMOUS
from trunkline.mux.record import Handshake, Terms, WorkflowRecord

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
    assert decide(record, holder_lives=True, is_call=is_call, stateless=stateless) == expected


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
    assert decide(record, holder_lives=False, is_call=is_call, stateless=stateless) == expected


def test_a_released_one_is_taken_over_whoever_seems_to_live() -> None:
    released = msgspec.structs.replace(MOVABLE, worker="")
    assert decide(released, holder_lives=True, is_call=True, stateless=False) == "take_over"


def test_a_session_that_workflows_share_is_used_by_one_worker() -> None:
    told: dict[str, Any] = {"is_call": True, "stateless": False, "reuse": "user"}
    shared = msgspec.structs.replace(MOVABLE, reuse="user")
    assert decide(shared, holder_lives=True, **told) == "forward"
    assert decide(shared, holder_lives=False, **told) == "take_over"


@pytest.mark.parametrize("reuse", ["none", "workflow", "user"])
@pytest.mark.parametrize("began", ["none", "workflow", "user"])
@pytest.mark.parametrize("is_call", [False, True])
def test_what_began_under_another_reuse_ends_with_its_holder(began: Reuse, reuse: Reuse, is_call: bool) -> None:
    """Workflows that shared a session would each take it for their own, with the same ids; or a call for its own."""
    record = msgspec.structs.replace(MOVABLE, reuse=began)
    told: dict[str, Any] = {"is_call": is_call, "stateless": True, "reuse": reuse}
    if began != reuse:
        assert decide(record, holder_lives=True, **told) == "forward"
    assert (decide(record, holder_lives=False, **told) == "gone") is (began != reuse)


@pytest.mark.parametrize("is_call", [False, True])
@pytest.mark.parametrize("theirs", [Terms("elsewhere", "long"), Terms("here", "short")])
def test_what_began_under_other_settings_is_left_to_its_holder_while_that_lives(theirs: Terms, is_call: bool) -> None:
    record = msgspec.structs.replace(MOVABLE, settings=theirs)
    told: dict[str, Any] = {"is_call": is_call, "stateless": False}
    assert decide(record, holder_lives=True, settings=Terms("here", "long"), **told) == "forward"
    assert decide(record, holder_lives=False, settings=Terms("here", "long"), **told) == "take_over"
    assert decide(record, holder_lives=True, settings=theirs, **told) == ("beside" if is_call else "forward")


@pytest.mark.parametrize(("is_call", "expected"), [(True, "beside"), (False, "forward")])
def test_where_each_call_has_a_session_of_its_own_any_worker_serves_it(is_call: bool, expected: Decision) -> None:
    told: dict[str, Any] = {"is_call": is_call, "stateless": False, "reuse": "none"}
    record = msgspec.structs.replace(OWNED, reuse="none")
    assert decide(record, holder_lives=True, **told) == expected
    opening = msgspec.structs.replace(OPENING, reuse="none")
    assert decide(opening, holder_lives=True, **told) == "forward", "it is not open yet"
    assert decide(record, holder_lives=False, **told) == "take_over"


@pytest.mark.parametrize(
    ("texts", "expected"),
    [
        (['{"jsonrpc":"2.0","id":1,"method":"tools/call"}'] * 2, CALLS),
        ([f'{{"jsonrpc":"2.0","id":{NAMES * 3 + 5},"result":{{}}}}'], Concern(name=NAMES * 3 + 5)),
        (['{"jsonrpc":"2.0","id":"a","result":{}}'], WHOLE),
        ([f'{{"jsonrpc":"2.0","id":"{NAMES * 3 + 5}","result":{{}}}}'], Concern(name=NAMES * 3 + 5)),
        ([f'{{"jsonrpc":"2.0","id":{"9" * 17},"result":{{}}}}'], WHOLE),
        (['{"jsonrpc":"2.0","method":"notifications/progress","params":{"progressToken":7}}'], Concern(name=7)),
        (['{"jsonrpc":"2.0","method":"notifications/progress"}'], WHOLE),
        (['{"jsonrpc":"2.0","method":"notifications/roots/list_changed"}'], WHOLE),
        (['{"jsonrpc":"2.0","method":"notifications/message","params":{"progressToken":7}}'], WHOLE),
    ],
)
def test_what_a_request_is_about(texts: list[str], expected: Concern) -> None:
    concern = concern_of([parse(text.encode(), limit=1000) for text in texts])
    assert concern == expected
    assert concern.worker == expected.name // NAMES


@pytest.mark.parametrize(("name", "worker"), [(NAMES * 3 + WIRES - 1, 3), (NAMES * 3 + WIRES, 0), (NAMES * 4 - 1, 0)])
def test_wires_are_their_holders_whoever_named_them(name: int, worker: int) -> None:
    concern = Concern(name=name, is_stream=True)
    assert (concern.worker, concern.giver) == (worker, 3)
    assert Concern(name=name).worker == 3, "a client may answer a question that it made up"
