"""What a process started ends with it, however it ends."""

import logging
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

import anyio
import pytest
from harness.stream_peers import until_gone
from trunkline.transports.upstream import guardian as module
from trunkline.transports.upstream.guardian import Guardian

OWNER = """
import subprocess, sys
from trunkline.transports.upstream.guardian import Guardian
guardian = Guardian(0.2)
stubborn = "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); print(flush=True); time.sleep(600)"
for number in range(3):
    child = subprocess.Popen([sys.executable, "-c", stubborn], stdout=subprocess.PIPE, process_group=0)
    child.stdout.readline()
    guardian.take(child.pid)
    if number:
        print(child.pid, flush=True)
    else:
        child.kill()
        child.wait()
        guardian.release(child.pid)
sys.stdin.read()
"""

FORKING = """
import os, subprocess, sys
from trunkline.transports.upstream.guardian import Guardian
guardian = Guardian(0.0)
group = subprocess.Popen(["sleep", "600"], process_group=0)
guardian.take(group.pid)
if os.fork():
    print(group.pid, flush=True)
sys.stdin.read()
"""


@pytest.fixture
def groups() -> Iterator[Callable[[], int]]:
    """Starts processes with groups of their own."""
    started: list[subprocess.Popen[bytes]] = []

    def start() -> int:
        started.append(subprocess.Popen(["sleep", "600"], process_group=0))
        return started[-1].pid

    yield start
    for one in started:
        one.kill()
        one.wait()


def children() -> set[int]:
    """The processes that this one has started, and not reaped."""
    return {int(pid) for pid in Path(f"/proc/self/task/{os.getpid()}/children").read_text().split()}


def test_a_process_that_is_killed_takes_what_it_started_with_it() -> None:
    command = [sys.executable, "-c", OWNER]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as owner:
        assert owner.stdout is not None
        pids = [int(owner.stdout.readline()) for _ in range(2)]
        owner.kill()
    for pid in pids:
        anyio.run(until_gone, pid)


def test_a_fork_that_lives_on_does_not_hide_that_its_parent_was_killed() -> None:
    command = [sys.executable, "-c", FORKING]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as owner:
        assert owner.stdout is not None
        group = int(owner.stdout.readline())
        try:
            owner.kill()
            anyio.run(until_gone, group)
        finally:
            with suppress(ProcessLookupError):
                os.killpg(group, signal.SIGKILL)


def test_one_process_is_begun_with_the_first_group_and_ends_with_this_one(groups: Callable[[], int]) -> None:
    guardian, first, second = Guardian(0.0), groups(), groups()
    before = children()
    guardian.take(first)
    guardian.take(second)
    (begun,) = children() - before
    assert guardian.processes() == {first, second, begun}
    guardian.release(first)
    guardian.release(second)
    guardian.take(first)
    guardian.release(first)
    assert guardian.processes() == children() - before == {begun}
    guardian.close()
    guardian.close()
    assert children() == before
    for group in (first, second):
        os.killpg(group, 0)  # they live: nobody took this process for dead


def test_one_that_was_killed_is_followed_by_another_that_knows_all(groups: Callable[[], int]) -> None:
    guardian, first = Guardian(0.0), groups()
    before = children()
    guardian.take(first)
    (victim,) = children() - before
    os.kill(victim, signal.SIGKILL)
    os.waitid(os.P_PID, victim, os.WEXITED | os.WNOWAIT)
    second = groups()
    guardian.take(second)
    assert not Path(f"/proc/{victim}").exists()
    another = guardian._process
    assert another is not None
    guardian.close()
    for group in (first, second):
        assert os.waitid(os.P_PID, group, os.WEXITED | os.WNOWAIT).si_status == signal.SIGTERM
    assert another.wait() == 0


def test_one_that_was_killed_is_followed_by_another_also_where_a_group_has_ended(groups: Callable[[], int]) -> None:
    guardian, first, second = Guardian(0.0), groups(), groups()
    before = children()
    guardian.take(first)
    guardian.take(second)
    (victim,) = children() - before
    os.kill(victim, signal.SIGKILL)
    os.waitid(os.P_PID, victim, os.WEXITED | os.WNOWAIT)
    guardian.release(first)
    (another,) = children() - before
    assert another != victim
    os.kill(another, signal.SIGKILL)
    os.waitid(os.P_PID, another, os.WEXITED | os.WNOWAIT)
    guardian.release(second)
    assert children() == before, "nothing is left to guard"


def test_one_that_is_stopped_does_no_harm_when_it_goes_on(groups: Callable[[], int]) -> None:
    guardian, group = Guardian(0.0), groups()
    before = children()
    guardian.take(group)
    (stopped,) = children() - before
    os.kill(stopped, signal.SIGSTOP)
    while stopped in children():  # until what it does not read is more than the pipe holds
        guardian.take(group)
    assert len(children() - before) == 1, "another one"
    os.killpg(group, 0)
    guardian.release(group)
    guardian.close()
    assert children() == before


def test_where_it_cannot_be_started_that_is_told(
    groups: Callable[[], int], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    guardian, group = Guardian(0.0), groups()
    before = children()
    with monkeypatch.context() as patch:
        patch.setattr(sys, "executable", "/nowhere/python")
        guardian.take(group)
    assert [record.levelno for record in caplog.records] == [logging.WARNING]
    assert module.__name__ in caplog.text
    assert children() == before
    guardian.take(group)
    assert len(children() - before) == 1
    guardian.release(group)
    guardian.close()


def test_where_it_hears_nothing_that_is_told(
    groups: Callable[[], int], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def start(seconds: float) -> tuple[subprocess.Popen[bytes], int]:
        process, writing = started(seconds)
        process.kill()
        os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)
        return process, writing

    started = module._started
    guardian, group = Guardian(0.0), groups()
    before = children()
    with monkeypatch.context() as patch:
        patch.setattr(module, "_started", start)
        guardian.take(group)
    assert [record.levelno for record in caplog.records] == [logging.WARNING]
    assert children() == before
    guardian.take(group)
    assert len(children() - before) == 1
    guardian.release(group)
    guardian.close()
