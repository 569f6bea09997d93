"""The messages of one SSE stream or WebSocket: answered side by side, cancelled by their client, ended with it."""

import asyncio
import json
import logging
from collections.abc import Awaitable, Callable, Mapping
from typing import Any

from ...mux.errors import InvalidRequest, Overloaded, TrunklineError
from .asked import Incoming
from .rpc import RPC, failure

logger = logging.getLogger(__name__)

Answer = Callable[[dict[str, Any]], Awaitable[None]]


class Conversation:
    """What one client asks on one stream or socket. `answer` sends it a message."""

    def __init__(
        self, rpc: RPC, session_id: str, answer: Answer, *, max_inflight: int, server_id: str | None = None
    ) -> None:
        self._rpc = rpc
        self._session_id = session_id
        self._answer = answer
        self._max_inflight = max_inflight
        self._server_id = server_id
        self._calls: dict[str, asyncio.Task[None]] = {}
        """Requests that wait for an answer, by the spelling of their id."""
        self._notifications: set[asyncio.Task[None]] = set()
        self._is_over = False

    @property
    def inflight(self) -> int:
        """Requests that wait for an answer."""
        return len(self._calls)

    async def take(self, message: Any, sent_by: Incoming) -> None:
        """Take one message; what it asks for is answered later. A response or a notification has no answer."""
        if self._is_over:
            return
        if not isinstance(message, Mapping) or not isinstance(message.get("method"), str):
            if not (isinstance(message, Mapping) and ("result" in message or "error" in message)):
                await self._say(failure(None, InvalidRequest.code, "not a JSON-RPC message"))
        elif "id" not in message:
            self._notified(message, sent_by)
        else:
            await self._asked(message, sent_by)

    async def close(self) -> None:
        """The client is gone: what it waits for is cancelled, and the servers are told. Idempotent."""
        self._is_over = True
        tasks = [*self._calls.values(), *self._notifications]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def _asked(self, message: Mapping[str, Any], sent_by: Incoming) -> None:
        name = json.dumps(message["id"])
        if name in self._calls:
            await self._say(failure(message["id"], InvalidRequest.code, "a request with this id is in flight here"))
        elif len(self._calls) >= self._max_inflight:
            refusal = failure(message["id"], Overloaded.code, "too many calls in flight in this session")
            refusal["error"]["data"] = {"limit": "max_inflight_per_workflow"}
            await self._say(refusal)
        else:
            task = asyncio.create_task(self._call(message, sent_by))
            self._calls[name] = task
            task.add_done_callback(lambda _: self._calls.pop(name, None))

    def _notified(self, message: Mapping[str, Any], sent_by: Incoming) -> None:
        params = message.get("params")
        if message["method"] == "notifications/cancelled" and isinstance(params, Mapping):
            call = self._calls.get(json.dumps(params.get("requestId")))
            if call is not None:
                call.cancel()
        elif len(self._notifications) < self._max_inflight:
            task = asyncio.create_task(self._tell(message, sent_by))
            self._notifications.add(task)
            task.add_done_callback(self._notifications.discard)

    async def _call(self, message: Mapping[str, Any], sent_by: Incoming) -> None:
        try:
            answer = await self._rpc.ask(message, sent_by, self._session_id, self._server_id)
        except Exception as error:
            logger.exception("a call failed inside the gateway")
            answer = failure(message["id"], TrunklineError.code, f"internal error: {type(error).__name__}")
        assert answer is not None, "a request is answered"
        await self._say(answer)

    async def _say(self, message: dict[str, Any]) -> None:
        try:
            await self._answer(message)
        except RuntimeError:
            logger.debug("an answer came when its client had left")

    async def _tell(self, message: Mapping[str, Any], sent_by: Incoming) -> None:
        try:
            await self._rpc.ask(message, sent_by, self._session_id, self._server_id)
        except Exception:
            logger.exception("a notification failed inside the gateway")
