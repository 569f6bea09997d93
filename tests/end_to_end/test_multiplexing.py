"""Many calls at once over one upstream session: every answer reaches the exchange that asked."""

import json
import random

import anyio
import pytest
from harness.gateways import Gateway
from harness.upstreams import Upstream
from harness.wire import Wire, raw_members, text_of

pytestmark = pytest.mark.anyio

AT_ONCE = 64
IDS = (
    b"1",
    b'"1"',
    b"0",
    b"-1",
    b"1152921504606846976",
    b"123456789012345678901234567890",
    b'"\\u0031"',
    '"ключ"'.encode(),
)


async def meet(wire: Wire, name: str, answers: dict[int, tuple[bytes, str, int]]) -> None:
    """Make `AT_ONCE` calls that are all inside the server before the first is answered, in a random order."""
    places = random.sample(range(AT_ONCE), AT_ONCE)

    async def one(n: int) -> None:
        arguments = {"name": name, "parties": AT_ONCE, "tag": f"{name}/{n}", "place": places[n]}
        raw = await (await wire.call("barrier", arguments, id=IDS[n % len(IDS)])).raw_response()
        result = json.loads(raw)["result"]["structuredContent"]
        answers[n] = (raw_members(raw)["id"], result["tag"], result["peak"])

    async with anyio.create_task_group() as tasks:
        for n in range(AT_ONCE):
            tasks.start_soon(one, n)


@pytest.mark.parametrize("revision", ["2025-11-25", "2025-06-18", "2025-03-26", "2024-11-05"])
async def test_sixty_four_calls_with_the_same_ids_get_each_its_own_answer(
    gateway: Gateway, upstream: Upstream, key: str, revision: str
) -> None:
    answers: dict[int, tuple[bytes, str, int]] = {}
    async with Wire(gateway.url()) as wire:
        await wire.open(revision)
        await meet(wire, key, answers)

    for n in range(AT_ONCE):
        spelled, tag, peak = answers[n]
        assert spelled == IDS[n % len(IDS)]
        assert tag == f"{key}/{n}"
        assert peak == AT_ONCE
    report = upstream.report()
    assert report["counts"]["initialize"] == 1
    assert len(report["sessions"]) == 1
    assert report["peak"] == AT_ONCE
    sent = [json.loads(request["id"]) for request in report["requests"] if request["kind"] in ("initialize", "call")]
    assert len(set(sent)) == len(sent) == AT_ONCE + 1
    assert all(type(one) is int and 0 < one < 2**53 for one in sent)


async def test_two_sessions_with_the_same_ids_are_not_mixed_up(gateway: Gateway, upstream: Upstream, key: str) -> None:
    first: dict[int, tuple[bytes, str, int]] = {}
    second: dict[int, tuple[bytes, str, int]] = {}
    async with Wire(gateway.url()) as one, Wire(gateway.url()) as other, anyio.create_task_group() as tasks:
        await one.open()
        await other.open()
        tasks.start_soon(meet, one, f"{key}-first", first)
        tasks.start_soon(meet, other, f"{key}-second", second)

    assert [tag for _, tag, _ in (first[n] for n in range(AT_ONCE))] == [f"{key}-first/{n}" for n in range(AT_ONCE)]
    assert [tag for _, tag, _ in (second[n] for n in range(AT_ONCE))] == [f"{key}-second/{n}" for n in range(AT_ONCE)]
    assert len(upstream.report()["sessions"]) == 2


async def test_the_upstream_sees_neither_session_id_nor_request_id_of_the_client(
    gateway: Gateway, upstream: Upstream
) -> None:
    async with Wire(gateway.url()) as wire:
        await wire.open(id=b'"an-id-of-the-client"')
        session = wire.session_id
        assert text_of(await (await wire.call("counter", id=b'"an-id-of-the-client"')).response()) == "1"
        assert (await wire.delete()).status == 200

    report = await upstream.saw("delete")
    assert session is not None
    assert len(session) >= 22
    assert session not in json.dumps(report)
    assert "an-id-of-the-client" not in json.dumps(report)


