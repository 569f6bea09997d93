"""The harness itself, without a gateway: what it counts and plays has to be true before it can judge anything."""

import json
import os
from urllib.parse import urlsplit

import aiohttp
import anyio
import pytest
from harness import ports
from harness.clients import KINDS, Kind, play, texts
from harness.ports import free_port
from harness.sse import Event, Parser
from harness.upstream_scripted import (
    Cut,
    Forever,
    Hang,
    Json,
    OpenStream,
    Pause,
    Raw,
    Refuse,
    Reply,
    Script,
    ScriptedUpstream,
    Send,
    Status,
    text_result,
)
from harness.upstreams import Line, Upstream
from harness.upstreams import upstream as running_upstream
from harness.wire import Wire, text_of

pytestmark = pytest.mark.anyio


def test_a_port_is_given_once_and_to_one_of_the_processes_that_run_at_once() -> None:
    given = [free_port() for _ in range(200)]
    assert len(set(given)) == len(given)
    processes = [ports.own_ports({"PYTEST_XDIST_WORKER_COUNT": "3", "PYTEST_XDIST_WORKER": f"gw{n}"}) for n in range(3)]
    assert sorted(port for each in processes for port in each) == list(ports.own_ports({}))


@pytest.mark.parametrize("line", ["sdk1", "sdk2"])
@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind != "sdk2-auto"])
async def test_the_recorder_counts_what_a_client_costs_directly(line: Line, kind: Kind) -> None:
    with running_upstream(line) as server:
        calls = {"tool": "counter", "times": 5}
        outcome = await play(kind, {"url": server.url, "calls": [calls]})  # type: ignore[list-item]
        report = await server.saw("delete")

    assert texts(outcome) == ["1", "2", "3", "4", "5"]
    assert report["counts"]["method:tools/call"] == 5
    assert report["counts"]["initialize"] == report["counts"]["initialized"] == len(report["sessions"]) == 1


async def test_after_a_reset_older_sessions_do_not_count(upstream: Upstream) -> None:
    async with Wire(upstream.url) as old, Wire(upstream.url) as new:
        await old.open()
        upstream.reset()
        await new.open()
        await (await old.call("counter")).response()

        report = upstream.report()
        assert report["counts"]["initialize"] == 1
        assert "method:tools/call" not in report["counts"]
        assert report["earlier"] == {"call": 1}


async def test_a_barrier_tells_calls_in_turn_from_calls_at_once(upstream: Upstream, key: str) -> None:
    async with Wire(upstream.url) as wire:
        await wire.open()
        for n in range(3):
            answer = await wire.call("barrier", {"name": f"{key}-{n}", "parties": 1, "tag": "t"}, id=b"%d" % (n + 1))
            assert (await answer.response())["result"]["structuredContent"]["peak"] == 1
    assert upstream.report()["peak"] == 1


async def test_a_script_is_played_step_by_step() -> None:
    message = {"jsonrpc": "2.0", "method": "notifications/message", "params": {"level": "info", "data": 1}}
    script: Script = {
        "tools/call": [
            [Status(404)],
            [OpenStream(), Send("", event_id="1", retry=5), Send(message), Pause("gate"), Reply(text_result("b"), "2")],
            [Refuse(-32000, "no", {"a": 1})],
            [Json('{"jsonrpc":"2.0","id":"$ID","result":{}}')],
            [OpenStream(), Raw(b'data: {"a":\r\ndata: 1}\r\n\r\n')],
        ]
    }
    async with ScriptedUpstream(script) as upstream, Wire(upstream.url) as wire:
        await wire.open()
        assert (await wire.call("x")).status == 404
        stream = await wire.call("x", id=b"123456789012345678901234567890")
        assert await stream.next_event() == Event("", id="1", retry=5)
        assert json.loads((await stream.next_event() or Event("")).data) == message
        await upstream.reached("gate")
        upstream.open("gate")
        response = await stream.response()
        assert (text_of(response), response["id"]) == ("b", 123456789012345678901234567890)
        assert stream.last_event_id == "2"
        refused = await (await wire.call("x")).response()
        assert refused["error"] == {"code": -32000, "message": "no", "data": {"a": 1}}
        assert (await (await wire.call("x", id=b"7")).response())["id"] == "7"
        assert await (await wire.call("x")).next_event() == Event('{"a":\n1}')
        # Without an entry in the script, things go well.
        assert (await wire.delete()).status == 200
        assert upstream.of("initialize")[0].raw_id == b'"open"'


async def test_a_script_cuts_hangs_and_floods() -> None:
    script: Script = {
        "tools/call": [
            [OpenStream(), Send("", event_id="1"), Cut()],
            [OpenStream(), Send("x" * 17 * 2**20)],
            [OpenStream(), Forever(b": more\n\n")],
            [Hang()],
        ]
    }
    async with ScriptedUpstream(script) as upstream, Wire(upstream.url) as wire:
        await wire.open()
        cut = await wire.call("x")
        assert await cut.next_event() == Event("", id="1")
        with pytest.raises(aiohttp.ClientPayloadError):
            await cut.next_event()
        large = await (await wire.call("x")).next_event()
        assert large is not None
        assert len(large.data) == 17 * 2**20
        (await wire.call("x")).cut()
        await upstream.until(lambda: upstream.disconnects == 1)
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(wire.call, "x")
            await upstream.saw("tools/call", 4)
            tasks.cancel_scope.cancel()
        await upstream.until(lambda: upstream.disconnects == 2)


async def test_nothing_is_left_of_a_server_whose_client_takes_nothing() -> None:
    before = set(os.listdir("/proc/self/fd"))
    call = b'{"jsonrpc":"2.0","id":1,"method":"tools/call"}'
    async with ScriptedUpstream({"tools/call": [[OpenStream(), Forever(b"x" * 1_000_000)]]}) as upstream:
        client = await anyio.connect_tcp("127.0.0.1", urlsplit(upstream.url).port or 0)
        await client.send(b"POST /mcp HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n%b" % (len(call), call))
        await upstream.saw("tools/call")
        await anyio.wait_all_tasks_blocked()
    left = set(os.listdir("/proc/self/fd")) - before
    await client.aclose()
    assert len(left) == 1, "the client's own"


@pytest.mark.parametrize("size", [1, 2, 3, 7, 1000])
def test_events_are_read_alike_however_they_are_cut(size: int) -> None:
    text = b": hi\r\nid: 1\r\ndata: a\r\ndata: b\r\n\r\nid\rdata:  c\r\revent: x\nretry: 5\ndata\n\ndata: unfinished\n"
    parser = Parser()
    events = [event for at in range(0, len(text), size) for event in parser.feed(text[at : at + size])]

    assert events == [Event("a\nb", id="1"), Event(" c", id=""), Event("", event="x", retry=5)]
    assert parser.comments == 1
