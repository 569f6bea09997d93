"""The transports that carry everything on one connection, through the gateway process: what the clients of SDKs do."""

from typing import Any

import pytest
from harness.clients import Kind, Scenario, Transport, play, texts
from harness.duplex_clients import SocketClient, SSEClient
from harness.gateways import Gateway
from harness.upstreams import Upstream
from harness.wire import text_of

pytestmark = pytest.mark.anyio

# The 2.x line has no client for WebSocket.
SDKS = pytest.mark.parametrize(
    ("transport", "kind"),
    [
        *(("sse", kind) for kind in ("sdk2", "sdk1", "typescript")),
        *(("websocket", kind) for kind in ("sdk1", "typescript")),
    ],
)


def scenario(gateway: Gateway, transport: Transport, calls: list[Any], **more: Any) -> Scenario:
    url = {"sse": f"{gateway.server_url()}/sse", "websocket": f"{gateway.server_url()}/ws".replace("http", "ws", 1)}
    made: Scenario = {"url": url[transport], "transport": transport, "calls": calls}
    made.update(more)  # type: ignore[typeddict-item]
    return made


@SDKS
async def test_a_client_counts_over_one_upstream_session(
    gateway: Gateway, upstream: Upstream, transport: Transport, kind: Kind
) -> None:
    outcome = await play(kind, scenario(gateway, transport, [{"tool": "counter", "times": 20}]))
    assert texts(outcome) == [str(n) for n in range(1, 21)]
    counts = upstream.counts()
    assert counts["initialize"] == counts["initialized"] == 1
    assert counts["method:tools/call"] == 20


@SDKS
async def test_sixteen_calls_are_inside_at_once_and_get_their_own_answers(
    gateway: Gateway, upstream: Upstream, transport: Transport, kind: Kind
) -> None:
    calls = [
        {
            "tool": "barrier",
            "arguments": {"name": f"{transport}-{kind}", "parties": 16, "tag": str(n), "place": 15 - n},
        }
        for n in range(16)
    ]
    outcome = await play(kind, scenario(gateway, transport, calls, concurrent=True))
    assert [result["structured"]["tag"] for result in outcome["results"]] == [str(n) for n in range(16)]
    assert upstream.counts()["initialize"] == 1


@SDKS
async def test_what_a_server_asks_and_tells_reaches_the_client(
    gateway: Gateway, transport: Transport, kind: Kind
) -> None:
    outcome = await play(
        kind,
        scenario(
            gateway,
            transport,
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


@SDKS
async def test_one_key_continues_one_count(
    gateway: Gateway, upstream: Upstream, transport: Transport, kind: Kind, key: str
) -> None:
    for expected in (["1", "2"], ["3", "4"]):
        made = scenario(gateway, transport, [{"tool": "counter", "times": 2}])
        if transport == "websocket":  # whose clients send no headers
            made["url"] += f"?workflow={key}"
        else:
            made["headers"] = {"Trunkline-Workflow": key}
        assert texts(await play(kind, made)) == expected
    assert upstream.counts()["initialize"] == 1


@pytest.mark.parametrize("client_of", [SSEClient, SocketClient])
async def test_progress_comes_before_the_answer_in_order(
    gateway: Gateway, client_of: type[SSEClient | SocketClient]
) -> None:
    async with client_of(gateway.server_url()) as client:
        await client.open()
        await client.call("slow", token="t")
        got = await client.hear(4)
        assert [message.get("params", {}).get("progress") for message in got] == [1, 2, 3, None]
        assert {message["params"]["progressToken"] for message in got[:3]} == {"t"}
        assert text_of(got[3]) == "3 steps"
