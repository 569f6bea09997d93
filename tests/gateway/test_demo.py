"""The demo's server: what each of its tools shows, to the SDK's client."""

from collections.abc import AsyncIterator

import anyio
import pytest
from harness.clients import Outcome, Scenario, play, texts
from harness.ports import free_port
from harness.processes import http_status
from harness.wire import Wire, text_of
from trunkline.gateway import demo
from trunkline.gateway.demo import serve_demo

pytestmark = pytest.mark.anyio


@pytest.fixture
async def url() -> AsyncIterator[str]:
    """A running demo server."""
    async with serve_demo() as served:
        yield served


async def talk(url: str, **scenario: object) -> Outcome:
    whole: Scenario = {"url": url, **scenario}  # type: ignore[typeddict-item]
    return await play("sdk2", whole)


async def test_counter_counts_the_calls_of_a_session_and_of_no_other(url: str) -> None:
    for _ in range(2):
        assert texts(await talk(url, calls=[{"tool": "counter", "times": 3}])) == ["1", "2", "3"]


async def test_echo_says_the_same(url: str) -> None:
    said = ["", "two\nlines", "\N{SNOWMAN} \U0001f600", "x" * 100_000]
    assert texts(await talk(url, calls=[{"tool": "echo", "arguments": {"text": text}} for text in said])) == said


async def test_slow_reports_each_step(url: str) -> None:
    outcome = await talk(url, calls=[{"tool": "slow", "arguments": {"steps": 3, "seconds": 0.03}}])
    assert texts(outcome) == ["3 steps in 0.03 s"]
    assert [(done, total) for done, total, _ in outcome["progress"]] == [(1, 3), (2, 3), (3, 3)]


@pytest.mark.parametrize("arguments", [{"steps": 0}, {"steps": 101}, {"seconds": -1}, {"seconds": 61}, {"steps": "x"}])
async def test_slow_is_bounded(url: str, arguments: dict[str, object]) -> None:
    [result] = (await talk(url, calls=[{"tool": "slow", "arguments": arguments}]))["results"]
    assert result.get("failed") or "error" in result


async def test_ask_asks_the_user(url: str) -> None:
    outcome = await talk(url, calls=[{"tool": "ask"}], answers={"elicitation": {"name": "Ada"}})
    assert texts(outcome) == ["Hello, Ada!"]
    assert outcome["asked"] == [["elicitation/create", "Who is there?"]]


async def test_of_too_many_sessions_the_one_that_counted_longest_ago_is_forgotten(
    url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(demo, "MAX_COUNTERS", 2)
    async with Wire(url) as one, Wire(url) as two, Wire(url) as three:
        counted = []
        for wire in (one, two, three):
            await wire.open()
        for wire in (one, two, one, three, one, two):
            counted.append(text_of(await (await wire.call("counter")).response()))  # noqa: PERF401 - in order
        assert counted == ["1", "1", "2", "1", "3", "1"]


async def test_it_is_on_loopback_and_gone_when_it_is_left() -> None:
    async with serve_demo() as first, serve_demo() as second:
        ports = [int(url.removeprefix("http://127.0.0.1:").removesuffix("/mcp")) for url in (first, second)]
        assert len(set(ports)) == 2
        assert await anyio.to_thread.run_sync(http_status, ports[0], "/mcp") is not None
    assert [await anyio.to_thread.run_sync(http_status, port, "/mcp") for port in ports] == [None, None]


async def test_where_no_port_is_free_it_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    async with serve_demo() as url:
        taken = int(url.split(":")[2].split("/")[0])
        monkeypatch.setattr(demo, "PORTS", range(taken, taken + 1))
        with pytest.raises(OSError, match="no free port"):
            async with serve_demo():
                pass
    monkeypatch.setattr(demo, "PORTS", [taken, free_port()])
    async with serve_demo():
        pass
