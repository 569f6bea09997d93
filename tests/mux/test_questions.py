"""What servers ask: under numbers of the client's own, answered once, by whichever worker the client comes to."""

import json
from math import inf

import pytest
from harness.memory_wire import message
from harness.muxing import bench, initialize, notification, response
from trunkline.mux.directory import Entry
from trunkline.mux.envelope import Envelope, parse
from trunkline.mux.errors import MethodNotFound, SessionLost, TrunklineError
from trunkline.mux.questions import Inherited, Questions
from trunkline.mux.request import ServerRequest

ALL = b'{"roots":{},"sampling":{}}'


class Via:
    """Keeps what would go to a server."""

    def __init__(self) -> None:
        self.answered: list[tuple[ServerRequest, Envelope | TrunklineError]] = []
        self.told: list[bytes] = []

    def respond(self, request: ServerRequest, message: Envelope) -> None:
        self.answered.append((request, message))

    def refuse(self, request: ServerRequest, error: TrunklineError) -> None:
        self.answered.append((request, error))

    def tell(self, message: bytes) -> None:
        self.told.append(message)


def read(text: str) -> Envelope:
    return parse(text.encode(), limit=1 << 20)


def asks(method: str = "roots/list", params: str = "{}", id: str = '"s"') -> Envelope:
    return read(f'{{"jsonrpc":"2.0","id":{id},"method":"{method}","params":{params}}}')


def cancel(params: str) -> Envelope:
    return read(f'{{"jsonrpc":"2.0","method":"notifications/cancelled","params":{params}}}')


def ask(questions: Questions, via: Via, question: Envelope | None = None) -> tuple[ServerRequest, bytes]:
    question = question or asks()
    request = ServerRequest(question, None, 0)
    return request, questions.ask(request, question, via)


def test_e5_a_question_gets_an_id_of_this_clients_own_and_is_answered_once() -> None:
    questions, via = Questions(ALL), Via()
    first, text = ask(questions, via, asks(id="77"))
    ask(questions, via, asks(id="77"))
    assert json.loads(text)["id"] == 1
    answer = response(1)
    assert questions.answer(answer)
    assert via.answered == [(first, answer)]
    assert not questions.answer(answer)
    questions.repeat()
    assert (len(questions), questions.knows(1), questions.knows(2)) == (1, False, True)
    for unknown in ('{"jsonrpc":"2.0","id":"s","result":{}}', '{"jsonrpc":"2.0","error":{"code":1}}'):
        assert not questions.answer(read(unknown))
    assert len(via.answered) == 1


def test_e2_a_client_may_echo_the_number_of_a_question_as_a_string() -> None:
    questions, via = Questions(ALL), Via()
    asked, _ = ask(questions, via, asks(params='{"_meta":{"progressToken":"mine"}}', id="77"))
    assert questions.progress(notification("notifications/progress", {"progressToken": "1", "progress": 1})) is None
    assert json.loads(via.told[0])["params"]["progressToken"] == "mine"
    assert questions.answer(read('{"jsonrpc":"2.0","id":"1","result":{}}'))
    assert [request for request, _ in via.answered] == [asked]


def test_r4_what_is_settled_is_not_written_as_open_behind_that() -> None:
    """Where the word of its end is the one with which all that is open has to be written again."""
    written: list[Entry] = []

    def write(entry: Entry) -> None:
        written.append(entry)
        if entry.kind == "settled":
            questions.repeat()

    questions, via = Questions(ALL, write=write), Via()
    ask(questions, via)
    ask(questions, via)
    assert questions.answer(response(1))
    assert [(entry.kind, entry.n) for entry in written] == [
        ("asked", 1),
        ("asked", 2),
        ("settled", 1),
        ("asked", 2),
    ]


def test_r3_what_the_client_did_not_declare_is_not_asked() -> None:
    for capabilities in (b"{}", b"null"):
        questions = Questions(capabilities)
        with pytest.raises(MethodNotFound):
            ask(questions, Via())
        assert len(questions) == 0


def test_a_question_without_params_stays_without() -> None:
    _, text = ask(Questions(ALL), Via(), read('{"jsonrpc":"2.0","id":1,"method":"roots/list"}'))
    assert json.loads(text) == {"jsonrpc": "2.0", "id": 1, "method": "roots/list"}


def test_the_servers_progress_token_is_mirrored() -> None:
    questions, via = Questions(ALL), Via()
    _, text = ask(questions, via, asks("sampling/createMessage", '{"_meta":{"progressToken":"tok"}}'))
    assert json.loads(text)["params"]["_meta"]["progressToken"] == 1
    questions.progress(notification("notifications/progress", {"progressToken": 1, "progress": 5}))
    assert [json.loads(told)["params"] for told in via.told] == [{"progressToken": "tok", "progress": 5}]
    ask(questions, via)
    for unknown in ({"progressToken": 2}, {"progressToken": "x"}, {"progressToken": {}}, {}, []):
        questions.progress(notification("notifications/progress", unknown))
    assert len(via.told) == 1


