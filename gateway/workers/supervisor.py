"""The parent of several workers: it binds the socket, starts them and others for those that end, and drains all.

It serves nothing. A worker that dies is started again after a wait that doubles while workers do not live long; where
none lives and none comes up, the gateway ends with an error.
"""

import logging
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import AsyncExitStack, suppress
from functools import partial
from pathlib import Path
from typing import Final

import anyio
import anyio.abc
import anyio.to_thread

from ..adopted import reap_adopted
from ..exits import ExitCode, Failure
from ..listener import listen, url_of
from ..reload import compare
from ..runtime import runtime_directory
from ..settings import Read, Settings, check
from ..signals import held, received
from .place import Child, Reading

logger = logging.getLogger(__name__)

FIRST_WAIT_SECONDS: Final = 0.1
LONGEST_WAIT_SECONDS: Final = 10.0
SETTLED_SECONDS: Final = 10.0
"""A worker that has lived for so long did not fail to start."""

MAX_FAILURES: Final = 5
"""Ends of workers that had not come up, one after the other, after which the gateway gives up if none lives."""

MARGIN_SECONDS: Final = 30.0
"""How much longer than `drain_timeout` a worker may take to end before it is killed: by then it has left what does
not end."""

TOLD: Final = (ExitCode.WRONG, ExitCode.NOT_STARTED)
"""The exit codes of a worker that has said itself why it cannot start."""


class WorkersFailed(Failure):
    """No worker comes up. `told` is the exit code of the last one where that has said why; None where it did not."""

    exit = ExitCode.NOT_STARTED

    def __init__(self, message: str, *, told: ExitCode | None) -> None:
        super().__init__(message)
        self.told = told


async def supervise(
    settings: Settings,
    *,
    read: Read,
    demo: bool,
    insecure: bool,
    command: Sequence[str],
    on_ready: Callable[[str], None],
) -> None:
    """Run `gateway.workers` processes of this command until SIGTERM or SIGINT, then drain them.

    SIGHUP has the settings `read` again, once for all of them; those that come later have what holds then. `insecure`
    allows a listener beyond loopback without authentication. With `demo`, the built-in server runs beside them.
    `on_ready` is called with the gateway's URL once all listen.

    Raises:
        NotStarted: the address cannot be listened on.
        WorkersFailed: no worker comes up.
    """
    failure: WorkersFailed | None = None
    async with AsyncExitStack() as stack:
        listener = stack.enter_context(listen(settings))
        url = ""
        if demo:
            from ..demo import serve_demo

            url = await stack.enter_async_context(serve_demo())
        runtime = stack.enter_context(runtime_directory())
        renew = partial(_renewed, read=read, insecure=insecure)
        ready = partial(on_ready, url_of(listener, settings))
        supervisor = Supervisor(settings, renew, command, listener, runtime, url, ready)
        try:
            await supervisor.run()
        except WorkersFailed as error:  # kept out of the demo's task group, which would wrap it
            failure = error
    if failure is not None:
        raise failure


