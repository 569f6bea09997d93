"""What a server asks while its calls run: on which of a client's streams it comes, and whose answer counts."""

import json
from typing import Any

import pytest
from harness.memory_wire import Exchange as Upstream
from harness.memory_wire import message
from harness.muxing import Bench, Client, bench, idle, initialize, notification, patience, request, response, some
from trunkline.mux.duplexes import MAX_LEFT
from trunkline.mux.event_log import Stream
from trunkline.mux.exchange import Exchange
from trunkline.mux.ports import NONE
from trunkline.mux.request import EXTENSIONS
from trunkline.mux.streams import Reader

pytestmark = pytest.mark.anyio

ALL = {"sampling": {}, "elicitation": {"form": {}, "url": {}}, "roots": {}}
ASKS = initialize(capabilities=ALL)
LOG = message("notifications/message", {"level": "info", "data": 1})

QUESTIONS = {
    "sampling/createMessage": ("sampling", {}),
    "elicitation/create": ("elicitation", {"mode": "form"}),
    "roots/list": ("roots", None),
}


async def stream_of(exchange: Exchange) -> Stream:
    async with patience():
        stream = await exchange.ready
    assert isinstance(stream, Stream)
    return stream


async def asked_on(reader: Reader) -> dict[str, Any]:
    """The one message that came on a stream."""
    read: dict[str, Any] = json.loads((await some(reader))[0][1])
    return read


async def test_g3_what_a_server_says_behind_its_answer_is_for_who_listens() -> None:
    async with bench() as at:
        client = await at.client()
        exchange = client.call()
        [upstream] = at.server.of("tools/call")
        upstream.say(b'{"jsonrpc":"2.0","id":%s,"result":{}}' % upstream.id)
        upstream.finish(LOG)
        assert len(await client.answers(exchange)) == 1
        reader = client.workflow.streams.attach_standalone()
        assert (await asked_on(reader))["method"] == "notifications/message"
        reader.close()


@pytest.mark.parametrize("method", QUESTIONS)
async def test_r3_a_client_is_not_asked_for_what_it_did_not_declare(method: str) -> None:
    async with bench() as at:
        name, params = QUESTIONS[method]
        others = {declared: value for declared, value in ALL.items() if declared != name}
        client = await at.client(message=initialize(capabilities=others))
        exchange = client.call()
        [upstream] = at.server.of("tools/call")
        upstream.say(message(method, params, id="s"))
        refused = await at.server.got("response")
        assert (refused.json["id"], refused.json["error"]["code"]) == ("s", -32601)
        assert at.counts["refused_server_requests", "x"] == 1
        upstream.answer()
        assert len(await client.answers(exchange)) == 1


async def test_r3_a_mode_of_elicitation_that_was_not_declared_is_refused() -> None:
    async with bench() as at:
        await at.client(message=initialize(capabilities={"elicitation": {}}))
        at.server.session.tell(message("elicitation/create", {"mode": "url"}, id=1))
        assert (await at.server.got("response")).json["error"]["code"] == -32602


@pytest.mark.parametrize("method", QUESTIONS)
async def test_r2_a_question_comes_on_the_exchange_that_asked(method: str) -> None:
    async with bench() as at:
        client = await at.client(message=ASKS)
        standalone = client.workflow.streams.attach_standalone()
        await standalone.next(0)
        exchanges = [client.call(id=b"%d" % n) for n in range(3)]
        upstream = at.server.of("tools/call")[1]
        upstream.say(message(method, QUESTIONS[method][1], id="s"))
        reader = client.workflow.streams.attach(await stream_of(exchanges[1]), 0)
        asked = await asked_on(reader)
        assert asked["method"] == method
        assert isinstance(asked["id"], int)
        assert await idle(standalone)
        assert not exchanges[0].ready.done()
        assert not exchanges[2].ready.done()
        client.workflow.respond(response(asked["id"], {"n": 10**29}))
        answered = await at.server.got("response")
        assert answered.json == {"jsonrpc": "2.0", "id": "s", "result": {"n": 10**29}}
        await finish(at, client, [standalone, reader])


async def finish(at: Bench, client: Client, readers: list[Reader]) -> None:
    for upstream in at.server.of("tools/call"):
        upstream.answer()
        client.leave()
    for reader in readers:
        reader.close()