@pytest.mark.parametrize("token", ["0", '""', '"0"', "1152921504606846976", '"step"'])
async def test_progress_comes_under_the_token_of_the_client(gateway: Gateway, upstream: Upstream, token: str) -> None:
    async with Wire(gateway.url()) as wire:
        await wire.open()
        answer = await wire.call("slow", {"steps": 2}, meta={"progressToken": json.loads(token)})
        messages = [message async for message in answer.messages()]

    assert [json.dumps(message["params"]["progressToken"]) for message in messages[:-1]] == [token, token]
    assert text_of(messages[-1]) == "2 steps"


async def test_two_sessions_with_one_progress_token_get_each_their_own_progress(
    gateway: Gateway, upstream: Upstream, key: str
) -> None:
    async with Wire(gateway.url()) as one, Wire(gateway.url()) as other:
        await one.open()
        await other.open()
        gates = {"one": f"{key}-one", "other": f"{key}-other"}
        first = await one.call("slow", {"steps": 1, "gate": gates["one"]}, meta={"progressToken": 1})
        second = await other.call("slow", {"steps": 2, "gate": gates["other"]}, meta={"progressToken": 1})
        await upstream.saw("mark:waiting", 2)
        for gate in (f"{gates['other']}.1", f"{gates['one']}.1", f"{gates['other']}.2"):
            upstream.open(gate)
        of_one = [message async for message in first.messages()]
        of_other = [message async for message in second.messages()]

    assert [message["params"]["total"] for message in of_one[:-1]] == [1]
    assert [message["params"]["total"] for message in of_other[:-1]] == [2, 2]


async def test_a_cancel_reaches_the_call_that_it_means_and_no_other(
    gateway: Gateway, upstream: Upstream, key: str
) -> None:
    cancel = {"jsonrpc": "2.0", "method": "notifications/cancelled", "params": {"requestId": 7}}
    async with Wire(gateway.url()) as one, Wire(gateway.url()) as other:
        await one.open()
        await other.open()
        first = await one.call("hold", {"gate": f"{key}-one"}, id=b"7")
        second = await other.call("hold", {"gate": f"{key}-other"}, id=b"7")
        await upstream.saw("mark:holding", 2)

        # An id that is nobody's, or only another session's, cancels nothing.
        unknown = {**cancel, "params": {"requestId": 8}}
        assert (await one.post(unknown)).status == 202
        assert (await other.post(cancel)).status == 202
        report = await upstream.saw("mark:cancelled")
        assert (await second.response())["error"]["code"] == -32800
        assert [mark["gate"] for mark in report["marks"] if mark["name"] == "cancelled"] == [f"{key}-other"]

        upstream.open(f"{key}-one")
        assert text_of(await first.response()) == f"{key}-one is open"
    assert upstream.counts()["mark:cancelled"] == 1


async def test_a_ping_is_answered_by_the_gateway(gateway: Gateway, upstream: Upstream) -> None:
    async with Wire(gateway.url()) as wire:
        await wire.open()
        answer = await wire.post({"jsonrpc": "2.0", "id": "p", "method": "ping"})
        assert await answer.response() == {"jsonrpc": "2.0", "id": "p", "result": {}}

    assert "method:ping" not in upstream.counts()


async def test_a_batch_of_the_one_revision_that_has_them_is_split(gateway: Gateway, upstream: Upstream) -> None:
    call = {"jsonrpc": "2.0", "method": "tools/call", "params": {"name": "counter", "arguments": {}}}
    notification = {"jsonrpc": "2.0", "method": "notifications/roots/list_changed"}
    async with Wire(gateway.url()) as wire:
        await wire.open("2025-03-26")
        answer = await wire.post(json.dumps([{**call, "id": 1}, notification, {**call, "id": "1"}]).encode())
        responses = await answer.json() if not answer.is_stream else [m async for m in answer.messages()]
        only = await wire.post(json.dumps([notification]).encode())

    assert {json.dumps(response["id"]) for response in responses} == {"1", '"1"'}
    assert {text_of(response) for response in responses} == {"1", "2"}
    assert only.status == 202
    assert upstream.counts()["method:tools/call"] == 2
