"""What the pool did, in words that a person can act upon. Pure: fixed words and settings in, a sentence out."""

from collections.abc import Mapping, Sequence
from typing import Final

from ..mux.account import Decision, Difference, Origin, Part
from ..mux.limits import Pooling

PARTS: Final[Mapping[Part, str]] = {
    "server": "the server",
    "principal": "the principal (no session ever serves two)",
    "generation": "the server's settings, which were changed (sessions opened under the old ones drain)",
    "credential": "the credential that the gateway proves itself with",
    "session_headers": "session headers",
    "revision": "the protocol revision that was asked for",
    "capabilities": "client capabilities",
    "client_info": "clientInfo",
    "workflow": "the workflow",
}

ENDS: Final[Mapping[str, str]] = {
    "abandoned": "its client lost its connection, holds no key, and did not come back within resume_window",
    "aged": "it had lived for as long as a session may",
    "cancelled": "its client cancelled it",
    "call_done": "its one call was done",
    "circuit_open": "the server had failed too often, and is left alone for a while",
    "client_left": "its client left",
    "closed": "the gateway's program closed it",
    "credential": "no credential for the server could be had: see last_failure in /api/servers",
    "deleted": "its client ended it (DELETE)",
    "drained": "the gateway was shutting down",
    "event_log_overflow": "its client did not fetch what was sent to it, and the event log was full: raise "
    "pooling.event_log, or let the client read its streams",
    "event_log_trimmed": "its client came back to what the event log no longer held: raise pooling.event_log",
    "evicted": "a cap on workflows was reached, and it was the least recently used: raise max_workflows (or the cap of "
    "its user or tenant), or let clients end what they no longer need",
    "handshake_timed_out": "the server did not finish the handshake in time",
    "idle": "nobody used it for idle_timeout",
    "internal": "the gateway failed; its log says how",
    "not_opened": "no session with the server could be opened: see last_failure in /api/servers",
    "reconfigured": "the settings of its server were changed, and nothing is opened anew under the old ones: begin "
    "again with initialize",
    "removed": "its record was removed from the directory",
    "reset": "its client began anew with another handshake",
    "revoked": "its user's credential was taken out of the settings",
    "session_lost": "the server no longer knew the session, or the connection with it broke",
    "spoilt": "the server asked it something, or told it too much, before a client had come",
    "taken_over": "another worker goes on with it",
    "timed_out": "the server did not answer in time",
    "unused": "no client like those that it was kept for came for a minute",
    "upstream_changed": "the server says something else of itself since its session was opened anew",
    "upstream_fault": "the server answered with what is no JSON-RPC",
    "upstream_lost": "the session with the server was lost, and with it what the server remembered; if it remembers "
    "nothing, set stateless = true for it, and sessions are opened anew",
    "upstream_refused": "the server refused the handshake",
    "upstream_unreachable": "the server could not be reached",
}
"""Why a workflow or a session ended, or was refused, by the word that counters and logs carry."""

LIMITS: Final[Mapping[str, str]] = {
    "directory": "the directory cannot be reached",
    "draining": "the gateway is shutting down",
    "opening": "the session is being opened elsewhere: try again",
    "reconfigured": "the settings of the server were being changed: try again",
    "subscriptions": "the workflows that share the session subscribe to more resources than it has room for",
    "upstream_ids": "request ids could not be drawn fast enough: try again",
    "worker": "the worker that holds the session does not answer: try again",
}


def told(decision: Decision, pooling: Pooling) -> str:
    """Why the pool did what it did, and what would change it, under these settings of the server."""
    match decision.reason:
        case "open":
            return "the session with the server was open"
        case "returned":
            name = "Trunkline-Workflow" if decision.detail == "key" else "Mcp-Session-Id"
            return f"its client came back with its {name}: the server was asked nothing"
        case "opening":
            return "another workflow of the same user was opening the session, and this one waited for it"
        case "own":
            return _own(decision.differs)
        case "first":
            return "nothing like it was there: it is the first session of this principal with this server"
        case "key":
            return f"sessions were there, but the nearest differed in {_listed(decision.differs)}"
        case "full":
            return (
                f"max_inflight_per_channel = {pooling.max_inflight_per_channel} was reached, and one more session was "
                "opened: raise it where the server takes more at once"
            )
        case "lost":
            return f"the session before was lost, and opened anew: {end_told(decision.detail)}"
        case "spare":
            return "an initialized session that nobody had used was ready (spares)"
        case "per_call":
            return 'reuse = "none": each call opens a session and ends it; "workflow" or "user" would keep it'
        case _:
            return f"refused: {_limit_told(decision.detail, pooling)}"


def origin_told(origin: Origin) -> str:
    """Why a workflow began anew."""
    if origin.cause == "reset":
        return f"its client came with another handshake: {_listed(origin.differs)}"
    if not origin.cause:
        return "the workflow that its key named has ended; it is too long ago to tell why"
    return f"the workflow that its key named had ended: {end_told(origin.cause)}"


def end_told(cause: str) -> str:
    """Why something ended."""
    return ENDS.get(cause, cause.replace("_", " ") or "for a reason that is not known")


def _own(differs: Sequence[Difference]) -> str:
    text = (
        'reuse = "workflow": each workflow has a session of its own. A client that sends Trunkline-Workflow, or its '
        "Mcp-Session-Id, comes back to it"
    )
    others = [difference for difference in differs if difference.part not in ("workflow", "client_info")]
    if not differs:
        return text
    if not others:
        return f'{text}; reuse = "user" would share one among the workflows of a user'
    return f'{text}; reuse = "user" would not share the nearest: it differs in {_listed(others)}'


def _listed(differs: Sequence[Difference]) -> str:
    return ", ".join(
        PARTS[difference.part] + (f" ({', '.join(difference.names)})" if difference.names else "")
        for difference in differs
    )


def _limit_told(detail: str, pooling: Pooling) -> str:
    value = getattr(pooling, detail, None) if detail in pooling.__struct_fields__ else None
    if value is not None:
        return f"{detail} = {value} was reached; raise it, or send less at once"
    return LIMITS.get(detail) or end_told(detail)
