"""What several workers tell, as one answer."""

from typing import Any

import pytest
from trunkline.gateway.workers import merged
from trunkline.gateway.workers.merged import Told


def server(state: str = "ok", **changed: Any) -> dict[str, Any]:
    row = {"server": "x", "state": state, "channels": 1, "workflows": 2, "attached": 1, "inflight": 3}
    row["channel_states"] = {"active": 1, "idle": 0}
    return {**row, "last_failure": None, "circuit": None, **changed}


def test_what_is_held_of_a_server_is_added_up() -> None:
    [row] = merged.servers([Told(1, 200, [server("unused")]), Told(2, 200, [server(), server(server="y")])])
    states = {"active": 2, "idle": 0}
    assert row == server(channels=2, channel_states=states, workflows=4, attached=2, inflight=6)


def test_the_worst_state_and_the_newest_failure_of_a_server_count() -> None:
    closed, opened = ({"state": state, "retry_after": n} for n, state in enumerate(("closed", "open")))
    told = [
        Told(1, 200, [server(circuit=closed, last_failure={"at": 2})]),
        Told(2, 200, [server("failing", circuit=opened, last_failure={"at": 3})]),
        Told(3, 200, [server("unused", last_failure={"at": 1})]),
    ]
    [row] = merged.servers(told)
    assert (row["state"], row["last_failure"], row["circuit"]) == ("failing", {"at": 3}, opened)


def test_who_does_not_answer_is_named() -> None:
    told = [Told(1, 200, [server()]), Told(2, 0, None)]
    assert merged.servers(told) == [{**server(), "missing_workers": [2]}]
    rows = merged.sessions([Told(1, 200, [{"workflow": "a"}]), Told(2, 0, None), Told(3, 200, [{"workflow": "b"}])])
    assert rows == [
        {"workflow": "a", "worker": 1},
        {"workflow": "b", "worker": 3},
        {"worker": 2, "state": "missing"},
    ]
    page = merged.page([Told(1, 200, {"total": 1, "sessions": [{}]}), Told(2, 0, None)], None)
    assert page == {"total": 1, "sessions": [{"worker": 1}], "next": None, "missing_workers": [2]}


def test_the_gateway_began_with_its_first_worker_and_its_trends_are_those_of_all() -> None:
    def told(worker: int, started: float, **trends: Any) -> Told:
        return Told(worker, 200, {"version": "1", "started": started, "workers": 1, "trends": trends})

    one, other = told(1, 20.0, x={"7": {"calls": 1}}, y={}), told(2, 10.0, x={"7": {"calls": 2}}, z={})
    whole = {"version": "1", "started": 10.0, "workers": 2, "trends": {"x": {"7": {"calls": 3}}, "y": {}}}
    assert merged.gateway([one, other]) == whole
    assert merged.gateway([one, other, Told(3, 0, None)]) == {**whole, "missing_workers": [3]}


def account(handle: str, *, ended: bool = False) -> dict[str, Any]:
    return {"workflow": {"workflow": handle}, "ended": {"cause": "idle"} if ended else None}


UNKNOWN = Told(1, 404, {"error": "no"})


def test_a_workflow_is_told_by_the_worker_that_has_it() -> None:
    told = merged.session([UNKNOWN, Told(2, 200, account("abcd", ended=True)), Told(3, 200, account("abcd"))])
    assert (told.status, told.body["workflow"]) == (200, {"workflow": "abcd", "worker": 3})
    assert merged.session([UNKNOWN, Told(2, 404, {"error": "no"})]) == UNKNOWN
    assert "missing_workers" not in told.body


@pytest.mark.parametrize("silent", [Told(3, 0, None), Told(3, 500, {"error": "a defect"})])
def test_nobody_says_that_there_is_no_workflow_while_a_worker_did_not_answer(silent: Told) -> None:
    told = merged.session([UNKNOWN, Told(2, 404, {"error": "no"}), silent])
    assert (told.status, told.body["missing_workers"]) == (503, [3])
    assert "worker 3" in told.body["error"]
    found = merged.session([UNKNOWN, Told(2, 200, account("abcd")), silent])
    assert (found.status, found.body["missing_workers"]) == (200, [3])
    short = Told(1, 400, {"error": "short"})
    assert merged.session([short, silent]) == short


@pytest.mark.parametrize(
    "others",
    [
        [Told(2, 200, account("abcd")), Told(3, 200, account("abef"))],
        [Told(2, 200, account("abcd")), Told(3, 409, {"error": "several", "candidates": ["abef"]})],
    ],
)
def test_handles_that_begin_alike_at_several_workers_are_named(others: list[Told]) -> None:
    told = merged.session([UNKNOWN, *others])
    assert (told.status, told.body["candidates"]) == (409, ["abcd", "abef"])


def test_pages_are_put_together() -> None:
    pages = [Told(1, 200, {"total": 2, "sessions": [{"a": 1}]}), Told(2, 200, {"total": 1, "sessions": [{"a": 2}]})]
    assert merged.page(pages, "2.5") == {
        "total": 3,
        "sessions": [{"a": 1, "worker": 1}, {"a": 2, "worker": 2}],
        "next": "2.5",
    }


@pytest.mark.parametrize(
    ("text", "at"),
    [("", (0, 0)), ("2.7", (2, 7)), ("7", None), ("a.b", None), ("1.2.3", None), ("1." + "9" * 30, None)],
)
def test_a_page_begins_at_a_place_of_a_worker(text: str, at: tuple[int, int] | None) -> None:
    assert merged.cursor(text) == at
