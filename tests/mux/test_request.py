"""The tables of what may happen to a request. `test_demux_machine` runs them against a model."""

from typing import Any

import pytest
from trunkline.mux.request import REQUESTS, SERVER_REQUESTS

TABLES = pytest.mark.parametrize(
    ("table", "first"), [(REQUESTS, "pending"), (SERVER_REQUESTS, "open")], ids=["request", "server_request"]
)


@TABLES
def test_every_state_is_reached_and_every_request_can_end(table: Any, first: str) -> None:
    moves = {(old, new) for (old, _), (new, _) in table.items()}
    reached = {first}
    for _ in moves:
        reached |= {new for old, new in moves if old in reached}
    assert reached == {state for move in moves for state in move}
    assert all((state, "done") in moves for state in reached)


@TABLES
def test_nothing_is_done_once_a_request_is_over(table: Any, first: str) -> None:
    late = {(new, effect) for (old, _), (new, effect) in table.items() if old == "done"}
    assert late == {("done", "ignore")}


def test_one_answer_reaches_the_caller_and_none_after_it_was_withdrawn() -> None:
    taken = {state: effect for (state, given), (_, effect) in REQUESTS.items() if given == "answer"}
    assert taken == {"pending": "deliver", "abandoned": "swallow"}