class Supervisor:
    """The processes of one gateway."""

    def __init__(
        self,
        settings: Settings,
        renew: Callable[[Settings], tuple[Reading, Settings]],
        command: Sequence[str],
        listener: socket.socket,
        runtime: Path,
        demo: str,
        on_ready: Callable[[], None],
    ) -> None:
        self._settings = settings
        self._renew = renew
        self._reload = anyio.Event()
        self._command = command
        self._listener = listener
        self._runtime = runtime
        self._demo = demo
        self._on_ready = on_ready
        self._children: dict[Child, subprocess.Popen[bytes]] = {}
        self._first = anyio.Event()
        """Set once a worker has come up, or none is to: what is wrong with all of them is told by one."""
        self._stopping = anyio.Event()
        self._is_ready = False
        self._failures = 0
        """Ends of workers that had not come up, since one has."""
        self._failed: WorkersFailed | None = None

    async def run(self) -> None:
        """Keep as many processes as there are to be, until a signal ends them.

        Raises:
            WorkersFailed: no worker comes up.
        """
        async with anyio.create_task_group() as tasks:
            await tasks.start(self._obey)
            tasks.start_soon(self._reload_on, tasks)
            tasks.start_soon(self._kill_late)
            tasks.start_soon(reap_adopted, lambda: [process.pid for process in self._children.values()])
            async with anyio.create_task_group() as workers:
                for number in range(self._settings.gateway.workers):
                    workers.start_soon(self._keep, number == 0)
            tasks.cancel_scope.cancel()
        if self._failed is not None:
            raise self._failed

    async def _keep(self, is_first: bool) -> None:
        """One process after the other."""
        wait = 0.0
        if not is_first:
            await self._first.wait()
        while not self._stopping.is_set():
            began = time.monotonic()
            status, has_listened = await self._live()
            if self._stopping.is_set():
                return
            if status == 0 and has_listened:
                wait = 0.0
                logger.info("a worker was drained; another one is started")
            else:
                is_young = not has_listened or time.monotonic() - began < SETTLED_SECONDS
                wait = min(max(2 * wait, FIRST_WAIT_SECONDS), LONGEST_WAIT_SECONDS) if is_young else FIRST_WAIT_SECONDS
                if not has_listened and not self._may_go_on(status):
                    return
                logger.error("a worker has ended with %s; another one is started in %.1f s", _told(status), wait)
            with anyio.move_on_after(wait):
                await self._stopping.wait()

    async def _live(self) -> tuple[int, bool]:
        """One process, from its start to its end: its exit status, and whether it has listened."""
        try:
            child, process = self._begin()
        except OSError as error:  # there is no memory for it, or no such program
            logger.error("a worker could not be started: %s", error)
            return 1, False
        self._children[child] = process
        has_listened = False
        try:
            async for _ in child.hear():
                has_listened = True
                logger.info("a worker listens", extra={"pid": process.pid})
                self._note_listening()
            status = await _ended(process)
        finally:
            del self._children[child]
            child.close()
            if process.returncode is None:
                process.kill()
        return status, has_listened

    def _begin(self) -> tuple[Child, subprocess.Popen[bytes]]:
        """Start one.

        Raises:
            OSError: it cannot be started.
        """
        child = Child(self._listener, self._runtime, self._demo, self._settings)
        try:
            with held():
                process = subprocess.Popen(  # noqa: S603 - our own command; it returns at once
                    self._command,
                    env={**os.environ, **child.environment},
                    pass_fds=child.inherited,
                    stdin=subprocess.DEVNULL,
                    process_group=0,  # Ctrl-C reaches the parent alone
                )
        except OSError:
            child.close()
            raise
        child.has_begun()
        return child, process

    def _note_listening(self) -> None:
        self._first.set()
        self._failures = 0
        listening = sum(child.is_listening for child in self._children)
        if not self._is_ready and listening == self._settings.gateway.workers:
            self._is_ready = True
            self._on_ready()

    def _may_go_on(self, status: int) -> bool:
        """Count the end of a worker that had not come up; False where the gateway gives up."""
        self._failures += 1
        if any(child.is_listening for child in self._children):
            return True
        told = ExitCode(status) if status in TOLD and not self._first.is_set() else None
        if told is not None or self._failures >= MAX_FAILURES:
            message = f"workers end as soon as they begin; the last one with {_told(status)}"
            self._failed = WorkersFailed(message, told=told)
            self._stop()
        return self._failed is None

    # Signals.

    async def _obey(self, *, task_status: anyio.abc.TaskStatus[None] = anyio.TASK_STATUS_IGNORED) -> None:
        with received() as signals:
            task_status.started()
            async for number in signals:
                if number == signal.SIGHUP:
                    self._reload.set()
                elif self._stopping.is_set():
                    logger.warning("%s again: leaving at once", signal.Signals(number).name)
                    self._leave()
                else:
                    logger.info("%s: draining %d workers", signal.Signals(number).name, len(self._children))
                    self._stop()

    async def _reload_on(self, tasks: anyio.abc.TaskGroup) -> None:
        """Read the settings again whenever that is asked for: for workers that come later, and for those here."""
        while True:
            await self._reload.wait()
            self._reload = anyio.Event()
            renewed = await anyio.to_thread.run_sync(self._renew, self._settings, abandon_on_cancel=True)
            reading, self._settings = renewed
            for child in self._children:
                tasks.start_soon(child.reload, reading)

    def _stop(self) -> None:
        self._stopping.set()
        self._first.set()
        for child in self._children:
            child.tell("drain")

    def _leave(self) -> None:
        for child, process in self._children.items():
            if child.has_listened:
                child.tell("leave")
            else:  # it does not hear before, and holds nothing
                process.kill()

    async def _kill_late(self) -> None:
        await self._stopping.wait()
        await anyio.sleep(self._settings.gateway.drain_timeout + MARGIN_SECONDS)
        for process in self._children.values():
            logger.error("a worker did not end: it is killed")
            process.kill()


def _renewed(settings: Settings, *, read: Read, insecure: bool) -> tuple[Reading, Settings]:
    """What was read again, and what holds from now on, as each worker decides for itself by that."""
    reading = Reading.of(read)
    with suppress(Exception):  # whatever is wrong, each worker tells its log
        changed = compare(settings, reading.result()).settings
        check(changed, insecure=insecure)
        settings = changed
    return reading, settings


def worker_command() -> list[str]:
    """The command line of this process, to run it once more."""
    return [sys.executable, *sys.orig_argv[1:]]


async def _ended(process: subprocess.Popen[bytes]) -> int:
    """The exit status of a worker that has nothing to say any longer; one that does not exit is killed."""
    with anyio.move_on_after(MARGIN_SECONDS):
        return await anyio.to_thread.run_sync(process.wait, abandon_on_cancel=True)
    logger.error("a worker did not end: it is killed", extra={"pid": process.pid})
    process.kill()
    return await anyio.to_thread.run_sync(process.wait, abandon_on_cancel=True)


def _told(status: int) -> str:
    return f"exit status {status}" if status >= 0 else f"signal {signal.Signals(-status).name}"
