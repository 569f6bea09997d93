"""What `/api/*` tells of a pool: servers, workflows, pages of them, and one workflow with what the pool did for it.

Handles, hashes and fixed words; never a session id, a key, or the value of a header.
"""

import time
from bisect import bisect_right
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from itertools import islice
from typing import Any, Final

from msgspec import Raw

from ..mux import envelope as wire_format
from ..mux.account import MAX_COMPARED, Account, ChannelKey, Decision, Difference, Ended, nearest
from ..mux.breaker import Circuit
from ..mux.errors import TrunklineError
from ..mux.limits import Pooling
from ..mux.pool import Pool
from ..mux.principal import Principal
from ..mux.residents import row_of
from ..mux.workflow import Workflow
from .metrics import CHANNEL_STATES, InFlight
from .reasons import end_told, origin_told, told

MIN_PREFIX: Final = 4
"""Characters of a handle that are enough where they name one workflow alone."""

MAX_CANDIDATES: Final = 10
PAGE: Final = 100
MAX_PAGE: Final = 1000
"""Rows of one page, where nobody asks for another number, and at most."""

PAGING: Final = ("limit", "after", "q", "server", "state")


class NotTold(Exception):
    """What was asked for cannot be told; `status` is HTTP's. The message never repeats what was asked.

    `details` are members of the answer beside it.
    """

    def __init__(self, status: int, message: str, **details: Sequence[Any]) -> None:
        super().__init__(message)
        self.status = status
        self.body: dict[str, Any] = {"error": message, **details}


def server_rows(pool: Pool, beside: InFlight = Counter) -> list[dict[str, Any]]:
    """The servers, as pages and tables show them; `beside` tells the calls in flight that have no session."""
    channels = Counter((server, channel.state) for server, channel in pool.channels)
    inflight, circuits = beside() + pool.inflight, _worst_circuits(pool)
    workflows = Counter((workflow.server, workflow.is_attached) for workflow in pool.workflows)

    def row(name: str) -> dict[str, Any]:
        failure = pool.failures.get(name)
        states = {state: channels[name, state] for state in CHANNEL_STATES}
        held = sum(states.values())
        return {
            "server": name,
            "state": "failing" if failure and failure.stage != "session" else "ok" if held else "unused",
            "reuse": pool.upstreams[name].pooling.reuse,
            "channels": held,
            "channel_states": states,
            "workflows": workflows[name, True] + workflows[name, False],
            "attached": workflows[name, True],
            "inflight": inflight[name],
            "last_failure": failure._asdict() if failure else None,
            "circuit": _circuit_row(pool, circuits.get(name)),
        }

    return [row(name) for name in pool.upstreams]


def _worst_circuits(pool: Pool) -> dict[str, Circuit]:
    """How servers stand with the tenants that they fail most, where something has failed lately."""
    return {circuit.server: circuit for circuit in sorted(pool.circuits, key=lambda c: (c.state != "closed", c.until))}


def _circuit_row(pool: Pool, worst: Circuit | None) -> dict[str, Any] | None:
    if worst is None:
        return None
    wait = max(0.0, worst.until - pool.now()) if worst.state == "open" else 0.0
    return {"state": worst.state, "failures": worst.failures, "retry_after": round(wait, 1)}


def workflow_row(workflow: Workflow) -> dict[str, Any]:
    """One workflow, as pages and tables show it. Never its session id or key."""
    if not workflow.opened.done():
        channel = "opening"
    elif workflow.pooling.reuse == "none":
        channel = "per call"
    else:
        channel = "open" if workflow.line.is_open else "lost"
    return {**row_of(workflow), "channel": channel}


# Pages.


def page(pool: Pool, query: Mapping[str, str]) -> dict[str, Any]:
    """A page of the workflows that match, in the order in which they began: `{total, sessions, next}`.

    `q` is a part of a handle, of a principal's hash or of a server's name. `next` is the `after` of the next page; None
    on the last one. A page stays what it is while others come and go.

    Raises:
        NotTold: 400, a value is none of those that there are.
    """
    limit, after = number_in(query, "limit", PAGE, 1, MAX_PAGE), number_in(query, "after", 0, 0, 1 << 62)
    wanted = _filter(query)
    found = pool.workflows if wanted is None else [workflow for workflow in pool.workflows if wanted(workflow)]
    start = bisect_right(found, after, key=lambda workflow: workflow.account.number)
    shown = found[start : start + limit]
    return {
        "total": len(found),
        "sessions": [workflow_row(workflow) for workflow in shown],
        "next": str(shown[-1].account.number) if start + limit < len(found) else None,
    }


def _filter(query: Mapping[str, str]) -> Callable[[Workflow], bool] | None:
    text, server, state = (query.get(name, "") for name in ("q", "server", "state"))
    if state not in ("", "attached", "detached"):
        raise NotTold(400, "state is attached or detached")
    if not (text or server or state):
        return None
    text = text.lower()
    digests: dict[Principal, str] = {}

    def matches(workflow: Workflow) -> bool:
        if server and workflow.server != server:
            return False
        if state and workflow.is_attached is not (state == "attached"):
            return False
        if not text or text in workflow.handle or text in workflow.server.lower():
            return True
        digest = digests.get(workflow.principal)
        if digest is None:
            digest = digests[workflow.principal] = workflow.principal.digest()
        return text in digest

    return matches


