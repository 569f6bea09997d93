"""Real processes: lines, logs, and ends that leave nothing behind."""

import ast
import asyncio
import errno
import logging
import os
import resource
import signal
import sys
import threading
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path

import anyio
import pytest
from harness.changing import Changing
from harness.stream_peers import until_gone
from trunkline.mux.limits import MAX_EVENT_BYTES
from trunkline.transports import portions
from trunkline.transports.upstream import process
from trunkline.transports.upstream.process import (
    LAST_LINES,
    LOG_LINE_BYTES,
    LOG_LINES_PER_SECOND,
    GroupProcess,
    Lines,
)

pytestmark = pytest.mark.anyio


@pytest.fixture(params=["asyncio", "uvloop"], scope="session")
def anyio_backend(request: pytest.FixtureRequest) -> tuple[str, dict[str, bool]]:
    """Both loops: the gateway runs on uvloop, a program of one's own may run on either."""
    return "asyncio", {"use_uvloop": request.param == "uvloop"}


PATIENCE = 10.0

STUBBORN = "import signal, sys, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); print('up', flush=True);"
"""A program that no signal but SIGKILL ends, and no end of its input."""


class Heard(Changing):
    """What a process said, and how it was gone."""

    def __init__(self) -> None:
        super().__init__()
        self.lines: list[bytes] = []
        self.why: list[tuple[str, bool]] = []

    def said(self, line: bytes) -> None:
        assert not self.why
        self.lines.append(line)
        self.happened()

    def gone(self, why: str, *, is_fault: bool) -> None:
        self.why.append((why, is_fault))
        self.happened()


@asynccontextmanager
async def running(program: str) -> AsyncIterator[tuple[GroupProcess, Heard]]:
    heard = Heard()
    started = await GroupProcess.start("x", [sys.executable, "-c", program], {}, None, heard)
    try:
        yield started, heard
    finally:
        await started.end()


def is_there(pid: int) -> bool:
    """Whether a process of ours runs, or waits to be reaped."""
    return Path(f"/proc/{pid}").exists()


def test_lines_are_cut_wherever_the_chunks_end() -> None:
    text = b"one\n\ntwo\nthree"
    for size in range(1, len(text)):
        lines = Lines(100)
        found = [line for at in range(0, len(text), size) for line in lines.feed(text[at : at + size])]
        assert found == [b"one", b"", b"two"]
        assert lines.rest() == b"three"
        assert not lines.overlong


def test_a_line_over_the_limit_is_cut_and_the_next_one_found() -> None:
    lines = Lines(4)
    assert list(lines.feed(b"1234\n")) == [b"1234"]
    assert not lines.overlong
    assert list(lines.feed(b"12345")) == []
    assert lines.overlong
    assert list(lines.feed(b"678\nab\n")) == [b"1234", b"ab"]


