"""A worker among others: how it is found, the ways to the others, and what it hands on before it looks at it."""

import secrets
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import anyio

from ...mux.directory import SharedDirectory, Worker
from ...mux.errors import DirectoryUnavailable, Elsewhere
from ...mux.membership import Membership
from ...mux.principal import Principal
from ...mux.statistics import Statistics
from ...transports.asgi import ASGIApp, Receive, Scope, Send, is_settled
from ...transports.sse import worker_of
from .conversation import Broken, Conversation, Gone, SocketConversation, Unreachable, ask
from .forwarding import Forwarder
from .host import host_id
from .mailboxes import Mailboxes
from .openings import opening
from .serving import listening, serving

ANSWER_SECONDS: Final = 1.0
"""How long another worker may take to tell operators what it holds."""

TICKET: Final = b"ticket="
ENDPOINTS: Final = "/servers/"


Identify = Callable[[Scope], tuple[Principal, float] | None]
"""Who sends a request, and until when that is known; None for one that is refused here."""


@dataclass(frozen=True, slots=True)
class Answer:
    """What another worker answered; `status` is 0 where it did not."""

    worker: int
    """Its number."""
    status: int = 0
    body: bytes = b""


class Member:
    """One worker among those that share a directory. It counts between entering and leaving `running`.

    It serves `app`, and has others serve what that leaves to them. `runtime` is a directory of its own, for its socket.
    `on_lapse` as in `Membership`.
    """

    def __init__(
        self,
        app: ASGIApp,
        directory: SharedDirectory,
        runtime: Path,
        statistics: Statistics,
        *,
        identify: Identify,
        on_lapse: Callable[[float], None],
    ) -> None:
        name = secrets.token_hex(8)
        worker = Worker(name, host_id(), str(runtime / name))
        self.id = name
        """Drawn at its start."""
        self.membership = Membership(directory, worker, on_lapse=on_lapse)
        self._directory = directory
        self._mailboxes = Mailboxes(directory, self.membership)
        self._app = app
        self._identify = identify
        self.forwarder = Forwarder(self._serve, self.membership, self.open, statistics)
        """Its application."""

    @property
    def number(self) -> int:
        """The number of this worker, unique among those that live."""
        return self.membership.worker.number

    @asynccontextmanager
    async def running(self) -> AsyncIterator["Member"]:
        """Be there for the other workers, who hand on what is to be served here.

        Raises:
            DirectoryUnavailable: the directory cannot be reached at the start.
            OSError: the socket cannot be made.
        """
        async with AsyncExitStack() as stack:
            begin = await stack.enter_async_context(serving(self.forwarder))
            # For as long as others know this worker, its socket is there: one that is not tells of its death. And so is
            # its mailbox: what was put there before nobody would hear, and who sent it would wait for ever.
            await stack.enter_async_context(listening(self.membership.worker.address, begin))
            await stack.enter_async_context(self._mailboxes.running(begin))
            await stack.enter_async_context(self.membership.running())
            yield self

    def another_goes_on(self, *, of_another_parent: bool) -> bool:
        """Whether another worker lived, and was not to end, when who lives was read last.

        With `of_another_parent` those of this one's parent do not count: they end as well, whether they have said so or
        not.
        """
        own = self.membership.worker
        siblings = own.host, Path(own.address).parent
        return any(
            not of_another_parent or (other.host, Path(other.address).parent) != siblings
            for other in self.membership.going_on
        )

    async def open(self, worker: Worker) -> Conversation:
        """Begin a conversation.

        Raises:
            Unreachable: the worker is not there.
        """
        if not worker.address or worker.host != self.membership.worker.host:
            return self._mailboxes.open(worker)
        try:
            return await SocketConversation.open(worker.address)
        except Gone:
            self.membership.bury(worker)
            raise

    async def ask_others(self, scope: Scope, query: Callable[[int], bytes]) -> list[Answer]:
        """What the other workers answer to the same GET, in the order of their numbers.

        It is one of an operator, who was let in here. Each gets the query that is made for its number.

        Raises:
            DirectoryUnavailable: nobody knows who they are.
        """
        workers = sorted(await self._directory.workers(), key=lambda worker: worker.number)
        others = [worker for worker in workers if worker.id != self.membership.worker.id]
        answers: dict[int, Answer] = {}

        async def ask_one(worker: Worker) -> None:
            answers[worker.number] = await self._ask(worker, {**scope, "query_string": query(worker.number)})

        async with anyio.create_task_group() as tasks:
            for worker in others:
                tasks.start_soon(ask_one, worker)
        return [answers[worker.number] for worker in others]

    async def _ask(self, worker: Worker, scope: Scope) -> Answer:
        event = {"type": "http.request", "body": b"", "more_body": False}
        with anyio.move_on_after(ANSWER_SECONDS), suppress(Broken, Unreachable):
            return Answer(worker.number, *await ask(await self.open(worker), opening(scope, is_let_in=True), event))
        return Answer(worker.number)

    async def _serve(self, scope: Scope, receive: Receive, send: Send) -> None:
        if not is_settled(scope):
            await self._direct(scope)
        await self._app(scope, receive, send)

    async def _direct(self, scope: Scope) -> None:
        """Send a request on that is not for this worker, whatever it holds.

        Raises:
            Elsewhere: its ticket was given by another worker; or this one is draining, and another one is not.
        """
        query = scope.get("query_string", b"")
        if not self.membership.drains and TICKET not in query:
            return
        if not scope.get("path", "").startswith(ENDPOINTS):
            return
        giver = _giver(query)
        if giver == self.number:
            return
        with suppress(DirectoryUnavailable):
            worker = await self.membership.numbered(giver) if giver else None
            if worker is not None:
                raise Elsewhere(worker.id)
        if self.membership.drains and (identity := self._identify(scope)) is not None:
            with suppress(DirectoryUnavailable):
                try:
                    await self.membership.hand_on()
                except Elsewhere as elsewhere:
                    elsewhere.identity = identity
                    raise


def _giver(query: bytes) -> int:
    """The number of the worker that gave the ticket in a query string; 0 where there is none, or it does not tell."""
    _, _, rest = query.partition(TICKET)
    return worker_of(rest.partition(b"&")[0].decode("latin-1"))
