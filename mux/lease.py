"""A workflow in the hands of the process that holds it: no client and no wire between, answers are simply awaited."""

import asyncio
import inspect
import itertools
import logging
from collections.abc import Awaitable, Callable, Mapping
from contextvars import copy_context
from dataclasses import dataclass
from typing import Any, Final

import msgspec
from msgspec import Raw

from . import envelope as wire_format
from .envelope import Envelope, Text
from .errors import InvalidParams, MethodNotFound, ServerError, TrunklineError, UpstreamFault
from .limits import MAX_EVENT_BYTES
from .ports import NONE, Headers, PoolResult
from .record import WorkflowState
from .workflow import Workflow

logger = logging.getLogger(__name__)

MAX_PAGES: Final = 1000
"""Pages of a list; a server whose cursors go on for longer does not end."""

Params = dict[str, Any]
Hear = Callable[[str, Params], None]
"""Takes a notification: its method and params."""

Answer = Callable[[str, Params], Awaitable[Mapping[str, Any]]]
"""Answers a server's request, by its method and params; what it raises is told to the server as an error."""

_IDS = itertools.count(1)


class _Waiting:
    """Who waits for one answer. Implements `Asker`."""

    def __init__(self, hear: Callable[[bytes], None]) -> None:
        self.response: asyncio.Future[bytes] = asyncio.get_running_loop().create_future()
        self._hear = hear

    @property
    def is_open(self) -> bool:
        """See `Asker.is_open`."""
        return not self.response.done()

    @property
    def is_lost(self) -> bool:
        """See `Asker.is_lost`."""
        return self.response.cancelled()

    def admit(self, id: bytes) -> bool:
        """See `Asker.admit`: these ids are given by one counter."""
        return True

    def carrier(self) -> int:
        """See `Asker.carrier`: nobody could resume it."""
        return 0

    def add(self, message: bytes) -> None:
        """See `Asker.add`."""
        self._hear(message)

    def answer(self, message: Text, id: bytes) -> None:
        """See `Asker.answer`."""
        if not self.response.done():
            self.response.set_result(bytes(message))

    def fail(self, error: TrunklineError, id: bytes) -> None:
        """See `Asker.fail`."""
        if not self.response.done():
            self.response.set_exception(error)


async def ask(workflow: Workflow, method: str, params: Any, headers: Headers, hear: Callable[[bytes], None]) -> Params:
    """Send one request, and return the server's response: an object with `result` or `error`.

    `hear` takes what the server sends in its course. Where the task that waits is cancelled, the server is told (E12).

    Raises:
        TrunklineError: there is no response of the server's; why.
    """
    number = b"%d" % next(_IDS)
    members = {"jsonrpc": Raw(b'"2.0"'), "id": Raw(number), "method": wire_format.encoded(method)}
    if params is not None:
        members["params"] = wire_format.encoded(params)
    waiting = _Waiting(hear)
    workflow.calls.take(Envelope("request", members, id=number, method=method), waiting, headers)
    try:
        text = await waiting.response
    except asyncio.CancelledError:
        tell(workflow, "notifications/cancelled", {"requestId": Raw(number), "reason": "the caller gave up"}, headers)
        raise
    return _object(text)


def tell(workflow: Workflow, method: str, params: Any = None, headers: Headers = NONE) -> None:
    """Send one notification; best effort, as notifications are."""
    text = wire_format.notification(method, params)
    workflow.notify(wire_format.parse(text, limit=MAX_EVENT_BYTES), headers)


@dataclass(frozen=True, slots=True)
class ToolResult:
    """What a tool gave back."""

    content: list[dict[str, Any]]
    """Its content blocks."""
    structured: Any
    """Its structured content; None where there is none."""
    is_error: bool
    """True where the tool itself says that it failed: the text is for the model, and the call did run."""
    raw: dict[str, Any]
    """The whole result, as the server sent it."""

    @property
    def text(self) -> str:
        """The text blocks, one below the other."""
        return "\n".join(block["text"] for block in self.content if isinstance(block.get("text"), str))


