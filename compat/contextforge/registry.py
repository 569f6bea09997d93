"""The registry of SSE streams: ContextForge's own, with another way for messages.

A message for a stream of this worker goes to it at once. Another worker's is reached as before, through redis or the
database, and there only by the user who opened the stream.
"""

import asyncio
import json
import logging
from collections.abc import Mapping
from contextlib import suppress
from types import ModuleType
from typing import Any, Final, NamedTuple, Protocol

from .asked import Incoming, incoming
from .conversation import Conversation
from .leaving import Leave
from .rpc import RPC

logger = logging.getLogger(__name__)

POLL_SECONDS: Final = 0.5
"""How often the database is asked for messages that other workers took, once for all streams of this worker."""

RECONNECT_SECONDS: Final = 0.5
"""How long after redis was lost it is asked again."""

MAX_RELAYED: Final = 1000
"""Messages of other workers that are fetched at once."""

TO_CLIENTS: Final = frozenset({"elicitation/create", "sampling/createMessage", "roots/list"})
"""What only a server asks: it is for the client of the stream, not from it."""


class Services(Protocol):
    """What the registry needs of the installation."""

    @property
    def rpc(self) -> RPC:
        """The application's `/rpc`."""

    @property
    def max_inflight(self) -> int:
        """Calls of one stream that may wait for an answer."""

    async def who(self, headers: Mapping[str, str]) -> str:
        """The user whom these request headers prove; empty where there is none."""

    async def ended(self, session_id: str) -> None:
        """A stream is over."""

    def at_exit(self, leave: Leave) -> None:
        """Let this be called when the process is told to stop, which then waits until all streams have ended."""


class _Stream(NamedTuple):
    conversation: Conversation
    opened_by: Incoming
    user: str


class _Streams:
    """The streams of one `registry` that this worker has.

    What other workers take for them is heard by redis for each, by the database for all. With `checks_owner`, a stream
    takes messages from the user alone who opened it.
    """

    def __init__(self, module: ModuleType, registry: Any, services: Services, *, checks_owner: bool) -> None:
        self._module = module
        self._registry = registry
        self._services = services
        self._checks_owner = checks_owner
        self._open: dict[str, _Stream] = {}
        self._poller: asyncio.Task[None] | None = None

    def __contains__(self, session_id: object) -> bool:
        return session_id in self._open

    async def serve(self, session_id: str, transport: Any, server_id: str | None) -> None:
        """Serve a stream for as long as it lives."""
        services, opened_by = self._services, incoming.get()
        assert opened_by is not None, "a stream is opened by a request"
        conversation = Conversation(
            services.rpc, session_id, transport.send_message, max_inflight=services.max_inflight, server_id=server_id
        )
        self._open[session_id] = _Stream(conversation, opened_by, await services.who(opened_by.headers))
        relayed = self._begin_to_hear(session_id)
        try:
            await transport.gone.wait()
        finally:
            if relayed is not None:
                relayed.cancel()
            self._open.pop(session_id, None)
            await asyncio.shield(self._over(conversation, session_id))

    async def take(self, session_id: str, user: str, message: Any, sent_by: Incoming) -> bool:
        """Take one message of this user; False where there is no such stream of theirs."""
        stream = self._open.get(session_id)
        if stream is None or (self._checks_owner and stream.user != user):
            return False
        await stream.conversation.take(message, sent_by)
        return True

    async def close(self) -> None:
        """Hear nothing more."""
        if self._poller is not None:
            self._poller.cancel()
            with suppress(asyncio.CancelledError):
                await self._poller

    async def _over(self, conversation: Conversation, session_id: str) -> None:
        await conversation.close()
        await self._services.ended(session_id)

    def _begin_to_hear(self, session_id: str) -> asyncio.Task[None] | None:
        """What is returned is cancelled when the stream is over."""
        backend = self._registry._backend
        if backend == "redis":
            return asyncio.create_task(self._hear_redis(session_id))
        if backend == "database" and (self._poller is None or self._poller.done()):
            self._poller = asyncio.create_task(self._hear_database())
        return None

    async def _hear_redis(self, session_id: str) -> None:
        """Hear other workers for as long as the stream lives; what they say while redis is away is lost."""
        is_told = False
        while True:
            pubsub = self._registry._redis.pubsub()
            try:
                await pubsub.subscribe(session_id)
                is_told = False
                async for event in pubsub.listen():
                    if event["type"] == "message":
                        await self._relayed(session_id, event["data"])
            except Exception as error:
                if not is_told:
                    logger.warning("messages from other workers are not heard on a stream: %r", error)
                is_told = True
            finally:
                with suppress(Exception):  # its connection is gone
                    await pubsub.aclose()
            await asyncio.sleep(RECONNECT_SECONDS)

    async def _hear_database(self) -> None:
        while True:
            await asyncio.sleep(POLL_SECONDS)
            if not self._open:
                continue
            try:
                found = await asyncio.to_thread(self._fetch, list(self._open))
            except Exception:
                logger.exception("messages from other workers could not be fetched")
                continue
            for session_id, text in found:
                await self._relayed(session_id, text)

    def _fetch(self, session_ids: list[str]) -> list[tuple[str, str]]:
        record = self._module.SessionMessageRecord
        session = next(self._module.get_db())
        try:
            due = session.query(record).filter(record.session_id.in_(session_ids))
            rows = due.order_by(record.id).limit(MAX_RELAYED).all()
            found = [(row.session_id, row.message) for row in rows]
            for row in rows:
                session.delete(row)
            session.commit()
            return found
        finally:
            session.close()

    async def _relayed(self, session_id: str, text: str | bytes) -> None:
        stream = self._open.get(session_id)
        message = _unwrapped(text)
        if stream is not None and isinstance(message, Mapping) and set(message) == {"by", "message"}:
            await self.take(session_id, message["by"], message["message"], stream.opened_by)


