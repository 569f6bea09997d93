"""The demultiplexer, event by event. `test_demux_machine` runs it against a model."""

import json
import tracemalloc
from unittest.mock import ANY

import pytest
from harness.demuxing import Waiting, answer, asked, asks, call, notification, opened, read
from trunkline.mux.demux import (
    MAX_SERVER_REQUESTS,
    TOMBSTONE_SECONDS,
    Abandon,
    Answered,
    Asked,
    Demux,
    Failed,
    Ignored,
    Progressed,
    Retracted,
    Told,
    ToServer,
)
from trunkline.mux.errors import (
    Cancelled,
    IllegalMove,
    InvalidParams,
    Overloaded,
    SessionLost,
    TimedOut,
    WorkflowEnded,
)
from trunkline.mux.request import EXTENSIONS, Request, ServerRequest

TIMEOUT = 10.0


@pytest.fixture
def demux() -> Demux:
    made = Demux(max_inflight=4, timeout=TIMEOUT)
    made.feed(range(1, 100))
    return made


def test_g1_equal_ids_of_two_callers_get_their_own_answers(demux: Demux) -> None:
    first, text = demux.open(call("5"), Waiting("a"), 0)  # type: ignore[arg-type]
    second, _ = demux.open(call('"5"'), Waiting("b"), 0)  # type: ignore[arg-type]
    assert json.loads(text)["id"] == 1
    late = demux.receive(answer("2", '{"for":"b"}'), None, 0)
    early = demux.receive(answer("1", '{"for":"a"}'), None, 0)
    assert late == Answered(second, b'{"jsonrpc":"2.0","id":"5","result":{"for":"b"}}', False)
    assert early == Answered(first, b'{"jsonrpc":"2.0","id":5,"result":{"for":"a"}}', False)
    assert demux.is_idle


def test_e3_ids_are_positive_and_never_used_again(demux: Demux) -> None:
    seen = set()
    for _ in range(50):
        request = opened(demux)
        assert request.id not in seen
        seen.add(request.id)
        demux.receive(answer(str(request.id)), None, 0)
    assert min(seen) == 1
    assert demux.ids_left == 49


def test_e4_blocks_follow_one_another(demux: Demux) -> None:
    small = Demux(max_inflight=9, timeout=TIMEOUT)
    small.feed(range(1, 3))
    small.feed(range(10, 12))
    small.feed(range(14, 16))
    assert [opened(small).id for _ in range(6)] == [1, 2, 10, 11, 14, 15]
    with pytest.raises(Overloaded) as refused:
        opened(small)
    assert refused.value.limit == "upstream_ids"
    small.feed(range(20, 21))
    small.feed(range(2**53 - 1, 2**53))
    assert [opened(small).id for _ in range(2)] == [20, 2**53 - 1]
    for wrong in (range(3), range(5, 2**53 + 1), range(5, 5)):
        with pytest.raises(ValueError, match="ids must lie"):
            small.feed(wrong)


def test_g10_ids_that_wait_to_be_used_take_no_room() -> None:
    """A session that made a few hundred calls, and is idle since, has most of two blocks."""
    made = Demux(max_inflight=3, timeout=10)
    made.feed(range(1, 1025))
    tracemalloc.start()
    try:
        made.feed(range(5001, 6025))
        assert tracemalloc.get_traced_memory()[0] < 1024
    finally:
        tracemalloc.stop()


def test_e2_an_id_echoed_as_a_string_is_accepted(demux: Demux) -> None:
    request = opened(demux)
    assert isinstance(demux.receive(answer(f'"{request.id}"'), None, 0), Answered)


def test_e7_a_request_is_found_by_the_id_that_its_server_names(demux: Demux) -> None:
    request = opened(demux)
    assert [demux.named(b"%d" % request.id), demux.named(b'"%d"' % request.id)] == [request] * 2
    assert [demux.named(raw) for raw in (b"", b"null", b"{}", b'"x"', b"99")] == [None] * 5


