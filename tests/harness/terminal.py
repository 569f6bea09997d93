"""A program on a terminal of its own: what it shows there, and the keys that people press."""

import os
import pty
import re
import select
import signal
import subprocess
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial

PATIENCE = 60.0
ESCAPES = re.compile(rb"\x1b\[[0-9;?]*[A-Za-z]|\x1b\][^\x07]*\x07")
COLOURS = re.compile(rb"\x1b\[(?:\d+;)*(?:3[0-7]|9[0-7]|4[0-7]|38;[0-9;]+)(?:;\d+)*m")


class Terminal:
    """A running program, and what it has written so far."""

    def __init__(self, program: "subprocess.Popen[bytes]", file: int) -> None:
        self.program = program
        self.raw = b""
        self._file = file

    @property
    def text(self) -> str:
        """What was written, without what steers the terminal."""
        return ESCAPES.sub(b"", self.raw).decode(errors="replace").replace("\r\n", "\n")

    @property
    def has_colours(self) -> bool:
        return COLOURS.search(self.raw) is not None

    def read_until(self, words: str) -> None:
        """Read on until these words came.

        Raises:
            AssertionError: they did not come, or the program ended before.
        """
        deadline = time.monotonic() + PATIENCE
        while words not in self.text:
            ready, _, _ = select.select([self._file], [], [], max(0.0, deadline - time.monotonic()))
            assert ready, f"{words!r} did not come: {self.raw!r}"
            assert self._read(), f"{words!r} did not come before the end: {self.raw!r}"

    def end(self) -> int:
        """Read to the end; the exit status."""
        while self._read():
            pass
        return self.program.wait(PATIENCE)

    def interrupt(self) -> None:
        """Press Ctrl-C."""
        self.program.send_signal(signal.SIGINT)

    def _read(self) -> bool:
        try:
            read = os.read(self._file, 65536)
        except OSError:  # nobody writes to it any longer
            return False
        self.raw += read
        return bool(read)


@contextmanager
def on_terminal(command: Sequence[str], env: Mapping[str, str], **variables: str) -> Iterator[Terminal]:
    """The program with its output on a terminal of 200 columns; ended when this is left."""
    leader, follower = pty.openpty()
    environ = {**env, "TERM": "xterm-256color", "COLUMNS": "200", "LINES": "60", **variables}
    interruptible = partial(signal.signal, signal.SIGINT, signal.SIG_DFL)  # where these tests run, it may be ignored
    with subprocess.Popen(
        command, env=environ, stdin=follower, stdout=follower, stderr=follower, preexec_fn=interruptible
    ) as program:
        os.close(follower)
        try:
            yield Terminal(program, leader)
        finally:
            program.kill()
            os.close(leader)