def session_registry(module: ModuleType, services: Services, *, checks_owner: bool) -> type:
    """A registry class over that of `module`, with all of its names.

    With `checks_owner`, who sends a message must be who opened the stream: else it is answered with 404, as for a
    stream that does not exist. ContextForge 1.0 checks that itself.
    """
    base: Any = module.SessionRegistry

    class SessionRegistry(base):  # type: ignore[misc]
        def __init__(self, *args: Any, **kwargs: Any) -> None:
            super().__init__(*args, **kwargs)
            self._streams = _Streams(module, self, services, checks_owner=checks_owner)
            services.at_exit(self._end_streams)

        async def respond(self, server_id: str | None, user: Any, session_id: str, base_url: str = "") -> None:
            """Serve a stream for as long as it lives."""
            transport = self._sessions.get(session_id)
            if transport is not None:
                await self._streams.serve(session_id, transport, server_id)

        async def add_session(self, session_id: str, transport: Any) -> None:
            self._sessions[session_id] = transport  # also where the backend is `none`
            await super().add_session(session_id, transport)

        async def remove_session(self, session_id: str) -> None:
            transport = self._sessions.pop(session_id, None)
            if transport is not None:
                await transport.disconnect()
            await super().remove_session(session_id)
            await services.ended(session_id)

        async def broadcast(self, session_id: str, message: Any) -> None:
            """Take one message for a stream: here, or to the worker that has it."""
            if isinstance(message, Mapping) and message.get("method") in TO_CLIENTS:
                transport = self._sessions.get(session_id)
                if transport is not None:
                    await transport.send_message(message)
                return
            sent_by = incoming.get()
            assert sent_by is not None, "a message comes by a request"
            user = await services.who(sent_by.headers) if checks_owner else ""
            if session_id not in self._streams and self._backend in ("redis", "database"):
                await super().broadcast(session_id, {"by": user, "message": message})
            elif not await self._streams.take(session_id, user, message, sent_by._replace(has_passed=True)):
                raise module.HTTPException(status_code=404, detail="Session not found")

        async def shutdown(self) -> None:
            await self._streams.close()
            await super().shutdown()

        async def _end_streams(self) -> None:
            for transport in list(self._sessions.values()):
                await transport.disconnect()

    return SessionRegistry


def _unwrapped(text: str | bytes) -> Any:
    """The message in what a version of ContextForge stores or publishes."""
    try:
        value = json.loads(text)
        if isinstance(value, Mapping) and value.get("type") == "message":
            value = value.get("message")
        return json.loads(value) if isinstance(value, str) else value
    except ValueError:
        return None