async def test_r2_a_question_without_a_call_comes_on_the_standalone_stream_if_it_is_read() -> None:
    async with bench() as at:
        client = await at.client(message=ASKS)
        standalone = client.workflow.streams.attach_standalone()
        exchange = client.call()
        at.server.session.tell(message("roots/list", id=1))
        assert (await asked_on(standalone))["method"] == "roots/list"
        assert not exchange.ready.done()
        await finish(at, client, [standalone])


async def test_r2_else_it_comes_on_the_newest_exchange() -> None:
    async with bench() as at:
        client = await at.client(message=ASKS)
        old, new = client.call(id=b"1"), client.call(id=b"2")
        at.server.session.tell(message("roots/list", id=1))
        reader = client.workflow.streams.attach(await stream_of(new), 0)
        assert (await asked_on(reader))["method"] == "roots/list"
        assert not old.ready.done()
        await finish(at, client, [reader])


async def test_r2_an_exchange_that_its_client_has_left_is_not_the_newest_while_another_is_waited_for() -> None:
    async with bench() as at:
        client = await at.client(message=ASKS)
        older, left = client.call(id=b"1"), client.call(id=b"2")
        at.server.of("tools/call")[1].say(LOG)
        client.workflow.streams.attach(await stream_of(left), 0).close()
        client.leave()
        at.server.session.tell(message("roots/list", id=1))
        reader = client.workflow.streams.attach(await stream_of(older), 0)
        assert (await asked_on(reader))["method"] == "roots/list"
        reader.close()
        client.leave()
        at.server.session.tell(message("roots/list", id=2))
        again = client.workflow.streams.attach(await stream_of(left), 0)
        methods = [json.loads(text)["method"] for _, text in await some(again, 2)]
        assert methods == ["notifications/message", "roots/list"]
        again.close()
        for upstream in at.server.of("tools/call"):
            upstream.answer()


async def test_r2_else_it_waits_for_the_client_to_come() -> None:
    async with bench() as at:
        client = await at.client(message=ASKS)
        at.server.session.tell(message("roots/list", id=1))
        reader = client.workflow.streams.attach_standalone()
        assert (await asked_on(reader))["method"] == "roots/list"
        reader.close()


async def test_a_question_never_comes_on_an_exchange_that_was_cut() -> None:
    async with bench(revision="2025-06-18") as at:
        client = await at.client(message=ASKS)
        older, cut = client.call(id=b"1"), client.call(id=b"2")
        cut.cut = True
        at.server.of("tools/call")[1].say(message("roots/list", id=1))
        reader = client.workflow.streams.attach(await stream_of(older), 0)
        assert (await asked_on(reader))["method"] == "roots/list"
        at.server.of("tools/call")[0].answer()
        reader.close()
        at.server.of("tools/call")[1].say(message("roots/list", id=2))
        standalone = client.workflow.streams.attach_standalone()
        assert (await asked_on(standalone))["method"] == "roots/list"
        await finish(at, client, [standalone])


async def test_r1_a_server_that_does_not_bind_its_messages_is_served_too() -> None:
    async with bench() as at:
        at.server.binds = False
        client = await at.client(message=ASKS)
        exchange = client.call({"_meta": {"progressToken": "t"}})
        [upstream] = at.server.of("tools/call")
        upstream.say(message("elicitation/create", {}, id="s"))
        upstream.say(message("notifications/progress", {"progressToken": int(upstream.id), "progress": 1}))
        upstream.say(LOG)
        upstream.answer()
        asked, progress, _ = await client.answers(exchange)
        assert (asked["method"], progress["params"]["progressToken"]) == ("elicitation/create", "t")
        standalone = client.workflow.streams.attach_standalone()
        assert (await asked_on(standalone))["method"] == "notifications/message"
        standalone.close()


async def ask(at: Bench, client: Client, params: Any = None) -> tuple[Upstream, Reader, dict[str, Any]]:
    """A call, the stream it became, and what the server asked on it."""
    exchange = client.call()
    [upstream] = at.server.of("tools/call")
    upstream.say(message("sampling/createMessage", params or {}, id="s"))
    reader = client.workflow.streams.attach(await stream_of(exchange), 0)
    return upstream, reader, await asked_on(reader)


async def test_r4_the_first_answer_wins() -> None:
    async with bench() as at:
        client = await at.client(message=ASKS)
        _, reader, asked = await ask(at, client)
        for n in range(2):
            client.workflow.respond(response(asked["id"], {"n": n}))
        assert [exchange.json["result"] for exchange in at.server.of("response")] == [{"n": 0}]
        assert at.counts["unknown_answers", "x"] == 1
        await finish(at, client, [reader])


