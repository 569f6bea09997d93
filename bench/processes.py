"""The processes of a measurement: on which core they run, when they are there, what they have used.

One core belongs to what is measured; the load and the server share another, or have one each where there are three.
"""

import contextlib
import enum
import os
import random
import resource
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).parent.parent
START_SECONDS = 60.0
FIRST = -20
"""The priority of who goes first (setpriority(2))."""

REAL_TIME = os.sched_param(1)
"""The least priority of real time (sched(7))."""

PORTS = range(20_000, 32_000)
"""Below those that outgoing connections use: a probe of such a port could connect to itself."""


class Cores(NamedTuple):
    """Which core is whose."""

    client: int
    upstream: int
    gateway: int


class Rank(enum.Enum):
    """Who of a measurement goes first on a core that it shares, and all of them before other processes of the machine.

    Without it a process waits until another has had its slice of some milliseconds, which is many calls.
    """

    BUSY = enum.auto()
    """May be busy without a pause: before other processes, but not in real time, which the kernel would interrupt."""
    PROMPT = enum.auto()
    """Is never busy for long, and goes before everything else."""


def cores() -> Cores:
    """The cores of this machine, as a measurement divides them."""
    there = sorted(set(range(os.cpu_count() or 1)) | os.sched_getaffinity(0))
    return Cores(there[0], there[1] if len(there) > 2 else there[0], there[-1])


@contextlib.contextmanager
def pinned(core: int, rank: Rank | None = None) -> Iterator[None]:
    """This process on one core, with as many descriptors as it may have, for the length of the context."""
    before, files = os.sched_getaffinity(0), resource.getrlimit(resource.RLIMIT_NOFILE)
    nice = os.getpriority(os.PRIO_PROCESS, 0)
    os.sched_setaffinity(0, {core})
    resource.setrlimit(resource.RLIMIT_NOFILE, (files[1], files[1]))
    _take(rank)
    try:
        yield
    finally:
        os.setpriority(os.PRIO_PROCESS, 0, nice)
        os.sched_setaffinity(0, before)
        resource.setrlimit(resource.RLIMIT_NOFILE, files)


def is_ranked() -> bool:
    """Whether this process has a rank: the kernel may not allow it."""
    return os.getpriority(os.PRIO_PROCESS, 0) == FIRST


def _take(rank: Rank | None) -> None:
    """Have the kernel let this process go first, where that is allowed (sched(7))."""
    with contextlib.suppress(PermissionError):
        if rank is Rank.PROMPT:
            os.sched_setscheduler(0, os.SCHED_RR, REAL_TIME)
        elif rank is Rank.BUSY:
            os.setpriority(os.PRIO_PROCESS, 0, FIRST)


@contextlib.contextmanager
def in_real_time(*pids: int) -> Iterator[None]:
    """These processes before all others, for the length of the context, where that is allowed: for a load with pauses.

    A kernel that is built for throughput lets each own thread run until the next tick, some milliseconds, before
    a process that is not in real time, whatever its rank; one in a hundred calls then waits for that alone.
    """
    before = {pid: (os.sched_getscheduler(pid), os.sched_getparam(pid)) for pid in pids}
    with contextlib.suppress(PermissionError):
        for pid in before:
            os.sched_setscheduler(pid, os.SCHED_RR, REAL_TIME)
    try:
        yield
    finally:
        for pid, (policy, parameter) in before.items():
            with contextlib.suppress(ProcessLookupError):
                os.sched_setscheduler(pid, policy, parameter)


@contextlib.contextmanager
def awake() -> Iterator[None]:
    """Let no core sleep, for the length of the context: what runs only while nobody else wants to keeps it busy.

    To wake a core of a virtual machine takes a good part of what a call takes.
    """
    spin = "import os; os.sched_setaffinity(0, {%d}); os.sched_setscheduler(0, os.SCHED_IDLE, os.sched_param(0))\n"
    program = spin + "while True: pass"
    spinning = [subprocess.Popen([sys.executable, "-c", program % core]) for core in range(os.cpu_count() or 1)]
    try:
        yield
    finally:
        for one in spinning:
            one.kill()
            one.wait()


def free_port() -> int:
    """A port of this machine that was free a moment ago."""
    for port in random.sample(PORTS, 100):
        with socket.socket() as candidate, contextlib.suppress(OSError):
            candidate.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            candidate.bind(("127.0.0.1", port))
            return port
    raise RuntimeError("no port is free")


