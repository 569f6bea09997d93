"""Calls and streams outlive the connection that they came over (guarantee G5, rules E14 and T7 to T9)."""

import itertools
import json
from collections.abc import Iterator
from pathlib import Path

import anyio
import pytest
from harness.gateways import Gateway, bearer, until
from harness.gateways import gateway as running_gateway
from harness.upstreams import Upstream
from harness.wire import Answer, Wire, raw_members, text_of
from trunkline.transports.streamable_request import DECIDE_SECONDS

pytestmark = pytest.mark.anyio

PATIENCE = 20.0


async def primed(answer: Answer) -> str:
    """Read the priming event; its id."""
    assert answer.is_stream
    event = await answer.next_event()
    assert event is not None
    assert event.data == ""
    assert event.id
    return event.id


async def until_detached(gateway: Gateway, workflows: float) -> None:
    """Wait until the gateway noticed that wires are gone; /metrics is the only place that tells."""
    await until(lambda: gateway.metric("trunkline_workflows", server="up", state="attached") <= workflows)


async def test_a_call_that_takes_long_becomes_a_stream_that_can_be_resumed(
    gateway: Gateway, upstream: Upstream, key: str
) -> None:
    async with Wire(gateway.url()) as wire:
        await wire.open("2025-11-25")
        answer = await wire.call("hold", {"gate": key}, id=b'"a call"')
        event_id = await primed(answer)
        attached = gateway.metric("trunkline_workflows", server="up", state="attached")
        answer.cut()
        await until_detached(gateway, attached - 1)
        upstream.open(key)
        await upstream.saw("mark:held")

        resumed = await wire.get(event_id)
        assert resumed.status == 200
        assert resumed.is_stream
        raw = await resumed.raw_response()
        assert raw_members(raw)["id"] == b'"a call"'
        assert text_of(json.loads(raw)) == f"{key} is open"
        # The stream of a call ends with its response.
        assert await resumed.next_event() is None

    counts = upstream.counts()
    assert counts["method:tools/call"] == 1
    assert "mark:cancelled" not in counts
    assert "notification" not in counts


async def test_a_resumed_call_goes_on_live(gateway: Gateway, upstream: Upstream, key: str) -> None:
    async with Wire(gateway.url()) as wire:
        await wire.open()
        answer = await wire.call("slow", {"steps": 3, "gate": key}, meta={"progressToken": "t"})
        await primed(answer)
        upstream.open(f"{key}.1")
        first = await answer.next_event()
        assert first is not None
        assert json.loads(first.data)["params"]["progress"] == 1
        last_seen = answer.last_event_id
        answer.cut()
        upstream.open(f"{key}.2")
        await upstream.saw("mark:waiting", 3)

        resumed = await wire.get(last_seen)
        second = await resumed.next_event()
        assert second is not None
        assert json.loads(second.data)["params"]["progress"] == 2
        # The third was not sent when the client came back.
        upstream.open(f"{key}.3")
        rest = [message async for message in resumed.messages()]

    assert [message.get("params", {}).get("progress") for message in rest] == [3, None]
    assert text_of(rest[-1]) == "3 steps"


async def test_what_was_received_does_not_come_twice(gateway: Gateway, upstream: Upstream, key: str) -> None:
    async with Wire(gateway.url()) as wire:
        await wire.open()
        answer = await wire.call("slow", {"steps": 3, "gate": key}, meta={"progressToken": "t"})
        priming = await primed(answer)
        for step in (1, 2, 3):
            upstream.open(f"{key}.{step}")
        events = [event async for event in answer.events()]
        assert len({event.id for event in events}) == 4

        for position, event_id in enumerate([priming, *(event.id for event in events)]):
            again = [event.data async for event in (await wire.get(event_id)).events() if event.data]
            assert again == [event.data for event in events[position:]]


async def test_several_calls_are_resumed_each_on_its_own_stream(gateway: Gateway, upstream: Upstream, key: str) -> None:
    async with Wire(gateway.url()) as wire:
        await wire.open()
        ids = []
        for n in range(4):
            # One id for all of them: the event id names the exchange, not the request id.
            answer = await wire.call("hold", {"gate": f"{key}-{n}", "tag": str(n)}, id=b"1")
            ids.append(await primed(answer))
            answer.cut()
        for n in (2, 0, 3, 1):
            upstream.open(f"{key}-{n}")
        await upstream.saw("mark:held", 4)
        for n, event_id in enumerate(ids):
            assert text_of(await (await wire.get(event_id)).response()) == f"{key}-{n} is open {n}"


