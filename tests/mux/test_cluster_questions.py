"""Questions and cancellations of one workflow at several workers: whom they reach."""

import json

import pytest
from harness.clustering import QUESTION, Member, Workers, journal, started, streamed, two, workers
from harness.muxing import ALICE, initialize, some
from trunkline.mux.envelope import parse
from trunkline.mux.errors import Elsewhere
from trunkline.mux.placement import concern_of
from trunkline.mux.principal import ANONYMOUS
from trunkline.mux.request import EXTENSIONS
from trunkline.mux.residents import Residents

pytestmark = pytest.mark.anyio


async def sampling(at: Workers) -> tuple[Member, Member, str]:
    a, b = await at.start(), await at.start()
    client = await a.client(message=initialize(capabilities={"sampling": {}}))
    return a, b, client.workflow.record.session_id


async def left_asked(at: Workers) -> tuple[Member, Member, str, int]:
    """A client was asked something by the first worker, which has died: the number that it knows this by."""
    a, b, session_id = await sampling(at)
    reader = (await a.find(session_id)).workflow.streams.attach_standalone()
    at.server.session.tell(QUESTION)
    [(_, text)] = await some(reader)
    await journal(a)
    await at.lose(a)
    return a, b, session_id, json.loads(text)["id"]


async def test_a_question_asked_by_a_dead_worker_is_answered_through_its_successor() -> None:
    async with workers() as at:
        a, b, session_id, asked = await left_asked(at)
        answer = parse(b'{"jsonrpc":"2.0","id":%d,"result":{"n":1}}' % asked, limit=1000)
        concern = concern_of([answer])
        assert concern.worker == a.number
        for _ in range(2):
            (await b.find(session_id, concern)).workflow.respond(answer)
        sent = await at.server.got("response")
        assert sent.json == {"jsonrpc": "2.0", "id": "q1", "result": {"n": 1}}
        assert len(at.server.of("response")) == 1
        assert b.pool.statistics.counts["unknown_answers", "x"] == 1


async def test_a_question_asked_by_a_dead_worker_that_nobody_answers_is_refused_in_time() -> None:
    async with workers(request_timeout=10) as at:
        _, b, session_id, asked = await left_asked(at)
        heard = (await b.find(session_id)).workflow.streams.attach_standalone()
        await at.pass_time(10 * EXTENSIONS - 1)
        assert not at.server.of("response"), "it has as much time as any other"
        await at.pass_time(2)
        refused = (await at.server.got("response")).json
        assert (refused["id"], refused["error"]["code"]) == ("q1", -31004)
        [told] = [json.loads(text) for _, text in await some(heard)]
        assert (told["method"], told["params"]["requestId"]) == ("notifications/cancelled", asked)


async def test_an_answer_goes_to_the_worker_that_asked() -> None:
    async with workers() as at:
        a, b, session_id = await sampling(at)
        beside = await b.beside(session_id)
        _, reader = await streamed(b, beside)
        (await at.server.got("tools/call")).say(QUESTION)
        [(_, text)] = await some(reader)
        answer = parse(b'{"jsonrpc":"2.0","id":%d,"result":{}}' % json.loads(text)["id"], limit=1000)
        member, workflow = await at.serve(session_id, a, concern_of([answer]))
        assert member is b
        workflow.respond(answer)
        assert (await at.server.got("response")).json["id"] == "q1"


async def test_a_cancellation_finds_the_worker_at_which_its_call_is_in_flight() -> None:
    async with two() as (at, a, b, session_id):
        at.server.on_request = None
        beside = await b.beside(session_id)
        waiting = beside.call(id=b"5")
        cancelled = parse(b'{"jsonrpc":"2.0","method":"notifications/cancelled","params":{"requestId":5}}', limit=1000)
        assert a.pool.lookup.find_calls(ANONYMOUS, "x", session_id, None, cancelled) == []
        assert b.pool.lookup.find_calls(ALICE, "x", session_id, None, cancelled) == []
        assert b.pool.lookup.find_calls(ANONYMOUS, "x", session_id, "another", cancelled) == []
        assert b.pool.lookup.find_calls(ANONYMOUS, "x", None, None, cancelled) == []
        [found] = b.pool.lookup.find_calls(ANONYMOUS, "x", session_id, None, cancelled)
        assert found is beside.workflow
        found.notify(cancelled, {})
        assert "error" in await beside.answer(waiting)
        await at.server.got("notifications/cancelled")


async def test_calls_that_a_cancellation_can_mean_are_found_by_key_and_counted_each(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async with started(2) as (_, a, b):
        client = await a.client(key="k")
        for raw in (b"5", b"5", b"6"):
            client.call(id=raw)
        cancelled = parse(b'{"jsonrpc":"2.0","method":"notifications/cancelled","params":{"requestId":5}}', limit=1000)
        beside = await b.beside(client.workflow.record.session_id)
        beside.call(id=b"5")
        with monkeypatch.context() as patched:  # each client that cancels would have all looked at, at each worker
            patched.setattr(Residents, "served", property(lambda _: pytest.fail("all are looked at")))
            found = [one.pool.lookup.find_calls(ANONYMOUS, "x", None, "k", cancelled) for one in (a, b)]
        assert found == [[client.workflow] * 2, [beside.workflow]]
        assert a.pool.lookup.find_calls(ANONYMOUS, "x", None, "other", cancelled) == []
        assert a.pool.lookup.find_calls(ALICE, "x", None, "k", cancelled) == []


async def test_what_a_dead_worker_named_is_looked_for_here() -> None:
    async with two() as (at, a, b, _):
        with pytest.raises(Elsewhere):
            await a.pool.send_on(b.number)
        await a.pool.send_on(a.number)
        await a.pool.send_on(99)
        await at.lose(b)
        await a.pool.send_on(b.number)
