"""The gateway as a process: the server in front of it, and what signals do to it."""

import logging
import math
import signal
import socket
from collections.abc import Callable, Iterator
from contextlib import AsyncExitStack, contextmanager
from functools import partial
from typing import Final

import anyio
import anyio.to_thread
import msgspec
import uvicorn
from anyio.abc import TaskGroup

from ..mux.directory.open import DirectoryAway, DirectoryNotOpened, open_directory, refusal
from ..mux.errors import DirectoryUnavailable, first_of
from ..mux.limits import MAX_BODY_BYTES
from ..mux.membership import BEAT_SECONDS
from ..transports.upstream.process import GUARDIAN
from .adopted import reap_adopted
from .app import Gateway, Shared
from .garbage import collect, collected_by_schedule
from .heap import keep_what_large_messages_took
from .http_listening import HTTPListening
from .listener import BACKLOG, listen, url_of
from .runtime import runtime_directory
from .settings import NotStarted, Read, Server, Settings, SettingsError
from .signals import received
from .tls_handshake import server_context
from .websockets import PingingWebSocket
from .workers.place import Place

logger = logging.getLogger(__name__)

GRACE_SECONDS: Final = 5
"""After the drain, how long open connections may take to end, at least."""


async def serve(
    settings: Settings,
    *,
    read: Read,
    demo: bool,
    insecure: bool,
    on_ready: Callable[[str], None],
    place: Place | None = None,
) -> None:
    """Run a gateway until SIGTERM or SIGINT, then drain it (guarantee G8); SIGHUP has it `read` its settings again.

    With `demo`, the built-in server runs beside it. `insecure` allows a listener beyond loopback without
    authentication. `on_ready` is called with the gateway's URL once it listens. A worker among several has a `place`.

    Raises:
        SettingsError: the directory is not one.
        NotStarted: the address cannot be listened on, or the directory is away.
    """
    async with AsyncExitStack() as stack:
        if place is not None:
            stack.callback(place.close)
        # First what may fail: the tasks of what comes later would wrap its error.
        listener = place.listener if place is not None else stack.enter_context(listen(settings))
        shared = await _shared(settings, place, stack)
        url = place.demo if place is not None else ""
        if demo and not url:
            from .demo import serve_demo

            url = await stack.enter_async_context(serve_demo())
        if url:
            settings, read = _with_demo(settings, url), partial(_read_with_demo, read, url)
        try:
            gateway = await stack.enter_async_context(Gateway(settings, shared).running())
        except* DirectoryUnavailable as group:
            raise NotStarted("", refusal(first_of(group), settings.directory.url)) from None
        stack.enter_context(collected_by_schedule())
        keep_what_large_messages_took()
        listening = HTTPListening(gateway.statistics, gateway.take_at_once, server_context(settings.gateway.tls))
        server = _Server(_config(gateway, listening), lambda: on_ready(url_of(listener, settings)))
        async with anyio.create_task_group() as tasks:
            life = _Life(gateway, listening, server, tasks, shares_listener=place is not None)
            await tasks.start(life.obey_signals)
            if place is not None:
                tasks.start_soon(life.obey, place)
            tasks.start_soon(life.reload, read, insecure)
            tasks.start_soon(collect, gateway.pool)
            tasks.start_soon(reap_adopted, GUARDIAN.processes)
            await server.serve(sockets=[listener])
            tasks.cancel_scope.cancel()


def _config(gateway: Gateway, listening: HTTPListening) -> uvicorn.Config:
    """How uvicorn serves it: sockets, signals and the end are uvicorn's, the protocols are our own."""
    return uvicorn.Config(
        gateway,
        http=listening.protocol,
        lifespan="off",
        ws=PingingWebSocket,
        ws_max_size=MAX_BODY_BYTES,
        ws_per_message_deflate=False,
        proxy_headers=False,
        server_header=False,
        access_log=False,
        log_config=None,
        backlog=BACKLOG,
        timeout_graceful_shutdown=GRACE_SECONDS,
    )


async def _shared(settings: Settings, place: Place | None, stack: AsyncExitStack) -> Shared | None:
    """What the settings say that is shared with other workers."""
    backend = settings.directory.backend
    if backend == "memory":
        return None
    try:
        directory = await stack.enter_async_context(open_directory(backend, settings.directory.url))
    except DirectoryAway as error:
        raise NotStarted("", str(error)) from None
    except DirectoryNotOpened as error:
        raise SettingsError("", str(error)) from None
    runtime = place.runtime if place is not None else stack.enter_context(runtime_directory())
    return Shared(directory, runtime)


