"""What MCP peers do with each other, over each transport of the client and each of the server, byte for byte.

Both peers are raw (see `raw_script` for the server's part): what no SDK would send or show is sent and seen here.
A test that leaves a message untaken fails: nobody is told what is not for them.
"""

import json
from typing import Final

import anyio
import pytest
from harness.raw_client import RawClient
from harness.raw_pair import CAPABILITIES, ODD, Pair, beside_id, do, result
from harness.raw_script import INITIALIZE_RESULT
from harness.raw_text import (
    ask,
    notification,
    open_gate,
    play,
    reply,
    request,
    response,
    saw,
    say,
    script,
    wait_at,
)
from harness.wire import raw_members

pytestmark = pytest.mark.anyio

IDS: Final = (b"1", b'"1"', b"0", b"-1", b"123456789012345678901234567890", b'"\\u006b"', '"ключ"'.encode(), b'""')
LEGACY: Final = ("2024-11-05", "2025-03-26", "2025-06-18", "2025-11-25")
QUESTIONS: Final = ("elicitation/create", "sampling/createMessage", "roots/list")


async def test_the_handshake_goes_through_both_ways(pair: Pair) -> None:
    async with pair.client() as client:
        opened = raw_members(client.opened)
        assert opened["id"] == b'"\\u006fpen"'
        assert raw_members(opened["result"]) == raw_members(INITIALIZE_RESULT % b'"2025-11-25"')

        await client.request(request(b"1", "tools/list"))
        (initialize,) = pair.received(client, "initialize")
        assert raw_members(initialize["params"])["capabilities"] == CAPABILITIES
        assert raw_members(initialize["params"])["clientInfo"].startswith(b'{"name": "%s"' % client.name.encode())
        assert len(pair.received(client, "notifications/initialized")) == 1


@pytest.mark.parametrize("revision", LEGACY)
async def test_every_revision_with_a_handshake_is_served(pair: Pair, revision: str) -> None:
    question = request(b'"e"', "elicitation/create", b'{"x-odd":%s}' % ODD)
    told = notification("notifications/progress", b'{"progressToken":"$TOKEN","progress":1}')
    async with pair.client(revision=revision) as client:
        assert json.loads(client.opened)["result"]["protocolVersion"] == revision
        meta = b'"_meta":{"progressToken":"t"}'
        await client.send(play(b"1", say(told), ask(question), reply(b'{"result":%s}' % ODD), beside=meta))
        progress = raw_members(await client.told("notifications/progress"))
        assert raw_members(progress["params"])["progressToken"] == b'"t"'
        asked = raw_members(await client.told("elicitation/create"))
        assert beside_id(asked) == beside_id(raw_members(question))
        await client.send(response(asked["id"], b'{"result":{}}'))
        assert result(await client.response(b"1")) == raw_members(ODD)


async def test_a_request_reaches_the_server_byte_for_byte(pair: Pair) -> None:
    params = b'{"name":"echo","arguments":%s,"x-odd":%s,"_meta":{"x-odd":%s}}' % (ODD, ODD, ODD)
    async with pair.client() as client:
        for spelled in IDS:
            for method in ("tools/call", "x-vendor/\u00e9tude", "resources/read"):
                sent = request(spelled, method, params, b'"x-beside":%s' % ODD)
                answer = await client.request(sent)

                echo = raw_members(result(answer)["echo"])
                assert beside_id(echo) == beside_id(raw_members(sent))


async def test_an_answer_reaches_the_client_byte_for_byte(pair: Pair) -> None:
    answers = (
        b'{"result":%s,"x-beside":%s}' % (ODD, ODD),
        b'{"result":{"content":[],"structuredContent":%s,"_meta":%s}}' % (ODD, ODD),
        b'{"error":{"code":-32000,"message":"\\u006eo","data":%s,"x-odd":%s},"x-beside":%s}' % (ODD, ODD, ODD),
    )
    async with pair.client() as client:
        for spelled, members in zip(IDS, answers, strict=False):
            answer = await client.request(play(spelled, reply(members)))
            assert raw_members(answer) == raw_members(response(spelled, members))


