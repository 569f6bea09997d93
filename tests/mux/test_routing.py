"""Who gets what: attribution, placement, capabilities, and the call that a cancellation means."""

import tracemalloc

import pytest
from msgspec import Raw
from trunkline.mux.envelope import Envelope, Members, members_of, parse
from trunkline.mux.routing import InFlight, attribute, place, refusal


def read(text: str) -> Envelope:
    return parse(text.encode(), limit=1 << 20)


def asks(method: str, params: str = "{}", id: str = '"s"') -> Envelope:
    return read(f'{{"jsonrpc":"2.0","id":{id},"method":"{method}","params":{params}}}')


def cancel(params: str) -> Envelope:
    return read(f'{{"jsonrpc":"2.0","method":"notifications/cancelled","params":{params}}}')


def capabilities(text: str) -> Members:
    found = members_of(Raw(text.encode()))
    assert found is not None
    return found


def test_r1_the_asker_is_meant_else_the_only_one_else_nobody() -> None:
    assert attribute("a", ["a", "b"]) == "a"
    assert attribute(None, ["b"]) == "b"
    assert attribute(None, ["a", "b"]) is None
    assert attribute(None, []) is None


@pytest.mark.parametrize(
    ("origin", "newest", "is_listening", "due"),
    [
        ("asker", "newest", False, "asker"),
        ("asker", "newest", True, "asker"),
        ("asker", None, True, "asker"),
        (None, "newest", True, None),
        (None, None, True, None),
        (None, "newest", False, "newest"),
        (None, None, False, None),
    ],
)
def test_r2_each_request_has_exactly_one_place(
    origin: str | None, newest: str | None, is_listening: bool, due: str | None
) -> None:
    assert place(origin, newest, is_listening=is_listening) == due


@pytest.mark.parametrize(
    ("method", "params", "declared", "code"),
    [
        ("roots/list", "{}", "{}", -32601),
        ("roots/list", "{}", '{"roots":{}}', None),
        ("sampling/createMessage", "{}", "{}", -32601),
        ("sampling/createMessage", "{}", '{"sampling":{}}', None),
        ("elicitation/create", "{}", "{}", -32601),
        ("elicitation/create", "{}", '{"elicitation":{}}', None),
        ("elicitation/create", '{"mode":"form"}', '{"elicitation":{"form":{}}}', None),
        ("elicitation/create", '{"mode":"url"}', '{"elicitation":{}}', -32602),
        ("elicitation/create", '{"mode":"url"}', '{"elicitation":{"url":{}}}', None),
        ("elicitation/create", "{}", '{"elicitation":{"url":{}}}', -32602),
        ("elicitation/create", "[]", '{"elicitation":1}', None),
        ("vendor/ask", "{}", "{}", None),
    ],
)
def test_r3_r10_what_the_client_did_not_declare_is_refused(
    method: str, params: str, declared: str, code: int | None
) -> None:
    error = refusal(asks(method, params), capabilities(declared))
    assert (None if error is None else error.code) == code


def test_e12_a_cancel_finds_the_one_call_that_it_means() -> None:
    calls: InFlight[str] = InFlight()
    calls.enter(b"5", "number")
    calls.enter(b'"5"', "string")
    assert len(calls) == 2
    assert calls.withdraw(cancel('{"requestId":5}'), lambda call: True).call == "number"
    assert calls.withdraw(cancel('{"requestId":"\\u0035"}'), lambda call: True).call == "string"
    for unknown in ('{"requestId":6}', "{}", '{"requestId":null}', '{"requestId":1.5}', "[]"):
        assert calls.withdraw(cancel(unknown), lambda call: True) == (None, "unknown_cancel")


def test_calls_in_flight_outlast_a_trim() -> None:
    calls: InFlight[str] = InFlight()
    calls.enter(b"1", "one")
    calls.trim()
    assert calls.withdraw(cancel('{"requestId":1}'), lambda call: True).call == "one"
    calls.leave(b"1", "one")
    calls.trim()
    assert calls.withdraw(cancel('{"requestId":1}'), lambda call: True).call is None
    assert len(calls) == 0


def test_g10_the_room_of_calls_that_ended_is_given_back() -> None:
    calls: InFlight[str] = InFlight()
    tracemalloc.start()
    try:
        for act in (calls.enter, calls.leave):
            for n in range(1000):
                act(b"%d" % n, "call")
        calls.trim()
        assert tracemalloc.get_traced_memory()[0] < 8192
    finally:
        tracemalloc.stop()


def test_g1_a_cancel_that_could_mean_either_means_neither() -> None:
    calls: InFlight[str] = InFlight()
    calls.enter(b"1", "a")
    calls.enter(b"1", "b")
    assert calls.withdraw(cancel('{"requestId":1}'), lambda call: True) == (None, "ambiguous_cancel")
    calls.leave(b"1", "a")
    calls.leave(b"1", "a")
    assert calls.withdraw(cancel('{"requestId":1}'), lambda call: True).call == "b"
    calls.leave(b"1", "b")
    assert len(calls) == 0


def test_e12_a_cancellation_means_only_a_call_of_its_own_wire() -> None:
    calls: InFlight[str] = InFlight()
    calls.enter(b"1", "of this wire")
    calls.enter(b"1", "of another")
    assert calls.withdraw(cancel('{"requestId":1}'), lambda call: call == "of this wire").call == "of this wire"
    assert calls.withdraw(cancel('{"requestId":1}'), lambda call: False) == (None, "unknown_cancel")
