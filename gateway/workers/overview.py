"""What operators ask a gateway, for all its workers: each tells what it holds, and who was asked adds it up."""

import time
from collections import Counter
from collections.abc import Callable, Mapping
from contextlib import suppress
from importlib.metadata import version
from typing import Any, Final
from urllib.parse import urlencode

import msgspec

from ...mux.errors import DirectoryUnavailable
from ...mux.pool import Pool
from ...mux.statistics import BUCKETS
from ...transports.asgi import HOPS, Scope
from ..metrics import InFlight
from ..rows import MAX_PAGE, PAGE, PAGING, NotTold, explanation, number_in, page, server_rows, workflow_row
from ..trends import STEP_SECONDS, STEPS, Trends, last_step
from . import merged
from .member import Answer, Member
from .merged import Told

SESSIONS: Final = "/api/sessions"
VERSION: Final = version("trunkline")

Query = Callable[[int], Mapping[str, str]]
"""What the worker of a number is asked."""

LAST: Final = 1 << 62
"""After every place of a worker: nothing but the total is asked for."""


class Overview:
    """What the workers of a gateway hold; what this one does where it has no `member` among others, or one asks.

    Whatever path the request has whose `scope` it is: the others are asked for what is wanted here. `beside` as in
    `server_rows`.
    """

    def __init__(self, pool: Pool, trends: Trends, member: Member | None = None, beside: InFlight = Counter) -> None:
        self._pool = pool
        self._trends = trends
        self._member = member
        self._beside = beside
        self._started = time.time()

    async def gateway(self, scope: Scope) -> dict[str, Any]:
        """The gateway as a whole, and what its servers did lately."""
        now = time.time()
        own = {
            "version": VERSION,
            "started": round(self._started, 3),
            "state": "draining" if self._pool.draining else "ready",
            "workers": 1,
            "step_seconds": STEP_SECONDS,
            "steps": STEPS,
            "last_step": last_step(now),
            "bounds": BUCKETS,
            "trends": self._trends.told(self._pool.upstreams, now),
        }
        return own if self._is_alone(scope) else merged.gateway(await self._told(scope, "/api/gateway", own))

    async def servers(self, scope: Scope) -> list[dict[str, Any]]:
        """The servers, with what is held of each."""
        own = server_rows(self._pool, self._beside)
        return own if self._is_alone(scope) else merged.servers(await self._told(scope, "/api/servers", own))

    async def sessions(self, scope: Scope, query: Mapping[str, str]) -> Any:
        """All workflows, or a page of them where the query asks for one.

        Raises:
            NotTold: 400, it asks for what there is not.
        """
        if any(name in query for name in PAGING):
            return page(self._pool, query) if self._is_alone(scope) else await self._page(scope, query)
        own = [workflow_row(workflow) for workflow in self._pool.workflows]
        return own if self._is_alone(scope) else merged.sessions(await self._told(scope, SESSIONS, own))

    async def session(self, scope: Scope, handle: str) -> dict[str, Any]:
        """One workflow, and what the pool did for it.

        Raises:
            NotTold: there is none, or more than one; 503, nobody can tell, since not all workers were heard.
        """
        if self._is_alone(scope):
            return explanation(self._pool, handle)
        try:
            own = Told(self._number, 200, explanation(self._pool, handle))
        except NotTold as error:
            own = Told(self._number, error.status, error.body)
        try:
            best = merged.session([own, *await self._asked(scope, f"{SESSIONS}/{handle}")])
        except DirectoryUnavailable:
            best = merged.session([own])
            if best.status == 404:
                raise NotTold(503, "this worker has no such workflow, and the directory of others is away") from None
        if best.status != 200:
            raise NotTold(best.status, best.body.pop("error"), **best.body)
        found: dict[str, Any] = best.body
        return found

    # Inside.

    @property
    def _number(self) -> int:
        return self._member.number if self._member is not None else 0

    def _is_alone(self, scope: Scope) -> bool:
        return self._member is None or bool(scope.get(HOPS))

    async def _told(self, scope: Scope, path: str, own: Any, query: Query = lambda worker: {}) -> list[Told]:
        """What this worker tells, and then what the others do, as far as it is known who they are."""
        others: list[Told] = []
        with suppress(DirectoryUnavailable):
            others = await self._asked(scope, path, query)
        return [Told(self._number, 200, own), *others]

    async def _asked(self, scope: Scope, path: str, query: Query = lambda worker: {}) -> list[Told]:
        """What the others tell at this path, to a query that each gets.

        Raises:
            DirectoryUnavailable: nobody knows who else there is.
        """
        assert self._member is not None
        answers = await self._member.ask_others(
            {**scope, "path": path}, lambda worker: urlencode(query(worker)).encode()
        )
        return [_read(answer) for answer in answers]

    async def _page(self, scope: Scope, query: Mapping[str, str]) -> dict[str, Any]:
        """A page over all workers: those of the lowest number first."""
        limit, at = number_in(query, "limit", PAGE, 1, MAX_PAGE), merged.cursor(query.get("after", ""))
        if at is None:
            raise NotTold(400, "after is what a page before has told as next")

        def part(worker: int, limit: int = limit) -> dict[str, str]:
            after = at[1] if worker == at[0] else 0 if worker > at[0] else LAST
            return {**query, "limit": str(limit), "after": str(after)}

        async def ask(limit: int) -> list[Told]:
            own = page(self._pool, part(self._number, limit))
            told = await self._told(scope, SESSIONS, own, lambda worker: part(worker, limit))
            return sorted(told, key=lambda one: one.worker)

        pages, following, room = list[Told](), None, limit
        for one in await ask(limit):
            if one.status == 200 and one.body["sessions"]:
                if not room:
                    following = following or f"{one.worker}.{at[1] if one.worker == at[0] else 0}"
                    one.body["sessions"] = []
                elif len(one.body["sessions"]) > room:
                    gone = Told(one.worker, 0, None)
                    one = next((cut for cut in await ask(room) if cut.worker == one.worker), gone)
            if one.status == 200:
                room -= len(one.body["sessions"])
                if room == 0 and one.body["next"] is not None:
                    following = following or f"{one.worker}.{one.body['next']}"
            pages.append(one)
        return merged.page(pages, following)


def _read(answer: Answer) -> Told:
    try:
        return Told(answer.worker, answer.status, msgspec.json.decode(answer.body))
    except msgspec.DecodeError:
        return Told(answer.worker, 0, None)