async def test_lines_that_come_at_once_are_heard_in_order_and_others_have_their_turn(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(portions, "TURN_SECONDS", -1.0)
    number, turns = 10_000, 0
    program = f"import sys; sys.stdout.write(''.join(f'{{n}}\\n' for n in range({number}))); sys.stdout.flush()"

    def turn() -> None:
        nonlocal turns
        turns += 1
        if not heard.why:
            asyncio.get_running_loop().call_soon(turn)

    async with running(program) as (_, heard):
        await heard.until(lambda: heard.lines)
        turn()
        await heard.until(lambda: heard.why)
    assert heard.lines == [b"%d" % n for n in range(number)]
    assert turns > number / portions.PORTION_ITEMS / 2


async def test_lines_go_in_and_come_out() -> None:
    program = (
        "import sys\nfor line in sys.stdin.buffer: sys.stdout.buffer.write(line + b'\\r\\n\\n'); sys.stdout.flush()"
    )
    async with running(program) as (started, heard):
        started.write("ü".encode())
        started.write(b"x" * 1_000_000)
        await heard.until(lambda: len(heard.lines) == 2)
        assert heard.lines == ["ü".encode(), b"x" * 1_000_000]
        assert started.unsent == 0
    assert heard.why == [], "it was ended, not gone"


async def test_what_a_process_does_not_read_waits_and_is_known(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(process, "END_SECONDS", 0.1)
    async with running(STUBBORN + "time.sleep(600)") as (started, heard):
        await heard.until(lambda: heard.lines)
        started.write(b"x" * 5_000_000)
        assert 4_000_000 < started.unsent <= 5_000_001


async def test_its_end_is_its_input_first() -> None:
    async with running("import sys; print('up', flush=True); sys.stdin.read()") as (started, heard):
        await heard.until(lambda: heard.lines)
        with anyio.fail_after(process.END_SECONDS):
            await started.end()
        assert not is_there(started.pid)


async def test_then_a_signal(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(process, "END_SECONDS", 0.2)
    async with running("import time; print('up', flush=True); time.sleep(600)") as (started, heard):
        await heard.until(lambda: heard.lines)
        await started.end()
        assert not is_there(started.pid)


async def test_then_a_kill_to_all_of_the_group(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(process, "END_SECONDS", 0.2)
    child = STUBBORN + "time.sleep(600)"
    program = (
        STUBBORN + f"import subprocess; print(subprocess.Popen([sys.executable, '-c', {child!r}]).pid, flush=True)"
    )
    async with running(program + "; time.sleep(600)") as (started, heard):
        await heard.until(lambda: len(heard.lines) == 3)
        children = [int(line) for line in heard.lines if line.isdigit()]
        assert len(children) == 1
        await started.end()
        assert not is_there(started.pid)
        await until_gone(children[0])


async def test_what_an_exited_process_left_behind_is_ended(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(process, "END_SECONDS", 0.2)
    child = STUBBORN + "time.sleep(600)"
    program = f"import subprocess, sys; print(subprocess.Popen([sys.executable, '-c', {child!r}]).pid, flush=True)"
    async with running(program) as (started, heard):
        await heard.until(lambda: heard.why)
        assert heard.why == [("the server exited (status 0)", False)]
        pid = next(int(line) for line in heard.lines if line.isdigit())
        await started.end()
        await until_gone(pid)


async def test_its_own_group_keeps_our_signals_away() -> None:
    async with running("import sys; print('up', flush=True); sys.stdin.read()") as (started, heard):
        await heard.until(lambda: heard.lines)
        assert os.getpgid(started.pid) == started.pid != os.getpgid(0)


async def test_a_cancelled_end_leaves_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(process, "END_SECONDS", 0.2)
    pids: list[int] = []
    async with anyio.create_task_group() as tasks:

        async def own() -> None:
            async with running(STUBBORN + "time.sleep(600)") as (started, heard):
                pids.append(started.pid)
                await heard.until(lambda: heard.lines)
                tasks.cancel_scope.cancel()
                await anyio.sleep_forever()

        tasks.start_soon(own)
    assert not is_there(pids[0])


async def test_a_task_that_is_cancelled_while_it_waits_for_the_last_words_leaves_nothing_open(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(process, "DRAIN_SECONDS", 2 * PATIENCE)
    before = await start_and_end(["true"])
    elsewhere = "import time; time.sleep(600)"
    program = (
        "import subprocess, sys; other = subprocess.Popen("
        f"[sys.executable, '-c', {elsewhere!r}], stdout=subprocess.DEVNULL, start_new_session=True);"
        "print(other.pid, flush=True); sys.stdin.read()"
    )
    heard = Heard()
    started = await GroupProcess.start("x", [sys.executable, "-c", program], {}, None, heard)
    await heard.until(lambda: heard.lines)
    ending = asyncio.create_task(started.end())
    await until_gone(started.pid)
    await anyio.wait_all_tasks_blocked()
    ending.cancel()
    with pytest.raises(asyncio.CancelledError):
        await ending
    os.kill(int(heard.lines[0]), signal.SIGKILL)
    await anyio.wait_all_tasks_blocked()
    assert set(os.listdir("/proc/self/fd")) == before
    assert started.pid not in process.GUARDIAN.processes()


@pytest.mark.parametrize(
    ("program", "why"),
    [
        ("import sys; sys.exit(7)", "the server exited (status 7)"),
        ("import os, signal; os.kill(os.getpid(), signal.SIGKILL)", "the server exited (SIGKILL)"),
        ("import os, time; os.close(1); time.sleep(600)", "the server closed its output"),
        ("import os, time; os.close(0); time.sleep(600)", "the server closed its input"),
    ],
)
async def test_a_process_that_goes_by_itself_is_told(program: str, why: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(process, "END_SECONDS", 0.1)
    async with running(program) as (started, heard):
        await heard.until(lambda: heard.why)
        assert heard.why == [(why, False)]
        started.write(b"into the void")


async def test_a_process_may_close_its_stderr() -> None:
    program = "import os, sys; os.close(2); print('x', flush=True); os.write(1, sys.stdin.readline().encode())"
    async with running(program) as (started, heard):
        await heard.until(lambda: heard.lines)
        started.write(b"y")
        await heard.until(lambda: heard.why)
        assert heard.lines == [b"x", b"y"]
        assert heard.why == [("the server exited (status 0)", False)]


async def test_what_it_said_last_is_heard_before() -> None:
    program = "import os; os.write(1, b'x\\n' * 20000); os._exit(1)"
    async with running(program) as (_, heard):
        await heard.until(lambda: heard.why)
        assert heard.lines == [b"x"] * 20000


def hold_up_until_exited(pid: int) -> None:
    """The event loop does nothing meanwhile."""
    while Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z":
        pass


async def test_what_has_come_is_heard_where_the_loop_is_late(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(process, "DRAIN_SECONDS", 0.01)
    program = "import os, sys; sys.stdin.read(1); os.write(1, b'x\\n' * 20000); os._exit(1)"
    async with running(program) as (started, heard):
        started.write(b"")
        hold_up_until_exited(started.pid)
        await heard.until(lambda: heard.why)
        assert heard.lines == [b"x"] * 20000
        assert heard.why == [("the server exited (status 1)", False)]


async def test_an_exit_is_told_although_a_child_holds_the_output(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(process, "END_SECONDS", 0.1)
    program = "import subprocess, sys; subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(600)'])"
    async with running(program) as (_, heard):
        await heard.until(lambda: heard.why)
        assert heard.why == [("the server exited (status 0)", False)]


async def test_a_line_that_is_too_long_is_a_fault() -> None:
    program = f"import sys; sys.stdout.write('x' * {MAX_EVENT_BYTES + 1} + '\\nmore\\n')"
    async with running(program) as (_, heard):
        await heard.until(lambda: heard.why)
        assert heard.why == [(f"the server sent a line longer than {MAX_EVENT_BYTES} bytes", True)]
        assert heard.lines == []


async def test_a_process_has_no_other_handles_than_its_own() -> None:
    program = (
        "import os; numbers = [n for n in os.listdir('/proc/self/fd') if os.path.exists(f'/proc/self/fd/{n}')];"
        "print([os.readlink(f'/proc/self/fd/{n}') for n in numbers], flush=True)"
    )
    async with running(program) as (_, heard):
        await heard.until(lambda: heard.lines)
        links = ast.literal_eval(heard.lines[0].decode())
    assert len(links) == 3


async def test_its_stderr_can_be_opened_by_its_name(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, logger=process.__name__)
    async with running("open('/dev/stderr', 'w').write('x')") as (_, heard):
        await heard.until(lambda: heard.why)
    assert [record.getMessage() for record in caplog.records] == ["stderr: x"]


async def test_where_a_process_has_no_descriptor_its_exit_is_told_all_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(pid: int) -> int:
        raise OSError

    monkeypatch.setattr(os, "pidfd_open", refuse)
    async with running("import sys; sys.exit(7)") as (started, heard):
        await heard.until(lambda: heard.why)
        assert heard.why == [("the server exited (status 7)", False)]
        assert not is_there(started.pid)


@pytest.mark.parametrize("has_descriptor", [False, True])
async def test_a_process_whose_exit_cannot_be_heard_of_is_ended(
    monkeypatch: pytest.MonkeyPatch, has_descriptor: bool
) -> None:
    before = await start_and_end(["true"])
    started: list[int] = []
    guard = process.GUARDIAN.take

    def take(group: int) -> None:
        guard(group)
        started.append(group)
        if has_descriptor:
            monkeypatch.setattr(asyncio.get_running_loop(), "add_reader", watch_none)

    def refuse(*arguments: object) -> None:
        raise OSError(errno.ENOSYS, "None here")

    def make_none(*arguments: object) -> None:
        raise RuntimeError("No room")

    def watch_none(*arguments: object) -> None:
        raise OSError(errno.ENOSPC, "No room")

    monkeypatch.setattr(process.GUARDIAN, "take", take)
    if not has_descriptor:
        monkeypatch.setattr(os, "pidfd_open", refuse)
    monkeypatch.setattr(threading.Thread, "start", make_none)
    with pytest.raises(OSError, match="No room"):
        await GroupProcess.start("x", ["sleep", "600"], dict(os.environ), None, Heard())
    monkeypatch.undo()
    assert not is_there(started[0])
    assert started[0] not in process.GUARDIAN.processes()
    await anyio.wait_all_tasks_blocked()
    assert set(os.listdir("/proc/self/fd")) == before


async def start_and_end(command: list[str], cwd: str | None = None) -> set[str]:
    """Start a process where that is possible, and end it; the descriptors that are open then."""
    with suppress(OSError):
        started = await GroupProcess.start("x", command, dict(os.environ), cwd, Heard())
        await started.end()
    await anyio.wait_all_tasks_blocked()
    return set(os.listdir("/proc/self/fd"))


async def test_nothing_is_left_open_however_a_start_goes() -> None:
    before = await start_and_end(["true"])  # a loop keeps one from its first pipe on
    for command, cwd in ((["true"], None), (["/nowhere/program"], None), (["true"], "/nowhere")):
        assert await start_and_end(command, cwd) == before


async def test_where_files_run_out_nothing_is_left_open() -> None:
    before = await start_and_end(["true"])
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    for more in range(12):
        resource.setrlimit(resource.RLIMIT_NOFILE, (len(before) + more, limits[1]))
        try:
            await start_and_end(["true"])
        finally:
            resource.setrlimit(resource.RLIMIT_NOFILE, limits)
    assert await start_and_end(["true"]) == before


async def test_a_long_line_is_heard() -> None:
    program = f"import sys; print('x' * {MAX_EVENT_BYTES}, flush=True); sys.stdin.read()"
    async with running(program) as (_, heard):
        await heard.until(lambda: heard.lines)
        assert heard.lines == [b"x" * MAX_EVENT_BYTES]


async def test_stderr_goes_to_the_log_without_control_characters(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, logger=process.__name__)
    program = (
        "import os; os.write(2, b'a\\x1b[31mb\\x00c\\xff\\xe2\\x80\\xae\\td\\n\\n');"
        "os.write(2, b'y' * 9000 + b'\\nlast')"
    )
    async with running(program) as (_, heard):
        await heard.until(lambda: heard.why)
    texts = [record.getMessage() for record in caplog.records]
    assert texts == [
        "stderr: a\ufffd[31mb\ufffdc\ufffd\ufffd     d",
        f"stderr: {'y' * LOG_LINE_BYTES}",
        "stderr: last",
    ]
    assert {record.server for record in caplog.records} == {"x"}


async def test_what_it_says_last_is_in_the_log_once_it_has_ended(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(portions, "TURN_SECONDS", -1.0)
    caplog.set_level(logging.INFO, logger=process.__name__)
    program = "import sys; print(flush=True); sys.stdin.read(); sys.stderr.write('no\\n' * 5000 + 'good-bye')"
    async with running(program) as (started, _):
        await started.end()
        texts = [record.getMessage() for record in caplog.records]
    left_out = sum(int(text.split()[1]) for text in texts if text.endswith("lines left out"))
    assert left_out + len([text for text in texts if text.startswith("stderr: ")]) >= 5001
    assert [record.getMessage() for record in caplog.records] == texts, "and nothing after it"


async def test_a_flood_on_stderr_is_counted_and_left_out(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, logger=process.__name__)
    async with running("import sys; sys.stderr.write('no\\n' * 100_000)") as (_, heard):
        await heard.until(lambda: heard.why)
    texts = [record.getMessage() for record in caplog.records]
    told = texts.count("stderr: no")
    left_out = sum(int(text.split()[1]) for text in texts if text.endswith("lines left out"))
    assert told + left_out == 100_000
    assert LOG_LINES_PER_SECOND + LAST_LINES <= told <= 10 * (LOG_LINES_PER_SECOND + LAST_LINES)


async def test_what_a_flood_on_stderr_ends_with_is_told_behind_what_was_left_out(
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.INFO, logger=process.__name__)
    async with running("import sys; sys.stderr.write('no\\n' * 5000 + '\\n' * 5000 + 'why\\n\\n')") as (_, heard):
        await heard.until(lambda: heard.why)
    texts = [record.getMessage() for record in caplog.records]
    assert texts[-LAST_LINES:] == ["stderr: no"] * (LAST_LINES - 1) + ["stderr: why"]
    assert any(text.endswith("lines left out") for text in texts[:-LAST_LINES])


async def test_a_program_that_is_not_there() -> None:
    with pytest.raises(FileNotFoundError):
        await GroupProcess.start("x", ["/nowhere/program"], {}, None, Heard())


def test_statuses_in_words() -> None:
    assert process._status(-signal.SIGTERM) == "SIGTERM"
    assert process._status(-99) == "signal 99"
