"""Metrics: every name that is promised, with its labels, and no label that a client could fill."""

import re
from collections.abc import AsyncIterator
from typing import get_args

import anyio
import pytest
from harness.gateways import Gateway, until
from harness.gateways import gateway as running_gateway
from harness.memory_wire import Exchange, message
from harness.muxing import ALICE, BOB, Bench, bench
from harness.wire import Wire
from prometheus_client import Metric
from prometheus_client.parser import text_string_to_metric_families
from trunkline.gateway.metrics import CONTENT_TYPE, COUNTERS, FAULTS, GAUGES, HISTOGRAMS, exposition
from trunkline.mux.account import Transport
from trunkline.mux.statistics import BUCKETS, METHODS

pytestmark = pytest.mark.anyio

PROMISED = {
    "trunkline_calls_total": {"server", "method", "outcome"},
    "trunkline_call_seconds": {"server"},
    "trunkline_pool_requests_total": {"server", "result"},
    "trunkline_channels": {"server", "state"},
    "trunkline_channels_closed_total": {"server", "reason"},
    "trunkline_workflows": {"server", "transport", "state"},
    "trunkline_workflows_closed_total": {"reason"},
    "trunkline_inflight": {"server"},
    "trunkline_upstream_requests_total": {"server", "kind"},
    "trunkline_resumes_total": {"transport", "outcome"},
    "trunkline_replayed_events_total": set[str](),
    "trunkline_unattributed_total": {"method"},
    "trunkline_late_responses_total": set[str](),
    "trunkline_forwards_total": {"outcome"},
    "trunkline_takeovers_total": {"outcome"},
    "trunkline_directory_seconds": {"op"},
    "trunkline_refused_total": {"reason"},
}
"""The contract: every metric and its labels."""

BESIDE = {
    "trunkline_reloads_total": {"outcome"},
    "trunkline_repeated_calls_total": {"server", "why"},
    "trunkline_dropped_total": {"server", "reason"},
    "trunkline_upstream_credentials_total": {"server", "outcome"},
}
"""What is told beyond it."""

UNUSED = {
    "trunkline_unattributed_total",
    "trunkline_forwards_total",
    "trunkline_upstream_credentials_total",
}
"""Metrics without a sample where nothing of their kind happened."""

WORDS = {
    "server": {"demo"},
    "method": {*METHODS, "other"},
    "outcome": {
        *("ok", "error", "resumed", "trimmed", "applied", "refused"),
        *("adopted", "gone", "let_go", "overtaken", "reopened"),
    },
    "result": {"hit", "miss", "spare", "bypass"},
    "why": {"not_run", "trusted"},
    "state": {"opening", "active", "idle", "draining", "attached", "detached"},
    "transport": set(get_args(Transport)),
    "kind": {"initialize", "initialized", "call", "get", "delete", "notification", "response", "probe"},
    "op": {"claim", "get", "at", "find", "replace", "remove", "touch", "untouched", "draw_ids"},
    "le": {*map(str, BUCKETS), "+Inf"},
}


def families(text: str) -> dict[str, Metric]:
    return {family.name: family for family in text_string_to_metric_families(text)}


async def use(gateway: Gateway) -> None:
    """A session with a call, a resumed stream, a refusal and a DELETE."""
    async with Wire(gateway.url("demo")) as wire:
        await wire.open()
        answer = await wire.call("slow", {"steps": 2, "seconds": 0.1}, meta={"progressToken": 1})
        first = await answer.next_event()
        assert first is not None
        await answer.response()
        await (await wire.get(first.id)).response()
        await (await wire.post(b'{"jsonrpc":"2.0","id":1,"method":"free text of a client"}')).response()
        assert (await wire.post(b"no json")).status == 400
        await wire.delete()
        await until(lambda: gateway.metric("trunkline_channels_closed_total"))


@pytest.fixture(scope="module")
def used() -> dict[str, Metric]:
    """What a gateway tells after that."""
    with running_gateway("--demo") as gateway:
        anyio.run(use, gateway)
        return families(gateway.fetch("/metrics"))


@pytest.mark.parametrize("name", sorted((PROMISED | BESIDE).keys() - UNUSED))
def test_a_metric_has_samples_with_its_labels_once_the_gateway_was_used(used: dict[str, Metric], name: str) -> None:
    family = used[name.removesuffix("_total")]
    names = {f"{name}_{part}" for part in ("bucket", "sum", "count")} if family.type == "histogram" else {name}
    assert {sample.name for sample in family.samples} == names
    labels = {frozenset(sample.labels.keys() - {"le"}) for sample in family.samples}
    assert labels == {frozenset((PROMISED | BESIDE)[name])}


