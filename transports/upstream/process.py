"""A server process in a group of its own: lines in, lines out, and an end that leaves nothing behind."""

from __future__ import annotations

import asyncio
import logging
import os
import signal
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from typing import Final, Protocol, cast

import anyio

from ...mux.limits import MAX_EVENT_BYTES
from ..parts import keep
from ..portions import PORTION_ITEMS, Portions
from .pipe import InputPipe, MayBegin, always

logger = logging.getLogger(__name__)

END_SECONDS: Final = 2.0
"""How long the process has to exit after its input was closed, and again after SIGTERM."""

REAP_SECONDS: Final = 2.0
"""How long a killed process may take to be gone; only one that hangs in the kernel takes longer."""

DRAIN_SECONDS: Final = 0.5
"""After an exit, how long the output that is left may take: what the process started may hold it open."""

GROUP_POLL_SECONDS: Final = 0.02
"""How often a group is looked at whose leader has exited."""

LOG_LINE_BYTES: Final = 4096
LOG_LINES_PER_SECOND: Final = 100
"""Of what a server says on its stderr, what goes to the log; the rest is counted and left out."""


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
        *ends, rest = chunk.split(b"\n")
        for end in ends:
            self._hold(end)
            yield b"".join(self._parts)
            self._parts.clear()
            self._held = 0
        if rest:
            self._hold(rest)

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


def end_of_some(chunk: bytes, at: int) -> int:
    """Where no more lines than make a portion end, from there on."""
    for _ in range(PORTION_ITEMS):
        at = chunk.find(b"\n", at) + 1
        if not at:
            return len(chunk)
    return at


