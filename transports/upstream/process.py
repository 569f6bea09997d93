"""A server process in a group of its own: lines in, lines out, and an end that leaves nothing behind."""

from __future__ import annotations

import asyncio
import errno
import logging
import os
import signal
import socket
import subprocess
import sys
import threading
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, suppress
from typing import IO, Final, Protocol, TypeVar, cast

import anyio

from ...mux.limits import MAX_EVENT_BYTES
from ..parts import keep
from ..portions import Portions, Read, end_of_lines
from .guardian import Guardian
from .pipe import InputPipe, MayBegin, always

logger = logging.getLogger(__name__)

END_SECONDS: Final = 2.0
"""How long the process has to exit after its input was closed, and again after SIGTERM."""

REAP_SECONDS: Final = 2.0
"""How long a killed process may take to be gone; only one that hangs in the kernel takes longer."""

DRAIN_SECONDS: Final = 0.5
"""After an exit, how long the output that is left may take: what the process started may hold it open."""

LATE_TURNS: Final = 1000
"""And in how many turns of the loop what came meanwhile is read: all that is buffered is, but what never ends."""

GUARDIAN: Final = Guardian(END_SECONDS)
"""Of all that are started here: what is left of them ends also where this process is killed."""

GROUP_POLL_SECONDS: Final = 0.02
"""How often a group is looked at whose leader has exited."""

E = TypeVar("E", IO[bytes], socket.socket)
"""An end of what a process writes to."""

STDERR: Final = "stderr: "
"""How a line of the log begins that a server wrote to its stderr."""

LOG_LINE_BYTES: Final = 4096
LOG_LINES_PER_SECOND: Final = 100
"""Of what a server says on its stderr, what goes to the log; the rest is counted and left out, but for its end."""

LAST_LINES: Final = 20
"""Of the rest, what goes to the log behind it: the reason why a command failed may stand above a stack of calls."""


class Hearer(Protocol):
    """Who hears a process. None of the calls blocks or raises."""

    def said(self, line: bytes) -> None:
        """One line of its output, without its end."""

    def gone(self, why: str, *, is_fault: bool) -> None:
        """Nothing more can be had from it. Told once, or not at all where `end` came first."""


class Lines:
    """Cuts a stream of bytes into lines, each up to a limit."""

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._parts: list[bytes | bytearray] = []
        self._held = 0
        self.overlong = False
        """True once a line was longer; the lines after it are still found."""

    def feed(self, chunk: bytes) -> Iterator[bytes]:
        """The lines that this chunk completes; of one that is too long, its beginning."""
        start = 0
        while (end := chunk.find(b"\n", start)) >= 0:
            self._hold(chunk[start:end])
            yield b"".join(self._parts)
            self._parts.clear()
            self._held = 0
            start = end + 1
        self._hold(chunk[start:])

    def rest(self) -> bytes:
        """What came after the last line."""
        return b"".join(self._parts)

    def _hold(self, part: bytes) -> None:
        room = self._limit - self._held
        if len(part) > room:
            self.overlong = True
            part = part[:room]
        if part:
            keep(self._parts, part)
            self._held += len(part)