def test_what_happened_is_counted(used: dict[str, Metric]) -> None:
    def value(name: str, **labels: str) -> float:
        return sum(
            sample.value
            for sample in used[name.removesuffix("_total")].samples
            if sample.name == name and labels.items() <= sample.labels.items()
        )

    assert value("trunkline_calls_total", server="demo", method="tools/call", outcome="ok") == 1
    assert value("trunkline_calls_total", server="demo", method="other", outcome="error") == 1
    assert value("trunkline_pool_requests_total", result="miss") == 1
    assert value("trunkline_pool_requests_total", result="hit") == 2
    assert value("trunkline_channels_closed_total", reason="deleted") == 1
    assert value("trunkline_workflows_closed_total", reason="deleted") == 1
    assert value("trunkline_resumes_total", transport="http", outcome="resumed") == 1
    assert value("trunkline_replayed_events_total") > 0
    assert value("trunkline_refused_total") == 1
    assert value("trunkline_workflows") == value("trunkline_channels") == value("trunkline_inflight") == 0
    for kind in ("initialize", "initialized", "delete"):
        assert value("trunkline_upstream_requests_total", kind=kind) == 1


def test_g12_label_values_come_from_fixed_lists(used: dict[str, Metric]) -> None:
    for family in used.values():
        for sample in family.samples:
            for label, value in sample.labels.items():
                assert value in WORDS.get(label, {value})
                assert re.fullmatch(r"[a-z0-9_./+A-Z]+", value), sample


@pytest.fixture
async def at() -> AsyncIterator[Bench]:
    async with bench() as made:
        yield made


def samples(at: Bench, name: str) -> dict[tuple[str, ...], float]:
    """The samples of a metric that are not zero, by their label values in the order of the labels' names."""
    return {
        tuple(value for _, value in sorted(sample.labels.items())): sample.value
        for family in families(exposition(at.pool)().decode()).values()
        for sample in family.samples
        if sample.name == name and sample.value
    }


async def test_every_family_is_there_before_anything_happened(at: Bench) -> None:
    found = families(exposition(at.pool)().decode())
    told = {f"{name}_total" if family.type == "counter" else name for name, family in found.items()}
    assert told == PROMISED.keys() | BESIDE.keys()
    assert all(family.documentation for family in found.values())
    made = {*COUNTERS.values(), *GAUGES.values(), *HISTOGRAMS.values()}
    assert {(family.metric, *sorted(family.labels)) for family in made} == {
        (name.removesuffix("_total"), *sorted(labels)) for name, labels in (PROMISED | BESIDE).items()
    }


async def test_what_has_fixed_labels_is_there_at_0_so_that_its_first_event_is_seen_as_one(at: Bench) -> None:
    found = families(exposition(at.pool)().decode())
    assert all(sample.value == 0 for family in found.values() for sample in family.samples)

    def labels(name: str, *of: str) -> set[tuple[str, ...]]:
        return {tuple(sample.labels[label] for label in of) for sample in found[name].samples}

    assert labels("trunkline_channels", "server", "state") == {
        (server, state) for server in "xy" for state in ("opening", "active", "idle", "draining")
    }
    assert labels("trunkline_workflows", "transport", "state") == {
        (transport, state) for transport in WORDS["transport"] for state in ("attached", "detached")
    }
    assert labels("trunkline_pool_requests", "server", "result") == {(s, r) for s in "xy" for r in WORDS["result"]}
    assert labels("trunkline_upstream_requests", "server", "kind") == {(s, k) for s in "xy" for k in WORDS["kind"]}
    assert labels("trunkline_resumes", "outcome") == {("resumed",), ("trimmed",)}
    assert labels("trunkline_inflight", "server") == labels("trunkline_call_seconds", "server") == {("x",), ("y",)}
    assert labels("trunkline_dropped", "reason") == {(fault,) for fault in FAULTS}
    assert {"upstream_lost", "evicted", "idle"} <= {
        reason for (reason,) in labels("trunkline_workflows_closed", "reason")
    }
    for name in ("trunkline_replayed_events", "trunkline_late_responses"):
        assert labels(name) == {()}
    for name in UNUSED:
        assert found[name.removesuffix("_total")].samples == []


async def test_gauges_tell_what_is_held_now(at: Bench) -> None:
    client = await at.client(ALICE)
    other = await at.client(BOB, server="y")
    exchange = client.call()
    assert samples(at, "trunkline_channels") == {("x", "active"): 1, ("y", "idle"): 1}
    assert samples(at, "trunkline_workflows") == {("x", "attached", "http"): 1, ("y", "detached", "http"): 1}
    assert samples(at, "trunkline_inflight") == {("x",): 1}
    at.server.of("tools/call")[0].answer()
    await client.answer(exchange)
    await at.pool.end(other.workflow, "deleted")
    assert samples(at, "trunkline_channels")["x", "idle"] == 1
    assert samples(at, "trunkline_workflows") == {("x", "detached", "http"): 1}
    assert samples(at, "trunkline_inflight") == {}