def test_e8_an_error_without_an_id_belongs_to_the_request_of_its_stream(demux: Demux) -> None:
    request = opened(demux, call('"x"'))
    error = read('{"jsonrpc":"2.0","error":{"code":-1,"message":"m"}}')
    assert demux.receive(error, None, 0) == Ignored("unknown_response")
    event = demux.receive(error, request, 0)
    assert isinstance(event, Answered)
    assert event.is_error
    assert json.loads(event.message)["id"] == "x"
    assert demux.receive(error, request, 0) == Ignored("unknown_response")


@pytest.mark.parametrize("id", ["99", "-1", '"x"', str(10**30)])
def test_an_answer_to_nothing_is_ignored(demux: Demux, id: str) -> None:
    opened(demux)
    assert demux.receive(answer(id), None, 0) == Ignored("unknown_response")


def test_a_limit_on_requests_counts_tombstones_too(demux: Demux) -> None:
    requests = [opened(demux) for _ in range(4)]
    demux.cancel(requests[0], None, 0)
    with pytest.raises(Overloaded) as refused:
        opened(demux)
    assert refused.value.limit == "max_inflight_per_channel"
    assert demux.inflight == 3
    assert "4 requests" in repr(demux)


def test_what_the_gateway_asks_for_itself_takes_no_place_of_a_call_and_has_a_limit(demux: Demux) -> None:
    def own() -> Request:
        return demux.open(call(), Waiting(is_own=True), 0)[0]  # type: ignore[arg-type]

    asked = [own() for _ in range(5)]
    assert demux.load == 0
    calls = [opened(demux) for _ in range(4)]
    for ask in (own, lambda: opened(demux)):
        with pytest.raises(Overloaded):
            ask()
    demux.fail(asked[0], SessionLost("cut", executed="unknown"))
    demux.fail(asked[0], SessionLost("cut", executed="unknown"))
    with pytest.raises(Overloaded):
        opened(demux)
    own()
    demux.fail(calls[0], SessionLost("cut", executed="unknown"))
    assert demux.load == 3
    opened(demux)


def test_progress_comes_back_under_the_callers_own_token(demux: Demux) -> None:
    for token in ("0", '""', '"0"', "3"):
        request, text = demux.open(call("1", f'{{"_meta":{{"progressToken":{token}}}}}'), Waiting(), 0)  # type: ignore[arg-type]
        assert json.loads(text)["params"]["_meta"]["progressToken"] == request.id
        event = demux.receive(
            notification("notifications/progress", f'{{"progressToken":{request.id},"p":1}}'), None, 1
        )
        assert isinstance(event, Progressed)
        assert f'"progressToken":{token}'.encode() in event.message
        demux.receive(answer(str(request.id)), None, 1)


def test_e18_progress_of_a_task_comes_back_after_the_answer_too_whoever_takes_it(demux: Demux) -> None:
    request, text = demux.open(call("1", '{"task":{},"_meta":{"progressToken":"mine"}}'), Waiting(), 0)  # type: ignore[arg-type]
    token = json.dumps(json.loads(text)["params"]["_meta"]["progressToken"])
    progress = notification("notifications/progress", f'{{"progressToken":{token},"progress":1}}')
    event = demux.receive(progress, None, 1)
    assert isinstance(event, Progressed)
    assert json.loads(event.message)["params"] == {"progressToken": "mine", "progress": 1}
    demux.receive(answer(str(request.id)), request, 1)
    beside = Demux(max_inflight=1, timeout=10)
    for other, origin in ((demux, request), (beside, request), (demux, None)):
        told = other.receive(progress, origin, 1)
        assert isinstance(told, Told)
        assert json.loads(told.message.encode()) == {
            "jsonrpc": "2.0",
            "method": "notifications/progress",
            "params": {"progressToken": "mine", "progress": 1},
        }
        assert told.origin is origin