def test_e18_progress_of_a_clients_task_goes_on_when_the_question_is_answered() -> None:
    questions, via = Questions(ALL), Via()
    _, text = ask(questions, via, asks("sampling/createMessage", '{"task":{},"_meta":{"progressToken":"tok"}}'))
    token = json.loads(text)["params"]["_meta"]["progressToken"]
    progress = notification("notifications/progress", {"progressToken": token, "progress": 5})
    assert questions.progress(progress) is None
    assert [json.loads(told)["params"] for told in via.told] == [{"progressToken": "tok", "progress": 5}]
    assert questions.answer(response(1, {"task": {}}))
    told = questions.progress(progress)
    assert told is not None
    assert json.loads(told)["params"] == {"progressToken": "tok", "progress": 5}
    assert len(via.told) == 1


def test_a_question_that_was_taken_back_names_this_clients_id() -> None:
    questions = Questions(ALL)
    ask(questions, Via())
    request, _ = ask(questions, Via())
    retracted = questions.retract(request, cancel('{"requestId":"s","reason":"r"}'))
    assert retracted is not None
    text, carried = retracted
    assert carried is None
    assert json.loads(text)["params"] == {"requestId": 2, "reason": "r"}
    assert questions.retract(request, cancel("[]")) is None
    request, _ = ask(questions, Via())
    assert questions.retract(request, cancel("[]")) is not None


def test_the_questions_of_one_channel_are_void_and_all_others_refused() -> None:
    questions, one, two = Questions(ALL), Via(), Via()
    ask(questions, one)
    second, _ = ask(questions, two)
    questions.void(one)
    assert len(questions) == 1
    gone = SessionLost("gone", executed="unknown")
    questions.refuse(gone)
    assert (one.answered, two.answered) == ([], [(second, gone)])
    assert len(questions) == 0


def test_questions_are_noted_for_who_comes_after() -> None:
    noted: list[Entry] = []
    questions = Questions(ALL, iter(range(40, 50)), noted.append)
    for _ in range(2):
        ask(questions, Via(), asks(id='"q"'))
    assert questions.answer(response(40))
    first, second = Entry("asked", 0, 40, b'"q"'), Entry("asked", 0, 41, b'"q"')
    assert noted == [first, second, Entry("settled", 0, 40)]
    questions.repeat()
    assert noted[3:] == [second], "what waits is told once more"
    questions.let_go()
    assert len(questions) == 0
    assert len(noted) == 4, "it waits for its answer, elsewhere"


@pytest.mark.anyio
async def test_with_them_is_noted_which_stream_carries_them_and_by_who_goes_on_with_them_too() -> None:
    async with bench() as at:
        client = await at.client(message=initialize(capabilities={"roots": {}}))
        exchange = client.call()
        noted: list[Entry] = []
        questions = Questions(ALL, iter(range(40, 50)), noted.append, lambda: 7)
        for asker in (None, exchange):
            questions.ask(ServerRequest(asks(), None, 0), asks(), Via(), asker)
        assert exchange.stream is not None
        questions.restore(Entry("asked", 9, 30, b'"q"'), client.workflow.line, inf)
        questions.repeat()
        carried = [(40, 7), (41, exchange.stream.number), (30, 9)]
        assert [(entry.n, entry.stream) for entry in noted] == [*carried[:2], *carried]
        client.leave()


@pytest.mark.anyio
async def test_r4_what_another_worker_asked_is_refused_when_its_time_is_over() -> None:
    async with bench() as at:
        workflow, questions = (await at.client()).workflow, Questions(ALL)
        ask(questions, Via())
        assert questions.due == inf, "what is asked here is timed out where it was asked"
        for number, deadline in ((77, 10), (78, 20)):
            questions.restore(Entry("asked", 0, number, b"%d" % (number * 2)), workflow.line, deadline)
        assert questions.due == 10
        assert questions.expire(9) == []
        [told] = questions.expire(10)
        assert json.loads(told)["params"] == {"requestId": 77, "reason": "timed out"}
        refused = (await at.server.got("response")).json
        assert (refused["id"], refused["error"]["code"]) == (154, -31004)
        assert (questions.due, questions.knows(77), questions.knows(78)) == (20, False, True)


@pytest.mark.anyio
async def test_what_another_worker_asked_is_answered_under_the_servers_own_id() -> None:
    async with bench() as at:
        workflow = (await at.client(message=initialize(capabilities={"roots": {}}))).workflow
        workflow.questions.restore(Entry("asked", 0, 77, b'"q"'), workflow.line, inf)
        workflow.questions.restore(Entry("asked", 0, 78, b"5"), workflow.line, inf)
        workflow.respond(response(77, {"n": 1}))
        assert (await at.server.got("response")).json == {"jsonrpc": "2.0", "id": "q", "result": {"n": 1}}
        workflow.respond(response(77, {"n": 2}))
        assert at.counts["unknown_answers", "x"] == 1
        workflow.questions.refuse(SessionLost("nobody is there", executed="unknown"))
        refused = (await at.server.got("response", 2)).json
        assert (refused["id"], refused["error"]["code"]) == (5, -31002)
        Inherited(workflow.line).tell(message("notifications/x-vendor"))
        await at.server.got("notifications/x-vendor")