@contextlib.contextmanager
def process(command: list[str], core: int, ready: str, *, cwd: Path = ROOT, rank: Rank | None = None) -> Iterator[int]:
    """A process on one core, from when it answers with any status at `ready` until it is ended; its pid."""
    started = subprocess.Popen(command, stdout=subprocess.DEVNULL, preexec_fn=_alone(core, rank), cwd=cwd)
    try:
        until = time.monotonic() + START_SECONDS
        while not _answers(ready):
            if started.poll() is not None:
                raise RuntimeError(f"{command} ended with {started.returncode}")
            if time.monotonic() > until:
                raise RuntimeError(f"{command} does not answer at {ready}")
            time.sleep(0.05)
        yield started.pid
    finally:
        started.terminate()
        try:
            started.wait(timeout=60)
        except subprocess.TimeoutExpired:
            started.kill()
            started.wait()


def _alone(core: int, rank: Rank | None) -> Callable[[], None]:
    """What a new process does first."""
    files = resource.getrlimit(resource.RLIMIT_NOFILE)[1]

    def settle() -> None:
        os.sched_setaffinity(0, {core})
        resource.setrlimit(resource.RLIMIT_NOFILE, (files, files))
        os.setpriority(os.PRIO_PROCESS, 0, max(0, os.getpriority(os.PRIO_PROCESS, 0)))  # not that of who starts it
        _take(rank)

    return settle


def _answers(url: str) -> bool:
    try:
        with urllib.request.urlopen(url, timeout=1):
            return True
    except urllib.error.HTTPError as error:
        return error.code != 503
    except OSError:
        return False


@contextlib.contextmanager
def upstream(core: int, port: int = 0, *, rank: Rank | None = None) -> Iterator[int]:
    """The lean server on one core; its port."""
    port = port or free_port()
    command = [sys.executable, "-m", "bench.upstream", "--port", str(port)]
    with process(command, core, f"http://127.0.0.1:{port}/recorder", rank=rank):
        yield port


@contextlib.contextmanager
def gateway_process(settings: str, core: int, port: int = 0, *, rank: Rank | None = None) -> Iterator[tuple[int, int]]:
    """A gateway process with these settings, complete with servers; its pid and its port."""
    port = port or free_port()
    with tempfile.NamedTemporaryFile("w", suffix=".toml") as file:
        file.write(settings)
        file.flush()
        command = [sys.executable, "-m", "trunkline.gateway", "serve", file.name, "--port", str(port)]
        with process([*command, "--log-level", "error"], core, f"http://127.0.0.1:{port}/readyz", rank=rank) as pid:
            yield pid, port


def server(port: int, path: str = "/mcp", name: str = "bench") -> str:
    """A gateway's settings of the lean server on this port."""
    return f'[servers.{name}]\nurl = "{"ws" if path == "/ws" else "http"}://127.0.0.1:{port}{path}"\n'


def tree(pid: int) -> list[int]:
    """A process and all that come from it, without the servers that it runs for `stdio`; none for 0."""
    found = [pid] if pid else []
    for parent in found:
        for children in Path(f"/proc/{parent}/task").glob("*/children"):
            with contextlib.suppress(OSError):
                found += [child for child in map(int, children.read_text().split()) if not _is_upstream(child)]
    return found


def _is_upstream(pid: int) -> bool:
    with contextlib.suppress(OSError):
        return b"bench.upstream" in Path(f"/proc/{pid}/cmdline").read_bytes()
    return False


def cpu_seconds(pid: int) -> float:
    """User and system time of a process and of those that come from it, so far; 0 for none."""
    total = 0.0
    for one in tree(pid):
        with contextlib.suppress(OSError):
            total += time.clock_gettime((~one << 3) | 2)  # the process's own clock, CPUCLOCK_SCHED: in nanoseconds
    return total


def resident(pid: int) -> int:
    """The resident memory of a process and of those that come from it, KiB; 0 for none."""
    total = 0
    for one in tree(pid):
        with contextlib.suppress(OSError):
            total += int(Path(f"/proc/{one}/status").read_text().partition("VmRSS:")[2].split()[0])
    return total


def descriptors(pid: int) -> int:
    """Open descriptors of a process and of those that come from it."""
    total = 0
    for one in tree(pid):
        with contextlib.suppress(OSError):
            total += len(os.listdir(f"/proc/{one}/fd"))
    return total
