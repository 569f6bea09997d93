"""HTTP+SSE through the gateway process: the clients of three SDKs, and what is refused."""

import itertools
import signal
from pathlib import Path
from typing import Any

import pytest
from harness.clients import Kind, Scenario, play, texts
from harness.duplex_clients import SSEClient
from harness.gateways import Gateway, bearer
from harness.gateways import gateway as running_gateway
from harness.upstreams import Upstream
from harness.wire import text_of

pytestmark = pytest.mark.anyio

KINDS: tuple[Kind, ...] = ("sdk2", "sdk1", "typescript")
PING = {"jsonrpc": "2.0", "id": "p", "method": "ping"}


def base(gateway: Gateway, name: str = "up") -> str:
    return gateway.url(name).rpartition("/")[0]


def scenario(gateway: Gateway, calls: list[Any], **more: Any) -> Scenario:
    made: Scenario = {"url": f"{base(gateway)}/sse", "transport": "sse", "calls": calls}
    made.update(more)  # type: ignore[typeddict-item]
    return made


@pytest.mark.parametrize("kind", KINDS)
async def test_a_client_counts_over_one_upstream_session(gateway: Gateway, upstream: Upstream, kind: Kind) -> None:
    outcome = await play(kind, scenario(gateway, [{"tool": "counter", "times": 20}]))
    assert texts(outcome) == [str(n) for n in range(1, 21)]
    counts = upstream.counts()
    assert counts["initialize"] == counts["initialized"] == 1
    assert counts["method:tools/call"] == 20


@pytest.mark.parametrize("kind", KINDS)
async def test_sixteen_calls_are_inside_at_once_and_get_their_own_answers(
    gateway: Gateway, upstream: Upstream, kind: Kind
) -> None:
    calls = [
        {
            "tool": "barrier",
            "arguments": {"name": f"sse-{kind}", "parties": 16, "tag": str(n), "place": 15 - n},
        }
        for n in range(16)
    ]
    outcome = await play(kind, scenario(gateway, calls, concurrent=True))
    assert [result["structured"]["tag"] for result in outcome["results"]] == [str(n) for n in range(16)]
    assert upstream.counts()["initialize"] == 1


@pytest.mark.parametrize("kind", KINDS)
async def test_what_a_server_asks_and_tells_reaches_the_client(gateway: Gateway, kind: Kind) -> None:
    outcome = await play(
        kind,
        scenario(
            gateway,
            [
                {"tool": "ask"},
                {"tool": "sample", "arguments": {"prompt": "on the stream of the call"}},
                {"tool": "sample", "arguments": {"prompt": "on the other stream", "attributed": False}},
                {"tool": "roots"},
                {"tool": "slow"},
                {"tool": "log", "arguments": {"text": "related", "times": 2}},
                {"tool": "log", "arguments": {"text": "unrelated", "attributed": False}},
            ],
            answers={"elicitation": {"colour": "red"}, "sampling": "hello", "roots": ["file:///project"]},
            await_notifications=3,
        ),
    )
    assert texts(outcome)[:4] == ["accept red", "hello", "hello", "file:///project"]
    steps = [[1, 3, "step 1"], [2, 3, "step 2"], [3, 3, "step 3"]]
    # The TypeScript SDK forgets who wants progress once it has the answer, even where both came in one read.
    seen = len(outcome["progress"]) if kind == "typescript" else 3
    assert outcome["progress"] == steps[:seen]
    told = sorted((params or {})["data"] for _, params in outcome["notifications"])
    assert told == ["related 1", "related 2", "unrelated 1"]


@pytest.mark.parametrize("kind", KINDS)
async def test_one_key_continues_one_count(gateway: Gateway, upstream: Upstream, kind: Kind, key: str) -> None:
    headers = {"Trunkline-Workflow": key}
    for expected in (["1", "2"], ["3", "4"]):
        made = scenario(gateway, [{"tool": "counter", "times": 2}], headers=headers)
        assert texts(await play(kind, made)) == expected
    assert upstream.counts()["initialize"] == 1


async def test_progress_comes_before_the_answer_in_order(gateway: Gateway) -> None:
    async with SSEClient(base(gateway)) as client:
        await client.connect()
        await client.begin()
        await client.call("slow", token="t")
        got = await client.hear(4)
        assert [message.get("params", {}).get("progress") for message in got] == [1, 2, 3, None]
        assert {message["params"]["progressToken"] for message in got[:3]} == {"t"}
        assert text_of(got[3]) == "3 steps"


