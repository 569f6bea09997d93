"""The official conformance suite, on the SDK's everything-server directly and through the gateway."""

import json
from collections.abc import Iterator

import pytest
from harness import conformance
from harness.gateways import Gateway
from harness.gateways import gateway as running_gateway
from harness.tee import Tee
from harness.upstreams import Upstream
from harness.upstreams import upstream as running_upstream

pytestmark = pytest.mark.anyio

SCENARIOS = 33
MODERN = "2026-07-28"
MODERN_SCENARIOS = 40


@pytest.fixture
def everything() -> Iterator[Upstream]:
    with running_upstream("everything") as server:
        yield server


@pytest.fixture
def gateway(everything: Upstream) -> Iterator[Gateway]:
    with running_gateway(upstreams={"everything": everything.url}, eras=("legacy", "modern")) as process:
        yield process


@pytest.mark.parametrize(("revision", "scenarios"), [(conformance.REVISION, SCENARIOS), (MODERN, MODERN_SCENARIOS)])
async def test_the_server_passes_directly(everything: Upstream, revision: str, scenarios: int) -> None:
    verdict = await conformance.run(everything.url, revision=revision)

    assert verdict.passed == len(verdict.scenarios) == scenarios, verdict.printed


async def test_requests_without_a_session_pass_through_as_they_do_directly(
    everything: Upstream, gateway: Gateway
) -> None:
    direct = await conformance.run(everything.url, revision=MODERN)
    everything.reset()
    async with Tee(gateway.port) as tee:
        url = f"http://127.0.0.1:{tee.port}/servers/everything/mcp"
        verdict = await conformance.run(url, revision=MODERN)
        given = tee.session_ids()

    assert verdict.passed == len(verdict.scenarios) == MODERN_SCENARIOS, verdict.printed
    assert verdict.checks == direct.checks
    report = everything.report()
    assert not given
    assert not report["sessions"]
    assert not {"get", "delete", "notification", "initialized"} & report["counts"].keys()
    # The server was asked once what it speaks; everything else came from the suite, in one POST each.
    assert gateway.metric("trunkline_upstream_requests_total", kind="probe") == 1
    assert gateway.metric("trunkline_calls_total") == gateway.metric("trunkline_upstream_requests_total", kind="call")


async def test_the_server_passes_through_the_gateway_with_one_upstream_session_per_workflow(
    everything: Upstream, gateway: Gateway
) -> None:
    direct = await conformance.run(everything.url)
    everything.reset()
    async with Tee(gateway.port) as tee:
        verdict = await conformance.run(f"http://127.0.0.1:{tee.port}/servers/everything/mcp")
        given = tee.session_ids()

    assert verdict.passed == len(verdict.scenarios) == SCENARIOS, verdict.printed
    # Two things are the gateway's own: it answers in JSON where nothing comes before the response, and it never closes
    # a stream early, so it has no use for `retry`. All else is as it is without the gateway.
    differing = direct.having("SUCCESS") - verdict.having("SUCCESS")
    assert differing <= {"server-sse-streams-functional", "server-sse-retry-field", "server-sse-disconnect-resume"}
    assert verdict.having("WARNING") - direct.having("WARNING") <= {"server-sse-retry-field"}

    report = everything.report()
    workflows = len(given)
    assert workflows >= SCENARIOS - 1
    assert len(report["sessions"]) == report["counts"]["initialize"] == workflows
    assert report["counts"]["initialized"] == workflows
    seen = json.dumps(report)
    assert not [session for session in given if session in seen]
    _check_ids(report)


def _check_ids(report: dict[str, object]) -> None:
    """The gateway's own ids: positive integers, never used again in a session. Clients of this suite begin at 0."""
    requests = report["requests"]
    assert isinstance(requests, list)
    used: dict[str, list[int]] = {}
    for request in requests:
        if request["kind"] in ("initialize", "call"):
            used.setdefault(request["session"], []).append(json.loads(request["id"]))
    for ids in used.values():
        assert all(type(one) is int and one > 0 for one in ids)
        assert len(set(ids)) == len(ids)


async def test_the_upstream_leg_waits_as_long_as_a_server_asks_and_goes_on_where_it_was() -> None:
    verdict = await conformance.run_client("sse-retry")

    assert verdict.having("SUCCESS") == {
        "client-sse-graceful-reconnect",
        "client-sse-retry-timing",
        "client-sse-last-event-id",
    }, verdict.printed
    assert not verdict.having("FAILURE")
    assert not verdict.having("WARNING")