@pytest.mark.parametrize(
    "members", [b'{"x":1}', b'{"result":[]}', b'{"error":null}', b'{"result":{},"error":{"code":1}}']
)
async def test_e7_a_call_hears_of_an_answer_that_is_none(pair: Pair, members: bytes) -> None:
    """A server that leaves out what is empty answers with neither a result nor an error."""
    async with pair.client() as client:
        error = json.loads(await client.request(play(b"1", reply(members))))["error"]
        assert (error["code"], error["data"]) == (-32603, {"executed": "unknown"})


async def test_unknown_notifications_go_both_ways_byte_for_byte(pair: Pair) -> None:
    sent = notification("notifications/x-vendor/\u00e9", b'{"odd":%s}' % ODD, b'"x-beside":%s' % ODD)
    bare = b'{"jsonrpc":"2.0","method":"x"}'
    async with pair.client() as client:
        for text in (sent, bare):
            await client.send(text)
            method = json.loads(text)["method"]
            await do(client, saw(method))
            assert pair.received(client, method) == [raw_members(text)]

            await do(client, say(text))
            assert raw_members(await client.told(method)) == raw_members(text)
            await do(client, say(text, unasked=True))
            assert raw_members(await client.told(method)) == raw_members(text)


async def test_concurrent_calls_get_each_its_own_answer(pair: Pair) -> None:
    async def call(client: RawClient, tag: str) -> None:
        for n, spelled in enumerate(IDS):
            content = b'{"result":{"of":"%s-%d"}}' % (tag.encode(), n)
            await client.send(play(spelled, wait_at(f"go-{n}"), reply(content)))
        await do(client, saw("tools/call", len(IDS)))
        # All are inside; they leave in another order than they came.
        for n, spelled in reversed(list(enumerate(IDS))):
            await do(client, open_gate(f"go-{n}"))
            assert result(await client.response(spelled))["of"] == b'"%s-%d"' % (tag.encode(), n)

    async with pair.client("a") as one, pair.client("b") as other, anyio.create_task_group() as tasks:
        tasks.start_soon(call, one, "a")
        tasks.start_soon(call, other, "b")

    for client in (one, other):
        assert len(pair.received(client, "initialize")) == 1
        ids = [members["id"] for members in pair.received(client) if "id" in members and "method" in members]
        assert len(set(ids)) == len(ids)


async def test_progress_comes_under_the_token_of_its_call(pair: Pair) -> None:
    progress = b'{"progressToken":"$TOKEN","progress":%s,"total":1.00,"message":"\\u0061","x-odd":%s}'
    async with pair.client() as client:
        for spelled, token in ((b"1", b"7"), (b"2", b'"7"'), (b"3", b'"\\u0074"')):
            meta = b'"_meta":{"progressToken":%s,"x-odd":%s}' % (token, ODD)
            told = [say(notification("notifications/progress", progress % (n, ODD))) for n in (b"0.5", b"1.0")]
            await client.send(play(spelled, wait_at("go"), *told, wait_at("end"), reply(), beside=meta))
        await do(client, saw("tools/call", 3), open_gate("go"))

        came = [raw_members(await client.told("notifications/progress"))["params"] for _ in range(6)]
        for token in (b"7", b'"7"', b'"\\u0074"'):
            mine = [raw_members(params) for params in came if raw_members(params)["progressToken"] == token]
            assert [params["progress"] for params in mine] == [b"0.5", b"1.0"]
            assert all(params["x-odd"] == ODD and params["message"] == b'"\\u0061"' for params in mine)
        await do(client, open_gate("end"))
        for spelled in (b"1", b"2", b"3"):
            await client.response(spelled)

        metas = [raw_members(raw_members(call["params"])["_meta"]) for call in pair.received(client, "tools/call")]
        assert len({meta["progressToken"] for meta in metas}) == 3
        assert all(meta["x-odd"] == ODD for meta in metas)


