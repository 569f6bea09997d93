"""W3C trace context: what goes on, what is left out, and who hears of a call's span."""

from typing import Any

import pytest
from harness.muxing import notification, request
from msgspec import Raw
from trunkline.mux.envelope import Envelope, parse
from trunkline.mux.limits import MAX_BODY_BYTES
from trunkline.mux.ports import Headers
from trunkline.mux.principal import ANONYMOUS
from trunkline.mux.statistics import Statistics
from trunkline.transports.tracing import MAX_TRACESTATE, begin_span, context_of

TRACE, SPAN = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"
PARENT = f"00-{TRACE}-{SPAN}-01"
OTHER = f"00-{TRACE[::-1]}-{SPAN[::-1]}-00"


def told(headers: dict[str, str], message: Envelope | None = None) -> tuple[Headers, int]:
    """The context that goes on, and how often something malformed was counted."""
    statistics = Statistics()
    context = context_of(headers, message or request(), "x", statistics)
    return context, statistics.counts["malformed_trace_context", "x"]


def with_meta(meta: Any) -> Envelope:
    return request(params={"name": "echo", "_meta": meta})


@pytest.mark.parametrize(
    "parent",
    [PARENT, OTHER, f"cc-{TRACE}-{SPAN}-ff", f"01-{TRACE}-{SPAN}-01-what.the-future-will-be-like"],
)
def test_a_context_goes_on_as_it_is(parent: str) -> None:
    assert told({"traceparent": parent}) == ({"traceparent": parent}, 0)
    both = {"traceparent": parent, "tracestate": "congo=t61rcWkgMzE, rojo=00f067aa0ba902b7"}
    assert told(both | {"baggage": "user=alice", "host": "h"}) == (both, 0)


@pytest.mark.parametrize(
    "parent",
    [
        "",
        "0",
        PARENT.upper(),
        PARENT + "-x",
        PARENT + "\n",
        f"{PARENT}, {PARENT}",
        f"ff-{TRACE}-{SPAN}-01",
        f"00-{'0' * 32}-{SPAN}-01",
        f"00-{TRACE}-{'0' * 16}-01",
        f"01-{TRACE}-{SPAN}-01x",
        f"01-{TRACE}-{SPAN}-01-",
        f"01-{TRACE}-{SPAN}-01-{'x' * 201}",
        f"01-{TRACE}-{SPAN}-01-x y",
        f"01-{TRACE}-{SPAN}-01-\r\nx: y",
    ],
)
def test_a_malformed_parent_is_left_out_and_counted(parent: str) -> None:
    assert told({"traceparent": parent, "tracestate": "a=b"}) == ({}, 1)
    assert told({}, with_meta({"traceparent": parent, "tracestate": "a=b"})) == ({}, 1)


@pytest.mark.parametrize("state", ["a=" + "b" * MAX_TRACESTATE, "a=b\r\nx: y", "a=ü", "a=\x00"])
def test_a_malformed_state_is_left_out_and_its_parent_goes_on(state: str) -> None:
    assert told({"traceparent": PARENT, "tracestate": state}) == ({"traceparent": PARENT}, 1)


def test_without_a_parent_there_is_none() -> None:
    assert told({"tracestate": "a=b", "baggage": "x=y"}) == ({}, 0)
    assert told({}, notification("notifications/x")) == ({}, 0)
    assert told({}, parse(b'{"jsonrpc":"2.0","id":1,"method":"ping"}', limit=MAX_BODY_BYTES)) == ({}, 0)


def test_sep_414_what_the_body_names_goes_on_where_no_header_does() -> None:
    both = {"traceparent": PARENT, "tracestate": "a=b"}
    assert told({}, with_meta({**both, "baggage": "x=y"})) == (both, 0)
    assert told({}, with_meta({"traceparent": PARENT, "tracestate": 1})) == ({"traceparent": PARENT}, 0)
    assert told({"traceparent": OTHER}, with_meta(both)) == ({"traceparent": OTHER}, 0)


@pytest.mark.parametrize(
    "params",
    [
        {"name": "echo", "arguments": {"traceparent": PARENT}},
        {"name": "echo", "_meta": None, "arguments": {"traceparent": PARENT}},
        {"name": "echo", "_meta": {"x": {"traceparent": PARENT}}},
        [{"traceparent": PARENT}],
    ],
)
def test_only_the_meta_of_the_request_counts(params: Any) -> None:
    assert told({}, request(params=params)) == ({}, 0)


def test_a_parent_that_is_no_string_is_malformed() -> None:
    assert told({}, with_meta({"traceparent": 1})) == ({}, 1)


def test_a_body_that_is_nested_too_deeply_has_none() -> None:
    deep = b"[" * 100_000 + b"]" * 100_000
    params = Raw(b'{"x":%b,"_meta":{"traceparent":"x"}}' % deep)
    message = Envelope("request", {"params": params}, id=b"1", method="tools/call")
    assert told({}, message) == ({}, 0)


class Ended:
    def ended(self, outcome: str) -> None:
        """Nobody asks."""


class Tracers:
    """Begins spans, and keeps what it was asked with."""

    def __init__(self) -> None:
        self.asked: list[tuple[Any, ...]] = []

    def begin(self, *asked: Any) -> tuple[Ended, Headers]:
        self.asked.append(asked)
        return Ended(), {"traceparent": OTHER}


def test_where_nobody_traces_there_is_no_span() -> None:
    context = {"traceparent": PARENT}
    assert begin_span(None, "x", request(), context, ANONYMOUS) == (None, context)


def test_a_span_is_the_child_of_what_the_client_names_and_the_parent_of_what_the_server_does() -> None:
    tracer, message, context = Tracers(), request(), {"traceparent": PARENT}
    span, onward = begin_span(tracer, "x", message, context, ANONYMOUS)
    assert (type(span), onward) == (Ended, {"traceparent": OTHER})
    assert tracer.asked == [("x", message, context, ANONYMOUS, None)]


def test_what_the_gateway_answers_itself_is_no_span() -> None:
    assert begin_span(Tracers(), "x", request("ping"), {}, ANONYMOUS) == (None, {})
