"""A shell that types the `console` blocks of a page, and sees whether what comes is what the page says.

`…` in a line stands for anything, a line of it alone for any number of lines. A command that ends with ` &` goes on in
the background, and what the page shows of it has to come within `PATIENCE`; `kill %N; wait %N` ends the N-th. The ports
that pages use are replaced by free ones, in commands, files and what they say alike.
"""

import contextlib
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Final

from harness.pages import Block
from harness.ports import free_port

PATIENCE: Final = 300.0
"""Seconds after which what a page shows of a command in the background must have come."""

COMMAND_SECONDS: Final = 1800.0
"""Seconds that a command may take, which may install something."""

PORTS: Final = ("8920", "8000", "9000", "4444")
"""Those that pages use."""

_JOB: Final = re.compile(r"kill %(\d+); wait %\1")


class Transcript:
    """One page's shell, in a folder of its own."""

    def __init__(self, folder: Path, programs: Path, environment: Mapping[str, str] | None = None) -> None:
        self._folder = folder
        self._ports = {port: str(free_port()) for port in PORTS}
        kept = {name: value for name, value in os.environ.items() if not name.startswith(("TRUNKLINE_", "PYTHON"))}
        self._environment = {
            **kept,
            "PATH": f"{programs}{os.pathsep}{os.environ['PATH']}",
            "TRUNKLINE_GATEWAY__PORT": self._ports["8920"],
            "COLUMNS": "120",
            "PIP_DISABLE_PIP_VERSION_CHECK": "1",
            "PIP_QUIET": "2",
            "NO_PROXY": "127.0.0.1,localhost",
            "no_proxy": "127.0.0.1,localhost",
            **(environment or {}),
        }
        self._background: list[subprocess.Popen[bytes]] = []

    def write(self, block: Block) -> None:
        """Write the file that a block stands for."""
        path = self._folder / block.title
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(self._moved(block.text))

    def play(self, block: Block) -> None:
        """Type a block.

        Raises:
            AssertionError: a command failed, or what came is not what the page says.
        """
        for command, due in commands(self._moved(block.text)):
            if command.endswith(" &"):
                self._start(block, command.removesuffix(" &"), due)
                continue
            if ended := _JOB.fullmatch(command):
                self._end(self._background[int(ended[1]) - 1])
                continue
            done = subprocess.run(
                ["bash", "-c", command],
                cwd=self._folder,
                env=self._environment,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                timeout=COMMAND_SECONDS,
                check=False,
            )
            told = done.stdout.decode(errors="replace")
            assert is_shown(due, told), f"{block}: $ {command}\n\n{told}\nis not\n\n" + "\n".join(due)

    def _start(self, block: Block, command: str, due: Sequence[str]) -> None:
        log = self._folder / f".{len(self._background)}.log"
        with log.open("wb") as output:
            process = subprocess.Popen(
                ["bash", "-c", command],
                cwd=self._folder,
                env=self._environment,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        self._background.append(process)
        until = time.monotonic() + PATIENCE
        while not is_shown([*due, "…"], told := log.read_text(errors="replace")):
            is_over = time.monotonic() > until or process.poll() is not None
            assert not is_over, f"{block}: $ {command}\n\n{told}\nis not\n\n" + "\n".join(due)
            time.sleep(0.05)  # a file has no event for us

    def _moved(self, text: str) -> str:
        for port, free in self._ports.items():
            text = re.sub(rf"\b{port}\b", free, text)
        return text

    def close(self) -> None:
        """End what goes on in the background."""
        for process in reversed(self._background):
            self._end(process)

    def _end(self, process: "subprocess.Popen[bytes]") -> None:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGTERM)
        try:
            process.wait(10)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()


@contextlib.contextmanager
def transcript(folder: Path, *, programs: Path | None = None) -> Iterator[Transcript]:
    """A page's shell, for the length of the context; `programs` comes first on its path, else this environment's."""
    opened = Transcript(folder, programs or Path(sys.executable).parent)
    try:
        yield opened
    finally:
        opened.close()


def commands(text: str) -> Iterator[tuple[str, list[str]]]:
    """The commands of a block, each with the lines that have to come of it."""
    command, due = "", list[str]()
    for line in text.splitlines():
        if command.endswith("\\"):
            command += "\n" + line.removeprefix("> ")
        elif line.startswith("$ "):
            if command:
                yield command, due
            command, due = line.removeprefix("$ "), []
        else:
            due.append(line)
    if command:
        yield command, due


def is_shown(due: Sequence[str], told: str) -> bool:
    """True where what was told is what is due; blank lines at its ends count for nothing."""
    return _fits("\n".join(due).strip("\n").split("\n"), [line.rstrip() for line in told.strip("\n").split("\n")])


def _fits(due: Sequence[str], told: Sequence[str]) -> bool:
    if not due:
        return not told
    if due[0].strip() == "…":
        return any(_fits(due[1:], told[skipped:]) for skipped in range(len(told) + 1))
    pattern = ".*".join(re.escape(part) for part in due[0].rstrip().split("…"))
    return bool(told) and re.fullmatch(pattern, told[0]) is not None and _fits(due[1:], told[1:])
