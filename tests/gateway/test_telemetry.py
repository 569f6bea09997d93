"""Spans of calls, as the OpenTelemetry SDK keeps them, and the context that servers get."""

from collections.abc import AsyncIterator, Mapping
from typing import Any

import pytest
from harness.memory_wire import Exchange, echo
from harness.muxing import ALICE, Bench, Client, bench, request
from msgspec import Raw
from opentelemetry import baggage, context, trace
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.sdk.trace.sampling import ALWAYS_OFF
from opentelemetry.trace import SpanKind, StatusCode
from trunkline.gateway.telemetry import MAX_TARGETS, Telemetry, tracing
from trunkline.mux.envelope import Envelope
from trunkline.mux.ports import NONE
from trunkline.transports.endpoint import EndpointConfig, take_call
from trunkline.transports.guard import Guard

pytestmark = pytest.mark.anyio

TRACE, PARENT = 0x0AF7651916CD43DD8448EB211C80319C, 0xB7AD6B7169203331
HEADERS = {"traceparent": f"00-{TRACE:032x}-{PARENT:016x}-01", "tracestate": "congo=1", "baggage": "user=alice"}


class Site:
    """A pool whose calls are traced, and the spans."""

    def __init__(self, at: Bench, **options: Any) -> None:
        self.at = at
        self._exporter = InMemorySpanExporter()
        provider = TracerProvider(**options)
        provider.add_span_processor(SimpleSpanProcessor(self._exporter))
        self.config = EndpointConfig(
            server="x",
            pool=at.pool,
            guard=Guard(loopback=True),
            authenticate=lambda headers: ALICE,
            tracer=Telemetry(provider),
        )

    @property
    def spans(self) -> list[ReadableSpan]:
        """Those that have ended."""
        return list(self._exporter.get_finished_spans())

    async def call(
        self, client: Client, message: Envelope | None = None, headers: Mapping[str, str] = NONE
    ) -> Exchange | None:
        """A call as an endpoint takes it, to its end; what the server got of it."""
        exchange = client.workflow.calls.exchange(1)
        client.workflow.wire_came()
        before = len(self.at.server.session.exchanges)
        take_call(self.config, client.workflow, message or request(), exchange, NONE, headers)
        await client.answer(exchange)
        got = self.at.server.session.exchanges[before:]
        return got[0] if got else None


@pytest.fixture
async def site() -> AsyncIterator[Site]:
    async with bench(on_request=echo) as at:
        yield Site(at)


def parent_of(exchange: Exchange | None) -> list[int]:
    """The trace and the span that a server is told."""
    assert exchange is not None
    return [int(part, 16) for part in exchange.headers["traceparent"].split("-")[1:3]]


async def test_a_call_is_a_span_between_the_clients_and_the_servers(site: Site) -> None:
    client = await site.at.client(ALICE)
    message = request(params={"name": "add", "arguments": {"text": "s3cret"}}, id=b'"mine"')
    upstream = await site.call(client, message, HEADERS)
    [span] = site.spans
    assert (span.name, span.kind) == ("tools/call add", SpanKind.SERVER)
    assert (span.parent.trace_id, span.parent.span_id, span.parent.is_remote) == (TRACE, PARENT, True)
    assert parent_of(upstream) == [TRACE, span.context.span_id]
    assert upstream.headers["tracestate"] == "congo=1"
    assert "baggage" not in upstream.headers
    assert dict(span.attributes) == {
        "mcp.method.name": "tools/call",
        "mcp.protocol.version": "2025-11-25",
        "gen_ai.tool.name": "add",
        "jsonrpc.request.id": '"mine"',
        "trunkline.server": "x",
        "trunkline.handle": client.workflow.record.handle,
        "trunkline.principal": ALICE.digest(),
        "trunkline.outcome": "ok",
    }
    assert span.status.status_code is StatusCode.UNSET


async def test_without_a_context_of_the_client_a_span_begins_a_trace(site: Site) -> None:
    upstream = await site.call(await site.at.client())
    [span] = site.spans
    assert span.parent is None
    assert parent_of(upstream) == [span.context.trace_id, span.context.span_id]


async def test_what_is_around_the_gateway_is_neither_parent_nor_passed_on(site: Site) -> None:
    client = await site.at.client()
    around = TracerProvider().get_tracer("around").start_span("around")
    token = context.attach(baggage.set_baggage("user", "alice", trace.set_span_in_context(around)))
    try:
        upstream = await site.call(client)
    finally:
        context.detach(token)
    assert site.spans[0].parent is None
    assert upstream is not None
    assert upstream.headers.keys() == {"traceparent"}


