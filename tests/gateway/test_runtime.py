"""The directory of a gateway's processes: theirs alone, in use for as long as one of them lives, and then gone."""

import errno
import fcntl
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import anyio
import anyio.to_thread
import pytest
from trunkline.gateway import runtime as module
from trunkline.gateway.runtime import MARK, PREFIX, hold, runtime_directory
from trunkline.gateway.settings import NotStarted, SettingsError

OWNER = """
import sys
from trunkline.gateway.runtime import runtime_directory
with runtime_directory() as made:
    print(made, flush=True)
    sys.stdin.read()
"""

WORKER = """
import sys
from pathlib import Path
from trunkline.gateway.runtime import hold
hold(Path(sys.argv[1]))
print(flush=True)
sys.stdin.read()
"""


@pytest.fixture(autouse=True)
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Where temporary files are."""
    with tempfile.TemporaryDirectory(prefix="t-") as made:  # its path is short
        monkeypatch.setenv("TMPDIR", made)
        monkeypatch.setattr(tempfile, "tempdir", made)
        yield Path(made)


@contextmanager
def process(program: str, *arguments: str) -> Iterator[tuple[subprocess.Popen[str], str]]:
    """A process that lives until it is killed or this is left, and what it says first."""
    command = [sys.executable, "-c", program, *arguments]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as started:
        assert started.stdout is not None
        try:
            yield started, started.stdout.readline().rstrip("\n")
        finally:
            started.kill()


def kill(one: subprocess.Popen[str]) -> None:
    one.send_signal(signal.SIGKILL)
    one.wait()


def test_nobody_else_enters_it_and_it_goes_with_the_gateway() -> None:
    with runtime_directory() as runtime:
        assert runtime.stat().st_mode & 0o777 == 0o700
        (runtime / "left").touch()
    assert not runtime.exists()


def test_what_a_killed_gateway_left_goes_when_another_one_begins(place: Path) -> None:
    with process(OWNER) as (owner, left):
        (Path(left) / "socket").touch()
        kill(owner)
        assert Path(left).exists()
        with runtime_directory() as runtime:
            assert list(place.iterdir()) == [runtime]


def test_what_is_in_use_stays() -> None:
    with process(OWNER) as (_, theirs), runtime_directory():
        assert Path(theirs).exists()


def test_it_is_in_use_until_the_last_worker_has_died() -> None:
    with process(OWNER) as (owner, theirs), process(WORKER, theirs) as (worker, _):
        kill(owner)
        with runtime_directory():
            assert Path(theirs).exists()
        kill(worker)
        with runtime_directory():
            assert not Path(theirs).exists()


def dead(place: Path, name: str) -> Path:
    """What a gateway left."""
    made = place / name
    made.mkdir()
    (made / MARK).touch()
    return made


def test_what_may_be_somebody_elses_stays(place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    notes = place / f"{PREFIX}notes"
    notes.mkdir()
    elsewhere = dead(place, f"{PREFIX}elsewhere")
    (elsewhere / MARK).rename(elsewhere / "another.host")
    linked = place / f"{PREFIX}linked"
    linked.symlink_to(dead(tmp_path, "target"))
    file = place / f"{PREFIX}file"
    file.touch()
    other = dead(place, "other-program")
    with runtime_directory():
        assert all(path.exists() for path in (notes, elsewhere, linked / MARK, file, other))
    theirs = dead(place, f"{PREFIX}of-another-user")
    monkeypatch.setattr(os, "geteuid", lambda: theirs.stat().st_uid + 1)
    with runtime_directory():
        assert theirs.exists()


@pytest.mark.anyio
async def test_a_worker_that_comes_while_it_is_swept_is_told(place: Path) -> None:
    made = dead(place, f"{PREFIX}x")
    told: list[type[Exception]] = []

    def come() -> None:
        try:
            hold(made)
        except Exception as error:
            told.append(type(error))

    lock = os.open(made, os.O_RDONLY)
    fcntl.flock(lock, fcntl.LOCK_EX)
    with anyio.fail_after(10):
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(anyio.to_thread.run_sync, come)
            await anyio.to_thread.run_sync(until_someone_waits, made)
            shutil.rmtree(made)
            os.close(lock)
    assert told == [FileNotFoundError]


def until_someone_waits(path: Path) -> None:
    """Until a lock of this file is waited for."""
    inode = str(path.stat().st_ino)
    deadline = time.monotonic() + 10
    while not any("->" in line and f":{inode} " in line for line in Path("/proc/locks").read_text().splitlines()):
        assert time.monotonic() < deadline, "nobody waits for it"


def test_one_that_is_not_locked_yet_is_left_to_who_makes_it(place: Path) -> None:
    made = Path(tempfile.mkdtemp(prefix=PREFIX))
    with runtime_directory():
        assert made.exists()


def test_one_whose_sockets_would_have_no_room_is_refused(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    deep = place / ("d" * 80)
    deep.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(deep))
    with pytest.raises(SettingsError) as refused, runtime_directory():
        pass
    assert refused.value.path == "TMPDIR"
    assert list(deep.iterdir()) == []


def test_where_none_can_be_made_that_is_told(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(place / "none"))
    with pytest.raises(NotStarted, match="No such file") as refused, runtime_directory():
        pass
    assert refused.value.path == "TMPDIR"


@pytest.mark.parametrize("step", ["locked", "marked"])
def test_of_one_that_cannot_be_held_nothing_is_left(place: Path, monkeypatch: pytest.MonkeyPatch, step: str) -> None:
    def no_locks(descriptor: int, operation: int) -> None:
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    if step == "locked":
        monkeypatch.setattr(fcntl, "flock", no_locks)
    else:
        monkeypatch.setattr(module, "MARK", "none/mark")
    before = os.listdir("/proc/self/fd")
    with pytest.raises(NotStarted, match=r"No locks available|No such file"), runtime_directory():
        pass
    assert list(place.iterdir()) == []
    assert os.listdir("/proc/self/fd") == before