def test_e17_progress_of_a_task_extends_what_waits_for_its_result(demux: Demux) -> None:
    _, text = demux.open(call("1", '{"task":{},"_meta":{"progressToken":1}}'), Waiting(), 0)  # type: ignore[arg-type]
    token = json.dumps(json.loads(text)["params"]["_meta"]["progressToken"])
    progress = notification("notifications/progress", f'{{"progressToken":{token},"progress":1}}')
    demux.receive(answer("1"), None, 0)
    waiting, cancelled = opened(demux), opened(demux)
    demux.cancel(cancelled, None, 0)
    before = cancelled.deadline
    for origin in (waiting, cancelled):
        assert isinstance(demux.receive(progress, origin, 7), Told)
    assert (waiting.deadline, cancelled.deadline) == (17, before)
    assert demux.expire(16) == []


def test_e18_progress_of_a_task_whose_call_was_cancelled_is_dropped(demux: Demux) -> None:
    request, text = demux.open(call("1", '{"task":{},"_meta":{"progressToken":1}}'), Waiting(), 0)  # type: ignore[arg-type]
    token = json.dumps(json.loads(text)["params"]["_meta"]["progressToken"])
    demux.cancel(request, None, 0)
    progress = notification("notifications/progress", f'{{"progressToken":{token},"progress":1}}')
    assert demux.receive(progress, None, 0) == Ignored("unknown_progress")


def test_e18_progress_for_nothing_is_dropped(demux: Demux) -> None:
    request = opened(demux)  # asked for no progress
    dropped = ["{}", '{"progressToken":null}', '{"progressToken":77}', f'{{"progressToken":{request.id}}}', "[]"]
    dropped.append(f'{{"progressToken":{"9" * 5000}}}')  # more digits than Python reads
    for params in dropped:
        assert demux.receive(notification("notifications/progress", params), None, 0) == Ignored("unknown_progress")
    asked = opened(demux, call("1", '{"_meta":{"progressToken":1}}'))
    demux.cancel(asked, None, 0)
    late = notification("notifications/progress", f'{{"progressToken":{asked.id}}}')
    assert demux.receive(late, None, 0) == Ignored("unknown_progress")


def test_an_illegal_token_uses_no_place(demux: Demux) -> None:
    with pytest.raises(InvalidParams):
        opened(demux, call("1", '{"_meta":{"progressToken":{}}}'))
    assert demux.is_idle


def test_e12_e15_a_cancel_is_translated_and_its_late_answer_swallowed(demux: Demux) -> None:
    request = opened(demux)
    assert request.is_wanted()
    told, failed = demux.cancel(
        request, read('{"jsonrpc":"2.0","method":"n","params":{"requestId":1,"reason":"r"}}').params(), 0
    )
    assert not request.is_wanted()
    assert isinstance(told, ToServer)
    assert json.loads(told.message)["params"] == {"requestId": request.id, "reason": "r"}
    assert isinstance(failed, Failed)
    assert isinstance(failed.error, Cancelled)
    assert demux.cancel(request, None, 0) == []
    assert demux.receive(answer(str(request.id)), None, 0) == Ignored("late_response", request)
    assert demux.cancel(request, None, 0) == []
    assert demux.is_idle


def test_a_workflow_that_ends_withdraws_what_it_asked_for_and_nothing_else(demux: Demux) -> None:
    ending, other = Waiting("ending"), Waiting("other")
    first = demux.open(call("1"), ending, 0)[0]  # type: ignore[arg-type]
    kept = demux.open(call("2"), other, 0)[0]  # type: ignore[arg-type]
    cancelled = demux.open(call("3"), ending, 0)[0]  # type: ignore[arg-type]
    demux.cancel(cancelled, None, 0)
    cause = WorkflowEnded("deleted")
    told, failed = demux.withdraw(ending, cause, 5)  # type: ignore[arg-type]
    assert isinstance(told, ToServer)
    assert json.loads(told.message)["params"] == {"requestId": first.id}
    assert isinstance(failed, Failed)
    assert failed.request is first
    assert isinstance(failed.error, SessionLost)
    assert demux.receive(answer(str(first.id)), None, 6) == Ignored("late_response", first)
    assert isinstance(demux.receive(answer(str(kept.id)), None, 6), Answered)
    assert demux.withdraw(ending, cause, 7) == []  # type: ignore[arg-type]