async def test_a_client_cancels_its_call_and_no_other(pair: Pair) -> None:
    async with pair.client("a") as client, pair.client("b") as bystander:
        await bystander.send(play(b"7", wait_at("go"), reply()))
        await do(bystander, saw("tools/call"))
        await client.send(play(b"7", saw("notifications/cancelled"), wait_at("late"), reply(), open_gate("replied")))
        await client.send(play(b'"7"', wait_at("go"), reply()))
        await do(client, saw("tools/call", 2))
        cancelled = b'{"requestId":7,"reason":"\\u006eo","x-odd":%s}' % ODD
        await client.send(notification("notifications/cancelled", cancelled))

        assert json.loads(await client.response(b"7"))["error"]["code"] == -32800
        await do(client, saw("notifications/cancelled"))
        (seen,) = pair.received(client, "notifications/cancelled")
        call = next(c for c in pair.received(client, "tools/call") if b"late" in c["params"])
        assert raw_members(seen["params"]) == {**raw_members(cancelled), "requestId": call["id"]}
        # The server answers all the same: nobody is told, and the id can be used again.
        await do(client, open_gate("late"))
        await do(client, wait_at("replied"))
        assert "echo" in result(await client.request(request(b"7", "tools/call")))

        for one, spelled in ((client, b'"7"'), (bystander, b"7")):
            await do(one, open_gate("go"))
            assert "result" in raw_members(await one.response(spelled))
        assert pair.received(bystander, "notifications/cancelled") == []


async def test_a_server_cancels_what_it_asked(pair: Pair) -> None:
    cancelled = b'{"requestId":"e\\u002d1","reason":"\\u006eo","x-odd":%s}' % ODD
    question = request(b'"e\\u002d1"', "elicitation/create", b'{"message":"?"}')
    steps = (say(question), wait_at("go"), say(notification("notifications/cancelled", cancelled)))
    async with pair.client() as client:
        await client.send(play(b"1", *steps, wait_at("end"), reply()))
        asked = raw_members(await client.told("elicitation/create"))
        await do(client, open_gate("go"))

        params = raw_members(raw_members(await client.told("notifications/cancelled"))["params"])
        assert params == {**raw_members(cancelled), "requestId": asked["id"]}
        # The answer is late: the server, which does not wait for it, is not told.
        await client.send(response(asked["id"], b'{"result":{"action":"cancel"}}'))
        await do(client, open_gate("end"))
        await client.response(b"1")
        assert pair.received(client, "response") == []


@pytest.mark.parametrize("unasked", [False, True], ids=["on_its_stream", "on_no_stream"])
async def test_what_a_server_asks_in_a_call_is_answered_by_its_client(pair: Pair, unasked: bool) -> None:
    ids = (b'"\\u0065-1"', b"123456789012345678901234567890", b"0")
    params = b'{"message":"\\u003f","x-odd":%s,"_meta":{"x-odd":%s}}' % (ODD, ODD)
    async with pair.client("a") as client, pair.client("b"):
        for method, spelled in zip(QUESTIONS, ids, strict=True):
            question = request(spelled, method, params, b'"x-beside":%s' % ODD)
            await client.send(play(b"1", ask(question, unasked=unasked), reply(b'{"result":{"answer":"$ANSWER"}}')))
            asked = raw_members(await client.told(method))
            assert beside_id(asked) == beside_id(raw_members(question))

            members = b'{"result":{"action":"accept","x-odd":%s},"x-beside":%s}' % (ODD, ODD)
            await client.send(response(asked["id"], members))
            answer = raw_members(result(await client.response(b"1"))["answer"])
            assert answer == raw_members(response(spelled, members))


async def test_what_a_server_asks_outside_of_any_call_is_answered(pair: Pair) -> None:
    async with pair.client("a") as client, pair.client("b"):
        for n, method in enumerate(QUESTIONS, 1):
            question = request(b'"\\u0065-%d"' % n, method, b'{"x-odd":%s}' % ODD)
            await client.send(notification("notifications/x-ask", script(ask(question, unasked=True))))
            asked = raw_members(await client.told(method))
            assert beside_id(asked) == beside_id(raw_members(question))

            members = b'{"error":{"code":-1,"message":"\\u006eo","data":%s}}' % ODD
            await client.send(response(asked["id"], members))
            await do(client, saw("response", n))
            assert pair.received(client, "response")[-1] == raw_members(response(b'"\\u0065-%d"' % n, members))