async def test_x1_a_foreign_origin_is_refused(gateway: Gateway) -> None:
    async with SSEClient(base(gateway)) as client:
        assert (await client.get(headers={"Origin": "https://evil.example"})).status == 403
        await client.connect()
        refused = await client.post(PING, {"Origin": "https://evil.example"})
        assert refused.status == 403


async def test_g4_what_is_another_principals_is_unknown(upstream: Upstream, token_settings: Path) -> None:
    alice, bob = bearer("alice"), bearer("bob")
    with running_gateway(toml=token_settings) as gateway:
        async with SSEClient(base(gateway), alice) as hers, SSEClient(base(gateway), bob) as his:
            await hers.connect()
            await hers.begin()
            unknown = hers.endpoint.replace(hers.session_id, "0" * len(hers.session_id))
            posts = [await his.post(PING, endpoint=endpoint) for endpoint in (hers.endpoint, unknown)]
            gets = [await his.get(f"?session_id={name}") for name in (hers.session_id, "unknown")]
            gets.append(await his.get(headers={"Last-Event-ID": hers.last_event_id}))
            assert {answer.status for answer in (*posts, *gets)} == {404}
            assert len({await answer.body() for answer in (*posts, *gets)}) == 1
            assert (await his.post(PING, {"Authorization": "Bearer wrong"}, endpoint=hers.endpoint)).status == 401
            await hers.call("counter")
            assert text_of(await hers.next()) == "1"
    assert upstream.counts()["method:tools/call"] == 1


async def test_what_disagrees_is_refused(gateway: Gateway, key: str) -> None:
    async with SSEClient(base(gateway)) as keyed, SSEClient(base(gateway)) as other:
        await keyed.connect(f"?workflow={key}")
        await keyed.begin()
        await other.connect()
        await other.begin()
        for query, headers in (
            (f"?session_id={keyed.session_id}&workflow=other", {}),
            (f"?session_id={other.session_id}&workflow={key}", {}),
            (f"?session_id={other.session_id}", {"Last-Event-ID": keyed.last_event_id}),
            (f"?session_id={other.session_id}", {"Mcp-Session-Id": keyed.session_id}),
            (f"?workflow={key}", {"Last-Event-ID": other.last_event_id}),
        ):
            assert (await other.get(query, headers)).status == 400, (query, headers)


async def test_g8_a_drain_lets_the_call_end_and_asks_the_client_to_come_back(upstream: Upstream, key: str) -> None:
    with running_gateway(upstreams={"up": upstream.url}) as gateway:
        async with SSEClient(base(gateway)) as client:
            await client.connect()
            await client.begin()
            await client.call("hold", {"gate": key})
            await upstream.saw("mark:holding")
            gateway.process.send_signal(signal.SIGTERM)
            # Its own answer to what comes later tells that it drains.
            for number in itertools.count(2):
                await client.call("echo", {"value": number}, id=number)
                if "error" in (answer := await client.answer(number)):
                    break
            assert answer["error"]["code"] == -31002
            async with SSEClient(base(gateway)) as later:
                stream = await later.get(headers={"Last-Event-ID": client.last_event_id})
                assert stream.status == 200
                event = await stream.next_event()
                assert event is not None
                assert (event.data, event.retry) == ("", 1000)
                assert await stream.next_event() is None
            upstream.open(key)
            assert text_of(await client.answer(1)) == f"{key} is open"
            assert client.stream is not None
            last = await client.stream.next_event()
            assert last is not None
            assert last.retry == 1000
            assert await client.stream.next_event() is None
        assert gateway.process.wait(15) == 0


async def test_the_stream_of_a_workflow_that_is_gone_ends(gateway: Gateway) -> None:
    async with SSEClient(base(gateway)) as client:
        await client.connect()
        await client.begin()
        ended = await client._wire.request("DELETE", path="/mcp", headers={"Mcp-Session-Id": client.session_id})
        assert ended.status == 200
        await client.over()
        assert (await client.get(headers={"Last-Event-ID": client.last_event_id})).status == 404
        assert (await client.post(PING)).status == 404
