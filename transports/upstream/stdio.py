"""stdio to a server: a process of its own for each session, one line of UTF-8 JSON a message (rules T14-T17).

The session is the process: where that exits, the session is lost.
"""

from __future__ import annotations

import asyncio
import logging
import os
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path
from typing import Final

from ...mux.errors import UpstreamUnreachable
from ...mux.ports import Headers, Receiver, Wire
from ...mux.request import Request
from ...mux.statistics import Statistics
from .backoff import Backoff
from .one_stream import MAX_UNSENT, MAX_UNSENT_BYTES, OneStreamWire
from .process import GroupProcess

logger = logging.getLogger(__name__)

INHERITED: Final = ("HOME", "LANG", "LC_ALL", "LOGNAME", "PATH", "SHELL", "TERM", "TMPDIR", "USER")
"""What a server gets of the gateway's own environment, which holds secrets beside."""

_SPACES: Final = bytes.maketrans(b"\n\r", b"  ")


class StdioConnector:
    """Opens sessions with one server by starting its command. Implements `Connector`.

    `env` is added to what is inherited; `cwd` is where the command runs, else where the gateway does. A server that
    exits before it has a session is started again ever later; until then, opening is refused.

    Raises:
        ValueError: a command or an environment that no process can have.
    """

    def __init__(
        self,
        server: str,
        command: Sequence[str],
        statistics: Statistics,
        *,
        env: Mapping[str, str] | None = None,
        cwd: str | Path | None = None,
    ) -> None:
        if not command or not command[0]:
            raise ValueError("the command is empty")
        if any("\0" in text for text in (*command, *(env or {}), *(env or {}).values())):
            raise ValueError("a command and its environment cannot hold NUL")
        if any(not name or "=" in name for name in env or {}):
            raise ValueError("a name in the environment cannot be empty or hold =")
        self.server = server
        self._command = tuple(command)
        self._env = dict(env or {})
        self._cwd = None if cwd is None else str(cwd)
        self._statistics = statistics
        self._backoff = Backoff()

    @asynccontextmanager
    async def connect(self, receiver: Receiver, headers: Headers, *, listen: bool) -> AsyncIterator[Wire]:
        """See `Connector.connect`. A process has no headers, and unasked messages come whether they are wanted or not.

        Raises:
            UpstreamUnreachable: the command cannot be run, or not yet again.
        """
        clock = asyncio.get_running_loop().time
        wait = self._backoff.wait(clock())
        if wait:
            raise UpstreamUnreachable(
                f"the server exited {self._backoff.failures} times in a row before it had a session; "
                f"it may be tried again in {wait:.1f} s",
                executed="no",
                retry_after=round(wait, 1),
            )
        environment = {name: os.environ[name] for name in INHERITED if name in os.environ} | self._env
        started = clock()
        wire = _StdioWire(self.server, receiver, self._statistics, partial(self._backoff.succeeded, started))
        try:
            process = await GroupProcess.start(self.server, self._command, environment, self._cwd, wire)
        except OSError as error:
            raise UpstreamUnreachable(self._why(error), executed="no") from error
        try:
            wire.use(process)
            yield wire
        finally:
            if wire.cause is not None and not wire.is_established:
                self._backoff.failed(started, clock())
            wire.close()
            await process.end()

    def _why(self, error: OSError) -> str:
        why = os.strerror(error.errno) if error.errno else "no process"
        if self._cwd is not None and error.filename == self._cwd:
            return f"the server's directory cannot be entered: {why}"
        return f"the server's command cannot be run: {why}"

    def rotate(self, headers: Headers) -> None:
        """See `RotatingConnector.rotate`: a process has no headers."""

    async def close(self) -> None:
        """Nothing outlives the sessions."""


class _StdioWire(OneStreamWire):
    """One session. Implements `Hearer` for its process."""

    _process: GroupProcess

    def __init__(self, server: str, receiver: Receiver, statistics: Statistics, on_open: Callable[[], None]) -> None:
        super().__init__(server, receiver, statistics)
        self._on_open = on_open

    async def establish(self, revision: str, initialized: bytes) -> None:
        """See `Wire.establish`."""
        await super().establish(revision, initialized)
        self._on_open()

    def use(self, process: GroupProcess) -> None:
        """From now on this is the process."""
        self._process = process

    def close(self) -> None:
        """Tell nothing more."""
        self._is_closed = True

    def said(self, line: bytes) -> None:
        """See `Hearer.said`."""
        self._received(line)

    def gone(self, why: str, *, is_fault: bool) -> None:
        """See `Hearer.gone`."""
        self.lose(why, is_fault=is_fault)

    def _put(self, text: bytes, request: Request | None) -> bool:
        process = self._process
        if process.waiting >= MAX_UNSENT or process.unsent + len(text) > MAX_UNSENT_BYTES:
            return False
        # Between the tokens of JSON a line break means nothing; here it would make two messages of one (rule E25).
        line = text.translate(_SPACES) if b"\n" in text or b"\r" in text else text
        process.write(line, partial(self._may_begin, request))
        return True