class Lease:
    """The use of one workflow, until it is given back.

    Calls may run side by side, up to `max_inflight_per_workflow`. Cancelling the task that awaits one withdraws it at
    the server; the session stays as it is. A call fails with one of:

        ServerError           the server answered with an error of its own
        SessionLost           the session is gone
        UpstreamUnreachable   the server cannot be reached, or answered with an HTTP error
        UpstreamFault         the server answered with what is no response
        TimedOut              neither answer nor progress within `request_timeout`
        Overloaded            a limit was met, which `limit` names; the call did not run

    all of them `TrunklineError`. Whether the call may have run, `data["executed"]` of the second to the fifth says:
    "no", or "unknown".
    """

    def __init__(
        self,
        workflow: Workflow,
        state: WorkflowState,
        pool_result: PoolResult,
        *,
        hear: Hear | None = None,
        answer: Answer | None = None,
    ) -> None:
        self.state: WorkflowState = state
        """`created`, or `resumed` where its key was known, or `reset` where it was known but began anew."""
        self.pool_result: PoolResult = pool_result
        """What the pool did for it: `hit`, `miss` or `spare`."""
        self._workflow = workflow
        self._context = copy_context()
        """The context variables of who leased: what comes was read in another's."""
        self._hear = hear
        self._answer = answer
        self._answering: dict[str, asyncio.Task[None]] = {}
        """What the server asked and is not answered yet, by the spelling of its id."""
        self._is_given_back = False
        self._reader = workflow.streams.attach_standalone()
        self._reader.on_wake = self._read
        self._read()

    def __repr__(self) -> str:
        return f"Lease({self._workflow.handle} on {self._workflow.server})"

    @property
    def server(self) -> dict[str, Any]:
        """What the server said of itself: its InitializeResult."""
        result: dict[str, Any] = msgspec.json.decode(self._workflow.record.result)
        return result

    async def call(
        self,
        tool: str,
        arguments: Mapping[str, Any] | None = None,
        *,
        progress: Callable[[Params], None] | None = None,
        headers: Headers = NONE,
    ) -> ToolResult:
        """Call a tool. `progress` takes the params of each report; `headers` go with this call alone.

        Raises:
            TrunklineError: there is no result; see the class.
            RuntimeError, TypeError: as `request`; the name is no text, or the arguments are no dictionary.
        """
        if not isinstance(tool, str):
            raise TypeError(f"a tool is called by its name, a text, not {kind_of(tool)}")
        params = {"name": tool, "arguments": fields_of("what a tool is called with", arguments)}
        result = await self.request("tools/call", params, progress=progress, headers=headers)
        content = result.get("content")
        blocks = [block for block in content if isinstance(block, dict)] if isinstance(content, list) else []
        return ToolResult(blocks, result.get("structuredContent"), result.get("isError") is True, result)

    async def tools(self) -> list[dict[str, Any]]:
        """Every tool that the server lists, over all pages.

        Raises:
            TrunklineError: there is no list; see the class.
        """
        found: list[dict[str, Any]] = []
        params: Params = {}
        for _ in range(MAX_PAGES):
            page = await self.request("tools/list", params)
            listed = page.get("tools") or []
            if not isinstance(listed, list) or not all(isinstance(tool, dict) for tool in listed):
                raise UpstreamFault("the server sent no list of tools", executed="unknown")
            found += listed
            if not page.get("nextCursor"):
                return found
            params = {"cursor": page["nextCursor"]}
        raise UpstreamFault(f"the server's list of tools has more than {MAX_PAGES} pages", executed="unknown")

    async def request(
        self,
        method: str,
        params: Mapping[str, Any] | None = None,
        *,
        progress: Callable[[Params], None] | None = None,
        headers: Headers = NONE,
    ) -> dict[str, Any]:
        """Send any request, and return its result.

        Raises:
            TrunklineError: there is no result; see the class.
            RuntimeError: the lease was given back, or is another event loop's.
            TypeError: the method is no text, `params` or `headers` are no dictionary, or hold what cannot be written as
                JSON, or `progress` would have to be awaited.
        """
        self._check()
        if not isinstance(method, str):
            raise TypeError(f"a method is a text, not {method!r}")
        refuse_coroutine("progress", progress)
        asked = None if params is None else fields_of("params", params)
        headers = fields_of("headers", headers) if headers else NONE
        if progress is not None:
            meta = (asked or {}).get("_meta") or {}
            asked = {**(asked or {}), "_meta": {**meta, "progressToken": next(_IDS)}}

        context = copy_context()

        def hear(message: bytes) -> None:
            context.run(self._take, message, progress)

        response = await ask(self._workflow, method, asked, headers, hear)
        if "error" in response:
            raise ServerError(response["error"])
        result: dict[str, Any] = response["result"]
        if not isinstance(result, dict):
            raise UpstreamFault("the server sent a result that is no object", executed="unknown")
        return result

    def notify(self, method: str, params: Mapping[str, Any] | None = None) -> None:
        """Send a notification; best effort, as notifications are.

        Raises:
            RuntimeError: the lease was given back, or is another event loop's.
            TypeError: the method is no text, or `params` are no dictionary.
        """
        self._check()
        if not isinstance(method, str):
            raise TypeError(f"a method is a text, not {method!r}")
        tell(self._workflow, method, None if params is None else fields_of("params", params))

    def close(self) -> None:
        """Give it back: what the server asked is not answered any more. Idempotent."""
        self._is_given_back = True
        self._reader.close()
        for task in tuple(self._answering.values()):
            task.cancel()

    def _check(self) -> None:
        if self._is_given_back:
            raise RuntimeError("the lease was given back: take another one")
        refuse_other_loop(self._workflow.loop)

    # What the server sends.

    def _read(self) -> None:
        """Take what belongs to no call; without it, the log would fill."""
        for event in self._reader.due() or ():
            if event.message:
                self._take(event.message, None)

    def _take(self, text: bytes, progress: Callable[[Params], None] | None) -> None:
        message = wire_format.parse(text, limit=MAX_EVENT_BYTES)
        try:
            params = _object(message.members.get("params", b"{}"))
        except UpstreamFault as fault:  # nobody's call: it must not end the reading of a channel
            logger.warning("what the server sent is not heard: %s", fault.message)
            if message.kind == "request":
                refusal = wire_format.failure(message.id, InvalidParams("the params are no object that can be read"))
                self._workflow.respond(wire_format.parse(refusal, limit=MAX_EVENT_BYTES))
            return
        if message.kind == "request":
            task = asyncio.get_running_loop().create_task(self._reply(message, params), context=self._context.copy())
            name = message.id.decode()
            self._answering[name] = task
            task.add_done_callback(lambda _: self._answering.pop(name, None))
        elif message.method == "notifications/cancelled":
            asked = self._answering.get(msgspec.json.encode(params.get("requestId")).decode())
            if asked is not None:
                asked.cancel()
        else:
            self._tell(message.method, params, progress)

    def _tell(self, method: str, params: Params, progress: Callable[[Params], None] | None) -> None:
        try:
            if method == "notifications/progress" and progress is not None:
                progress(params)
            elif self._hear is not None:
                self._context.copy().run(self._hear, method, params)
        except Exception:  # of the program's own: it must not end the reading of a channel
            logger.exception("what hears of %s failed", method)

    async def _reply(self, message: Envelope, params: Params) -> None:
        try:
            if self._answer is None:
                raise MethodNotFound(f"{message.method} is not answered here")
            text = wire_format.result(message.id, wire_format.encoded(await self._answer(message.method, params)))
        except TrunklineError as error:
            text = wire_format.failure(message.id, error)
        except (Exception, asyncio.CancelledError) as error:
            task = asyncio.current_task()
            if isinstance(error, asyncio.CancelledError) and task is not None and task.cancelling():
                raise  # nobody wants it any longer; else it was cancelled by what it waited for
            logger.exception("what answers %s failed", message.method)
            text = wire_format.failure(message.id, TrunklineError(f"no answer: {type(error).__name__}"))
        self._workflow.respond(wire_format.parse(text, limit=MAX_EVENT_BYTES))