async def test_the_standalone_stream_is_resumed(gateway: Gateway, upstream: Upstream, key: str) -> None:
    async with Wire(gateway.url()) as wire:
        await wire.open()
        stream = await wire.get()
        assert stream.status == 200
        assert (await wire.call("log", {"text": "a", "attributed": False})).status == 200
        first = await stream.next_event()
        while first is not None and not first.data:
            first = await stream.next_event()
        assert first is not None
        assert first.id
        assert json.loads(first.data)["params"]["data"] == "a 1"
        stream.cut()
        await (await wire.call("log", {"text": "b", "times": 2, "attributed": False})).response()

        resumed = await wire.get(first.id)
        seen: list[str] = []
        while len(seen) < 2:
            event = await resumed.next_event()
            assert event is not None
            if event.data:
                seen.append(json.loads(event.data)["params"]["data"])
    assert seen == ["b 1", "b 2"]


@pytest.mark.parametrize("revision", ["2025-06-18", "2025-03-26"])
async def test_an_older_client_gets_no_priming_event_and_its_call_goes_on_without_it(
    gateway: Gateway, upstream: Upstream, key: str, revision: str
) -> None:
    async with Wire(gateway.url()) as wire:
        await wire.open(revision)
        params = {"name": "hold", "arguments": {"gate": key}}
        call = {"jsonrpc": "2.0", "id": 1, "method": "tools/call", "params": params}
        # Nothing may be said before the answer is there, so that it can still be plain JSON.
        async with anyio.create_task_group() as tasks:
            answers: list[Answer] = []

            async def post() -> None:
                answers.append(await wire.post(call))

            tasks.start_soon(post)
            await upstream.saw("mark:holding")
            await anyio.sleep(0.5)
            tasks.cancel_scope.cancel()
        assert not answers
        upstream.open(key)
        await upstream.saw("mark:held")
        answer = await wire.call("counter")
        assert text_of(await answer.response()) == "1"
        assert not answer.is_stream

    counts = upstream.counts()
    assert "mark:cancelled" not in counts
    assert "notification" not in counts


async def test_a_fast_call_is_answered_in_json(gateway: Gateway, upstream: Upstream) -> None:
    async with Wire(gateway.url()) as wire:
        await wire.open()
        with anyio.fail_after(PATIENCE):
            for n in itertools.count(1):  # until one was fast, as a loaded machine's calls are not
                began = anyio.current_time()
                answer = await wire.call("counter")
                assert text_of(await answer.response()) == str(n)
                if anyio.current_time() - began < DECIDE_SECONDS:
                    break
        assert not answer.is_stream


async def test_an_event_id_opens_nothing_for_another_principal(
    upstream: Upstream, token_settings: Path, key: str
) -> None:
    with running_gateway(toml=token_settings) as gateway:
        alice = bearer("alice")
        bob = bearer("bob")
        async with Wire(gateway.url(), alice) as hers, Wire(gateway.url(), bob) as his:
            await hers.open()
            await his.open()
            answer = await hers.call("hold", {"gate": key})
            event_id = await primed(answer)
            assert (await his.get(event_id)).status in (400, 404)
            assert (await his.get(event_id, {"Mcp-Session-Id": None})).status == 404
            assert (await his.get(event_id, {"Mcp-Session-Id": hers.session_id})).status == 404
            assert (await hers.get(("0" if event_id[0] != "0" else "1") + event_id[1:])).status == 404
            upstream.open(key)
            assert text_of(await answer.response()) == f"{key} is open"


@pytest.fixture
def short_window(settings_file, upstream: Upstream) -> Iterator[Gateway]:  # type: ignore[no-untyped-def]
    """A gateway that keeps what a client missed for a fifth of a second."""
    text = f'[pooling]\nresume_window = 0.2\n[servers.up]\nurl = "{upstream.url}"\n'
    with running_gateway(toml=settings_file(text)) as gateway:
        yield gateway


async def test_after_the_resume_window_an_event_id_is_unknown(
    short_window: Gateway, upstream: Upstream, key: str
) -> None:
    async with Wire(short_window.url()) as wire:
        await wire.open()
        answer = await wire.call("hold", {"gate": key})
        event_id = await primed(answer)
        answer.cut()
        upstream.open(key)
        await upstream.saw("mark:held")
        with anyio.fail_after(10):
            # Time itself is what is tested here, so there is nothing but asking again.
            while (again := await wire.get(event_id)).status == 200:
                again.cut()
                await anyio.sleep(0.3)
        assert again.status == 404