async def test_two_calls_that_ask_at_once_get_each_its_own_answer(pair: Pair) -> None:
    async with pair.client() as client:
        for n in (1, 2):
            question = request(b'"%d"' % n, "elicitation/create", b'{"message":"%d"}' % n)
            await client.send(play(b"%d" % n, ask(question), reply(b'{"result":{"answer":"$ANSWER"}}')))
        asked = [raw_members(await client.told("elicitation/create")) for _ in range(2)]
        for question_ in sorted(asked, key=lambda one: one["params"], reverse=True):
            n = int(json.loads(question_["params"])["message"])
            await client.send(response(question_["id"], b'{"result":{"for":%d}}' % n))
            answer = raw_members(result(await client.response(b"%d" % n))["answer"])
            assert answer == raw_members(response(b'"%d"' % n, b'{"result":{"for":%d}}' % n))


async def test_e2_an_answer_may_name_its_question_by_a_string(pair: Pair) -> None:
    """Some clients echo a number as a string of its digits, as some servers do."""
    question = request(b"77", "roots/list")
    async with pair.client() as client:
        await client.send(play(b"1", ask(question), reply(b'{"result":{"answer":"$ANSWER"}}')))
        asked = raw_members(await client.told("roots/list"))
        await client.send(response(b'"%b"' % asked["id"], b'{"result":{"roots":[]}}'))
        answer = raw_members(result(await client.response(b"1"))["answer"])
        assert answer == raw_members(response(b"77", b'{"result":{"roots":[]}}'))


async def test_progress_of_an_answer_comes_under_the_token_of_the_question(pair: Pair) -> None:
    params = b'{"messages":[],"_meta":{"progressToken":"\\u0074-1","x-odd":%s}}' % ODD
    question = request(b"5", "sampling/createMessage", params)
    async with pair.client() as client:
        await client.send(play(b"1", ask(question), reply()))
        asked = raw_members(await client.told("sampling/createMessage"))
        meta = raw_members(raw_members(asked["params"])["_meta"])
        assert meta["x-odd"] == ODD
        progress = b'{"progressToken":%s,"progress":1.0,"x-odd":%s}'
        await client.send(notification("notifications/progress", progress % (meta["progressToken"], ODD)))
        await client.send(notification("notifications/progress", progress % (b'"another"', ODD)))
        await do(client, saw("notifications/progress"))
        await client.send(response(asked["id"], b'{"result":{}}'))
        await client.response(b"1")

        (seen,) = pair.received(client, "notifications/progress")
        assert raw_members(seen["params"]) == raw_members(progress % (b'"\\u0074-1"', ODD))


async def test_what_the_client_did_not_declare_is_refused_in_its_place(pair: Pair) -> None:
    async with pair.client(capabilities=b"{}") as client:
        for n, method in enumerate(QUESTIONS):
            question = request(b'"\\u0065-%d"' % n, method, b"{}")
            answer = await client.request(play(b"1", ask(question), reply(b'{"result":{"answer":"$ANSWER"}}')))
            refusal = raw_members(result(answer)["answer"])
            assert refusal["id"] == b'"\\u0065-%d"' % n
            assert json.loads(refusal["error"])["code"] == -32601


async def test_pings_are_answered_next_door(pair: Pair) -> None:
    async with pair.client() as client:
        ping = request(b'"\\u0070"', "ping")
        answer = await client.request(play(b"1", ask(ping), reply(b'{"result":{"answer":"$ANSWER"}}')))
        assert raw_members(result(answer)["answer"]) == raw_members(response(b'"\\u0070"', b'{"result":{}}'))

        answer = await client.request(request(b'"\\u0070"', "ping"))
        assert raw_members(answer) == raw_members(response(b'"\\u0070"', b'{"result":{}}'))
        assert pair.received(client, "ping") == []