def test_a_tombstone_that_nobody_answers_is_given_up(demux: Demux) -> None:
    request = opened(demux)
    demux.cancel(request, None, 0)
    assert demux.expire(TOMBSTONE_SECONDS - 0.1) == []
    assert demux.expire(TOMBSTONE_SECONDS) == [Abandon(request)]
    assert demux.is_idle


def test_g6_of_what_is_held_back_the_server_is_told_nothing_and_its_caller_that_it_did_not_run(demux: Demux) -> None:
    cancelled, left, closed, sent = (opened(demux) for _ in range(4))
    for request in (cancelled, left, closed):
        request.is_held = True
    [failed] = demux.cancel(cancelled, None, 0)
    assert isinstance(failed, Failed)
    assert isinstance(failed.error, Cancelled)
    owner = left.caller.owner
    [failed] = demux.withdraw(owner, SessionLost("gone", executed="unknown"), 0)
    assert isinstance(failed, Failed)
    assert (failed.request, failed.error.data) == (left, {"executed": "no"})
    told = {failed.request: failed.error.data["executed"] for failed in demux.close(SessionLost("gone", executed="no"))}
    assert told == {closed: "no", sent: "unknown"}


def test_e17_a_silent_call_times_out_and_is_cancelled(demux: Demux) -> None:
    request = opened(demux)
    assert demux.expire(TIMEOUT - 0.1) == []
    told, failed = demux.expire(TIMEOUT)
    assert isinstance(told, ToServer)
    assert f'"requestId":{request.id}'.encode() in told.message
    assert isinstance(failed, Failed)
    assert isinstance(failed.error, TimedOut)
    assert failed.error.data == {"executed": "unknown"}


def test_e17_progress_extends_a_call_to_an_absolute_maximum(demux: Demux) -> None:
    request = opened(demux, call("1", '{"_meta":{"progressToken":1}}'))
    tick = notification("notifications/progress", f'{{"progressToken":{request.id}}}')
    now = 0.0
    while now + TIMEOUT / 2 < TIMEOUT * EXTENSIONS:
        now += TIMEOUT / 2
        assert demux.expire(now) == []
        demux.receive(tick, None, now)
    assert demux.expire(TIMEOUT * EXTENSIONS) != []


def test_e17_a_question_extends_a_call_no_further_than_progress(demux: Demux) -> None:
    request = opened(demux, call("1", '{"_meta":{"progressToken":1}}'))
    latest = TIMEOUT * EXTENSIONS
    for now in range(5, int(latest), 5):
        demux.receive(notification("notifications/progress", '{"progressToken":1,"progress":1}'), None, now)
    asked(demux, asks(), request, latest - 1)
    assert demux.expire(latest - 0.5) == []
    assert Failed(request, ANY) in demux.expire(latest)


def test_a_failed_exchange_fails_its_caller_once(demux: Demux) -> None:
    request = opened(demux)
    lost = SessionLost("gone", executed="no")
    assert demux.fail(request, lost) == [Failed(request, lost)]
    assert demux.fail(request, lost) == []
    assert demux.is_idle
    tomb = opened(demux)
    demux.cancel(tomb, None, 0)
    assert demux.fail(tomb, lost) == []
    assert demux.is_idle


