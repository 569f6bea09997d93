"""A workflow in the hands of the process that holds it."""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Mapping
from typing import Any

import anyio
import pytest
from harness.memory_wire import Exchange, echo, message
from harness.muxing import ALICE, Bench, begin, bench, initialize, patience, settle
from trunkline.mux import lease as leasing
from trunkline.mux.errors import InvalidParams, Overloaded, ServerError, SessionLost, TrunklineError, UpstreamFault
from trunkline.mux.lease import Lease

pytestmark = pytest.mark.anyio


@contextlib.asynccontextmanager
async def leased(at: Bench, capabilities: Mapping[str, Any] | None = None, **options: Any) -> AsyncIterator[Lease]:
    """A lease of a new workflow of the bench."""
    begun = await begin(at.pool, ALICE, message=initialize(capabilities=capabilities))
    lease = Lease(begun.workflow, begun.state, begun.pool_result, **options)
    async with patience():
        yield lease
    lease.close()


async def test_a_call_returns_what_the_tool_gave() -> None:
    async with bench() as at, leased(at) as lease:
        at.server.on_request = lambda exchange: exchange.answer(
            {
                "content": [
                    {"type": "text", "text": "one"},
                    {"type": "image", "data": ""},
                    {"type": "text", "text": "two"},
                ],
                "structuredContent": {"n": 1},
                "isError": True,
                "_meta": {"x": 1},
            }
        )
        result = await lease.call("count", {"by": 2})
        assert (result.text, result.structured, result.is_error) == ("one\ntwo", {"n": 1}, True)
        assert (len(result.content), result.raw["_meta"]) == (3, {"x": 1})
        assert at.server.of("tools/call")[0].json["params"] == {"name": "count", "arguments": {"by": 2}}
        assert lease.server["serverInfo"]["name"] == "memory"
        assert (lease.state, lease.pool_result) == ("created", "miss")


async def test_a_result_without_content_is_an_empty_one() -> None:
    async with bench() as at, leased(at) as lease:
        at.server.on_request = lambda exchange: exchange.answer({"content": None})
        result = await lease.call("count")
        assert (result.content, result.text, result.structured, result.is_error) == ([], "", None, False)


async def test_calls_run_side_by_side_and_each_gets_its_own_answer() -> None:
    async with bench() as at, leased(at) as lease:
        calls = [asyncio.create_task(lease.call("echo", {"n": n})) for n in range(50)]
        await at.server.got("tools/call", 50)
        for exchange in reversed(at.server.of("tools/call")):
            echo(exchange)
        assert [(await call).structured for call in calls] == [{"n": n} for n in range(50)]


async def test_an_error_of_the_servers_is_raised_with_its_code_its_message_and_its_data() -> None:
    async with bench() as at, leased(at) as lease:
        refusal = b'{"jsonrpc":"2.0","id":%s,"error":{"code":-32042,"message":"no","data":[1]}}'
        at.server.on_request = lambda exchange: exchange.finish(refusal % exchange.id)
        with pytest.raises(ServerError, match="no") as raised:
            await lease.request("resources/read", {"uri": "x"})
        assert (raised.value.code, raised.value.details) == (-32042, [1])
        assert at.counts["calls", "x", "resources/read", "error"] == 1


async def test_g6_a_call_whose_session_is_lost_says_whether_it_may_have_run() -> None:
    async with bench() as at, leased(at) as lease:
        call = asyncio.create_task(lease.call("count"))
        await at.server.got("tools/call")
        at.server.session.receiver.lost(SessionLost("the server went", executed="unknown"))
        with pytest.raises(SessionLost, match="the server went") as raised:
            await call
        assert raised.value.data == {"executed": "unknown"}
        with pytest.raises(SessionLost) as raised:
            await lease.call("count")
        assert raised.value.data == {"executed": "no"}


async def test_g10_more_calls_than_a_workflow_may_have_are_refused_by_the_limits_name() -> None:
    async with bench(max_inflight_per_workflow=1) as at, leased(at) as lease:
        first = asyncio.create_task(lease.call("count"))
        await at.server.got("tools/call")
        with pytest.raises(Overloaded) as raised:
            await lease.call("count")
        assert raised.value.limit == "max_inflight_per_workflow"
        at.server.of("tools/call")[0].answer()
        await first


