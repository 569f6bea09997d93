"""How a workflow ends, what its client and its server are told, and that nothing of it is left."""

import json
from functools import partial

import pytest
from harness.memory_wire import message
from harness.muxing import ALICE, BOB, Bench, Client, bench, initialize, response, settle, some
from trunkline.mux.errors import SessionLost
from trunkline.mux.streams import Reader

pytestmark = pytest.mark.anyio

SAMPLES = initialize(capabilities={"sampling": {}})


async def lost_calls(at: Bench, *, stop: str) -> tuple[Client, list[dict[str, object]]]:
    client = await at.client(ALICE)
    exchanges = [client.call(id=b"%d" % n) for n in range(3)]
    await at.server.got("tools/call", 3)
    if stop == "lost":
        at.server.session.receiver.lost(SessionLost("the server is gone", executed="unknown"))
    else:
        await at.pool.end(client.workflow, stop)
    return client, [await client.answer(exchange) for exchange in exchanges]


@pytest.mark.parametrize("stop", ["lost", "deleted"])
async def test_the_calls_of_a_session_that_ends_fail_and_may_have_run(stop: str) -> None:
    async with bench() as at:
        client, answers = await lost_calls(at, stop=stop)
        assert [answer["id"] for answer in answers] == [0, 1, 2]
        for answer in answers:
            assert answer["error"]["code"] == -31002  # type: ignore[index]
            assert answer["error"]["data"] == {"executed": "unknown"}  # type: ignore[index]
        await at.ended("upstream_lost" if stop == "lost" else stop)
        late = await client.answer(client.call())
        assert late["error"]["data"] == {"executed": "no"}
        await at.closed()


async def test_g6_calls_that_a_forgotten_session_refused_surely_did_not_run() -> None:
    async with bench() as at:
        client = await at.client()
        running = client.call(id=b"1")
        await at.server.got("tools/call")
        at.server.session.forget()
        refused = [client.call(id=b"%d" % n) for n in (2, 3)]
        assert (await client.answer(running))["error"]["data"] == {"executed": "unknown"}
        for exchange in refused:
            assert (await client.answer(exchange))["error"]["data"] == {"executed": "no"}
        await at.ended("upstream_lost")


async def test_the_loss_of_one_session_costs_nobody_else_anything() -> None:
    async with bench() as at:
        bob = await at.client(BOB)
        exchange = bob.call()
        upstream = await at.server.got("tools/call")
        await at.client(ALICE)
        at.server.session.receiver.lost(SessionLost("the server is gone", executed="unknown"))
        await at.ended("upstream_lost")
        upstream.answer()
        assert "result" in await bob.answer(exchange)


@pytest.mark.parametrize("stop", ["deleted", "lost"])
async def test_what_the_server_asked_is_refused_when_the_session_ends(stop: str) -> None:
    async with bench() as at:
        client = await at.client(message=SAMPLES)
        reader = client.workflow.streams.attach_standalone()
        session = at.server.session
        session.tell(message("sampling/createMessage", {}, id="s"))
        asked = json.loads((await some(reader))[0][1])
        if stop == "lost":
            session.receiver.lost(SessionLost("gone", executed="unknown"))
        else:
            await at.pool.end(client.workflow, stop)
            refused = await at.server.got("response")
            assert (refused.json["id"], refused.json["error"]["code"]) == ("s", -31002)
        client.workflow.respond(response(asked["id"]))
        assert at.counts["unknown_answers", "x"] == 1
        assert await reader.next(0) is None
        reader.close()


async def test_a_question_is_refused_when_the_client_does_not_come_back() -> None:
    async with bench(resume_window=50) as at:
        client = await at.client(message=SAMPLES)
        at.server.session.tell(message("sampling/createMessage", {}, id="s"))
        at.clock.advance(50.1)
        refused = await at.server.got("response")
        assert (refused.json["id"], refused.json["error"]["code"]) == ("s", -31002)
        assert not client.workflow.ended
        assert at.held == 0, "nor is the question kept for it"


async def test_a_question_waits_as_long_as_the_client_has_a_wire() -> None:
    async with bench(resume_window=50) as at:
        canary = await at.client(message=SAMPLES)
        at.server.session.tell(message("sampling/createMessage", {}, id="canary"))
        client = await at.client(message=SAMPLES)
        reader = client.workflow.streams.attach_standalone()
        at.server.session.tell(message("sampling/createMessage", {}, id="s"))
        asked = json.loads((await some(reader))[0][1])
        at.clock.advance(1000)
        assert (await at.server.got("response")).json["id"] == "canary"
        assert not canary.workflow.ended
        await settle()
        client.workflow.respond(response(asked["id"], {"role": "assistant"}))
        assert (await at.server.got("response", 2)).json == {
            "jsonrpc": "2.0",
            "id": "s",
            "result": {"role": "assistant"},
        }
        reader.close()


async def test_readers_may_leave_as_soon_as_they_hear_of_the_end() -> None:
    def leave(reader: Reader) -> None:
        if reader.due() is None:
            reader.close()

    async with bench() as at:
        client = await at.client(ALICE)
        for n in range(2):
            exchange = client.call(id=b"%d" % n)
            reader = client.workflow.streams.attach(exchange.turn_into_stream(), 0)
            reader.on_wake = partial(leave, reader)
            client.leave()
        await at.pool.end(client.workflow, "deleted")
        await at.closed()
        at.at_rest()
