"""G6, row by row as docs/operating.md has it: what is sent a second time, counted where it is executed."""

from collections import Counter
from collections.abc import AsyncIterator, Iterator
from typing import Any

import anyio
import pytest
from harness.gateways import Gateway
from harness.gateways import gateway as running_gateway
from harness.ports import free_port
from harness.upstream_scripted import (
    Cut,
    Hang,
    OpenStream,
    Pause,
    Play,
    Reply,
    ScriptedUpstream,
    Send,
    Status,
    text_result,
)
from harness.wire import Wire, text_of

pytestmark = pytest.mark.anyio

LOST, TIMED_OUT, UNREACHABLE = -31002, -31004, -31001
GOOD: Play = [Reply(text_result("good"))]
CUT: Play = [OpenStream(), Cut()]
TOOLS: dict[str, dict[str, Any] | None] = {
    "read": {"readOnlyHint": True},
    "idempotent": {"idempotentHint": True},
    "destructive": {"idempotentHint": True, "destructiveHint": True},
    "bare": None,
}
REPEATABLE = {"read", "idempotent"}
LIST: Play = [
    Reply(
        {
            "tools": [
                {"name": name, "inputSchema": {}, **({"annotations": hints} if hints else {})}
                for name, hints in TOOLS.items()
            ]
        }
    )
]
SERVERS = {
    "plain": "",
    "plain-stateless": "stateless = true",
    "plain-shared": 'reuse = "user"',
    "trusted": "trust_annotations = true",
    "trusted-stateless": "trust_annotations = true\nstateless = true",
    "trusted-shared": 'trust_annotations = true\nreuse = "user"',
}
HASTY = "hasty-"
"""What the name of a server begins with whose calls have little time."""


@pytest.fixture(scope="module")
def port() -> int:
    return free_port()


@pytest.fixture(scope="module")
def gateway(port: int, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Gateway]:
    """One gateway, with the same server under every setting that matters."""
    settings = tmp_path_factory.mktemp("trust") / "trunkline.toml"
    settings.write_text(
        "\n".join(
            f'[servers.{kind}{name}]\nurl = "http://127.0.0.1:{port}/mcp"\neras = ["legacy"]\n'
            f"request_timeout = {seconds}\n{text}"
            for kind, seconds in (("", 30), (HASTY, 1))
            for name, text in SERVERS.items()
        )
    )
    with running_gateway(toml=settings) as process:
        yield process


@pytest.fixture
async def server(port: int) -> AsyncIterator[ScriptedUpstream]:
    async with ScriptedUpstream({"tools/list": [LIST]}, port=port) as upstream:
        yield upstream


def executions(server: ScriptedUpstream) -> dict[str, int]:
    """How often each call came in, by the number that it carries."""
    return dict(Counter(came.message["params"]["arguments"]["n"] for came in server.of("tools/call") if came.message))


def plays(server: ScriptedUpstream, *calls: Play) -> None:
    """What becomes of the calls that come now."""
    server.script["tools/call"] = calls
    server.plays["tools/call"] = 0


async def list_tools(wire: Wire) -> None:
    answer = await (await wire.post({"jsonrpc": "2.0", "id": "list", "method": "tools/list"})).response()
    assert len(answer["result"]["tools"]) == len(TOOLS)


async def call(wire: Wire, tool: str, n: str = "one") -> dict[str, Any]:
    return await (await wire.call(tool, {"n": n}, id=b'"mine"')).response()


async def end(wire: Wire) -> None:
    """End the session; one that is shared is not left open for the next test either."""
    await wire.delete()


def repeated(gateway: Gateway, server: str) -> float:
    return gateway.metric("trunkline_repeated_calls_total", server=server, why="trusted")


@pytest.mark.parametrize("tool", [*TOOLS, "unlisted"])
@pytest.mark.parametrize("name", SERVERS)
async def test_g6_where_the_session_lives_and_the_answer_was_cut(
    gateway: Gateway, server: ScriptedUpstream, name: str, tool: str
) -> None:
    plays(server, CUT, GOOD)
    before = repeated(gateway, name)
    async with Wire(gateway.url(name)) as wire:
        await wire.open()
        await list_tools(wire)
        answer = await call(wire, tool)
        is_repeated = name.startswith("trusted") and tool in REPEATABLE
        assert executions(server) == {"one": 2 if is_repeated else 1}
        assert answer["id"] == "mine"
        if is_repeated:
            assert text_of(answer) == "good"
        else:
            assert (answer["error"]["code"], answer["error"]["data"]) == (LOST, {"executed": "unknown"})
        assert repeated(gateway, name) - before == is_repeated
        assert text_of(await call(wire, tool, "two")) == "good", "the session goes on"
        assert len({came.headers["mcp-session-id"] for came in server.of("tools/call")}) == 1
        await end(wire)


