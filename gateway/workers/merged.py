"""What several workers tell operators, as one answer. Pure."""

from collections.abc import Mapping, Sequence
from functools import reduce
from typing import Any, Final, NamedTuple

from ..trends import Sums, added

Row = dict[str, Any]

MAX_CANDIDATES: Final = 10
_HAS_LOOKED: Final = (200, 400, 404, 409)
"""What a worker says that has looked for a workflow; with any other status, or with none, it did not."""
_STATES: Final = ("failing", "ok", "unused")
_SUMS: Final = ("channels", "workflows", "attached", "inflight")


class Told(NamedTuple):
    """What one worker answered; `body` is its JSON. `status` is 0 where it did not answer."""

    worker: int
    status: int
    body: Any


def servers(told: Sequence[Told]) -> list[Row]:
    """The servers of the first, with what all others hold of them; the worst state and the newest failure count."""
    others: dict[str, list[Row]] = {}
    for one in told[1:]:
        for row in one.body if one.status == 200 else ():
            others.setdefault(row["server"], []).append(row)
    absent = _absent(_missing(told))
    return [{**_server([row, *others.get(row["server"], ())]), **absent} for row in told[0].body]


def sessions(told: Sequence[Told]) -> list[Row]:
    """All workflows, each with the number of its worker; and a row of its own for a worker that did not answer."""
    rows = [{**row, "worker": one.worker} for one in told if one.status == 200 for row in one.body]
    return rows + [{"worker": number, "state": "missing"} for number in _missing(told)]


def session(told: Sequence[Told]) -> Told:
    """The answer of the worker that has the workflow; of one where it lives, before one where it ended.

    Where several have one whose handle begins so, their handles. That there is none, all must have said: else 503.
    """
    missing = [one.worker for one in told if one.status not in _HAS_LOOKED]
    absent = _absent(missing)
    found: dict[str, list[Told]] = {}
    candidates: set[str] = set()
    for one in told:
        if one.status == 200:
            found.setdefault(one.body["workflow"]["workflow"], []).append(one)
        elif one.status == 409:
            candidates.update(one.body["candidates"])
    if candidates or len(found) > 1:
        named = sorted({*candidates, *found})[:MAX_CANDIDATES]
        why = "several workflows begin so: give more of the handle"
        return Told(0, 409, {"error": why, "candidates": named, **absent})
    for answers in found.values():
        best = min(answers, key=lambda one: one.body["ended"] is not None)
        return best._replace(body={**best.body, "workflow": {**best.body["workflow"], "worker": best.worker}, **absent})
    if missing and told[0].status == 404:
        silent = ", ".join(f"worker {number}" for number in missing)
        why = f"no worker that answered has this workflow, and {silent} did not answer: ask again"
        return Told(0, 503, {"error": why, **absent})
    return told[0]


def gateway(told: Sequence[Told]) -> Row:
    """The gateway as a whole: it began with its first worker, and its trends are those of all."""
    answered = [one.body for one in told if one.status == 200]
    trends: dict[str, dict[str, Sums]] = {}
    for server, first in answered[0]["trends"].items():
        trends[server] = reduce(added, (body["trends"].get(server, {}) for body in answered[1:]), first)
    return {
        **answered[0],
        "started": min(body["started"] for body in answered),
        "workers": len(answered),
        "trends": trends,
        **_absent(_missing(told)),
    }


def page(pages: Sequence[Told], following: str | None) -> dict[str, Any]:
    """Pages of the workers, in order, as one; each row with the number of its worker."""
    rows = [{**row, "worker": one.worker} for one in pages if one.status == 200 for row in one.body["sessions"]]
    total = sum(one.body["total"] for one in pages if one.status == 200)
    return {"total": total, "sessions": rows, "next": following, **_absent(_missing(pages))}


def cursor(text: str) -> tuple[int, int] | None:
    """Where a page begins: at a worker's number, after a place there; None where the text says neither."""
    parts = text.split(".") if text else ["0", "0"]
    if len(parts) != 2 or not all(part.isascii() and part.isdigit() and len(part) < 19 for part in parts):
        return None
    return int(parts[0]), int(parts[1])


def _missing(told: Sequence[Told]) -> list[int]:
    return [one.worker for one in told if one.status != 200]


def _absent(missing: list[int]) -> Row:
    """The member of an answer that names the workers which did not tell; none where all did."""
    return {"missing_workers": missing} if missing else {}


def _server(rows: Sequence[Row]) -> Row:
    sums = {name: sum(row[name] for row in rows) for name in _SUMS}
    failures = [row["last_failure"] for row in rows if row["last_failure"]]
    circuits = [row["circuit"] for row in rows if row["circuit"]]
    return {
        **rows[0],
        **sums,
        "channel_states": {
            state: sum(row["channel_states"][state] for row in rows) for state in rows[0]["channel_states"]
        },
        "state": min((row["state"] for row in rows), key=_STATES.index),
        "last_failure": max(failures, key=lambda failure: failure["at"]) if failures else None,
        "circuit": max(circuits, key=_severity) if circuits else None,
    }


def _severity(circuit: Mapping[str, Any]) -> tuple[bool, float]:
    return circuit["state"] != "closed", circuit["retry_after"]