class _Server(uvicorn.Server):
    """uvicorn, telling when it listens, and leaving the signals to the gateway."""

    def __init__(self, config: uvicorn.Config, on_ready: Callable[[], None]) -> None:
        super().__init__(config)
        self._on_ready = on_ready

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        self._on_ready()

    def stop_accepting(self) -> None:
        """Leave new connections to others who listen on the same socket; those that are open go on."""
        for server in self.servers:
            server.close()

    def leave(self, seconds: float) -> None:
        """Take nothing any longer; what is under way has so long to end, and `GRACE_SECONDS` to be told."""
        self.config.timeout_graceful_shutdown = GRACE_SECONDS + math.ceil(seconds)
        self.should_exit = True

    def leave_at_once(self) -> None:
        """Wait for nobody; from Python 3.12 on, asyncio waits for clients, whatever uvicorn was told."""
        self.stop_accepting()
        self.servers.clear()
        self.should_exit = self.force_exit = True

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield


class _Life:
    """What signals, and the parent of several workers, do to a gateway that runs."""

    def __init__(
        self, gateway: Gateway, listening: HTTPListening, server: _Server, tasks: TaskGroup, *, shares_listener: bool
    ) -> None:
        self._gateway = gateway
        self._listening = listening
        self._server = server
        self._tasks = tasks
        self._shares_listener = shares_listener
        self._is_draining = False
        self._reload = anyio.Event()

    async def obey_signals(self, *, task_status: anyio.abc.TaskStatus[None] = anyio.TASK_STATUS_IGNORED) -> None:
        """SIGTERM and SIGINT drain, the second one leaves at once; SIGHUP reloads.

        What the parent has said is no first one: who stops all processes at once signals each of them a single time.
        """
        is_first = True
        with received() as signals:
            task_status.started()
            async for number in signals:
                name = signal.Signals(number).name
                if number == signal.SIGHUP:
                    self._reload.set()
                elif is_first:
                    is_first = False
                    self._drain(name)
                else:
                    self._leave(f"{name} again")

    async def obey(self, place: Place) -> None:
        """Do what the parent says; it may say what a signal has said before. Where it has died, drain.

        While all drain, this worker takes connections on: nobody else would, and who comes is to be told. A parent that
        has died leaves the address to the gateway that follows.
        """
        async for command in place.commands():
            match command:
                case "drain":
                    self._drain("the parent has stopped", is_left_to_others=False, do_all=True)
                case "leave":
                    self._leave("the parent was told again")
                case "reload":
                    self._reload.set()
        self._drain("the parent has died", do_all=True)

    async def reload(self, read: Read, insecure: bool) -> None:
        """Read the settings again whenever that is asked for, one time after the other."""
        while True:
            await self._reload.wait()
            self._reload = anyio.Event()
            if await self._gateway.reload(read, insecure=insecure):
                await self._renew_certificate()

    async def _renew_certificate(self) -> None:
        """Read its files again: from the next connection on, what they hold now counts."""
        try:
            self._listening.tls = await anyio.to_thread.run_sync(server_context, self._gateway.settings.gateway.tls)
        except OSError as error:  # they have just changed once more
            logger.error("the certificate stays as it was, reload again: gateway.tls: %s", error)

    def _drain(self, why: str, *, is_left_to_others: bool = True, do_all: bool = False) -> None:
        if self._is_draining:
            logger.info("%s: draining already", why)
            return
        self._is_draining = True
        logger.info("%s: draining", why)
        if self._shares_listener and is_left_to_others:
            self._server.stop_accepting()
        self._tasks.start_soon(self._send_on, do_all)
        self._tasks.start_soon(self._drain_and_exit)

    async def _send_on(self, do_all: bool) -> None:
        """Send clients to another worker as soon as one goes on: where all of this gateway drain, one of another.

        Where there is none, nobody else may take a new connection, on which a call in flight is told what it asks for.
        """
        while not self._gateway.another_goes_on(of_another_parent=do_all):  # noqa: ASYNC110 - the directory has no event for us
            await anyio.sleep(BEAT_SECONDS)
        self._listening.end()

    async def _drain_and_exit(self) -> None:
        timeout = self._gateway.settings.gateway.drain_timeout
        until = anyio.current_time() + timeout
        is_complete = await self._gateway.drain(timeout)
        self._listening.end()
        await self._listening.ended()
        left = max(until - anyio.current_time(), 0.0)
        self._server.leave(left if self._gateway.is_relaying else 0.0)
        is_complete &= await self._gateway.leave(left)
        logger.info("drained" if is_complete else "drain_timeout has passed: calls in flight were cut")

    def _leave(self, why: str) -> None:
        logger.warning("%s: leaving at once", why)
        self._server.leave_at_once()


def _with_demo(settings: Settings, url: str) -> Settings:
    return msgspec.structs.replace(settings, servers={**settings.servers, "demo": Server(url=url, eras=("legacy",))})


def _read_with_demo(read: Read, url: str) -> Settings:
    return _with_demo(read(), url)
