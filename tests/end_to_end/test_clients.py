"""The clients of three SDKs, through the gateway, on servers of two SDK lines: sessions, state, and what they cost."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import anyio
import pytest
from harness.clients import KINDS, Kind, Outcome, Scenario, play, texts
from harness.gateways import Gateway, bearer
from harness.gateways import gateway as running_gateway
from harness.upstreams import Line, Upstream
from harness.upstreams import upstream as running_upstream
from harness.wire import Wire

pytestmark = pytest.mark.anyio

LINES: tuple[Line, ...] = ("sdk2", "sdk1")
TWENTY = [str(n) for n in range(1, 21)]


@pytest.fixture(scope="module", params=LINES)
def upstream_process(request: pytest.FixtureRequest) -> Iterator[Upstream]:
    with running_upstream(request.param) as server:
        yield server


def counting(url: str, times: int = 20, **more: Any) -> Scenario:
    """A client that calls `counter` so often, one call after the other."""
    scenario: Scenario = {"url": url, "calls": [{"tool": "counter", "times": times}]}
    scenario.update(more)  # type: ignore[typeddict-item]
    return scenario


async def test_e8_what_a_server_says_of_a_request_that_it_refuses_reaches_the_client(gateway: Gateway) -> None:
    """It is told with HTTP 400: by the 2.x line under the id null, by the 1.x line under the id `server-error`."""
    async with Wire(gateway.url()) as wire:
        await wire.open(name="test")
        answer = await wire.post(b'{"jsonrpc":"2.0","id":"\\u0061","method":"tools/list","params":[]}')
        assert answer.status == 200
        told = await answer.body()
        assert told.startswith(b'{"jsonrpc":"2.0","id":"\\u0061","error":{"code":-32602,"message":"Validation error: ')


async def play_both(kind: Kind, first: Scenario, second: Scenario) -> list[Outcome]:
    """Two clients at once."""
    outcomes: list[Outcome] = [{}, {}]

    async def one(n: int, scenario: Scenario) -> None:
        outcomes[n] = await play(kind, scenario)

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(one, 0, first)
        tasks.start_soon(one, 1, second)
    return outcomes


@pytest.mark.parametrize("kind", KINDS)
async def test_twenty_calls_cost_one_initialize_and_twenty_call_posts(
    gateway: Gateway, upstream: Upstream, kind: Kind
) -> None:
    outcome = await play(kind, counting(gateway.url()))

    assert texts(outcome) == TWENTY
    # The client's DELETE ends the upstream session, and is the last thing that the upstream hears of it.
    report = await upstream.saw("delete")
    counts = report["counts"]
    assert counts["initialize"] == counts["initialized"] == counts["delete"] == 1
    assert counts["method:tools/call"] == 20
    # SDK clients look a tool up once, to check its results; nothing else may be asked.
    assert counts["call"] == 20 + counts.get("method:tools/list", 0)
    assert counts.get("method:tools/list", 0) <= 1
    assert counts.get("get", 0) <= 1
    assert counts.get("notification", 0) == counts.get("response", 0) == counts.get("other", 0) == 0
    assert len(report["sessions"]) == 1


@pytest.mark.parametrize("kind", KINDS)
async def test_two_clients_at_once_count_each_for_themselves(gateway: Gateway, upstream: Upstream, kind: Kind) -> None:
    def one(tag: str) -> Scenario:
        # Neither starts to count before both are there.
        meet = {"tool": "barrier", "arguments": {"name": f"meet-{kind}", "parties": 2, "tag": tag}}
        scenario = counting(gateway.url())
        scenario["calls"] = [meet, *scenario["calls"]]  # type: ignore[list-item]
        return scenario

    first, second = await play_both(kind, one("first"), one("second"))

    assert texts(first)[1:] == texts(second)[1:] == TWENTY
    report = upstream.report()
    assert report["counts"]["initialize"] == 2
    assert len(report["sessions"]) == 2


@pytest.mark.parametrize("kind", KINDS)
async def test_one_key_continues_one_count_although_the_first_client_sent_delete(
    gateway: Gateway, upstream: Upstream, kind: Kind, key: str
) -> None:
    scenario = counting(gateway.url(), headers={"Trunkline-Workflow": key})

    assert texts(await play(kind, scenario)) == TWENTY
    before = upstream.counts()
    assert texts(await play(kind, scenario)) == [str(n) for n in range(21, 41)]

    after = upstream.counts()
    assert after["initialize"] == after["initialized"] == 1
    assert after.get("delete", 0) == 0
    # Coming back costs the upstream nothing: what it heard more are the second client's own requests.
    more = {kind: after[kind] - before.get(kind, 0) for kind in after if after[kind] != before.get(kind, 0)}
    lists = more.pop("method:tools/list", 0)
    assert more == {"call": 20 + lists, "method:tools/call": 20}


@pytest.mark.parametrize("kind", KINDS)
async def test_two_clients_at_once_with_one_key_share_one_count(
    gateway: Gateway, upstream: Upstream, kind: Kind, key: str
) -> None:
    scenario = counting(gateway.url(), headers={"Trunkline-Workflow": key})

    first, second = [[int(text) for text in texts(outcome)] for outcome in await play_both(kind, scenario, scenario)]

    assert sorted(first + second) == list(range(1, 41))
    assert first == sorted(first)
    assert second == sorted(second)
    assert upstream.counts()["initialize"] == 1


@pytest.mark.parametrize("kind", KINDS)
async def test_another_principal_with_the_same_key_counts_anew(
    upstream: Upstream, token_settings: Path, kind: Kind
) -> None:
    def as_(subject: str, url: str) -> Scenario:
        headers = {**bearer(subject), "Trunkline-Workflow": "chat"}
        return counting(url, headers=headers, times=3)

    with running_gateway(toml=token_settings) as gateway:
        assert texts(await play(kind, as_("alice", gateway.url()))) == ["1", "2", "3"]
        assert texts(await play(kind, as_("bob", gateway.url()))) == ["1", "2", "3"]
        assert texts(await play(kind, as_("alice", gateway.url()))) == ["4", "5", "6"]

    report = upstream.report()
    assert report["counts"]["initialize"] == 2
    # No token of a client is passed through.
    assert not [request for request in report["requests"] if "authorization" in dict(request["headers"])]


async def test_the_session_of_another_principal_is_unknown(upstream: Upstream, token_settings: Path) -> None:
    alice = bearer("alice")
    bob = bearer("bob")
    with running_gateway(toml=token_settings) as gateway:
        async with Wire(gateway.url(), alice) as hers, Wire(gateway.url()) as his:
            await hers.open()
            stolen = {"Mcp-Session-Id": hers.session_id, "MCP-Protocol-Version": "2025-11-25"}
            made_up = {"Mcp-Session-Id": "0" * len(hers.session_id or ""), "MCP-Protocol-Version": "2025-11-25"}
            foreign = await his.call("counter", headers={**bob, **stolen})
            unknown = await his.call("counter", headers={**bob, **made_up})
            assert foreign.status == unknown.status == 404
            assert await foreign.body() == await unknown.body()
            assert (await his.delete({**bob, **stolen})).status == 404

            for nobody in ({}, {"Authorization": "Bearer wrong"}, {"Authorization": "Basic YTpi"}):
                refused = await his.call("counter", headers={**nobody, **stolen})
                assert refused.status == 401
                assert refused.headers["WWW-Authenticate"].startswith("Bearer")

            assert "1" in str(await (await hers.call("counter")).response())
    assert upstream.counts()["method:tools/call"] == 1


@pytest.mark.parametrize("kind", KINDS)
async def test_what_a_server_asks_and_tells_reaches_the_client(
    gateway: Gateway, upstream: Upstream, kind: Kind
) -> None:
    outcome = await play(
        kind,
        {
            "url": gateway.url(),
            "answers": {"elicitation": {"colour": "red"}, "sampling": "hello", "roots": ["file:///project"]},
            "subscribe": ["test://watched"],
            "calls": [
                {"tool": "ask"},
                {"tool": "sample", "arguments": {"prompt": "on the stream of the call"}},
                {"tool": "sample", "arguments": {"prompt": "on the other stream", "attributed": False}},
                {"tool": "roots"},
                {"tool": "slow"},
                {"tool": "log", "arguments": {"text": "related", "times": 2}},
                {"tool": "log", "arguments": {"text": "unrelated", "attributed": False}},
                {"tool": "notify", "arguments": {"what": "tools"}},
                {"tool": "notify", "arguments": {"what": "resources"}},
                {"tool": "touch"},
            ],
            "await_notifications": 6,
        },
    )

    assert texts(outcome)[:4] == ["accept red", "hello", "hello", "file:///project"]
    assert outcome["asked"] == [
        ["elicitation/create", "Which colour?"],
        ["sampling/createMessage", "on the stream of the call"],
        ["sampling/createMessage", "on the other stream"],
        ["roots/list", None],
    ]
    assert outcome["progress"] == [[1, 3, "step 1"], [2, 3, "step 2"], [3, 3, "step 3"]]
    told = sorted([method, (params or {}).get("data")] for method, params in outcome["notifications"])
    assert told == [
        ["notifications/message", "related 1"],
        ["notifications/message", "related 2"],
        ["notifications/message", "unrelated 1"],
        ["notifications/resources/list_changed", None],
        ["notifications/resources/updated", None],
        ["notifications/tools/list_changed", None],
    ]


@pytest.mark.parametrize("kind", KINDS)
async def test_the_demo_counts_for_every_client(kind: Kind) -> None:
    with running_gateway() as gateway:
        assert texts(await play(kind, counting(gateway.url("demo")))) == TWENTY
        calls = gateway.metric("trunkline_upstream_requests_total", server="demo", kind="initialize")
        assert calls == 1