async def test_what_goes_wrong_is_the_spans_outcome(site: Site) -> None:
    site.at.server.on_request = None
    client = await site.at.client()
    exchange = client.workflow.calls.exchange(1)
    client.workflow.wire_came()
    take_call(site.config, client.workflow, request(), exchange, NONE, NONE)
    site.at.clock.advance(client.workflow.pooling.request_timeout)
    client.workflow.expire(site.at.clock.now)
    await client.answer(exchange)
    site.at.server.on_request = Exchange.refuse
    await site.call(client)
    await site.at.pool.end(client.workflow, "deleted")
    await site.call(client)
    outcomes = ["timed_out", "error", "session_lost"]
    assert [span.attributes["trunkline.outcome"] for span in site.spans] == outcomes
    assert [span.attributes["error.type"] for span in site.spans] == outcomes
    assert {span.status.status_code for span in site.spans} == {StatusCode.ERROR}


async def test_a_request_that_a_wire_refuses_leaves_no_span_open(site: Site) -> None:
    site.at.server.on_request = None
    client = await site.at.client()
    duplex = client.workflow.duplexes.new()
    for _ in range(2):
        take_call(site.config, client.workflow, request(id=b"1"), duplex, NONE, NONE)
    assert [span.attributes["trunkline.outcome"] for span in site.spans] == ["duplicate_id"]
    site.at.server.of("tools/call")[0].answer()
    assert [span.attributes["trunkline.outcome"] for span in site.spans] == ["duplicate_id", "ok"]


async def test_a_ping_is_no_span(site: Site) -> None:
    assert await site.call(await site.at.client(), request("ping"), HEADERS) is None
    assert site.spans == []


async def test_what_is_not_sampled_is_not_kept_and_its_context_goes_on(site: Site) -> None:
    off = Site(site.at, sampler=ALWAYS_OFF)
    upstream = await off.call(await site.at.client(), headers=HEADERS)
    assert off.spans == []
    assert parent_of(upstream)[0] == TRACE
    assert upstream is not None
    assert upstream.headers["traceparent"].endswith("-00")


@pytest.mark.parametrize(
    ("method", "params", "name"),
    [
        ("tools/call", {"name": "git.status-all_1/x"}, "tools/call git.status-all_1/x"),
        ("prompts/get", {"name": "review"}, "prompts/get review"),
        ("tools/call", {"name": "of spaces"}, "tools/call"),
        ("tools/call", {"name": "x" * 129}, "tools/call"),
        ("tools/call", {"name": 1}, "tools/call"),
        ("tools/call", [], "tools/call"),
        ("resources/read", {"uri": "file:///private", "name": "n"}, "resources/read"),
        ("made/up", {"name": "n"}, "other"),
    ],
)
async def test_a_span_is_named_by_its_method_and_a_target_that_is_well_formed(
    site: Site, method: str, params: Any, name: str
) -> None:
    await site.call(await site.at.client(), request(method, params))
    assert [span.name for span in site.spans] == [name]


async def test_names_of_spans_are_bounded(site: Site) -> None:
    client = await site.at.client()
    for number in range(MAX_TARGETS + 10):
        await site.call(client, request(params={"name": f"tool{number}"}))
    assert len({span.name for span in site.spans}) == MAX_TARGETS + 1
    await site.call(client, request(params={"name": "tool1"}))
    assert site.spans[-1].name == "tools/call tool1"


async def test_a_body_that_is_nested_too_deeply_is_a_span_by_its_method(site: Site) -> None:
    message = request()
    message.members["params"] = Raw(b'{"x":%b}' % (b"[" * 100_000 + b"]" * 100_000))
    await site.call(await site.at.client(), message)
    assert [span.name for span in site.spans] == ["tools/call"]


async def test_g12_no_session_id_is_in_a_span(site: Site) -> None:
    client = await site.at.client(ALICE, key="a-key")
    await site.call(client, headers=HEADERS)
    record = client.workflow.record
    text = site.spans[0].to_json()
    for secret in (record.session_id, record.event_token, "a-key", "alice"):
        assert secret not in text


def test_without_a_provider_nobody_traces() -> None:
    assert tracing() is None
