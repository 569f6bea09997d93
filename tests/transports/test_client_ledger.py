"""What a client that was cut writes again, asks about, or gives up; `test_client` shows it on the wire."""

import json
from typing import Any

import pytest
from trunkline.mux.errors import InvalidMessage, SessionLost
from trunkline.mux.limits import MAX_BODY_BYTES
from trunkline.transports.client_ledger import MAX_REPEATED, Ledger, Taken

REFUSED = {"code": -32600, "message": "a request with this id is in flight here"}


def text(**members: Any) -> bytes:
    return json.dumps({"jsonrpc": "2.0", **members}, separators=(",", ":")).encode()


def call(number: int | str) -> bytes:
    return text(id=number, method="tools/call", params={"name": str(number)})


def result(number: int | str, **members: Any) -> bytes:
    return text(id=number, result=members)


def failed(number: int | str, **error: Any) -> bytes:
    return text(id=number, error=error)


def ping(number: int | str) -> bytes:
    return text(id=number, method="ping", params={})


def opened(*, keyed: bool = False) -> Ledger:
    """A session that has begun, with one message received."""
    ledger = Ledger(keyed=keyed, session_id="secret")
    ledger.wrote(text(id=0, method="initialize"))
    assert ledger.took(result(0)) == Taken([result(0)], [])
    return ledger


def calling(**options: bool) -> Ledger:
    """The same, with a call that waits for its answer."""
    ledger = opened(**options)
    ledger.wrote(call(1))
    return ledger


def fence(written: list[bytes]) -> str:
    """The id of the question that ends what was written."""
    last = json.loads(written[-1])
    assert last["method"] == "ping"
    assert isinstance(last["id"], str)
    return str(last["id"])


def back(ledger: Ledger) -> list[bytes]:
    """Come back, with nothing missed; what is asked next."""
    return ledger.took(result(fence(ledger.came_back()))).write


def test_there_is_something_to_come_back_to_once_the_session_has_begun() -> None:
    ledger = Ledger(session_id="secret")
    assert not ledger.can_come_back
    ledger.wrote(text(id=0, method="initialize"))
    assert not ledger.can_come_back
    ledger.took(failed(0, code=-32603, message="no"))
    assert not ledger.can_come_back
    assert opened().can_come_back
    nameless = opened()
    nameless.session_id = ""
    assert not nameless.can_come_back


def test_it_counts_what_came_on_the_newest_socket() -> None:
    ledger = opened()
    ledger.took(text(method="notifications/x"))
    ledger.took(b"no message at all")
    assert ledger.headers() == {"mcp-session-id": "secret", "last-event-id": "3"}
    asked = fence(ledger.came_back())
    assert ledger.headers()["last-event-id"] == "0"
    assert not ledger.is_settled
    ledger.took(result(asked))
    assert ledger.is_settled
    assert ledger.headers()["last-event-id"] == "1"


def test_what_came_before_the_session_began_counts() -> None:
    ledger = Ledger(session_id="secret")
    ledger.wrote(text(id=0, method="server/discover"))
    ledger.took(failed(0, code=-32022, message="begin with initialize"))
    ledger.wrote(text(id=1, method="initialize"))
    ledger.took(result(1))
    assert ledger.headers()["last-event-id"] == "2"


def test_a_call_that_is_answered_is_done_with() -> None:
    ledger = opened()
    assert ledger.wrote(call(1)) is False
    assert ledger.waiting == 1
    assert ledger.took(result(1, text="x")) == Taken([result(1, text="x")], [])
    assert ledger.waiting == 0
    assert back(ledger) == []


def test_an_answer_that_was_missed_comes_before_any_question() -> None:
    ledger = calling()
    written = ledger.came_back()
    assert len(written) == 1
    assert ledger.took(result(1)) == Taken([result(1)], [])
    assert ledger.took(result(fence(written))) == Taken([], [])


def test_each_call_that_waits_is_asked_about_by_its_own_id() -> None:
    ledger = calling()
    ledger.wrote(call("a"))
    written = ledger.came_back()
    ledger.wrote(call(2))  # on the new socket: it cannot be lost by the cut
    asked = ledger.took(result(fence(written))).write
    assert asked[:-1] == [ping(1), ping("a")]
    fence(asked)


def test_a_call_in_flight_waits_on() -> None:
    ledger = calling()
    asked = back(ledger)
    assert ledger.took(failed(1, **REFUSED)) == Taken([], [])
    assert ledger.took(result(fence(asked))) == Taken([], [])
    assert ledger.took(result(1)) == Taken([result(1)], [])


def test_a_call_that_never_arrived_is_written_again_once() -> None:
    ledger = calling()
    asked = back(ledger)
    assert ledger.took(result(1)) == Taken([], [])
    assert ledger.took(result(fence(asked))) == Taken([], [call(1)])
    assert ledger.took(result(1)) == Taken([result(1)], [])
    assert ledger.waiting == 0


@pytest.mark.parametrize(
    ("heard", "delivered"),
    [
        ([result(1), result(1)], result(1)),
        ([failed(1, **REFUSED), result(1)], result(1)),
        ([failed(1, **REFUSED), failed(1, code=-32600, message="own")], failed(1, code=-32600, message="own")),
    ],
)
def test_an_answer_that_looks_like_that_to_the_question_is_told_from_it(heard: list[bytes], delivered: bytes) -> None:
    ledger = calling()
    asked = back(ledger)
    for message in heard:
        assert ledger.took(message) == Taken([], [])
    assert ledger.took(result(fence(asked))) == Taken([delivered], [])
    assert ledger.waiting == 0


