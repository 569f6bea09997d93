"""W3C trace context: what a client's request carries of it, checked, and what goes on with it to the server.

Where a program traces, it gives a `Tracer`, and each call becomes a span; where it does not, the context of the client
goes on as it is. Baggage does not go on: it is the client's word to anyone on the way (W3C Baggage, "Privacy").
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import TYPE_CHECKING, Final, Protocol

from ..mux.envelope import BACKSLASH, UNDERSCORE, Envelope, members_of, string_of
from ..mux.errors import TrunklineError
from ..mux.ports import NONE, Headers, Span
from ..mux.statistics import Statistics

if TYPE_CHECKING:
    from ..mux.principal import Principal
    from ..mux.workflow import Workflow

TRACEPARENT: Final = "traceparent"
TRACESTATE: Final = "tracestate"

MAX_TRACESTATE: Final = 512
"""As much as everybody has to pass on (W3C Trace Context, 3.3.1.5)."""

_QUOTED: Final = b'"traceparent"'
_ZERO_TRACE: Final = "0" * 32
_ZERO_SPAN: Final = "0" * 16
_PARENT: Final = re.compile(r"([0-9a-f]{2})-([0-9a-f]{32})-([0-9a-f]{16})-[0-9a-f]{2}(-[\x21-\x7e]{1,200})?")
_STATE: Final = re.compile(r"[\x20-\x7e]*")


class Tracer(Protocol):
    """Makes spans of calls."""

    def begin(
        self, server: str, message: Envelope, context: Headers, principal: Principal, workflow: Workflow | None
    ) -> tuple[Span, Headers]:
        """Begin the span of a request, as the child of what `context` names; and the headers that name the span.

        `workflow` is None for a request of 2026-07-28, which has none.
        """


def begin_span(
    tracer: Tracer | None,
    server: str,
    message: Envelope,
    context: Headers,
    principal: Principal,
    workflow: Workflow | None = None,
) -> tuple[Span | None, Headers]:
    """The span of a request, where there is a tracer, and the trace context that goes on with it to the server.

    What the gateway answers itself, a `ping`, is no span.
    """
    if tracer is None or message.method == "ping":
        return None, context
    return tracer.begin(server, message, context, principal, workflow)


def context_of(headers: Mapping[str, str], message: Envelope, server: str, statistics: Statistics) -> Headers:
    """The trace context of a client's request: by its headers, by lower-case name, else by `params._meta` (SEP-414).

    What is malformed is left out, and counted for the server.
    """
    parent = headers.get(TRACEPARENT)
    if parent is not None:
        state = headers.get(TRACESTATE)
    else:
        params = message.members.get("params")
        text = bytes(params or b"")
        if not (UNDERSCORE in text or BACKSLASH in text) or _QUOTED not in text:  # `_meta` may be spelled with escapes
            return NONE
        found = _in_meta(message)
        if found is None:
            return NONE
        parent, state = found
    if not is_parent(parent):
        statistics.count("malformed_trace_context", server)
        return NONE
    if not state:
        return {TRACEPARENT: parent}
    if len(state) > MAX_TRACESTATE or not _STATE.fullmatch(state):
        statistics.count("malformed_trace_context", server)
        return {TRACEPARENT: parent}
    return {TRACEPARENT: parent, TRACESTATE: state}


def is_parent(value: str) -> bool:
    """True for a `traceparent` of this version, or of a later one that begins as this one does (3.2.2, 4.3)."""
    matched = _PARENT.fullmatch(value)
    if matched is None or matched[1] == "ff" or matched[2] == _ZERO_TRACE or matched[3] == _ZERO_SPAN:
        return False
    return matched[1] != "00" or matched[4] is None


def _in_meta(message: Envelope) -> tuple[str, str | None] | None:
    """What `params._meta` has of it; an empty parent for one that is no string."""
    try:
        raw = (message.params() or {}).get("_meta")
        meta = members_of(raw) if raw is not None else None
    except TrunklineError:  # nested too deeply: refused by who needs it
        return None
    if meta is None or TRACEPARENT not in meta:
        return None
    return string_of(meta[TRACEPARENT]) or "", string_of(meta.get(TRACESTATE))
