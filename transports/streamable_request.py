"""What a request over Streamable HTTP asks of its session, and how it is answered, whoever carries it.

`streamable_http` carries one in a task of its own; `at_once` carries by callbacks what has nothing to wait for.
"""

from __future__ import annotations

from typing import Final

from msgspec import Raw

from ..mux import envelope as wire_format
from ..mux.envelope import Envelope
from ..mux.exchange import Exchange
from ..mux.pool import Arrival, Begun
from ..mux.streams import Reader
from ..mux.workflow import Workflow
from . import event_stream
from .asgi import EVENT_STREAM, RequestHeaders
from .endpoint import EndpointConfig, admitted_key, picked, take_call
from .headers import END, POOLED, PROTOCOL_VERSION, SESSION_ID, WORKFLOW, workflow_key
from .http_endpoint import KEEP_ALIVE_SECONDS, HTTPRequest, send_events
from .patience import Patience
from .status import HTTPRefusal

WORST_FIRST: Final = ("bypass", "miss", "spare", "hit")

DECIDE_SECONDS: Final = 0.05
"""A call that is unanswered for this long turns into a stream that can be resumed (guarantee G5)."""


def undecided() -> Patience:
    """How long calls wait until the form of their answer is decided."""
    return Patience(DECIDE_SECONDS)


def key_of(config: EndpointConfig, request: HTTPRequest) -> str | None:
    """The key that the client chose for its workflow.

    Raises:
        HTTPRefusal: 400, it is no key, or may not be used here.
    """
    return admitted_key(config, request.principal, workflow_key(request.headers))


def arrival_of(config: EndpointConfig, request: HTTPRequest) -> Arrival:
    """What a client comes back to with its `initialize`. Raises as `key_of`."""
    headers = request.headers
    fixed = picked(headers, config.session_headers)
    return Arrival(headers.get(SESSION_ID), key_of(config, request), fixed, generation=config.generation)


def check_names(headers: RequestHeaders, workflow: Workflow) -> None:
    """Session id, key and event id must name the same workflow.

    Raises:
        HTTPRefusal: 400, they do not.
    """
    record, session_id, key = workflow.record, headers.get(SESSION_ID), headers.get(WORKFLOW)
    if key is not None and key != record.key:
        workflow_key(headers)  # perhaps it is none
        raise HTTPRefusal(400, "disagree", "Mcp-Session-Id, Trunkline-Workflow and Last-Event-ID disagree")
    if session_id is not None and session_id != record.session_id:
        raise HTTPRefusal(400, "disagree", "Mcp-Session-Id, Trunkline-Workflow and Last-Event-ID disagree")


def check_agreement(headers: RequestHeaders, workflow: Workflow) -> None:
    """The same, and the version header must be that of its session. Raises as `check_names`."""
    check_names(headers, workflow)
    record, revision = workflow.record, headers.get(PROTOCOL_VERSION)
    if revision is not None and revision != record.revision:
        raise HTTPRefusal(
            400, "revision", f"MCP-Protocol-Version {revision} contradicts the session's {record.revision}"
        )


def is_good_bye(headers: RequestHeaders, workflow: Workflow) -> bool:
    """Whether a DELETE leaves the workflow to come back to: it has a key, and its end is not asked for."""
    return workflow.record.key is not None and headers.get(END, "").strip().lower() != "workflow"


def greet(request: HTTPRequest, message: Envelope, begun: Begun) -> bytes:
    """The answer to an `initialize`; its headers are the request's."""
    headers = request.headers
    is_named = WORKFLOW in headers or SESSION_ID in headers
    request.name(begun.workflow, begun.state if is_named else None)
    request.extra.append(POOLED[begun.pool_result])
    return wire_format.result(message.id, Raw(begun.result))


def take(config: EndpointConfig, request: HTTPRequest, workflow: Workflow, messages: list[Envelope]) -> Exchange | None:
    """Hand messages to their workflow; the exchange of those that are to be answered."""
    forwarded = picked(request.headers, config.forward_headers)
    calls = [message for message in messages if message.kind == "request"]
    workflow.come_by("http")
    exchange = workflow.calls.exchange(len(calls)) if calls else None
    worst = request.pool_result
    for message in messages:
        if message.kind == "notification":
            workflow.notify(message, forwarded)
        elif message.kind == "response":
            workflow.respond(message)
        elif exchange is not None:
            done = take_call(config, workflow, message, exchange, forwarded, request.headers)
            if done is not None and (worst is None or WORST_FIRST.index(done) < WORST_FIRST.index(worst)):
                worst = done
    if exchange is not None and worst is not None:
        request.extra.append(POOLED[worst])
    return exchange


async def give_events(config: EndpointConfig, request: HTTPRequest, reader: Reader) -> None:
    """Send what the reader brings until its end, the client's leaving, or a client that takes nothing."""

    async def chunks() -> bytes | None:
        events = await reader.next(KEEP_ALIVE_SECONDS)
        if events is None:
            return None
        return b"".join([event_stream.encode(event.message, id=reader.event_id(event)) for event in events])

    try:
        await request.start(200, EVENT_STREAM)
        is_over = await send_events(request, chunks, config.pool.statistics)
    finally:
        reader.close()
    if is_over:
        await request.finish()
    else:
        config.pool.statistics.count("slow_clients", config.server)
