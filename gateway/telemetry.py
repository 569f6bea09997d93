"""Spans of calls for whoever has set up OpenTelemetry in this process. Only its API is used: the SDK is the operator's.

Names and attributes follow the semantic conventions for MCP as far as they are bounded: a span's name holds a tool's or
a prompt's name only where that is well formed, and only so many of them; the session id, a secret, is never told.
"""

from __future__ import annotations

import re
from importlib.metadata import version
from typing import TYPE_CHECKING, Final

from opentelemetry.context import Context
from opentelemetry.trace import (
    NoOpTracerProvider,
    ProxyTracerProvider,
    SpanKind,
    Status,
    StatusCode,
    TracerProvider,
    get_tracer_provider,
    set_span_in_context,
)
from opentelemetry.trace import Span as OpenTelemetrySpan
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

from ..mux.call_log import shown
from ..mux.envelope import Envelope, string_of
from ..mux.errors import TrunklineError
from ..mux.ports import Headers
from ..mux.statistics import method_label

if TYPE_CHECKING:
    from ..mux.principal import Principal
    from ..mux.workflow import Workflow

TARGETS: Final = {"tools/call": "gen_ai.tool.name", "prompts/get": "gen_ai.prompt.name"}
"""Methods whose span is named for a target, and the attribute that holds it."""

MAX_TARGETS: Final = 1000
"""Different targets that spans are named for; beyond them by the method alone: a client may invent names."""

_TARGET: Final = re.compile(r"[A-Za-z0-9_./-]{1,128}")
_NOTHING: Final = Context()
_W3C: Final = TraceContextTextMapPropagator()


def tracing() -> Telemetry | None:
    """What makes spans, where this process has a tracer provider; decided now, so that calls need not ask."""
    provider = get_tracer_provider()
    if isinstance(provider, ProxyTracerProvider | NoOpTracerProvider):
        return None
    return Telemetry(provider)


class Telemetry:
    """Makes spans with this provider. Implements `Tracer`."""

    def __init__(self, provider: TracerProvider) -> None:
        self._tracer = provider.get_tracer("trunkline", version("trunkline"))
        self._targets: set[str] = set()

    def begin(
        self, server: str, message: Envelope, context: Headers, principal: Principal, workflow: Workflow | None
    ) -> tuple[CallSpan, Headers]:
        """See `Tracer.begin`."""
        method = method_label(message.method)
        attributes = {
            "mcp.method.name": method,
            "jsonrpc.request.id": shown(message.id),
            "trunkline.server": server,
            "trunkline.principal": principal.digest(),
        }
        if workflow is not None:
            attributes["mcp.protocol.version"] = workflow.revision
            attributes["trunkline.handle"] = workflow.record.handle
        target = self._target(message)
        if target:
            attributes[TARGETS[method]] = target
        span = self._tracer.start_span(
            f"{method} {target}" if target else method,
            context=_W3C.extract(context, context=_NOTHING),
            kind=SpanKind.SERVER,
            attributes=attributes,
        )
        carrier: dict[str, str] = {}
        _W3C.inject(carrier, context=set_span_in_context(span, _NOTHING))
        return CallSpan(span), carrier

    def _target(self, message: Envelope) -> str:
        """The name of the tool or prompt; empty where there is none that a span may be named for."""
        if message.method not in TARGETS:
            return ""
        try:
            name = string_of((message.params() or {}).get("name")) or ""
        except TrunklineError:
            return ""
        if name in self._targets:
            return name
        if len(self._targets) >= MAX_TARGETS or not _TARGET.fullmatch(name):
            return ""
        self._targets.add(name)
        return name


class CallSpan:
    """The span of one call. Implements `Span`."""

    __slots__ = ("_span",)

    def __init__(self, span: OpenTelemetrySpan) -> None:
        self._span = span

    def ended(self, outcome: str) -> None:
        """See `Span.ended`."""
        self._span.set_attribute("trunkline.outcome", outcome)
        if outcome != "ok":
            self._span.set_attribute("error.type", outcome)
            self._span.set_status(Status(StatusCode.ERROR))
        self._span.end()