async def test_e12_who_gives_up_withdraws_the_call_at_the_server_and_no_other() -> None:
    async with bench() as at, leased(at) as lease:
        given_up = asyncio.create_task(lease.call("slow"))
        other = asyncio.create_task(lease.call("slow"))
        await at.server.got("tools/call", 2)
        given_up.cancel()
        told = await at.server.got("notifications/cancelled")
        first, second = at.server.of("tools/call")
        assert told.json["params"]["requestId"] == first.json["id"]
        second.answer({"content": [{"type": "text", "text": "mine"}]})
        assert (await other).text == "mine"
        assert given_up.cancelled()


async def test_progress_comes_to_the_call_that_asked_for_it() -> None:
    async with bench() as at:
        heard: list[str] = []
        async with leased(at, hear=lambda method, params: heard.append(method)) as lease:
            seen: list[float] = []

            def progress(params: dict[str, Any]) -> None:
                seen.append(params["progress"])
                raise ValueError("of the program's own")

            params = {"name": "slow", "_meta": {"trace": "t"}}
            call = asyncio.create_task(lease.request("tools/call", params, progress=progress))
            exchange = await at.server.got("tools/call")
            token = exchange.json["params"]["_meta"]["progressToken"]
            assert exchange.json["params"]["_meta"]["trace"] == "t"
            exchange.say(message("notifications/progress", {"progressToken": token, "progress": 1}))
            exchange.say(message("notifications/message", {"level": "info", "data": "x"}))
            exchange.answer()
            await call
            assert (seen, heard) == ([1], ["notifications/message"])
            assert params["_meta"] == {"trace": "t"}, "what the caller holds is the caller's"


async def test_what_the_server_tells_unasked_is_heard() -> None:
    async with bench() as at:
        heard: list[tuple[str, dict[str, Any]]] = []
        async with leased(at, hear=lambda *told: heard.append(told)):
            at.server.session.tell(message("notifications/tools/list_changed"))
            at.server.session.tell(message("notifications/message", {"data": 1}))
        at.server.session.tell(message("notifications/message", {"data": "after it was given back"}))
        assert heard == [("notifications/tools/list_changed", {}), ("notifications/message", {"data": 1})]


async def test_a_notification_goes_to_the_server() -> None:
    async with bench() as at, leased(at) as lease:
        lease.notify("notifications/roots/list_changed")
        await at.server.got("notifications/roots/list_changed")


async def ask_in_a_call(at: Bench, lease: Lease, method: str) -> Exchange:
    """A call of which the server asks this; what it is answered."""
    call = asyncio.create_task(lease.call("ask"))
    exchange = await at.server.got("tools/call")
    exchange.say(message(method, {"mode": "form"}, id="q"))
    answered = await at.server.got("response")
    exchange.answer()
    await call
    return answered


async def test_r1_what_the_server_asks_is_answered_by_the_program() -> None:
    async with bench() as at:

        async def answer(method: str, params: dict[str, Any]) -> dict[str, Any]:
            return {"action": "accept", "content": {"asked": method, **params}}

        async with leased(at, {"elicitation": {}}, answer=answer) as lease:
            answered = await ask_in_a_call(at, lease, "elicitation/create")
        content = {"asked": "elicitation/create", "mode": "form"}
        assert answered.json["id"] == "q"
        assert answered.json["result"] == {"action": "accept", "content": content}


@pytest.mark.parametrize(
    ("raised", "error"),
    [
        (InvalidParams("not so"), {"code": -32602, "message": "not so"}),
        (KeyError("secret"), {"code": -32603, "message": "no answer: KeyError"}),
        (asyncio.CancelledError(), {"code": -32603, "message": "no answer: CancelledError"}),
        (None, {"code": -32601, "message": "elicitation/create is not answered here"}),
    ],
)
async def test_what_the_program_cannot_answer_is_told_as_an_error(
    raised: BaseException | None, error: dict[str, Any]
) -> None:
    async with bench() as at:

        async def answer(method: str, params: dict[str, Any]) -> dict[str, Any]:
            assert raised is not None
            raise raised

        async with leased(at, {"elicitation": {}}, answer=answer if raised else None) as lease:
            assert (await ask_in_a_call(at, lease, "elicitation/create")).json["error"] == error


async def test_an_answer_that_the_server_no_longer_wants_is_given_up() -> None:
    async with bench() as at:
        asked, given_up = anyio.Event(), anyio.Event()

        async def answer(method: str, params: dict[str, Any]) -> dict[str, Any]:
            asked.set()
            try:
                await anyio.sleep_forever()
            finally:
                given_up.set()
            return {}

        async with leased(at, {"elicitation": {}}, answer=answer) as lease:
            call = asyncio.create_task(lease.call("ask"))
            exchange = await at.server.got("tools/call")
            exchange.say(message("elicitation/create", {}, id="q"))
            await asked.wait()
            exchange.say(message("notifications/cancelled", {"requestId": "q"}))
            await given_up.wait()
            exchange.answer()
            await call
            assert at.server.of("response") == []