def test_r7_a_ping_is_answered_at_once(demux: Demux) -> None:
    ping = read('{"jsonrpc":"2.0","id":"p","method":"ping"}')
    assert demux.receive(ping, None, 0) == ToServer(b'{"jsonrpc":"2.0","id":"p","result":{}}', "response")


def test_what_is_told_keeps_its_origin(demux: Demux) -> None:
    request = opened(demux)
    event = demux.receive(notification("notifications/message"), request, 0)
    assert isinstance(event, Told)
    assert event.origin is request


def test_e5_r4_a_servers_request_is_answered_under_its_own_id_and_once(demux: Demux) -> None:
    question = asked(demux, asks('"s1"'))
    assert not demux.is_idle
    assert demux.receive(asks('"s1"'), None, 0) == Ignored("duplicate_server_id")
    assert demux.respond(question, answer("4", '{"ok":1}'), 0) == [
        ToServer(b'{"jsonrpc":"2.0","id":"s1","result":{"ok":1}}', "response")
    ]
    assert demux.respond(question, answer("4"), 0) == []
    assert demux.refuse(question, TimedOut("late"), 0) == []
    assert demux.is_idle
    assert "done" in repr(question)


def test_a_refusal_reaches_the_server(demux: Demux) -> None:
    question = asked(demux, asks("3"))
    (event,) = demux.refuse(question, Cancelled("no"), 0)
    assert isinstance(event, ToServer)
    assert json.loads(event.message)["error"]["code"] == -32800


def test_too_many_questions_of_a_server_are_refused(demux: Demux) -> None:
    for number in range(MAX_SERVER_REQUESTS):
        asked(demux, asks(str(number)))
    event = demux.receive(asks("9999"), None, 0)
    assert isinstance(event, ToServer)
    assert json.loads(event.message)["error"]["data"] == {"limit": "server_requests"}


def test_a_server_takes_its_question_back(demux: Demux) -> None:
    question = asked(demux, asks("8"))
    event = demux.receive(notification("notifications/cancelled", '{"requestId":8}'), None, 0)
    assert isinstance(event, Retracted)
    assert event.request is question
    for params in ("{}", '{"requestId":8}', '{"requestId":null}', "[]"):
        assert demux.receive(notification("notifications/cancelled", params), None, 0) == Ignored("unknown_cancel")


def test_e17_a_question_within_a_call_stops_its_clock(demux: Demux) -> None:
    request, other = opened(demux), opened(demux)
    question = asked(demux, asks(), request, 1)
    due = demux.expire(TIMEOUT + 5)
    assert {event.request for event in due if isinstance(event, Failed)} == {other}
    demux.respond(question, answer("1"), TIMEOUT + 5)
    assert [e for e in demux.expire(TIMEOUT * 2 + 4.9) if isinstance(e, Failed)] == []
    assert [e.request for e in demux.expire(TIMEOUT * 2 + 5) if isinstance(e, Failed)] == [request]


def test_a_question_without_origin_stops_every_clock(demux: Demux) -> None:
    opened(demux), opened(demux)
    question = asked(demux, asks(), None, 1)
    assert demux.expire(TIMEOUT + 1) == []
    demux.respond(question, answer("1"), TIMEOUT + 1)
    assert demux.expire(TIMEOUT + 2) == []
    assert len(demux.expire(TIMEOUT * 2 + 1)) == 4


def test_an_origin_that_has_ended_is_none(demux: Demux) -> None:
    request = opened(demux)
    demux.cancel(request, None, 0)
    assert asked(demux, asks("1"), request).origin is None


def test_a_question_may_outlive_its_call(demux: Demux) -> None:
    request = opened(demux)
    question = asked(demux, asks(), request)
    demux.receive(answer(str(request.id)), None, 0)
    assert len(demux.respond(question, answer("1"), 0)) == 1