def test_an_answer_that_crosses_the_question_is_delivered_at_once() -> None:
    ledger = calling()
    asked = back(ledger)
    assert ledger.took(failed(1, **REFUSED)) == Taken([], [])
    assert ledger.took(result(1, content=[])) == Taken([result(1, content=[])], [])
    assert ledger.took(result(fence(asked))) == Taken([], [])


def gives_up(ledger: Ledger, asked: list[bytes]) -> bool:
    """The server says that it does not know the call; does the ledger give it up, or write it again?"""
    ledger.took(result(1))
    taken = ledger.took(result(fence(asked)))
    if taken.write:
        assert taken == Taken([], [call(1)])
        return False
    (error,) = [json.loads(message)["error"] for message in taken.deliver]
    assert (error["code"], error["data"]) == (-31002, {"executed": "unknown"})
    assert ledger.waiting == 0
    return True


@pytest.mark.parametrize("keyed", [False, True])
def test_a_call_is_not_written_again_where_it_may_be_in_flight_elsewhere(keyed: bool) -> None:
    ledger = calling(keyed=keyed)
    assert gives_up(ledger, back(ledger)) is keyed


def test_a_second_cut_before_the_question_was_answered_asks_again() -> None:
    ledger = calling()
    back(ledger)  # cut before anything came
    assert gives_up(ledger, back(ledger)) is False


def test_a_second_cut_after_the_refusal_asks_again() -> None:
    ledger = calling()
    back(ledger)
    ledger.took(failed(1, **REFUSED))
    asked = back(ledger)
    assert asked[:-1] == [ping(1)]
    ledger.took(failed(1, **REFUSED))
    assert ledger.took(result(fence(asked))) == Taken([], [])
    assert ledger.waiting == 1


def test_a_second_cut_between_two_answers_leaves_it_unknown() -> None:
    ledger = calling()
    back(ledger)
    ledger.took(result(1))  # the call's, or that to the question: only what follows would tell
    taken = ledger.took(result(fence(ledger.came_back())))
    assert json.loads(taken.deliver[0])["error"]["data"] == {"executed": "unknown"}
    assert taken.write == []


def test_answers_to_the_question_that_were_missed_decide_all_the_same() -> None:
    ledger = calling()
    ledger.wrote(call(2))
    asked = back(ledger)
    ledger.took(result(1))
    written = ledger.came_back()
    ledger.took(failed(2, **REFUSED))
    # The end of the question was answered on the socket that was cut, and has come now.
    assert ledger.took(result(fence(asked))) == Taken([], [call(1)])
    again = ledger.took(result(fence(written))).write
    assert again[:-1] == [ping(2)]
    assert ledger.waiting == 2


def test_a_cancelled_call_is_neither_asked_about_nor_written_again() -> None:
    ledger = calling()
    cancel = text(method="notifications/cancelled", params={"requestId": 1})
    assert ledger.wrote(cancel) is True
    written = ledger.came_back()
    assert written[0] == cancel
    assert ledger.took(result(fence(written))) == Taken([], [])


@pytest.mark.parametrize("params", [{}, {"requestId": None}, {"requestId": 99}, {"requestId": 1.5}])
def test_a_cancellation_of_nothing_changes_nothing(params: dict[str, Any]) -> None:
    ledger = calling()
    ledger.wrote(text(method="notifications/cancelled", params=params))
    assert ledger.waiting == 1


def test_answers_are_repeated_until_they_arrived() -> None:
    ledger = opened()
    first, second = result(5, action="accept"), failed(6, code=-1, message="no")
    assert ledger.wrote(first) is True
    assert ledger.wrote(second) is True
    assert ledger.came_back()[:-1] == [first, second]
    ledger.arrived(first)
    assert ledger.came_back()[:-1] == [second]
    ledger.arrived(second)
    ledger.arrived(second)
    assert len(ledger.came_back()) == 1


def test_answers_that_are_repeated_are_bounded() -> None:
    ledger = opened()
    for number in range(MAX_REPEATED + 5):
        ledger.wrote(result(number))
    written = ledger.came_back()
    assert len(written) == MAX_REPEATED + 1
    assert written[0] == result(5)


def test_other_notifications_are_not_repeated() -> None:
    ledger = opened()
    assert ledger.wrote(text(method="notifications/progress", params={"progressToken": 1, "progress": 1})) is False
    assert len(ledger.came_back()) == 1


def test_what_belongs_to_nothing_is_passed_on() -> None:
    ledger = opened()
    for message in (
        result(77),
        failed("x", code=-1, message="x"),
        b'{"jsonrpc":"2.0","error":{"code":-32700,"message":"x"}}',
        b'{"jsonrpc":"2.0","id":null,"error":{"code":-32700,"message":"x"}}',
        b"[]",
    ):
        assert ledger.took(message) == Taken([message], [])


def test_at_the_end_everything_that_waits_fails_once() -> None:
    ledger = calling()
    ledger.wrote(call("a"))
    error = SessionLost("gone", executed="unknown")
    assert [json.loads(message)["id"] for message in ledger.fail(error)] == [1, "a"]
    assert ledger.fail(error) == []


@pytest.mark.parametrize("message", [b"{}", b"[]", call(1) + b" " * MAX_BODY_BYTES])
def test_what_no_server_would_take_is_refused(message: bytes) -> None:
    with pytest.raises(InvalidMessage):
        opened().wrote(message)