def number_in(query: Mapping[str, str], name: str, default: int, least: int, most: int) -> int:
    """A value of a query; `default` where it is not given.

    Raises:
        NotTold: 400, it is none from `least` to `most`.
    """
    text = query.get(name, "")
    if not text:
        return default
    if not (text.isascii() and text.isdigit() and len(text) < 20 and least <= int(text) <= most):
        raise NotTold(400, f"{name} is a number from {least} to {most}")
    return int(text)


# One workflow.


def explanation(pool: Pool, prefix: str) -> dict[str, Any]:
    """One workflow, living or ended lately, by its handle or enough of it: what the pool did for it, and why.

    Raises:
        NotTold: 400, 404 or 409: too short, unknown, or the beginning of several.
    """
    found = _named(pool, prefix)
    account = found.account
    asked = "initialize" if account.call is None else "call"
    row: dict[str, Any]
    differs: tuple[Difference, ...]
    if isinstance(found, Ended):
        row, differs = {**found.row, "state": "ended", "channel": None}, ()
    else:
        row, differs = workflow_row(found), own_differences(pool, found)
    opened = _decision_row(account.opened, found.pooling, differs)
    return {
        "workflow": row,
        "ended": _end_row(pool, found) if isinstance(found, Ended) else None,
        "channel": None if isinstance(found, Ended) else _channel_row(found),
        "pool": opened if asked == "initialize" else _decision_row(account.call, found.pooling, differs),
        "asked": asked,
        "initialize": opened,
        "origin": _origin_row(account),
        "timeline": [{**event._asdict(), "at": _wall(pool, event.at)} for event in account.timeline],
    }


def _named(pool: Pool, prefix: str) -> Workflow | Ended:
    prefix = prefix.strip().lower()
    if len(prefix) < MIN_PREFIX:
        raise NotTold(400, f"give at least {MIN_PREFIX} characters of a workflow's handle")
    found: dict[str, Workflow | Ended] = {e.handle: e for e in pool.ended if e.handle.startswith(prefix)}
    found |= {w.handle: w for w in pool.workflows if w.handle.startswith(prefix)}
    if not found:
        raise NotTold(404, "no workflow of this handle is here, and none ended lately; `trunkline sessions` lists them")
    if prefix in found:
        return found[prefix]
    if len(found) > 1:
        candidates = sorted(found)[:MAX_CANDIDATES]
        raise NotTold(409, "several workflows begin so: give more of the handle", candidates=candidates)
    return next(iter(found.values()))


def own_differences(pool: Pool, workflow: Workflow) -> tuple[Difference, ...]:
    """How the nearest session of another workflow differs from one that shares with nobody."""
    if workflow.pooling.reuse != "workflow":
        return ()
    older = [w for w in pool.workflows if w.server == workflow.server and w.account.number < workflow.account.number]
    own = [other for other in older if other.principal == workflow.principal]
    compared = islice(reversed(own or older), MAX_COMPARED)
    return nearest(_key_of(workflow), map(_key_of, compared)) or ()


def _key_of(workflow: Workflow) -> ChannelKey:
    handshake = workflow.record.handshake
    try:
        client_info = wire_format.canonical((wire_format.members_of(Raw(handshake.params)) or {}).get("clientInfo"))
    except TrunklineError:  # what cannot be compared part by part
        client_info = handshake.params
    generation, credential = workflow.account.settings
    return ChannelKey(
        workflow.server,
        workflow.principal,
        handshake.session_headers,
        handshake.revision,
        handshake.capabilities,
        generation,
        credential,
        client_info,
        workflow.handle,
    )


def _decision_row(
    decision: Decision | None, pooling: Pooling, differs: tuple[Difference, ...]
) -> dict[str, Any] | None:
    if decision is None:
        return None
    if decision.reason == "own":
        decision = decision._replace(differs=differs)
    row = {**decision._asdict(), "differs": [difference._asdict() for difference in decision.differs]}
    return {**row, "says": told(decision, pooling)}


def _origin_row(account: Account) -> dict[str, Any] | None:
    origin = account.origin
    if origin is None:
        return None
    differs = [difference._asdict() for difference in origin.differs]
    return {**origin._asdict(), "differs": differs, "says": origin_told(origin)}


def _end_row(pool: Pool, ended: Ended) -> dict[str, Any]:
    return {"cause": ended.cause, "at": _wall(pool, ended.at), "says": end_told(ended.cause)}


def _channel_row(workflow: Workflow) -> dict[str, Any] | None:
    """The session that carries its calls, the first of several; None where none outlives a call, or it is gone."""
    channels = workflow.line.channels if workflow.opened.done() else ()
    if not channels:
        return None
    channel = channels[0]
    return {
        "state": channel.state,
        "age": round(workflow.now() - channel.born, 1),
        "inflight": channel.inflight,
        "load": channel.load,
        "shared_with": max(0, len(channel.owners) - 1),
        "sessions": len(channels),
    }


def _wall(pool: Pool, at: float) -> float:
    """Seconds since 1970 of a moment on the pool's clock."""
    return round(time.time() - (pool.now() - at), 3)