def refuse_coroutine(name: str, function: Callable[..., object] | None) -> None:
    """Raise where this would have to be awaited: messages are handed on by plain calls.

    Raises:
        TypeError: it is a coroutine function, or none at all.
    """
    refuse_no_function(name, function)
    if inspect.iscoroutinefunction(function):
        raise TypeError(f"{name} is called, and not awaited: give a function without `async`")


def running_loop(what: str) -> asyncio.AbstractEventLoop:
    """The event loop that this runs on.

    Raises:
        RuntimeError: it is none of asyncio's, but trio's, for one.
    """
    try:
        return asyncio.get_running_loop()
    except RuntimeError:
        raise RuntimeError(f"{what} run on asyncio's event loop, and there is none here") from None


def refuse_other_loop(loop: asyncio.AbstractEventLoop) -> None:
    """Raise where this does not run on that event loop: what belongs to one is safe on no other.

    Raises:
        RuntimeError: it runs on another, or on none.
    """
    if asyncio.get_running_loop() is not loop:
        raise RuntimeError(
            "this belongs to another event loop: from a thread, asyncio.run_coroutine_threadsafe leads there"
        )


def refuse_no_function(name: str, function: object) -> None:
    """Raise where this is given, and cannot be called.

    Raises:
        TypeError: it cannot.
    """
    if function is not None and not callable(function):
        raise TypeError(f"{name} is a function, not {kind_of(function)}")


def fields_of(name: str, given: Mapping[str, Any] | None) -> Params:
    """What was given as an object: a dictionary of its own.

    Raises:
        TypeError: it is none. What it is stands there, not what it holds, which may be a secret.
    """
    if given is not None and not isinstance(given, Mapping):
        raise TypeError(f"{name} is a dictionary, not {kind_of(given)}")
    return dict(given or {})


def kind_of(given: object) -> str:
    """What this is, for people, without what it holds, which may be a secret."""
    name = type(given).__name__
    return f"{'an' if name[:1].lower() in 'aeiou' else 'a'} {name}"


def _object(text: bytes | Raw) -> Params:
    """What the server sent, read in full.

    Raises:
        UpstreamFault: it is no object, or nested more deeply than can be read.
    """
    try:
        value = msgspec.json.decode(text)
    except (msgspec.DecodeError, RecursionError):
        raise UpstreamFault("the server sent what cannot be read", executed="unknown") from None
    if not isinstance(value, dict):
        raise UpstreamFault("the server sent something else than an object", executed="unknown")
    return value
