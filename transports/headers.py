"""The header names of the contract, and what their values may be."""

import re
from collections.abc import Mapping
from typing import Final, NamedTuple, get_args
from urllib.parse import parse_qs

from ..mux.ports import PoolResult
from ..mux.record import WorkflowState
from .status import HTTPRefusal


class Header(NamedTuple):
    """A header of the contract, as people are told of it."""

    name: str
    on: str
    """The requests and answers that carry it."""
    query: str
    """Its name in the query of a stream or a socket, where browsers can set no header; empty where there is none."""
    meaning: str


HEADERS: Final = (
    Header(
        "Mcp-Session-Id",
        "requests of a session, over all three transports, and their answers",
        "session_id",
        "The gateway's own id of the workflow, which is a secret. Sent again, it resumes: the same workflow on the "
        "same session with the server. Unknown, expired, another principal's, or on another server's path: 404.",
    ),
    Header(
        "Trunkline-Workflow",
        "any request of an era with sessions",
        "workflow",
        "A key that the client chooses, 1-128 characters of `A-Z a-z 0-9 . _ : -`: the workflow of that name, begun "
        "where there is none. It names nothing outside of its principal and server. Anonymous beyond loopback: 400.",
    ),
    Header(
        "Trunkline-Workflow-State",
        "answers to requests with a key",
        "",
        "`created`, `resumed`, or `reset` where an earlier workflow of that key has ended and this one began anew.",
    ),
    Header(
        "Trunkline-End",
        "DELETE",
        "",
        "`workflow` ends a workflow that was opened with a key. A DELETE without it leaves that one to come back to.",
    ),
    Header(
        "Last-Event-ID",
        "requests for a stream, or for a WebSocket",
        "last_event_id",
        "Where to go on: what a stream gave as its last `id`, which is a secret. On WebSocket, the number of messages "
        "that came on the socket that was cut; without it, what was acknowledged.",
    ),
    Header(
        "Trunkline-Pool",
        "answers over HTTP to `initialize` and to calls of a session",
        "",
        "What the pool did: `hit`, a session was open; `miss`, one was opened; `spare`, one was waiting; `bypass`, one "
        'was opened for this call alone (`reuse = "none"`). Nothing where it was not asked: refused before, or `ping`.',
    ),
    Header(
        "MCP-Protocol-Version",
        "requests after `initialize`; every request of 2026-07-28",
        "",
        "The revision of the protocol. One that contradicts the session is refused with 400.",
    ),
)
"""Every header that this gateway gives a meaning of its own, or reads to find a session."""

SESSION_ID: Final = "mcp-session-id"
PROTOCOL_VERSION: Final = "mcp-protocol-version"
LAST_EVENT_ID: Final = "last-event-id"
WORKFLOW: Final = "trunkline-workflow"
WORKFLOW_STATE: Final = "trunkline-workflow-state"
END: Final = "trunkline-end"
POOL: Final = "trunkline-pool"

MAX_QUERY_FIELDS: Final = 32

_KEY: Final = re.compile(r"[A-Za-z0-9._:-]{1,128}")


def workflow_key(headers: Mapping[str, str]) -> str | None:
    """The key that the client chose for its workflow; None where it sent none.

    Raises:
        HTTPRefusal: 400, not 1-128 characters of `A-Z a-z 0-9 . _ : -`.
    """
    key = headers.get(WORKFLOW)
    return None if key is None else _checked_key(key)


def is_key(text: str) -> bool:
    """Whether this may be a client's key for a workflow."""
    return _KEY.fullmatch(text) is not None


def _checked_key(key: str | None) -> str | None:
    if key is not None and not is_key(key):
        raise HTTPRefusal(400, "workflow_key", "Trunkline-Workflow must be 1-128 characters of A-Z a-z 0-9 . _ : -")
    return key


_SESSION_ID: Final = SESSION_ID.encode()
_STATES: Final = {state: (WORKFLOW_STATE.encode(), state.encode()) for state in get_args(WorkflowState)}
POOLED: Final = {result: (POOL.encode(), result.encode()) for result in get_args(PoolResult)}
"""What tells a client what the pool did."""


def naming(session_id: str, state: WorkflowState | None) -> list[tuple[bytes, bytes]]:
    """What tells a client its session id; and how its key came to it, where it gave one."""
    named = (_SESSION_ID, session_id.encode())
    return [named] if state is None else [named, _STATES[state]]


class Asked(NamedTuple):
    """The workflow that a client asks for when it connects; None where it names none."""

    session_id: str | None
    key: str | None
    last_event_id: str | None


def asked(headers: Mapping[str, str], query: bytes) -> Asked:
    """What a client asks for by headers or, as browsers can set none on a stream or socket, by the query.

    Raises:
        HTTPRefusal: 400, header and query or two values of one name disagree, or the key is no key.
    """
    try:
        named = parse_qs(query.decode("ascii"), keep_blank_values=True, max_num_fields=MAX_QUERY_FIELDS)
    except ValueError:
        raise HTTPRefusal(400, "query", "the query string cannot be read") from None
    session_id = _one(headers.get(SESSION_ID), named.get("session_id", []))
    key = _one(workflow_key(headers), named.get("workflow", []))
    # An EventSource that reconnects sends its header with the query that it was made with: the header is newer.
    last_event_id = headers.get(LAST_EVENT_ID) or _one(None, named.get("last_event_id", []))
    return Asked(session_id, _checked_key(key), last_event_id)


def _one(header: str | None, queried: list[str]) -> str | None:
    values = {value for value in (header, *queried) if value}
    if len(values) > 1:
        raise HTTPRefusal(400, "disagree", "header and query name different things")
    return values.pop() if values else None