async def test_what_a_server_retracts_is_retracted_where_it_was_asked() -> None:
    async with bench() as at:
        client = await at.client(message=ASKS)
        upstream, reader, asked = await ask(at, client)
        upstream.say(message("notifications/cancelled", {"requestId": "s", "reason": "late"}))
        told = await asked_on(reader)
        assert told["params"] == {"requestId": asked["id"], "reason": "late"}
        client.workflow.respond(response(asked["id"]))
        assert at.server.of("response") == []
        await finish(at, client, [reader])


async def test_what_a_server_retracts_of_no_call_is_retracted_where_it_was_asked() -> None:
    async with bench() as at:
        client = await at.client(message=ASKS)
        exchange = client.call(id=b"1")
        at.server.session.tell(message("roots/list", id="s"))
        reader = client.workflow.streams.attach(await stream_of(exchange), 0)
        asked = await asked_on(reader)
        later = client.call(id=b"2")
        at.server.session.tell(message("notifications/cancelled", {"requestId": "s"}))
        assert (await asked_on(reader))["params"] == {"requestId": asked["id"]}
        assert not later.ready.done()
        await finish(at, client, [reader])


async def test_what_a_server_retracts_after_its_call_reaches_the_client_all_the_same() -> None:
    async with bench() as at:
        client = await at.client(message=ASKS)
        over, later = client.call(id=b"1"), client.call(id=b"2")
        [upstream, _] = at.server.of("tools/call")
        upstream.say(message("roots/list", id="s"))
        upstream.answer()
        asked, _ = await client.answers(over)
        at.server.session.tell(message("notifications/cancelled", {"requestId": "s"}))
        reader = client.workflow.streams.attach(await stream_of(later), 0)
        assert (await asked_on(reader))["params"] == {"requestId": asked["id"]}
        await finish(at, client, [reader])


async def test_what_a_server_retracts_before_the_client_came_stands_behind_its_question() -> None:
    async with bench() as at:
        client = await at.client(message=ASKS)
        at.server.session.tell(message("roots/list", id="s"))
        exchange = client.call()
        at.server.session.tell(message("notifications/cancelled", {"requestId": "s"}))
        assert not exchange.ready.done()
        reader = client.workflow.streams.attach_standalone()
        methods = [json.loads(text)["method"] for _, text in await some(reader, 2)]
        assert methods == ["roots/list", "notifications/cancelled"]
        await finish(at, client, [reader])


async def test_a_clients_progress_reaches_the_server_under_its_own_token() -> None:
    async with bench() as at:
        client = await at.client(message=ASKS)
        _, reader, asked = await ask(at, client, {"_meta": {"progressToken": "mine"}})
        token = asked["params"]["_meta"]["progressToken"]
        client.workflow.notify(notification("notifications/progress", {"progressToken": token, "progress": 1}), {})
        told = await at.server.got("notifications/progress")
        assert told.json["params"] == {"progressToken": "mine", "progress": 1}
        await finish(at, client, [reader])


async def test_e18_a_clients_progress_reaches_the_server_after_it_was_told_of_a_task_too() -> None:
    async with bench() as at:
        client = await at.client(message=ASKS)
        _, reader, asked = await ask(at, client, {"task": {}, "_meta": {"progressToken": 7}})
        client.workflow.respond(response(asked["id"], {"task": {"taskId": "t"}}))
        token = asked["params"]["_meta"]["progressToken"]
        client.workflow.notify(notification("notifications/progress", {"progressToken": token, "progress": 1}), {})
        told = await at.server.got("notifications/progress")
        assert told.json["params"] == {"progressToken": 7, "progress": 1}
        await finish(at, client, [reader])


async def test_a_question_pauses_the_clock_of_the_call_that_asked() -> None:
    async with bench(request_timeout=10) as at:
        client = await at.client(message=ASKS)
        upstream, reader, asked = await ask(at, client)
        at.clock.advance(50)
        await at.swept()
        client.workflow.respond(response(asked["id"]))
        upstream.answer({"n": 1})
        assert (await asked_on(reader))["result"] == {"n": 1}
        await finish(at, client, [reader])