async def test_unknown_requests_of_a_server_reach_the_client(pair: Pair) -> None:
    question = request(b'"\\u0065"', "x-vendor/ask", b"%s" % ODD, b'"x-beside":%s' % ODD)
    async with pair.client() as client:
        await client.send(play(b"1", ask(question), reply(b'{"result":{"answer":"$ANSWER"}}')))
        asked = raw_members(await client.told("x-vendor/ask"))
        assert beside_id(asked) == beside_id(raw_members(question))
        await client.send(response(asked["id"], b'{"error":{"code":-32601,"message":"no"}}'))
        answer = raw_members(result(await client.response(b"1"))["answer"])
        assert answer == raw_members(response(b'"\\u0065"', b'{"error":{"code":-32601,"message":"no"}}'))


async def test_log_messages_come_from_the_level_that_each_client_wants(pair: Pair) -> None:
    levels = ("debug", "warning", "error")
    logged = {
        level: notification(
            "notifications/message", b'{"level":"%s","logger":"\\u006c","data":%s}' % (level.encode(), ODD)
        )
        for level in levels
    }
    async with pair.client("a") as client, pair.client("b") as other:
        for one, level in ((client, "warning"), (other, "error")):
            params = b'{"level":"%s","x-odd":%s}' % (level.encode(), ODD)
            assert result(await one.request(request(b"1", "logging/setLevel", params))) == {}
            (seen,) = pair.received(one, "logging/setLevel")
            assert seen["params"] == params
        for unasked in (False, True):
            steps = [say(text, level=level, unasked=unasked) for level, text in logged.items()]
            for one, wanted in ((client, levels[1:]), (other, levels[2:])):
                await do(one, *steps)
                for level in wanted:
                    assert raw_members(await one.told("notifications/message")) == raw_members(logged[level])


async def test_what_was_subscribed_to_is_told_to_who_subscribed(pair: Pair) -> None:
    uri = b'{"uri":"test:\\/\\/a","x-odd":%s}' % ODD
    updated = notification("notifications/resources/updated", uri)
    fence = notification("notifications/x-fence")
    steps = (say(updated, uri="test://a", unasked=True), say(fence, unasked=True))
    async with pair.client("a") as client, pair.client("b") as other:
        assert result(await client.request(request(b"1", "resources/subscribe", uri))) == {}
        (seen,) = pair.received(client, "resources/subscribe")
        assert seen["params"] == uri
        for one in (client, other):
            await do(one, *steps)
        assert raw_members(await client.told("notifications/resources/updated")) == raw_members(updated)
        await client.told("notifications/x-fence")
        await other.told("notifications/x-fence")

        assert result(await client.request(request(b"2", "resources/unsubscribe", uri))) == {}
        await do(client, *steps)
        await client.told("notifications/x-fence")


async def test_changed_lists_are_told_both_ways(pair: Pair) -> None:
    async with pair.client("a") as client, pair.client("b"):
        for what in ("tools", "prompts", "resources"):
            for unasked in (False, True):
                changed = notification(f"notifications/{what}/list_changed", b'{"_meta":%s}' % ODD)
                await do(client, say(changed, unasked=unasked))
                assert raw_members(await client.told(f"notifications/{what}/list_changed")) == raw_members(changed)
        changed = notification("notifications/roots/list_changed", b'{"_meta":%s}' % ODD)
        await client.send(changed)
        await do(client, saw("notifications/roots/list_changed"))
        assert pair.received(client, "notifications/roots/list_changed") == [raw_members(changed)]


