"""The gateway as a process: the socket that it listens on, the server behind it, and what signals do to it."""

import logging
import signal
import socket
from collections.abc import Callable, Iterator
from contextlib import AsyncExitStack, contextmanager
from functools import partial
from typing import Final

import anyio
import msgspec
import uvicorn
from anyio.abc import TaskGroup

from ..mux.limits import MAX_BODY_BYTES
from .app import Gateway
from .bounded_http import BoundedHTTP
from .garbage import collect, collected_by_schedule
from .settings import Server, Settings, SettingsError
from .websockets import PingingWebSocket

logger = logging.getLogger(__name__)

GRACE_SECONDS: Final = 5
"""After the drain, how long open connections may take to end."""

BACKLOG: Final = 2048

Read = Callable[[], Settings]
"""Reads the settings; raises `SettingsError`."""


async def serve(settings: Settings, *, read: Read, demo: bool, insecure: bool, on_ready: Callable[[str], None]) -> None:
    """Run a gateway until SIGTERM or SIGINT, then drain it (guarantee G8); SIGHUP has it `read` its settings again.

    With `demo`, the built-in server runs beside it. `insecure` allows a listener beyond loopback without
    authentication. `on_ready` is called with the gateway's URL once it listens.

    Raises:
        SettingsError: the address cannot be listened on.
    """
    async with AsyncExitStack() as stack:
        listener = stack.enter_context(_listen(settings))  # first: the demo's tasks would wrap its error
        if demo:
            from .demo import serve_demo

            url = await stack.enter_async_context(serve_demo())
            settings, read = _with_demo(settings, url), partial(_read_with_demo, read, url)
        gateway = await stack.enter_async_context(Gateway(settings).running())
        stack.enter_context(collected_by_schedule())
        tls = settings.gateway.tls
        config = uvicorn.Config(
            gateway,
            http=BoundedHTTP.counting(gateway.statistics),
            lifespan="off",
            ws=PingingWebSocket,
            ws_max_size=MAX_BODY_BYTES,
            ws_per_message_deflate=False,
            proxy_headers=False,
            server_header=False,
            access_log=False,
            log_config=None,
            backlog=BACKLOG,
            ssl_certfile=tls.cert or None,
            ssl_keyfile=tls.key or None,
            timeout_graceful_shutdown=GRACE_SECONDS,
        )
        host, port = listener.getsockname()[:2]
        scheme = "https" if tls.cert else "http"
        shown = f"[{host}]" if ":" in host else host
        server = _Server(config, lambda: on_ready(f"{scheme}://{shown}:{port}"))
        async with anyio.create_task_group() as tasks:
            await tasks.start(_drain_on_signal, gateway, server, tasks)
            await tasks.start(_reload_on_signal, gateway, read, insecure)
            tasks.start_soon(collect, gateway.pool)
            await server.serve(sockets=[listener])
            tasks.cancel_scope.cancel()


class _Server(uvicorn.Server):
    """uvicorn, telling when it listens, and leaving the signals to the gateway."""

    def __init__(self, config: uvicorn.Config, on_ready: Callable[[], None]) -> None:
        super().__init__(config)
        self._on_ready = on_ready

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        self._on_ready()

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield


def _with_demo(settings: Settings, url: str) -> Settings:
    return msgspec.structs.replace(settings, servers={**settings.servers, "demo": Server(url=url, eras=("legacy",))})


def _read_with_demo(read: Read, url: str) -> Settings:
    return _with_demo(read(), url)


async def _drain_on_signal(
    gateway: Gateway,
    server: _Server,
    tasks: TaskGroup,
    *,
    task_status: anyio.abc.TaskStatus[None] = anyio.TASK_STATUS_IGNORED,
) -> None:
    async def drain() -> None:
        complete = await gateway.drain(gateway.settings.gateway.drain_timeout)
        logger.info("drained" if complete else "drain_timeout has passed: calls in flight were cut")
        server.should_exit = True

    with anyio.open_signal_receiver(signal.SIGTERM, signal.SIGINT) as signals:
        task_status.started()
        first = True
        async for received in signals:
            if first:
                logger.info("%s: draining", signal.Signals(received).name)
                tasks.start_soon(drain)
                first = False
            else:
                logger.warning("%s again: leaving at once", signal.Signals(received).name)
                server.should_exit = server.force_exit = True


async def _reload_on_signal(
    gateway: Gateway,
    read: Read,
    insecure: bool,
    *,
    task_status: anyio.abc.TaskStatus[None] = anyio.TASK_STATUS_IGNORED,
) -> None:
    with anyio.open_signal_receiver(signal.SIGHUP) as signals:
        task_status.started()
        async for _ in signals:
            await gateway.reload(read, insecure=insecure)


@contextmanager
def _listen(settings: Settings) -> Iterator[socket.socket]:
    host, port = settings.gateway.host, settings.gateway.port
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        listener = socket.create_server((host, port), family=family, backlog=BACKLOG)
    except (OSError, OverflowError) as error:
        reason = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
        raise SettingsError("gateway.port", f"cannot listen on {host}:{port}: {reason}") from error
    with listener:
        yield listener