class GroupProcess:
    """One process and what it starts. Made by `start`, ended by `end`, which has to be called."""

    def __init__(self, server: str, hearer: Hearer) -> None:
        self._hearer = hearer
        self._lines = Lines(MAX_EVENT_BYTES)
        self._log = _ErrorLog(server)
        self._output = _Output(self._hear, self._output_ended)
        self._stderr = _Output(self._log.add, self._stderr_ended)
        self._process: subprocess.Popen[bytes]
        self._input: InputPipe
        self._exited = asyncio.Event()
        self._is_over = False
        """Nothing more is told."""
        self._why = ""
        """Why it seems to be gone."""
        self._drain: asyncio.Handle | None = None

    @classmethod
    async def start(
        cls, server: str, command: Sequence[str], env: Mapping[str, str], cwd: str | None, hearer: Hearer
    ) -> GroupProcess:
        """Start the command with this environment and no other. Nothing of it is heard before this returns.

        What it reads and writes is opened here: event loops give a process other handles on that beside its input and
        its outputs, and nobody could tell that it closed one.

        Raises:
            OSError: it cannot be run; `filename` tells the program, or `cwd` where it is that. Or its exit could not be
                heard of.
        """
        process = cls(server, hearer)
        reading, writing = os.pipe()
        with ExitStack() as theirs:
            theirs.callback(os.close, reading)
            process._input = InputPipe(writing, lambda: process._go("the server closed its input"))
            try:
                # What is large costs half through a socket. Scripts open `/dev/stderr`, which cannot be one.
                output = theirs.enter_context(await process._output.open(*socket.socketpair()))
                stderr = theirs.enter_context(await process._stderr.open(*_pipe()))
                # From here on nothing waits: a start that was cut half-way would leave a process that nobody knows.
                process._process = subprocess.Popen(  # noqa: S603, ASYNC220 - what the settings say; it returns at once
                    command,
                    stdin=reading,
                    stdout=output.fileno(),
                    stderr=stderr,
                    env=env,
                    cwd=cwd,
                    start_new_session=True,
                )
            except BaseException:
                process._close()
                raise
        GUARDIAN.take(process.pid)
        try:
            when_exited(process._process, process._has_exited)
        except BaseException:  # nobody would hear of its end
            process._signal(signal.SIGKILL)
            process._process.wait()
            process._close()
            GUARDIAN.release(process.pid)
            raise
        return process

    @property
    def pid(self) -> int:
        """The id of the process, and of its group."""
        return self._process.pid

    @property
    def unsent(self) -> int:
        """Bytes that the process has not read, as far as they wait here."""
        return self._input.unsent

    @property
    def waiting(self) -> int:
        """Lines that the process has not read, as far as they wait here."""
        return self._input.waiting

    def write(self, line: bytes, may_begin: MayBegin = always) -> None:
        """Send a line, without waiting. Dropped where the process is gone, or it may not begin when its turn comes."""
        self._input.write(line + b"\n", may_begin)

    async def end(self) -> None:
        """Close its input; where that does not end it and all it started, SIGTERM, then SIGKILL; reap it (rule T14)."""
        self._is_over = True
        self._stop_draining()
        is_gone = False
        try:
            with anyio.CancelScope(shield=True):
                self._input.close()
                is_gone = await self._gone_in_time()
                if not is_gone:
                    self._signal(signal.SIGTERM)
                    is_gone = await self._gone_in_time()
        finally:
            try:
                with anyio.CancelScope(shield=True):
                    if not is_gone:
                        self._signal(signal.SIGKILL)
                        with anyio.move_on_after(REAP_SECONDS):
                            await self._exited.wait()
                            while self._is_left_to_us():  # noqa: ASYNC110 - as above
                                await anyio.sleep(GROUP_POLL_SECONDS)
                    with anyio.move_on_after(DRAIN_SECONDS):
                        await self._stderr.ended.wait()
            finally:  # no scope is a shield against the cancellation of a task
                self._close()
                GUARDIAN.release(self.pid)

    def _close(self) -> None:
        self._is_over = True
        self._input.abort()
        self._output.close()
        self._stderr.close()
        self._log.close()

    # What happens to it.

    def _output_ended(self) -> None:
        self._go("the server closed its output")

    def _stderr_ended(self) -> None:
        if self._exited.is_set():  # a server may close its stderr
            self._go(self._why)

    def _has_exited(self) -> None:
        self._exited.set()
        self._go("")

    def _hear(self, data: bytes, at: int) -> int:
        """Some lines of its output; where they end."""
        if self._is_over:
            return len(data)
        stop = end_of_lines(data, at, len(data))
        for line in self._lines.feed(data[at:stop]):
            if self._lines.overlong or self._is_over:
                break
            if line and line != b"\r":
                self._hearer.said(line.removesuffix(b"\r"))
        if self._lines.overlong:
            self._tell(f"the server sent a line longer than {MAX_EVENT_BYTES} bytes", is_fault=True)
        return stop

    def _go(self, why: str) -> None:
        """A sign that it is gone: told when the process has exited and its output is read, or soon."""
        if self._is_over:
            return
        self._why = why
        if self._exited.is_set():
            self._why = f"the server exited ({_status(self._process.returncode)})"
            if self._output.ended.is_set() and self._stderr.ended.is_set():
                self._tell(self._why)
                return
        if self._drain is None:
            self._drain = asyncio.get_running_loop().call_later(DRAIN_SECONDS, self._give_up, 0)

    def _give_up(self, turn: int) -> None:
        """Tell it although an output has not ended; what came by now is heard before, where the loop was late."""
        # Some loops look at timers before what came.
        if turn < 2 or (self._output.portions.is_resting and turn < LATE_TURNS):
            self._drain = asyncio.get_running_loop().call_soon(self._give_up, turn + 1)
        else:
            self._tell(self._why)

    def _tell(self, why: str, *, is_fault: bool = False) -> None:
        self._stop_draining()
        if not self._is_over:
            self._is_over = True
            self._hearer.gone(why, is_fault=is_fault)

    def _stop_draining(self) -> None:
        if self._drain is not None:
            self._drain.cancel()
            self._drain = None

    async def _gone_in_time(self) -> bool:
        """Wait until the process and its group are gone; False if they are not within `END_SECONDS`."""
        with anyio.move_on_after(END_SECONDS):
            await self._exited.wait()
            while self._has_group():  # noqa: ASYNC110 - no event tells when a process group is empty
                await anyio.sleep(GROUP_POLL_SECONDS)
            return True
        return False

    def _is_left_to_us(self) -> bool:
        """Reap what of its group has become ours, as in the first process of a container; True while any lives."""
        with suppress(ChildProcessError):
            while os.waitpid(-self.pid, os.WNOHANG)[0]:
                pass
            return True
        return False

    def _has_group(self) -> bool:
        try:
            if not self._is_left_to_us():
                os.killpg(self.pid, 0)
        except ProcessLookupError:
            return False
        except PermissionError:
            pass
        return True

    def _signal(self, number: signal.Signals) -> None:
        """Send a signal to the group. Its id cannot be another's while one of its processes is there."""
        try:
            os.killpg(self.pid, number)
        except ProcessLookupError:
            pass
        except PermissionError:
            logger.warning("a server process cannot be ended: it runs as another user")


