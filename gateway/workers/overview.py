"""What operators ask a gateway, for all its workers: each tells what it holds, and who was asked adds it up."""

from collections.abc import Callable, Mapping
from typing import Any, Final
from urllib.parse import urlencode

import msgspec

from ...mux.errors import DirectoryUnavailable
from ...mux.pool import Pool
from ...transports.asgi import HOPS, Scope
from ..rows import MAX_PAGE, PAGE, PAGING, NotTold, explanation, number_in, page, server_row, workflow_row
from . import merged
from .member import Answer, Member
from .merged import Told

LAST: Final = 1 << 62
"""After every place of a worker: nothing but the total is asked for."""


class Overview:
    """What the workers of a gateway hold; what this one does where it has no `member` among others, or one asks."""

    def __init__(self, pool: Pool, member: Member | None) -> None:
        self._pool = pool
        self._member = member

    async def servers(self, scope: Scope) -> list[dict[str, Any]]:
        """The servers, with what is held of each."""
        own = [server_row(self._pool, name) for name in self._pool.upstreams]
        return own if self._is_alone(scope) else merged.servers(await self._told(scope, Told(self._number, 200, own)))

    async def sessions(self, scope: Scope, query: Mapping[str, str]) -> Any:
        """All workflows, or a page of them where the query asks for one.

        Raises:
            NotTold: 400, it asks for what there is not.
        """
        if any(name in query for name in PAGING):
            return page(self._pool, query) if self._is_alone(scope) else await self._page(scope, query)
        own = [workflow_row(workflow) for workflow in self._pool.workflows]
        return own if self._is_alone(scope) else merged.sessions(await self._told(scope, Told(self._number, 200, own)))

    async def session(self, scope: Scope, handle: str) -> dict[str, Any]:
        """One workflow, and what the pool did for it.

        Raises:
            NotTold: there is none, or more than one.
        """
        if self._is_alone(scope):
            return explanation(self._pool, handle)
        best = merged.session(await self._told(scope, self._own(lambda: explanation(self._pool, handle))))
        if best.status != 200:
            raise NotTold(best.status, best.body["error"], best.body.get("candidates", ()))
        found: dict[str, Any] = best.body
        return found

    # Inside.

    @property
    def _number(self) -> int:
        return self._member.number if self._member is not None else 0

    def _is_alone(self, scope: Scope) -> bool:
        return self._member is None or bool(scope.get(HOPS))

    def _own(self, tell: Callable[[], Any]) -> Told:
        try:
            return Told(self._number, 200, tell())
        except NotTold as error:
            return Told(self._number, error.status, error.body)

    async def _told(
        self, scope: Scope, own: Told, query: Callable[[int], Mapping[str, str]] = lambda worker: {}
    ) -> list[Told]:
        """What this worker tells, and then what the others do, to a query that each gets."""
        assert self._member is not None
        try:
            answers = await self._member.ask_others(scope, lambda worker: urlencode(query(worker)).encode())
        except DirectoryUnavailable:  # nobody knows who else there is
            answers = []
        return [own, *map(_read, answers)]

    async def _page(self, scope: Scope, query: Mapping[str, str]) -> dict[str, Any]:
        """A page over all workers: those of the lowest number first."""
        limit, at = number_in(query, "limit", PAGE, 1, MAX_PAGE), merged.cursor(query.get("after", ""))
        if at is None:
            raise NotTold(400, "after is what a page before has told as next")

        def part(worker: int, limit: int = limit) -> dict[str, str]:
            after = at[1] if worker == at[0] else 0 if worker > at[0] else LAST
            return {**query, "limit": str(limit), "after": str(after)}

        async def ask(limit: int) -> list[Told]:
            own = Told(self._number, 200, page(self._pool, part(self._number, limit)))
            told = await self._told(scope, own, lambda worker: part(worker, limit))
            return sorted(told, key=lambda one: one.worker)

        pages, following, room = list[Told](), None, limit
        for one in await ask(limit):
            if one.status == 200 and one.body["sessions"]:
                if not room:
                    following = following or f"{one.worker}.{at[1] if one.worker == at[0] else 0}"
                    one.body["sessions"] = []
                elif len(one.body["sessions"]) > room:
                    one = next(cut for cut in await ask(room) if cut.worker == one.worker)
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