async def test_a_question_that_nobody_answers_in_time_is_void_for_its_client_too() -> None:
    async with bench(request_timeout=10) as at:
        client = await at.client(message=initialize(capabilities={"roots": {}}))
        reader = client.workflow.streams.attach_standalone()
        await reader.next(0)
        at.server.session.tell(message("roots/list", None, id=7))
        asked = json.loads((await some(reader))[0][1])
        at.clock.advance(10 * EXTENSIONS + 1)
        refused = (await at.server.got("response")).json
        assert (refused["id"], refused["error"]["code"]) == (7, -31004)
        void = json.loads((await some(reader))[0][1])
        assert (void["method"], void["params"]["requestId"]) == ("notifications/cancelled", asked["id"])
        assert len(client.workflow.questions) == 0
        reader.close()


async def test_g9_a_question_with_an_illegal_token_is_refused_and_nothing_else_is_lost() -> None:
    async with bench() as at:
        client = await at.client(message=initialize(capabilities={"roots": {}}))
        at.server.session.tell(message("roots/list", {"_meta": {"progressToken": {}}}, id=1))
        assert (await at.server.got("response")).json["error"]["code"] == -32602
        assert len(client.workflow.questions) == 0
        call = client.call()
        (await at.server.got("tools/call")).answer()
        assert "result" in await client.answer(call)


REFUSED = ("s", -31002, "the client did not come back")


async def refused(at: Bench) -> tuple[Any, int, str]:
    """What the server is told of the one question that nobody will answer."""
    told = (await at.server.got("response")).json
    return told["id"], told["error"]["code"], told["error"]["message"]


async def test_a_question_on_an_exchange_that_nobody_comes_back_to_is_refused_though_its_client_is_there() -> None:
    async with bench(resume_window=100) as at:
        client = await at.client(message=ASKS)
        left = client.call(id=b"1")
        [upstream] = at.server.of("tools/call")
        upstream.say(LOG)
        reader = client.workflow.streams.attach(await stream_of(left), 0)
        await some(reader)
        reader.close()
        at.server.session.tell(message("roots/list", id="s"))
        standalone = client.workflow.streams.attach_standalone()
        await at.later(99)
        assert at.server.of("response") == []
        await at.later(2)
        assert await refused(at) == REFUSED
        await finish(at, client, [standalone])


async def test_a_question_that_waits_for_who_listens_is_refused_though_its_client_calls() -> None:
    async with bench(resume_window=100) as at:
        client = await at.client(message=ASKS)
        at.server.session.tell(message("roots/list", id="s"))
        for n in range(4):
            await at.later(20)
            assert at.server.of("response") == []
            call = client.call(id=b"%d" % n)
            at.server.of("tools/call")[-1].answer()
            await client.answer(call)
        await at.later(30)
        assert await refused(at) == REFUSED


async def test_a_question_that_a_client_was_sent_waits_while_the_client_is_there() -> None:
    async with bench(resume_window=100) as at:
        client = await at.client(message=ASKS)
        upstream, reader, asked = await ask(at, client)
        reader.close()
        standalone = client.workflow.streams.attach_standalone()
        await at.later(150)
        client.workflow.respond(response(asked["id"], {"n": 1}))
        assert (await at.server.got("response")).json["result"] == {"n": 1}
        upstream.answer()
        await finish(at, client, [standalone])


@pytest.mark.parametrize("by_call", [True, False])
async def test_a_question_on_a_wire_that_nobody_comes_back_to_is_refused_though_it_was_sent(by_call: bool) -> None:
    async with bench(resume_window=100) as at:
        client = await at.client(message=ASKS)
        left = client.workflow.duplexes.new()
        reader = left.attach()
        client.workflow.calls.take(request(id=b"1"), left, NONE)
        [upstream] = at.server.of("tools/call")
        if by_call:
            upstream.say(message("roots/list", id="s"))
        else:
            at.server.session.tell(message("roots/list", id="s"))
        assert (await asked_on(reader))["method"] == "roots/list"
        left.detach(reader)
        other = client.workflow.duplexes.new()
        reader = other.attach()
        await at.later(99)
        assert at.server.of("response") == []
        await at.later(2)
        assert await refused(at) == REFUSED
        upstream.answer()
        other.detach(reader)


async def test_a_question_on_a_wire_that_gave_way_to_newer_ones_is_refused() -> None:
    async with bench(resume_window=100) as at:
        client = await at.client(message=ASKS)
        for n in range(MAX_LEFT + 2):
            wire = client.workflow.duplexes.new()
            reader = wire.attach()
            if n == 0:
                at.server.session.tell(message("roots/list", id="s"))
                await some(reader)
            if n < MAX_LEFT + 1:
                wire.detach(reader)
        await at.later(101)
        assert await refused(at) == REFUSED
        wire.detach(reader)
