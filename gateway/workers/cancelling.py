"""Cancellations: the one worker that has the call which is meant (guarantee G1).

Calls of one workflow are in flight at any workers, and the ids of clients collide. So all are asked first how many they
have that a cancellation can mean; only where that is one call altogether, the worker that has it is told.
"""

from __future__ import annotations

from contextlib import suppress
from typing import Final

import anyio

from ...mux import envelope as wire_format
from ...mux.directory import Worker
from ...mux.envelope import key_or_none
from ...mux.errors import Elsewhere, Everywhere
from ...mux.limits import MAX_BODY_BYTES
from ...mux.membership import Membership
from ...transports.asgi import ASKED, HOPS, IDENTITY, MEANT, ASGIApp, Message, Scope
from .conversation import Broken, Open, Unreachable, ask
from .openings import opening

TELL_SECONDS: Final = 1.0
"""How long another worker may take to tell which calls it has."""

SEVERAL: Final = 2
"""What a worker counts for that may have any number of the calls asked for."""


class Inquiry:
    """Asks all workers, this one by `app`."""

    def __init__(self, app: ASGIApp, membership: Membership, open_conversation: Open) -> None:
        self._app = app
        self._membership = membership
        self._open = open_conversation

    async def find(self, everywhere: Everywhere, scope: Scope, body: bytes) -> tuple[Elsewhere, Scope]:
        """Ask all workers for the calls that a cancellation can mean: who is to serve it, and with which scope.

        That is the one worker that has the one such call; else this one, which does nothing but count it.
        """
        asked = {**scope, MEANT: ASKED, IDENTITY: everywhere.identity}
        event = {"type": "http.request", "body": _question(body), "more_body": False}
        meant: dict[str, int] = {}

        async def ask_one(worker: Worker) -> None:
            meant[worker.id] = await self._ask(worker, asked, event)

        others = await self._membership.others()
        meant[self._membership.worker.id] = await self._ask_here({**asked, HOPS: 1}, event)
        async with anyio.create_task_group() as tasks:
            for worker in others:
                tasks.start_soon(ask_one, worker)
        total = sum(meant.values())
        where = max(meant, key=meant.__getitem__) if total == 1 else self._membership.worker.id
        found = Elsewhere(where)
        found.identity = everywhere.identity
        return found, {**scope, MEANT: total, IDENTITY: everywhere.identity}

    async def _ask(self, worker: Worker, scope: Scope, event: Message) -> int:
        """How many such calls another worker has: as good as several where it does not say."""
        with suppress(Broken), anyio.move_on_after(TELL_SECONDS):
            try:
                _, told = await ask(await self._open(worker), opening(scope), event)
            except Unreachable:
                return 0
            return int(told) if told.isdigit() else SEVERAL
        return SEVERAL

    async def _ask_here(self, scope: Scope, event: Message) -> int:
        told = b""

        async def receive() -> Message:
            return event

        async def send(message: Message) -> None:
            nonlocal told
            told += message.get("body", b"")

        await self._app(scope, receive, send)
        return int(told) if told.isdigit() else 0


def _question(body: bytes) -> bytes:
    """A cancellation without all that tells nothing of which call it means: all are asked, and it may be large."""
    message = wire_format.parse(body, limit=MAX_BODY_BYTES)
    raw = (message.params() or {}).get("requestId")
    return wire_format.notification(message.method, {} if key_or_none(raw) is None else {"requestId": raw})