@pytest.mark.parametrize("tool", ["read", "bare"])
@pytest.mark.parametrize("name", SERVERS)
async def test_g6_where_the_session_was_lost_with_a_call_in_flight(
    gateway: Gateway, server: ScriptedUpstream, name: str, tool: str
) -> None:
    """One call hangs; another is refused with 404, which surely did not run, and tells that the session is gone."""
    plays(server, [Hang()], [Status(404)], GOOD)
    outcomes: dict[str, dict[str, Any]] = {}
    async with Wire(gateway.url(name)) as wire:
        await wire.open()
        await list_tools(wire)

        async def run(n: str) -> None:
            outcomes[n] = await call(wire, tool, n)

        async with anyio.create_task_group() as tasks:
            tasks.start_soon(run, "in flight")
            await server.saw("tools/call")
            tasks.start_soon(run, "refused")
        is_reopened = name.endswith(("stateless", "shared"))
        is_repeated = is_reopened and name.startswith("trusted") and tool == "read"
        assert executions(server) == {"in flight": 2 if is_repeated else 1, "refused": 2 if is_reopened else 1}
        if is_repeated:
            assert text_of(outcomes["in flight"]) == "good"
        else:
            assert outcomes["in flight"]["error"]["data"] == {"executed": "unknown"}
        if is_reopened:
            assert text_of(outcomes["refused"]) == "good"
            await end(wire)
        else:
            assert outcomes["refused"]["error"]["data"] == {"executed": "no"}
            assert (await wire.call(tool, {"n": "after"})).status == 404, "its state is gone, and that is told (L18)"
        if not name.endswith("shared"):  # where the session that was lost may have been a test's before
            assert len(server.of("initialize")) == (2 if is_reopened else 1)


NEVER: dict[str, tuple[Play, int]] = {
    "500": ([Status(500)], UNREACHABLE),
    "silence": ([Hang()], TIMED_OUT),
}


@pytest.mark.parametrize("way", NEVER)
@pytest.mark.parametrize("name", SERVERS)
async def test_g6_where_the_server_answered_or_was_silent(
    gateway: Gateway, server: ScriptedUpstream, name: str, way: str
) -> None:
    play, code = NEVER[way]
    plays(server, play, GOOD)
    async with Wire(gateway.url(f"{HASTY}{name}" if code == TIMED_OUT else name)) as wire:
        await wire.open()
        await list_tools(wire)
        error = (await call(wire, "read"))["error"]
        assert (error["code"], error["data"]["executed"]) == (code, "unknown")
        assert executions(server) == {"one": 1}
        await end(wire)


@pytest.mark.parametrize("name", ["trusted", "trusted-stateless", "trusted-shared"])
async def test_g6_a_call_is_sent_again_once_and_no_more(gateway: Gateway, server: ScriptedUpstream, name: str) -> None:
    plays(server, CUT, CUT, GOOD)
    async with Wire(gateway.url(name)) as wire:
        await wire.open()
        await list_tools(wire)
        assert (await call(wire, "read"))["error"]["data"] == {"executed": "unknown"}
        assert executions(server) == {"one": 2}
        await end(wire)


async def test_g6_a_second_try_that_surely_did_not_run_says_nothing_of_the_first(
    gateway: Gateway, server: ScriptedUpstream
) -> None:
    plays(server, CUT, [Status(404)])
    async with Wire(gateway.url("trusted")) as wire:
        await wire.open()
        await list_tools(wire)
        assert (await call(wire, "read"))["error"]["data"] == {"executed": "unknown"}
        assert executions(server) == {"one": 2}


async def test_g6_without_a_list_nothing_is_known(gateway: Gateway, server: ScriptedUpstream) -> None:
    plays(server, CUT, GOOD)
    async with Wire(gateway.url("trusted")) as wire:
        await wire.open()
        assert (await call(wire, "read"))["error"]["data"] == {"executed": "unknown"}
        assert executions(server) == {"one": 1}
        await end(wire)


async def test_g6_when_the_tools_have_changed_nothing_is_known(gateway: Gateway, server: ScriptedUpstream) -> None:
    changed = {"jsonrpc": "2.0", "method": "notifications/tools/list_changed"}
    server.script["GET"] = [[OpenStream(), Pause("changed"), Send(changed), Hang()]]
    plays(server, CUT, CUT, GOOD)
    async with Wire(gateway.url("trusted")) as wire:
        await wire.open()
        await list_tools(wire)
        listening = await wire.get()
        server.open("changed")
        assert await anext(listening.messages()) == changed
        assert (await call(wire, "read"))["error"]["data"] == {"executed": "unknown"}
        await list_tools(wire)
        assert text_of(await call(wire, "read", "two")) == "good"
        assert executions(server) == {"one": 1, "two": 2}
        await end(wire)


async def test_g6_what_one_workflow_was_told_counts_for_those_that_share_its_session_and_no_others(
    gateway: Gateway, server: ScriptedUpstream
) -> None:
    for name, repeats in (("trusted", False), ("trusted-shared", True)):
        plays(server, CUT, GOOD)
        async with Wire(gateway.url(name)) as lister, Wire(gateway.url(name)) as caller:
            await lister.open()
            await caller.open()
            await list_tools(lister)
            answer = await call(caller, "read", name)
            assert executions(server)[name] == (2 if repeats else 1)
            assert ("result" in answer) is repeats
            await end(lister)
            await end(caller)