async def test_a_lease_that_is_given_back_answers_nothing_more() -> None:
    async with bench() as at:
        asked = anyio.Event()

        async def answer(method: str, params: dict[str, Any]) -> dict[str, Any]:
            asked.set()
            await anyio.sleep_forever()
            return {}

        async with leased(at, {"elicitation": {}}, answer=answer) as lease:
            call = asyncio.create_task(lease.call("ask"))
            exchange = await at.server.got("tools/call")
            exchange.say(message("elicitation/create", {}, id="q"))
            await asked.wait()
            lease.close()
            await settle()
            assert at.server.of("response") == []
            exchange.answer()
            await call


@pytest.mark.parametrize("params", [b'{"x":1e999}', b"[1]"])
async def test_params_that_cannot_be_read_are_refused_and_end_nothing(params: bytes) -> None:
    async with bench() as at:
        heard: list[str] = []

        async def answer(method: str, params: dict[str, Any]) -> dict[str, Any]:
            raise AssertionError("it is not asked")

        hear = lambda method, params: heard.append(method)  # noqa: E731
        async with leased(at, {"elicitation": {}}, answer=answer, hear=hear) as lease:
            call = asyncio.create_task(lease.call("ask"))
            exchange = await at.server.got("tools/call")
            exchange.say(b'{"jsonrpc":"2.0","method":"notifications/message","params":%s}' % params)
            exchange.say(b'{"jsonrpc":"2.0","id":"q","method":"elicitation/create","params":%s}' % params)
            assert (await at.server.got("response")).json["error"]["code"] == -32602
            exchange.answer({"content": []})
            assert (await call).content == []
            assert heard == []


@pytest.mark.parametrize("result", [b'{"x":1e999}', b"[1]"])
async def test_a_result_that_cannot_be_read_fails_its_call(result: bytes) -> None:
    async with bench() as at, leased(at) as lease:
        at.server.on_request = lambda exchange: exchange.finish(
            b'{"jsonrpc":"2.0","id":%s,"result":%s}' % (exchange.id, result)
        )
        with pytest.raises(UpstreamFault):
            await lease.request("resources/read", {"uri": "x"})


async def test_tools_are_listed_over_all_pages() -> None:
    async with bench() as at, leased(at) as lease:
        pages = {None: ({"name": "a"}, "1"), "1": ({"name": "b"}, "2"), "2": ({"name": "c"}, None)}

        def answer(exchange: Exchange) -> None:
            tool, cursor = pages[exchange.json["params"].get("cursor")]
            exchange.answer({"tools": [tool], **({"nextCursor": cursor} if cursor else {})})

        at.server.on_request = answer
        assert [tool["name"] for tool in await lease.tools()] == ["a", "b", "c"]


@pytest.mark.parametrize("listed", [7, "abc", {"name": "a"}, [{"name": "a"}, "b"], [None]])
async def test_a_list_that_is_none_is_told(listed: Any) -> None:
    async with bench() as at, leased(at) as lease:
        at.server.on_request = lambda exchange: exchange.answer({"tools": listed})
        with pytest.raises(UpstreamFault, match="no list of tools") as raised:
            await lease.tools()
        assert raised.value.data == {"executed": "unknown"}


async def test_a_list_without_an_end_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(leasing, "MAX_PAGES", 3)
    async with bench() as at, leased(at) as lease:
        at.server.on_request = lambda exchange: exchange.answer({"tools": [], "nextCursor": "on"})
        with pytest.raises(UpstreamFault, match="more than 3 pages"):
            await lease.tools()


async def test_who_holds_a_lease_keeps_its_workflow_from_expiring() -> None:
    async with bench(idle_timeout=10) as at:
        async with leased(at) as lease:
            at.clock.advance(100)
            await at.swept()
            at.server.on_request = echo
            assert (await lease.call("echo", {"n": 1})).structured == {"n": 1}
        at.clock.advance(100)
        await at.ended("idle")


async def test_it_says_what_it_is_without_a_secret() -> None:
    async with bench() as at, leased(at) as lease:
        [workflow] = at.pool.workflows
        assert repr(lease) == f"Lease({workflow.handle} on x)"
        assert issubclass(ServerError, TrunklineError)