HOSTILE = 1_000


async def test_g12_series_do_not_grow_with_what_servers_send(at: Bench) -> None:
    turn = 0

    def answer(exchange: Exchange) -> None:
        """With errors of the server's own invention, after what it says and asks in methods of its own invention."""
        nonlocal turn
        turn += 1
        exchange.say(message(f"notifications/{turn}"))
        exchange.session.tell(message(f"ask/{turn}", id=turn))
        exchange.refuse(-turn, f"outcome {turn}")

    at.server.on_request = answer
    client = await at.client()
    await client.answer(client.call())
    lines = len(exposition(at.pool)().splitlines())
    for n in range(HOSTILE):
        await client.answer(client.call(id=b'"%d"' % n))
    assert len(exposition(at.pool)().splitlines()) == lines
    assert samples(at, "trunkline_calls_total") == {("tools/call", "error", "x"): HOSTILE + 1}


async def abuse(gateway: Gateway, first: int, last: int) -> None:
    """Invented methods, names of tools, servers, sessions, keys, revisions and origins."""
    async with Wire(gateway.url("demo")) as wire:
        await wire.open()
        for n in range(first, last):
            answers = [
                await wire.post(b'{"jsonrpc":"2.0","id":%d,"method":"made/up/%d"}' % (n, n)),
                await wire.call(f"made_up_{n}"),
                await wire.post(b'{"jsonrpc":"2.0","method":"notifications/%d"}' % n),
                await wire.request("GET", path=f"/../../made-up-{n}/mcp"),
                await wire.post(b"{}", {"Mcp-Session-Id": f"made-up-{n}"}),
                await wire.post(b"{}", {"MCP-Protocol-Version": f"made-up-{n}"}),
                await wire.post(b"{}", {"Trunkline-Workflow": f"made up {n}"}),
                await wire.request("GET", headers={"Accept": f"made/up{n}"}),
                await wire.request(f"MADEUP{n}"),
                await wire.post(b"{}", {"Origin": f"https://made-up-{n}.example"}),
                await wire.post(b"{}", {"traceparent": f"made-up-{n}"}),
            ]
            for answer in answers:
                await answer.body()


@pytest.mark.timeout(600)  # many requests, one after the other
async def test_g12_series_do_not_grow_with_what_clients_send() -> None:
    with running_gateway("--demo") as gateway:
        await abuse(gateway, 0, 2)
        before = gateway.metrics()
        await abuse(gateway, 2, HOSTILE)
        after = gateway.metrics()
    assert after.keys() == before.keys()
    assert sum(value for name, value in after.items() if name.startswith("trunkline_calls_total")) >= 2 * HOSTILE
    assert "made" not in "".join(after).lower()


async def test_what_is_dropped_is_counted_with_its_reason(at: Bench) -> None:
    await at.client()
    at.server.session.tell(b'{"jsonrpc":"2.0","id":4711,"result":{}}')
    at.server.session.tell(b"no json")
    assert samples(at, "trunkline_dropped_total") == {("unknown_response", "x"): 1, ("upstream_faults", "x"): 1}
    assert {reason for reason, _ in samples(at, "trunkline_dropped_total")} <= set(FAULTS)


async def test_a_late_answer_is_counted(at: Bench) -> None:
    client = await at.client()
    exchange = client.call()
    at.clock.advance(client.workflow.pooling.request_timeout)
    client.workflow.expire(at.clock.now)
    assert (await client.answer(exchange))["error"]["code"] == -31004
    at.server.of("tools/call")[0].answer()
    assert samples(at, "trunkline_late_responses_total") == {(): 1}
    assert samples(at, "trunkline_calls_total") == {("tools/call", "timed_out", "x"): 1}


async def test_seconds_fall_in_buckets_that_add_up(at: Bench) -> None:
    client = await at.client()
    for seconds in (0.0, 0.001, 0.2, 1000.0):
        exchange = client.call()
        at.clock.advance(seconds)
        at.server.of("tools/call")[-1].answer()
        await client.answer(exchange)
    buckets = samples(at, "trunkline_call_seconds_bucket")
    assert buckets["0.001", "x"] in (1, 2), "0.001 as a difference may be more"
    assert (buckets["0.1", "x"], buckets["0.25", "x"], buckets["300.0", "x"], buckets["+Inf", "x"]) == (2, 3, 3, 4)
    assert samples(at, "trunkline_call_seconds_count") == {("x",): 4}
    assert samples(at, "trunkline_call_seconds_sum")["x",] == pytest.approx(1000.201)


def test_the_content_type_is_that_of_the_text_format() -> None:
    assert CONTENT_TYPE.startswith("text/plain; version=0.0.4")
