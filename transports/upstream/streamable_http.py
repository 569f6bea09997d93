"""Streamable HTTP to a server: each request is a POST of its own, whose stream belongs to that request (rule R1.1).

The session lives as long as the context of `connect`. A POST whose stream breaks is taken up again by
`Last-Event-ID` if the server gave event ids, and is never sent a second time (rules T12, T13).
"""

import asyncio
import logging
import os
import random
import ssl
from collections.abc import AsyncIterator, Coroutine
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from typing import Any, Final, Literal

import aiohttp
import anyio
from yarl import URL

from ...mux.demux import Request
from ...mux.envelope import parse
from ...mux.errors import (
    InvalidMessage,
    SessionLost,
    TrunklineError,
    UpstreamFault,
    UpstreamUnreachable,
)
from ...mux.limits import MAX_EVENT_BYTES
from ...mux.ports import NONE, Headers, Receiver, SendKind, Wire
from ...mux.statistics import Statistics
from ..event_stream import EventParser

logger = logging.getLogger(__name__)

Kind = Literal["initialize", "initialized", "call", "notification", "response", "get", "delete"]

CONNECT_SECONDS: Final = 10.0
CLOSE_SECONDS: Final = 5.0
KEEP_ALIVE_SECONDS: Final = 3.5
"""Idle connections are dropped before common servers do so after 5 s: a request must not meet a closing socket."""

LOST_SECONDS: Final = 0.5
"""How long a session that the server forgot waits for what becomes of its other calls: most are refused as well, and
a call that was refused surely did not run."""

FIRST_RETRY_SECONDS: Final = 1.0
LAST_RETRY_SECONDS: Final = 30.0
RESUME_ATTEMPTS: Final = 5
"""Attempts to take up a broken stream that bring no event, before its request is given up."""

ERROR_BODY_BYTES: Final = 65_536
VERSION_HEADER_SINCE: Final = "2025-06-18"
MAX_SESSION_ID: Final = 1024


class StreamableHTTPConnector:
    """Opens sessions with one server by Streamable HTTP. Implements `Connector`.

    `headers` go with every request. One HTTP client serves all sessions; `close` it after they have ended.
    """

    def __init__(
        self, server: str, url: str, statistics: Statistics, *, headers: Headers | None = None, ca: str = ""
    ) -> None:
        self.server = server
        self.url = URL(url)
        self._statistics = statistics
        self.headers = dict(headers or {})
        self._ssl = ssl.create_default_context(cafile=ca) if ca else True
        self._http: aiohttp.ClientSession | None = None

    @asynccontextmanager
    async def connect(self, receiver: Receiver, headers: Headers, *, listen: bool) -> AsyncIterator[Wire]:
        """See `Connector.connect`."""
        failure: Exception | None = None
        async with asyncio.TaskGroup() as tasks:  # a task for each POST: anyio's cost three times as much to start
            wire = _HTTPWire(self, receiver, headers, tasks, listen=listen)
            try:
                yield wire
            except Exception as error:  # kept out of the task group, which would wrap it
                failure = error
            finally:
                await wire.close()
        if failure is not None:
            raise failure

    async def close(self) -> None:
        """Close the HTTP client. Idempotent."""
        if self._http is not None:
            await self._http.close()
            self._http = None

    @property
    def http(self) -> aiohttp.ClientSession:
        """The HTTP client; made when it is first needed, inside the running loop."""
        if self._http is None:
            self._http = aiohttp.ClientSession(
                connector=aiohttp.TCPConnector(limit=0, keepalive_timeout=KEEP_ALIVE_SECONDS, ssl=self._ssl),
                cookie_jar=aiohttp.DummyCookieJar(),
                timeout=aiohttp.ClientTimeout(total=None, sock_connect=CONNECT_SECONDS),
                skip_auto_headers=("User-Agent",),
            )
        return self._http

    def count(self, kind: Kind) -> None:
        """One HTTP request goes to the server."""
        self._statistics.count("upstream_requests", self.server, kind)

    def count_fault(self) -> None:
        """The server broke the protocol."""
        self._statistics.count("upstream_faults", self.server)