def test_a_question_that_nobody_answers_is_refused_in_the_end(demux: Demux) -> None:
    question = asked(demux, asks())
    assert demux.expire(TIMEOUT * EXTENSIONS - 1) == []
    told, void = demux.expire(TIMEOUT * EXTENSIONS)
    assert isinstance(told, ToServer)
    assert isinstance(void, Retracted)
    assert void.request is question
    assert void.message.method == "notifications/cancelled"
    assert question.state == "done"


def test_the_load_counts_what_was_given_up_and_is_not_over(demux: Demux) -> None:
    request = opened(demux)
    demux.cancel(request, None, 0)
    assert (demux.inflight, demux.load) == (0, 1)


def test_close_tells_every_caller_the_first_cause_and_takes_nothing_more(demux: Demux) -> None:
    first, second, tomb = opened(demux), opened(demux), opened(demux)
    demux.cancel(tomb, None, 0)
    question = asked(demux, asks())
    cause = WorkflowEnded("deleted")
    failed = demux.close(cause)
    assert [event.request for event in failed] == [first, second]
    assert all(event.error.data == {"executed": "unknown"} and event.error.__cause__ is cause for event in failed)
    assert demux.close(SessionLost("other", executed="no")) == []
    assert demux.cause is cause
    assert demux.is_idle
    assert demux.respond(question, answer("1"), 0) == demux.refuse(question, cause, 0) == [], "nobody waits for it"
    with pytest.raises(WorkflowEnded):
        opened(demux)


def test_a_lost_session_never_says_that_what_was_in_flight_did_not_run(demux: Demux) -> None:
    opened(demux)
    (failed,) = demux.close(SessionLost("404", executed="no"))
    assert failed.error.data == {"executed": "unknown"}


def test_find_knows_who_waits(demux: Demux) -> None:
    caller = Waiting()
    request, _ = demux.open(call(), caller, 0)  # type: ignore[arg-type]
    assert demux.find(caller) is request  # type: ignore[arg-type]
    assert demux.find(Waiting()) is None  # type: ignore[arg-type]
    assert "pending" in repr(request)


def test_an_illegal_move_is_a_defect_and_says_so(demux: Demux) -> None:
    request = opened(demux)
    demux.receive(answer(str(request.id)), None, 0)
    with pytest.raises(IllegalMove):
        demux._step(request, "answer")
    with pytest.raises(IllegalMove):
        demux._close_server_request(ServerRequest(asks(), None, 0), "expire", 0)  # type: ignore[arg-type]


def test_params_may_be_absent(demux: Demux) -> None:
    _, text = demux.open(read('{"jsonrpc":"2.0","id":1,"method":"m"}'), Waiting(), 0)  # type: ignore[arg-type]
    assert "params" not in json.loads(text)


def test_what_is_given_back_while_idle_is_nothing_that_is_in_flight(demux: Demux) -> None:
    request = opened(demux)
    demux.trim()
    assert demux.inflight == 1
    assert isinstance(demux.receive(answer(str(request.id)), request, 1.0), Answered)
    demux.trim()
    assert (demux.is_idle, opened(demux).id) == (True, request.id + 1)


def test_g10_the_room_of_what_was_in_flight_is_given_back() -> None:
    made = Demux(max_inflight=1000, timeout=TIMEOUT)
    made.feed(range(1, 2000))
    tracemalloc.start()
    try:
        caller = Waiting()
        for request in [made.open(call(), caller, 0)[0] for _ in range(1000)]:  # type: ignore[arg-type]
            made.receive(answer(str(request.id)), None, 0)
        made.trim()
        assert tracemalloc.get_traced_memory()[0] < 8192
    finally:
        tracemalloc.stop()


def test_g10_the_method_of_what_a_server_asks_is_not_kept_whole(demux: Demux) -> None:
    event = demux.receive(read(f'{{"jsonrpc":"2.0","id":1,"method":"{"x" * 100_000}"}}'), None, 0)
    assert isinstance(event, Asked)
    assert len(event.message.method) == 100_000
    assert len(event.request.method) < 100