class _Output(asyncio.Protocol):
    """What a process writes to one of its outputs: read in portions, until it ends."""

    def __init__(self, read: Read, on_end: Callable[[], None]) -> None:
        self._read = read
        self._on_end = on_end
        self.portions = Portions()
        self._pipe: asyncio.ReadTransport | None = None
        self.ended = asyncio.Event()
        """Set once there is no more, and all is read."""

    async def open(self, reading: E, writing: E) -> E:
        """Begin to read; the end for the process. Whoever gets that closes it here, once the process has it."""
        try:
            await asyncio.get_running_loop().connect_read_pipe(lambda: self, reading)
        except BaseException:
            reading.close()
            writing.close()
            raise
        return writing

    def close(self) -> None:
        """Read no more."""
        if self._pipe is not None:
            self._pipe.close()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """See `asyncio.Protocol`."""
        self._pipe = cast(asyncio.ReadTransport, transport)

    def data_received(self, data: bytes) -> None:
        """See `asyncio.Protocol`."""
        assert self._pipe is not None, "what is connected has a transport"
        self.portions.take(data, self._read, self._pipe)

    def connection_lost(self, exc: Exception | None) -> None:
        """See `asyncio.Protocol`."""
        self.portions.lost(self._end)

    def _end(self) -> None:
        self.ended.set()
        self._on_end()


def _pipe() -> tuple[IO[bytes], IO[bytes]]:
    reading, writing = os.pipe()
    return open(reading, "rb", 0), open(writing, "wb", 0)


def when_exited(process: subprocess.Popen[bytes], then: Callable[[], None]) -> None:
    """Reap a process once it has exited, and call `then` from the event loop.

    Raises:
        OSError: that is not possible.
    """
    loop = asyncio.get_running_loop()
    try:
        if sys.platform != "linux":
            raise OSError("no descriptor stands for a process here")
        descriptor = os.pidfd_open(process.pid)
    except OSError:
        try:
            threading.Thread(target=_wait, args=(process, loop, then), daemon=True).start()
        except RuntimeError as error:
            raise OSError(errno.EAGAIN, str(error)) from None
        return

    def reap() -> None:
        loop.remove_reader(descriptor)
        os.close(descriptor)
        process.wait()  # it has exited: this returns at once
        then()

    try:
        loop.add_reader(descriptor, reap)
    except BaseException:
        os.close(descriptor)
        raise


def _wait(process: subprocess.Popen[bytes], loop: asyncio.AbstractEventLoop, then: Callable[[], None]) -> None:
    process.wait()
    with suppress(RuntimeError):  # the loop is closed
        loop.call_soon_threadsafe(then)


class _ErrorLog:
    """What a server says on its stderr, line by line, to the log; nothing there is an error (rule T14)."""

    def __init__(self, server: str) -> None:
        self._about = {"server": server}
        self._lines = Lines(LOG_LINE_BYTES)
        self._second = 0
        self._told = 0
        self._left_out = 0
        self._last: deque[bytes] = deque(maxlen=LAST_LINES)
        """Of those that are too many in this second."""
        self._is_closed = False

    def add(self, chunk: bytes, at: int) -> int:
        """Some lines more of it; where they end. Dropped where it is closed."""
        if self._is_closed:
            return len(chunk)
        stop = end_of_lines(chunk, at, len(chunk))
        for line in self._lines.feed(chunk[at:stop]):
            self._tell(line)
        return stop

    def close(self) -> None:
        """There is no more. Idempotent."""
        if self._is_closed:
            return
        self._is_closed = True
        if rest := self._lines.rest():
            self._tell(rest)
        self._tell_rest()

    def _tell(self, line: bytes) -> None:
        if not line.strip():
            return
        second = int(asyncio.get_running_loop().time())
        if second != self._second:
            self._tell_rest()
            self._second, self._told = second, 0
        if self._told >= LOG_LINES_PER_SECOND:
            self._left_out += len(self._last) == LAST_LINES
            self._last.append(line)
            return
        self._told += 1
        self._log(line)

    def _log(self, line: bytes) -> None:
        text = line.decode(errors="replace").rstrip().expandtabs()
        shown = "".join(character if character.isprintable() else "\ufffd" for character in text)
        logger.info(STDERR + "%s", shown, extra=self._about)

    def _tell_rest(self) -> None:
        if self._left_out:
            logger.warning("stderr: %d lines left out", self._left_out, extra=self._about)
            self._left_out = 0
        for line in self._last:
            self._log(line)
        self._last.clear()


def _status(code: int) -> str:
    if code >= 0:
        return f"status {code}"
    try:
        return signal.Signals(-code).name
    except ValueError:
        return f"signal {-code}"
