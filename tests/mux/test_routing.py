"""Who gets what: attribution, placement, capabilities, and a client's view of ids."""

import json

import pytest
from msgspec import Raw
from trunkline.mux.demux import ServerRequest
from trunkline.mux.envelope import Envelope, Members, members_of, parse
from trunkline.mux.routing import Desk, attribute, place, refusal


class Via:
    """A channel that only has an identity."""


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
    ("origin", "attached", "exchanges", "due"),
    [
        (True, True, True, "exchange"),
        (True, False, True, "exchange"),
        (False, True, True, "home"),
        (False, True, False, "home"),
        (False, False, True, "newest"),
        (False, False, False, "home"),
    ],
)
def test_r2_each_request_has_exactly_one_place(origin: bool, attached: bool, exchanges: bool, due: str) -> None:
    assert place(origin_open=origin, listening=attached, exchanges_open=exchanges) == due


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
    desk: Desk[str] = Desk()
    desk.enter(b"5", "number")
    desk.enter(b'"5"', "string")
    assert len(desk) == 2
    assert desk.withdraw(cancel('{"requestId":5}'), lambda call: True).call == "number"
    assert desk.withdraw(cancel('{"requestId":"\\u0035"}'), lambda call: True).call == "string"
    for unknown in ('{"requestId":6}', "{}", '{"requestId":null}', '{"requestId":1.5}', "[]"):
        assert desk.withdraw(cancel(unknown), lambda call: True) == (None, "unknown_cancel")


def test_calls_in_flight_outlast_a_trim() -> None:
    desk: Desk[str] = Desk()
    desk.enter(b"1", "one")
    desk.trim()
    assert desk.withdraw(cancel('{"requestId":1}'), lambda call: True).call == "one"
    desk.leave(b"1", "one")
    desk.trim()
    assert desk.withdraw(cancel('{"requestId":1}'), lambda call: True).call is None
    assert len(desk) == 0


def test_g1_a_cancel_that_could_mean_either_means_neither() -> None:
    desk: Desk[str] = Desk()
    desk.enter(b"1", "a")
    desk.enter(b"1", "b")
    assert desk.withdraw(cancel('{"requestId":1}'), lambda call: True) == (None, "ambiguous_cancel")
    desk.leave(b"1", "a")
    desk.leave(b"1", "a")
    assert desk.withdraw(cancel('{"requestId":1}'), lambda call: True).call == "b"
    desk.leave(b"1", "b")
    assert len(desk) == 0


def asked(desk: Desk[str], via: Via, message: Envelope) -> tuple[ServerRequest, bytes]:
    request = ServerRequest(message, None, 0)
    return request, desk.ask(request, message, via)  # type: ignore[arg-type]


def test_e5_a_question_gets_an_id_of_this_clients_own_and_is_answered_once() -> None:
    desk: Desk[str] = Desk()
    via = Via()
    first, text = asked(desk, via, asks("roots/list", id="77"))
    second, _ = asked(desk, via, asks("roots/list", id="77"))
    assert json.loads(text)["id"] == 1
    answer = read('{"jsonrpc":"2.0","id":1,"result":{}}')
    question = desk.answer(answer)
    assert question is not None
    assert question.request is first
    assert question.via is via
    assert desk.answer(answer) is None
    desk.repeat()
    assert [q.request for q in desk.questions] == [second]
    for unknown in ('{"jsonrpc":"2.0","id":"2","result":{}}', '{"jsonrpc":"2.0","error":{"code":1}}'):
        assert desk.answer(read(unknown)) is None


def test_a_question_without_params_stays_without() -> None:
    _, text = asked(Desk(), Via(), read('{"jsonrpc":"2.0","id":1,"method":"roots/list"}'))
    assert json.loads(text) == {"jsonrpc": "2.0", "id": 1, "method": "roots/list"}


def test_the_servers_progress_token_is_mirrored() -> None:
    desk: Desk[str] = Desk()
    via = Via()
    _, text = asked(desk, via, asks("sampling/createMessage", '{"_meta":{"progressToken":"tok"}}'))
    assert json.loads(text)["params"]["_meta"]["progressToken"] == 1

    def progress(params: str) -> Envelope:
        return read(f'{{"jsonrpc":"2.0","method":"notifications/progress","params":{params}}}')

    found = desk.progress(progress('{"progressToken":1,"progress":5}'))
    assert found is not None
    assert found[1] is via
    assert json.loads(found[0])["params"] == {"progressToken": "tok", "progress": 5}
    asked(desk, via, asks("roots/list"))
    for unknown in ('{"progressToken":2}', '{"progressToken":"1"}', '{"progressToken":{}}', "{}", "[]"):
        assert desk.progress(progress(unknown)) is None


def test_a_question_that_was_taken_back_names_this_clients_id() -> None:
    desk: Desk[str] = Desk()
    asked(desk, Via(), asks("roots/list"))
    request, _ = asked(desk, Via(), asks("roots/list"))
    text = desk.retract(request, cancel('{"requestId":"s","reason":"r"}'))
    assert text is not None
    assert json.loads(text)["params"] == {"requestId": 2, "reason": "r"}
    assert desk.retract(request, cancel("[]")) is None
    request, _ = asked(desk, Via(), asks("roots/list"))
    assert desk.retract(request, cancel("[]")) is not None


def test_the_questions_of_one_channel_are_forgotten_or_those_of_all() -> None:
    desk: Desk[str] = Desk()
    one, two = Via(), Via()
    first, _ = asked(desk, one, asks("roots/list"))
    second, _ = asked(desk, two, asks("roots/list"))
    assert [q.request for q in desk.forget(one)] == [first]  # type: ignore[arg-type]
    assert [q.request for q in desk.forget()] == [second]
    assert desk.questions == ()


def test_e12_a_cancellation_means_only_a_call_of_its_own_wire() -> None:
    desk: Desk[str] = Desk()
    desk.enter(b"1", "of this wire")
    desk.enter(b"1", "of another")
    assert desk.withdraw(cancel('{"requestId":1}'), lambda call: call == "of this wire").call == "of this wire"
    assert desk.withdraw(cancel('{"requestId":1}'), lambda call: False) == (None, "unknown_cancel")


def test_questions_are_noted_for_who_comes_after() -> None:
    noted: list[tuple[str, int, bytes]] = []
    desk: Desk[str] = Desk(iter(range(40, 50)), lambda *note: noted.append(note))
    message = read('{"jsonrpc":"2.0","id":"q","method":"roots/list"}')
    via = Via()
    for _ in range(2):
        asked(desk, via, message)
    assert desk.knows(40)
    assert desk.answer(read('{"jsonrpc":"2.0","id":40,"result":{}}')) is not None
    assert not desk.knows(40)
    assert noted == [("asked", 40, b'"q"'), ("asked", 41, b'"q"'), ("settled", 40, b"")]
    desk.repeat()
    assert noted[3:] == [("asked", 41, b'"q"')], "what waits is told once more"
    desk.let_go()
    assert not desk.questions
    assert len(noted) == 4, "it waits for its answer, elsewhere"


def test_a_question_of_another_worker_is_answered_once() -> None:
    desk: Desk[str] = Desk()
    request = ServerRequest(read('{"jsonrpc":"2.0","id":"q","method":"roots/list"}'), None, 0)
    desk.restore(77, request, Via())  # type: ignore[arg-type]
    answer = read('{"jsonrpc":"2.0","id":77,"result":{}}')
    question = desk.answer(answer)
    assert question is not None
    assert question.request is request
    assert desk.answer(answer) is None
