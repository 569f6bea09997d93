"""What a gateway does for a call, counted: a gateway in a thread of its own, and what is called in that thread."""

import asyncio
import site
import sys
import sysconfig
import threading
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any

import uvicorn
from trunkline.gateway.app import Gateway
from trunkline.gateway.http_listening import HTTPListening
from trunkline.gateway.settings import Settings
from trunkline.gateway.websockets import PingingWebSocket

from harness.ports import bound_socket

ROOT = Path(__file__).parent.parent.parent
PACKAGES = (sysconfig.get_path("purelib"), sysconfig.get_path("platlib"), *site.getsitepackages())


class Calls:
    """Calls of Python functions by the package that they are of, and of built-in ones by trunkline's own code."""

    def __init__(self) -> None:
        self.by_package: Counter[str] = Counter()
        self.by_function: Counter[str] = Counter()
        self.tasks = 0
        """Tasks that were made."""
        self._packages: dict[str, str] = {}

    def profile(self, frame: FrameType, event: str, argument: Any) -> None:
        """See `sys.setprofile`."""
        code = frame.f_code
        package = self._packages.get(code.co_filename)
        if package is None:
            package = self._packages[code.co_filename] = _package_of(code.co_filename)
        if event == "call":
            self.by_package[package] += 1
            self.tasks += code.co_name == "create_task" and package == "python"
            if package == "trunkline":
                self.by_function[f"{Path(code.co_filename).relative_to(ROOT)}:{code.co_qualname}"] += 1
        elif event == "c_call" and package == "trunkline":
            self.by_package["built-in"] += 1


def _package_of(path: str) -> str:
    """The package that a file is of; `python` for what comes with Python, but for its JSON, which is a package."""
    for folder in PACKAGES:
        if path.startswith(folder):
            return Path(path).relative_to(folder).parts[0].removesuffix(".py")
    if path.startswith(str(ROOT)):
        return "trunkline" if Path(path).relative_to(ROOT).parts[0] in ("mux", "transports", "gateway") else "tests"
    return "json" if "json" in Path(path).parts else "python"


class Profiled:
    """A gateway that runs in a thread, with asyncio's own event loop, whose functions can be counted."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._loop: asyncio.AbstractEventLoop
        self._server: uvicorn.Server
        self._ready = threading.Event()
        self.socket = bound_socket()
        self.port: int = self.socket.getsockname()[1]

    @contextmanager
    def running(self) -> Iterator["Profiled"]:
        """The gateway, for the length of the context."""
        thread = threading.Thread(target=lambda: asyncio.run(self._serve()), name="gateway")
        thread.start()
        assert self._ready.wait(30)
        try:
            yield self
        finally:
            self._server.should_exit = True
            thread.join(30)

    @contextmanager
    def counted(self) -> Iterator[Calls]:
        """What the gateway calls meanwhile."""
        calls = Calls()
        self._do(lambda: sys.setprofile(calls.profile))
        try:
            yield calls
        finally:
            self._do(lambda: sys.setprofile(None))

    def _do(self, what: Any) -> None:
        done = threading.Event()

        def do() -> None:
            what()
            done.set()

        self._loop.call_soon_threadsafe(do)
        assert done.wait(30)

    async def _serve(self) -> None:
        self._loop = asyncio.get_running_loop()
        async with Gateway(self._settings).running() as gateway:
            config = uvicorn.Config(
                gateway,
                http=HTTPListening(gateway.statistics, gateway.take_at_once).protocol,
                ws=PingingWebSocket,
                ws_per_message_deflate=False,
                lifespan="off",
                proxy_headers=False,
                server_header=False,
                access_log=False,
                log_config=None,
                timeout_graceful_shutdown=2,
            )
            self._server = uvicorn.Server(config)
            self._server.config.setup_event_loop = lambda: None  # type: ignore[method-assign]
            self._loop.call_soon(self._ready.set)
            await self._server._serve(sockets=[self.socket])
