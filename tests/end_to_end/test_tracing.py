"""W3C trace context from clients to servers: over every transport, with a tracer provider and without."""

import json
import secrets
from collections.abc import Awaitable, Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
from harness.duplex_clients import DuplexClient, SocketClient, SSEClient
from harness.gateways import Gateway, until
from harness.gateways import gateway as running_gateway
from harness.upstreams import Upstream
from harness.wire import Wire

pytestmark = pytest.mark.anyio

MODERN = "2026-07-28"
MODERN_META = {
    "io.modelcontextprotocol/protocolVersion": MODERN,
    "io.modelcontextprotocol/clientCapabilities": {},
    "io.modelcontextprotocol/clientInfo": {"name": "wire", "version": "1"},
}
BOTH = ("legacy", "modern")

Headers = dict[str, str]
Meta = dict[str, Any]
Transport = Callable[[Gateway, Headers, Meta], Awaitable[None]]


def context() -> Headers:
    """A context of a client, of a trace of its own."""
    return {
        "traceparent": f"00-{secrets.token_hex(16)}-{secrets.token_hex(8)}-01",
        "tracestate": f"client={secrets.token_hex(4)}",
    }


def trace_of(headers: Mapping[str, str]) -> str:
    return headers["traceparent"].split("-")[1]


def span_of(headers: Mapping[str, str]) -> str:
    return headers["traceparent"].split("-")[2]


async def over_http(gateway: Gateway, headers: Headers, meta: Meta) -> None:
    async with Wire(gateway.url()) as wire:
        await wire.open()
        assert "result" in await (await wire.call("counter", meta=meta, headers=headers)).response()


async def over_http_of_2026(gateway: Gateway, headers: Headers, meta: Meta) -> None:
    async with Wire(gateway.url()) as wire:
        routing = {"MCP-Protocol-Version": MODERN, "Mcp-Method": "tools/call", "Mcp-Name": "echo"}
        params = {"name": "echo", "arguments": {"text": "x"}, "_meta": {**MODERN_META, **meta}}
        message = {"jsonrpc": "2.0", "id": 1, "method": "tools/call", "params": params}
        assert "result" in await (await wire.post(message, {**routing, **headers})).response()


async def duplex(client: DuplexClient, meta: Meta) -> None:
    async with client:
        await client.open()
        params = {"name": "counter", "arguments": {}, "_meta": meta}
        await client.send({"jsonrpc": "2.0", "id": 1, "method": "tools/call", "params": params})
        assert "result" in await client.answer()


async def over_sse(gateway: Gateway, headers: Headers, meta: Meta) -> None:
    await duplex(SSEClient(gateway.url().removesuffix("/mcp"), headers), meta)


async def over_websocket(gateway: Gateway, headers: Headers, meta: Meta) -> None:
    await duplex(SocketClient(gateway.url().removesuffix("/mcp"), headers), meta)


HTTP: list[Transport] = [over_http, over_http_of_2026, over_sse]
ALL: list[Transport] = [*HTTP, over_websocket]


def called(upstream: Upstream) -> Headers:
    """The headers of the one call that a server got."""
    [call] = [request for request in upstream.report()["requests"] if request.get("method") == "tools/call"]
    return dict(call["headers"])


# Where nobody traces.


@pytest.fixture(scope="module")
def plain_process(upstream_process: Upstream) -> Iterator[Gateway]:
    with running_gateway(upstreams={"up": upstream_process.url}, eras=BOTH) as process:
        yield process


@pytest.mark.parametrize("transport", HTTP)
async def test_the_headers_of_a_call_go_on_as_they_are(
    plain_process: Gateway, upstream: Upstream, transport: Transport
) -> None:
    sent = context()
    await transport(plain_process, {**sent, "baggage": "user=alice"}, {"traceparent": context()["traceparent"]})
    got = called(upstream)
    assert {name: got[name] for name in sent} == sent
    assert "baggage" not in got