async def test_tasks_go_through_as_they_are(pair: Pair) -> None:
    related = b'{"io.modelcontextprotocol/related-task":{"taskId":"t\\u002d1"},"x-odd":%s}' % ODD
    task = b'{"taskId":"t\\u002d1","status":"working","ttl":60000,"createdAt":"2025-11-25T00:00:00Z","x-odd":%s}' % ODD
    answers = {
        "tools/call": (b'"task":{"ttl":60000,"x-odd":%s}' % ODD, b'{"task":%s,"_meta":%s}' % (task, related)),
        "tasks/get": (b'"taskId":"t\\u002d1"', task),
        "tasks/list": (b'"cursor":"\\u0063"', b'{"tasks":[%s],"nextCursor":"\\u0064"}' % task),
        "tasks/cancel": (b'"taskId":"t\\u002d1"', task),
    }
    async with pair.client("a") as client, pair.client("b"):
        for method, (params, body) in answers.items():
            sent = play(b"1", reply(b'{"result":%s}' % body), method=method, beside=params)
            assert raw_members(raw_members(await client.request(sent))["result"]) == raw_members(body)
            assert pair.received(client, method)[-1]["params"] == raw_members(sent)["params"]

        # The result waits for the task, and the server asks on its stream and tells beside it.
        status = notification("notifications/tasks/status", task)
        question = request(b'"e"', "elicitation/create", b'{"message":"?","_meta":%s}' % related)
        steps = (say(status, unasked=True), ask(question), reply(b'{"result":{"a":"$ANSWER","_meta":%s}}' % related))
        await client.send(play(b"2", *steps, method="tasks/result", beside=b'"taskId":"t\\u002d1"'))
        assert raw_members(await client.told("notifications/tasks/status")) == raw_members(status)
        asked = raw_members(await client.told("elicitation/create"))
        assert beside_id(asked) == beside_id(raw_members(question))
        await client.send(response(asked["id"], b'{"result":{"action":"accept","_meta":%s}}' % related))
        ended = result(await client.response(b"2"))
        assert ended["_meta"] == related
        assert raw_members(raw_members(ended["a"])["result"])["_meta"] == related


async def test_e18_progress_of_a_task_comes_under_the_token_of_its_call(pair: Pair) -> None:
    task = b'{"task":{"taskId":"t","status":"working","ttl":null,"createdAt":"2025-11-25T00:00:00Z"}}'
    progress = b'{"progressToken":%s,"progress":%s,"x-odd":%s}'
    async with pair.client("a") as client, pair.client("b"):
        for token in (b'"\\u0074:\\\\1"', b"7", b"1.50"):
            told = [notification("notifications/progress", progress % (b'"$TOKEN"', n, ODD)) for n in (b"1", b"2.0")]
            begun = play(
                b"1",
                say(told[0]),
                reply(b'{"result":%s}' % task),
                say(told[1], unasked=True),
                method="tools/call",
                beside=b'"task":{"ttl":null},"_meta":{"progressToken":%s}' % token,
            )
            assert raw_members(raw_members(await client.request(begun))["result"]) == raw_members(task)
            came = [raw_members(await client.told("notifications/progress"))["params"] for _ in told]
            assert [raw_members(params) for params in came] == [
                raw_members(progress % (token, n, ODD)) for n in (b"1", b"2.0")
            ]


async def test_tasks_of_the_client_go_through_as_they_are(pair: Pair) -> None:
    async with pair.client() as client:
        task = b'{"taskId":"t\\u002d1","status":"completed","x-odd":%s}' % ODD
        created = request(b'"1"', "sampling/createMessage", b'{"messages":[],"task":{"ttl":1.0e3}}')
        for question in (created, request(b'"2"', "tasks/result", b'{"taskId":"t\\u002d1"}')):
            method = json.loads(question)["method"]
            await client.send(play(b"1", ask(question), reply(b'{"result":{"answer":"$ANSWER"}}')))
            asked = raw_members(await client.told(method))
            assert beside_id(asked) == beside_id(raw_members(question))
            await client.send(response(asked["id"], b'{"result":{"task":%s}}' % task))
            answer = raw_members(result(await client.response(b"1"))["answer"])
            assert raw_members(answer["result"])["task"] == task


async def test_line_breaks_between_tokens_do_not_break_a_message(pair: Pair) -> None:
    text = b'{\n"jsonrpc":"2.0",\r\n"id":1,"method":"x-lines",\r"params":{"a":\n"\\n",\n\n"b":[1.0,\n2]}}\n'
    async with pair.client() as client:
        echo = raw_members(result(await client.request(text))["echo"])
        params = raw_members(echo["params"])
        assert params["a"] == b'"\\n"'
        assert json.loads(params["b"]) == [1.0, 2]
        assert len(pair.received(client, "x-lines")) == 1