class GroupProcess(asyncio.SubprocessProtocol):
    """One process and what it starts. Made by `start`, ended by `end`, which has to be called."""

    def __init__(self, server: str, hearer: Hearer) -> None:
        self._hearer = hearer
        self._out = Lines(MAX_EVENT_BYTES)
        self._log = _ErrorLog(server)
        self._transport: asyncio.SubprocessTransport
        self._input: InputPipe
        self._exited = asyncio.Event()
        self._portions = {1: Portions(), 2: Portions()}
        """Of its output and its stderr."""
        self._unread = {1, 2}
        """Outputs that have not ended."""
        self._is_over = False
        """Nothing more is told."""
        self._why = ""
        """Why it seems to be gone."""
        self._drain: asyncio.TimerHandle | None = None

    @classmethod
    async def start(
        cls, server: str, command: Sequence[str], env: Mapping[str, str], cwd: str | None, hearer: Hearer
    ) -> GroupProcess:
        """Start the command with this environment and no other.

        Raises:
            OSError: it cannot be run.
        """
        process = cls(server, hearer)
        reading, writing = os.pipe()
        try:
            # A start that is cut half-way would leave a process that nobody knows.
            with anyio.CancelScope(shield=True):
                await asyncio.get_running_loop().subprocess_exec(
                    lambda: process,
                    *command,
                    stdin=reading,
                    env=dict(env),
                    cwd=cwd,
                    start_new_session=True,
                )
        except BaseException:
            os.close(writing)
            raise
        finally:
            os.close(reading)
        process._input = InputPipe(writing, lambda: process._go("the server closed its input"))
        return process

    @property
    def pid(self) -> int:
        """The id of the process, and of its group."""
        return self._transport.get_pid()

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
                is_gone = await self._gone_within(END_SECONDS)
                if not is_gone:
                    self._signal(signal.SIGTERM)
                    is_gone = await self._gone_within(END_SECONDS)
        finally:
            if not is_gone:
                self._signal(signal.SIGKILL)
                with anyio.move_on_after(REAP_SECONDS, shield=True):
                    await self._exited.wait()
            self._input.abort()
            self._transport.close()
            self._log.close()

    # asyncio.SubprocessProtocol

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """See `asyncio.SubprocessProtocol`."""
        self._transport = cast(asyncio.SubprocessTransport, transport)

    def pipe_data_received(self, fd: int, data: bytes) -> None:
        """See `asyncio.SubprocessProtocol`."""
        pipe = cast(asyncio.ReadTransport, self._transport.get_pipe_transport(fd))
        self._portions[fd].take(data, self._hear if fd == 1 else self._log.add, pipe)

    def pipe_connection_lost(self, fd: int, exc: Exception | None) -> None:
        """See `asyncio.SubprocessProtocol`."""
        self._portions[fd].lost(partial(self._ended, fd))

    def _ended(self, fd: int) -> None:
        # With uvloop a process keeps a second handle on each of its pipes: there, only its exit ends them.
        self._unread.discard(fd)
        if fd != 2 or self._exited.is_set():  # a server may close its stderr
            self._go("the server closed its output")

    def process_exited(self) -> None:
        """See `asyncio.SubprocessProtocol`."""
        self._exited.set()
        self._go("the server exited")

    # Inside.

    def _hear(self, data: bytes, at: int) -> int:
        """Some lines of its output; where they end."""
        if self._is_over:
            return len(data)
        stop = end_of_some(data, at)
        for line in self._out.feed(data[at:stop]):
            if self._out.overlong or self._is_over:
                break
            if line and line != b"\r":
                self._hearer.said(line.removesuffix(b"\r"))
        if self._out.overlong:
            self._tell(f"the server sent a line longer than {MAX_EVENT_BYTES} bytes", is_fault=True)
        return stop

    def _go(self, why: str) -> None:
        """A sign that it is gone: told when the process has exited and its output is read, or soon."""
        if self._is_over:
            return
        self._why = why
        if self._exited.is_set():
            self._why = f"the server exited ({_status(self._transport.get_returncode())})"
            if not self._unread:
                self._tell(self._why)
                return
        if self._drain is None:
            self._drain = asyncio.get_running_loop().call_later(DRAIN_SECONDS, lambda: self._tell(self._why))

    def _tell(self, why: str, *, is_fault: bool = False) -> None:
        self._stop_draining()
        if not self._is_over:
            self._is_over = True
            self._hearer.gone(why, is_fault=is_fault)

    def _stop_draining(self) -> None:
        if self._drain is not None:
            self._drain.cancel()
            self._drain = None

    async def _gone_within(self, seconds: float) -> bool:
        """Wait until the process and its group are gone; False if they are not within so many seconds."""
        with anyio.move_on_after(seconds):
            await self._exited.wait()
            while self._has_group():  # noqa: ASYNC110 - no event tells when a process group is empty
                await anyio.sleep(GROUP_POLL_SECONDS)
            return True
        return False

    def _has_group(self) -> bool:
        try:
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


class _ErrorLog:
    """What a server says on its stderr, line by line, to the log; nothing there is an error (rule T14)."""

    def __init__(self, server: str) -> None:
        self._about = {"server": server}
        self._lines = Lines(LOG_LINE_BYTES)
        self._second = 0
        self._told = 0
        self._left_out = 0

    def add(self, chunk: bytes, at: int) -> int:
        """Some lines more of it; where they end."""
        stop = end_of_some(chunk, at)
        for line in self._lines.feed(chunk[at:stop]):
            self._tell(line)
        return stop

    def close(self) -> None:
        """There is no more."""
        if rest := self._lines.rest():
            self._tell(rest)
        self._tell_left_out()

    def _tell(self, line: bytes) -> None:
        second = int(asyncio.get_running_loop().time())
        if second != self._second:
            self._tell_left_out()
            self._second, self._told = second, 0
        if self._told >= LOG_LINES_PER_SECOND:
            self._left_out += 1
            return
        self._told += 1
        text = line.decode(errors="replace").rstrip().expandtabs()
        if text:
            shown = "".join(character if character.isprintable() else "\ufffd" for character in text)
            logger.info("stderr: %s", shown, extra=self._about)

    def _tell_left_out(self) -> None:
        if self._left_out:
            logger.warning("stderr: %d lines left out", self._left_out, extra=self._about)
            self._left_out = 0


def _status(code: int | None) -> str:
    if code is None:
        return "status unknown"
    if code >= 0:
        return f"status {code}"
    try:
        return signal.Signals(-code).name
    except ValueError:
        return f"signal {-code}"