class _HTTPWire:
    """One session. Implements `Wire`."""

    def __init__(
        self,
        connector: StreamableHTTPConnector,
        receiver: Receiver,
        headers: Headers,
        tasks: asyncio.TaskGroup,
        *,
        listen: bool,
    ) -> None:
        self._connector = connector
        self._receiver = receiver
        self._tasks = tasks
        self._listen = listen
        self._running: set[asyncio.Task[None]] = set()
        self._exchanges: dict[Request, asyncio.Task[None]] = {}
        self._unanswered: set[Request] = set()
        """Requests to which the server has not begun to answer."""
        self._all_answered = asyncio.Event()
        self._refused: list[Request] = []
        """Requests that met a session which the server had forgotten."""
        self._headers = {
            **connector.headers,
            **headers,
            "Content-Type": "application/json",
            "Accept": "application/json, text/event-stream",
            "User-Agent": "trunkline",
        }
        self._established = False
        self._has_session = False
        self._dead = False

    def send(
        self, text: bytes, *, kind: SendKind = "notification", request: Request | None = None, headers: Headers = NONE
    ) -> None:
        """See `Wire.send`."""
        sent = {**self._headers, **headers} if headers else self._headers
        if self._dead:
            if request is not None:
                self._refused.append(request)
        elif request is not None:
            self._unanswered.add(request)
            self._all_answered.clear()
            self._exchanges[request] = self._start(self._carry(text, request, sent))
        else:
            self._start(self._deliver(text, kind, sent))

    def abandon(self, request: Request) -> None:
        """See `Wire.abandon`."""
        task = self._exchanges.get(request)
        if task is not None:
            task.cancel()

    async def establish(self, revision: str, initialized: bytes) -> None:
        """See `Wire.establish`."""
        if revision >= VERSION_HEADER_SINCE:
            self._headers["MCP-Protocol-Version"] = revision
        try:
            async with self._post(initialized, "initialized", self._headers) as response:
                if response.status >= 300:
                    raise UpstreamUnreachable(
                        f"the server answered notifications/initialized with HTTP {response.status}", executed="no"
                    )
        except (aiohttp.ClientError, OSError) as error:
            raise _unreachable(error) from error
        self._established = True
        if self._listen:
            self._start(self._hear_unasked())

    async def close(self) -> None:
        """End the session at the server, in bounded time; best effort, as the specification has it (rule L5)."""
        try:
            if self._has_session and not self._dead:
                await self._delete()
        finally:
            for task in tuple(self._running):
                task.cancel()

    async def _delete(self) -> None:
        self._connector.count("delete")
        with anyio.move_on_after(CLOSE_SECONDS, shield=True):
            try:
                async with self._connector.http.delete(self._connector.url, headers=self._headers):
                    pass
            except (aiohttp.ClientError, OSError) as error:
                logger.info("the server did not take the DELETE: %s", type(error).__name__, extra=self._about)

    def _start(self, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        task = self._tasks.create_task(work)
        self._running.add(task)
        task.add_done_callback(self._running.discard)
        return task

    @property
    def _about(self) -> dict[str, str]:
        return {"server": self._connector.server}

    def _post(self, text: bytes, kind: Kind, headers: Headers) -> AbstractAsyncContextManager[aiohttp.ClientResponse]:
        self._connector.count(kind)
        return self._connector.http.post(self._connector.url, data=text, headers=headers, allow_redirects=False)

    async def _carry(self, text: bytes, request: Request, headers: Headers) -> None:
        """One request, to its answer or the reason why there is none."""
        kind: Kind = "call" if self._established else "initialize"
        try:
            async with self._post(text, kind, headers) as response:
                self._answers(request)
                if response.status == 404 and self._established and self._has_session:
                    self._lose(request)
                    return
                if kind == "initialize":
                    self._take_session(response)
                await self._read_answer(response, request)
            if request.state != "done":
                raise UpstreamFault("the server's answer did not hold the response")
        except TrunklineError as error:
            self._receiver.failed(request, error)
        except (aiohttp.ClientError, OSError) as error:
            self._receiver.failed(request, _unreachable(error))
        except Exception as error:
            logger.exception("an exchange failed", extra=self._about)
            self._receiver.failed(request, UpstreamFault(f"the exchange failed: {type(error).__name__}"))
        finally:
            self._answers(request)
            self._exchanges.pop(request, None)

    def _answers(self, request: Request) -> None:
        """The server begins to answer this request, or will not."""
        self._unanswered.discard(request)
        if not self._unanswered:
            self._all_answered.set()

    async def _deliver(self, text: bytes, kind: SendKind, headers: Headers) -> None:
        """One message without an answer. It is not sent again: it may have arrived."""
        try:
            async with self._post(text, kind, headers) as response:
                status = response.status
        except (aiohttp.ClientError, OSError) as error:
            logger.warning("a %s did not reach the server: %s", kind, type(error).__name__, extra=self._about)
            return
        if status == 404:
            self._lose()
        elif status >= 300:
            logger.warning("the server answered a %s with HTTP %d", kind, status, extra=self._about)

    def _take_session(self, response: aiohttp.ClientResponse) -> None:
        session_id = response.headers.get("Mcp-Session-Id")
        if session_id is None:
            return
        if len(session_id) > MAX_SESSION_ID or not all("\x21" <= character <= "\x7e" for character in session_id):
            raise UpstreamFault("the server gave a session id that is not visible ASCII")
        self._has_session = True
        self._headers["Mcp-Session-Id"] = session_id

    async def _read_answer(self, response: aiohttp.ClientResponse, request: Request) -> None:
        content_type = response.content_type
        if response.status == 200 and content_type == "text/event-stream":
            await self._read_stream(response, request)
        elif response.status == 200 and content_type == "application/json":
            self._receiver.received(await _read_bounded(response, MAX_EVENT_BYTES), request)
        elif response.status == 202:
            raise UpstreamFault("the server accepted a request without answering it")
        else:
            await self._read_refusal(response, request)

    async def _read_refusal(self, response: aiohttp.ClientResponse, request: Request) -> None:
        """An HTTP error: a JSON-RPC error in its body belongs to this request, with or without an id (rule E8)."""
        status = response.status
        if response.content_type == "application/json":
            body = await _read_bounded(response, ERROR_BODY_BYTES)
            try:
                is_error = parse(body, limit=ERROR_BODY_BYTES).is_error
            except InvalidMessage:
                is_error = False
            if is_error:
                self._receiver.received(body, request)
                if request.state == "done":
                    return
        executed = "no" if 400 <= status < 500 else "unknown"
        raise UpstreamUnreachable(f"the server answered HTTP {status}", status=status, executed=executed)

    async def _read_stream(self, response: aiohttp.ClientResponse, request: Request) -> None:
        """The stream of one request, taken up again where it breaks, until its answer has come."""
        last_id, retry = await self._hear(response, request, None)
        attempts = 0
        while request.state != "done":
            if last_id is None:
                raise SessionLost("the server's stream ended before its answer", executed="unknown")
            if attempts == RESUME_ATTEMPTS:
                raise SessionLost("the server's stream broke and could not be taken up again", executed="unknown")
            attempts += 1
            await anyio.sleep(retry)
            before = last_id
            try:
                async with self._get(last_id) as again:
                    if again.status != 200 or again.content_type != "text/event-stream":
                        raise SessionLost("the server's stream broke and cannot be taken up again", executed="unknown")
                    last_id, retry = await self._hear(again, request, last_id)
            except (aiohttp.ClientError, OSError) as error:
                logger.info("a stream could not be taken up: %s", type(error).__name__, extra=self._about)
            if last_id != before:
                attempts = 0

    async def _hear(
        self, response: aiohttp.ClientResponse, request: Request | None, last_id: str | None
    ) -> tuple[str | None, float]:
        """Hand on what a stream brings until it ends or breaks; where to take it up, and after how many seconds."""
        parser = EventParser(limit=MAX_EVENT_BYTES)
        parser.last_id = last_id
        retry = FIRST_RETRY_SECONDS
        try:
            async for chunk in response.content.iter_any():
                for event in parser.feed(chunk):
                    if event.retry is not None:
                        retry = min(event.retry / 1000, LAST_RETRY_SECONDS)
                    if event.data and event.name == "message":
                        self._receiver.received(event.data, request)
                if request is not None and request.state == "done":
                    break
        except (aiohttp.ClientError, OSError) as error:
            logger.info("a stream broke: %s", type(error).__name__, extra=self._about)
        return parser.last_id, retry

    async def _hear_unasked(self) -> None:
        """The GET stream, for as long as the session lives and the server offers one (rules T8, T12)."""
        last_id: str | None = None
        pause = FIRST_RETRY_SECONDS
        while not self._dead:
            before = last_id
            try:
                async with self._get(last_id) as response:
                    if response.status != 200 or response.content_type != "text/event-stream":
                        return  # 405: the server offers none; anything else: a POST will tell whether it lives
                    last_id, pause = await self._hear(response, None, last_id)
            except (aiohttp.ClientError, OSError) as error:
                logger.info("the GET stream could not be opened: %s", type(error).__name__, extra=self._about)
                pause = min(pause * 2, LAST_RETRY_SECONDS)
            except TrunklineError as error:
                logger.warning("the GET stream was given up: %s", error.message, extra=self._about)
                self._connector.count_fault()
            if last_id == before:
                pause = min(max(pause, FIRST_RETRY_SECONDS) * 1.5, LAST_RETRY_SECONDS)
            await anyio.sleep(pause * random.uniform(0.8, 1.2))

    def _get(self, last_id: str | None) -> AbstractAsyncContextManager[aiohttp.ClientResponse]:
        self._connector.count("get")
        headers = {**self._headers, "Accept": "text/event-stream"}
        del headers["Content-Type"]
        if last_id is not None:
            headers["Last-Event-ID"] = last_id
        return self._connector.http.get(self._connector.url, headers=headers, allow_redirects=False)

    def _lose(self, refused: Request | None = None) -> None:
        """The server no longer knows the session, and did not run this request."""
        if refused is not None:
            self._refused.append(refused)
        if not self._dead:
            self._dead = True
            self._start(self._tell_lost())

    async def _tell_lost(self) -> None:
        with anyio.move_on_after(LOST_SECONDS):
            await self._all_answered.wait()
        cause = SessionLost("the server no longer knows the session", executed="unknown")
        self._receiver.lost(cause, self._refused)


async def _read_bounded(response: aiohttp.ClientResponse, limit: int) -> bytes:
    parts: list[bytes] = []
    size = 0
    async for chunk in response.content.iter_any():
        parts.append(chunk)
        size += len(chunk)
        if size > limit:
            raise UpstreamFault(f"the server sent a body larger than {limit} bytes")
    return b"".join(parts)


def _unreachable(error: BaseException) -> TrunklineError:
    """The failure of an HTTP request: surely not executed if no connection was had, else unknown (guarantee G6)."""
    if isinstance(error, aiohttp.ClientConnectorError | aiohttp.ConnectionTimeoutError):
        return UpstreamUnreachable(f"the server cannot be reached: {_cause_of(error)}", executed="no")
    return SessionLost(f"the exchange with the server broke: {type(error).__name__}", executed="unknown")


def _cause_of(error: BaseException) -> str:
    """The operating system's words, without the address: an error must not tell a client what lies behind us."""
    number = getattr(getattr(error, "os_error", None), "errno", None)
    return os.strerror(number) if isinstance(number, int) and number > 0 else "no connection"