@pytest.mark.parametrize("transport", ALL)
async def test_sep_414_what_the_body_of_a_call_names_goes_on_as_headers_too(
    plain_process: Gateway, upstream: Upstream, transport: Transport
) -> None:
    sent = context()
    await transport(plain_process, {}, dict(sent))
    got = called(upstream)
    assert {name: got[name] for name in sent} == sent


async def test_the_context_of_an_upgrade_is_none_of_the_calls_on_its_socket(
    plain_process: Gateway, upstream: Upstream
) -> None:
    await over_websocket(plain_process, context(), {})
    assert "traceparent" not in called(upstream)


@pytest.mark.parametrize("transport", HTTP)
async def test_a_malformed_context_is_left_out_and_counted(
    plain_process: Gateway, upstream: Upstream, transport: Transport
) -> None:
    def dropped() -> float:
        return plain_process.metric("trunkline_dropped_total", server="up", reason="malformed_trace_context")

    before = dropped()
    await transport(plain_process, {"traceparent": "00-nonsense", "tracestate": "a=b"}, {})
    assert {"traceparent", "tracestate"}.isdisjoint(called(upstream))
    assert dropped() == before + 1


# Where the process has a tracer provider.


class Traced:
    """A gateway that traces, and the file of its spans."""

    def __init__(self, gateway: Gateway, path: Path) -> None:
        self.gateway = gateway
        self._path = path

    async def span(self, trace_id: str) -> dict[str, Any]:
        """The one span of that trace, once it was written."""

        def found() -> list[dict[str, Any]]:
            spans = [json.loads(line) for line in self._path.read_text().splitlines()]
            return [span for span in spans if span["context"]["trace_id"] == f"0x{trace_id}"]

        await until(found)
        [span] = found()
        return span


@pytest.fixture(scope="module")
def traced(upstream_process: Upstream, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Traced]:
    path = tmp_path_factory.mktemp("traced") / "spans"
    path.touch()
    with pytest.MonkeyPatch.context() as environment:
        environment.setenv("SPANS", str(path))
        with running_gateway(
            upstreams={"up": upstream_process.url}, eras=BOTH, module="harness.traced_gateway"
        ) as process:
            yield Traced(process, path)


@pytest.mark.parametrize("transport", HTTP)
async def test_a_call_is_a_span_between_the_clients_and_what_the_server_is_told(
    traced: Traced, upstream: Upstream, transport: Transport
) -> None:
    sent = context()
    await transport(traced.gateway, {**sent, "baggage": "user=alice"}, {})
    got, span = called(upstream), await traced.span(trace_of(sent))
    assert span["kind"] == "SpanKind.SERVER"
    assert span["parent_id"] == f"0x{span_of(sent)}"
    assert f"0x{span_of(got)}" == span["context"]["span_id"]
    assert trace_of(got) == trace_of(sent)
    assert got["tracestate"] == sent["tracestate"]
    assert "baggage" not in got
    assert span["attributes"]["trunkline.outcome"] == "ok"
    assert span["attributes"]["trunkline.server"] == "up"
    assert span["attributes"]["mcp.method.name"] == "tools/call"


async def test_on_a_socket_the_body_names_the_parent(traced: Traced, upstream: Upstream) -> None:
    sent = context()
    await over_websocket(traced.gateway, context(), dict(sent))
    span = await traced.span(trace_of(sent))
    assert span["parent_id"] == f"0x{span_of(sent)}"
    assert f"0x{span_of(called(upstream))}" == span["context"]["span_id"]


@pytest.mark.parametrize("transport", ALL)
async def test_without_a_context_of_the_client_a_trace_begins_here(
    traced: Traced, upstream: Upstream, transport: Transport
) -> None:
    await transport(traced.gateway, {}, {})
    got = called(upstream)
    span = await traced.span(trace_of(got))
    assert span["parent_id"] is None
    assert f"0x{span_of(got)}" == span["context"]["span_id"]


async def test_sessions_with_the_same_span_in_mind_share_no_trace_by_accident(
    traced: Traced, upstream: Upstream
) -> None:
    await over_http(traced.gateway, {}, {})
    first = trace_of(called(upstream))
    upstream.reset()
    await over_http(traced.gateway, {}, {})
    assert trace_of(called(upstream)) != first
