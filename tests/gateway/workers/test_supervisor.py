"""The parent of several workers, with small processes in their place that note what they are told."""

import errno
import os
import signal
import socket
import sys
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path

import anyio
import msgspec
import pytest
from trunkline.gateway.exits import ExitCode
from trunkline.gateway.settings import DirectorySection, GatewaySection, Settings
from trunkline.gateway.signals import HELD
from trunkline.gateway.workers import supervisor as module
from trunkline.gateway.workers.place import Reading
from trunkline.gateway.workers.supervisor import Supervisor, WorkersFailed, worker_command

pytestmark = pytest.mark.anyio

WORKER = """
import signal
masked = signal.pthread_sigmask(signal.SIG_SETMASK, ())

import asyncio, os, sys, time
from trunkline.gateway.workers.place import Place

place = Place.take(os.environ)

def note(word):
    with (place.runtime / "notes").open("a") as notes:
        notes.write(f"{os.getpid()} {word}\\n")

async def main():
    note("began")
    if sys.argv[1] == "ends":
        note(f"held-{len(masked)}")
    if sys.argv[1] == "begins":
        time.sleep(600)
    if sys.argv[1].isdigit():
        sys.exit(int(sys.argv[1]))
    which, _, status = sys.argv[1].partition(":")  # the first one alone comes up, or every second one
    number = len((place.runtime / "notes").read_text().splitlines())
    if which == "first" and number > 1 or which == "second" and number % 2:
        sys.exit(int(status))
    if sys.argv[1] == "lingers":  # the first one ends when it is told anything, the second one never, others at once
        number = len((place.runtime / "notes").read_text().splitlines())
        if number == 2:
            signal.signal(signal.SIGTERM, signal.SIG_IGN)
            note("lingers")
            time.sleep(600)
        if number > 2:
            sys.exit(7)
        place.tell_listening("")
        async for command in place.commands():
            sys.exit(7)
    place.tell_listening("")
    async for command in place.commands():
        note(command)
        if command == "leave" or command == "drain" and sys.argv[1] not in ("stays", "tidies"):
            return
        if sys.argv[1] == "hangs":
            place.close()
            time.sleep(600)
        if sys.argv[1] == "tidies":
            place.close()
            note("drained")
            while not (place.runtime / "go").exists():
                time.sleep(0.02)
            note("tidied")
            return

asyncio.run(main())
"""


class Parent:
    """A supervisor of small processes."""

    def __init__(
        self, runtime: Path, behaviour: str, listener: socket.socket, *, workers: int, drain: float, program: str
    ) -> None:
        self.ready = anyio.Event()
        self.ended = anyio.Event()
        self.failed: WorkersFailed | None = None
        self._notes = runtime / "notes"
        settings = Settings(
            gateway=GatewaySection(workers=workers, drain_timeout=drain),
            directory=DirectorySection("redis", "redis://h"),
        )
        command = [program, "-c", WORKER, behaviour]
        self.settings = settings
        """What is read again."""
        renew = partial(_given, self)
        self._supervisor = Supervisor(settings, renew, command, listener, runtime, "", self.ready.set)

    async def run(self) -> None:
        try:
            await self._supervisor.run()
        except WorkersFailed as error:
            self.failed = error
        self.ended.set()

    def noted(self, word: str) -> list[int]:
        """The processes that have noted this, in their order."""
        lines = self._notes.read_text().split("\n")[:-1] if self._notes.exists() else []
        return [int(pid) for pid, what in map(str.split, lines) if what == word]

    async def until(self, condition: Callable[[], object]) -> None:
        with anyio.fail_after(30):
            while not condition():  # noqa: ASYNC110 - other processes have no event for us
                await anyio.sleep(0.02)


def _given(parent: Parent, _: Settings) -> tuple[Reading, Settings]:
    return Reading(parent.settings), parent.settings


@asynccontextmanager
async def parent(
    runtime: Path, behaviour: str = "ends", *, workers: int = 2, drain: float = 30, program: str = sys.executable
) -> AsyncIterator[Parent]:
    """One that has ended when this is left; that is for the test to bring about."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        made = Parent(runtime, behaviour, listener, workers=workers, drain=drain, program=program)
        with anyio.fail_after(60):
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(made.run)
                yield made


def tell(number: signal.Signals) -> None:
    os.kill(os.getpid(), number)


async def test_all_come_up_reload_and_drain(tmp_path: Path) -> None:
    async with parent(tmp_path) as made:
        await made.ready.wait()
        began = made.noted("began")
        assert len(began) == 2
        tell(signal.SIGHUP)
        await made.until(lambda: len(made.noted("reload")) == 2)
        tell(signal.SIGTERM)
    assert sorted(made.noted("drain")) == sorted(began) == sorted(made.noted("began"))
    assert made.failed is None


async def test_what_is_typed_at_a_terminal_reaches_the_parent_alone(tmp_path: Path) -> None:
    async with parent(tmp_path) as made:
        await made.ready.wait()
        assert os.getpgrp() not in [os.getpgid(pid) for pid in made.noted("began")]
        tell(signal.SIGTERM)


async def test_none_is_ended_by_a_signal_as_it_starts(tmp_path: Path) -> None:
    async with parent(tmp_path) as made:
        await made.ready.wait()
        assert made.noted(f"held-{len(HELD)}") == made.noted("began")
        assert not signal.pthread_sigmask(signal.SIG_BLOCK, ()) & set(HELD), "the parent itself is told"
        tell(signal.SIGTERM)


async def test_one_that_dies_or_is_drained_is_followed_by_another(tmp_path: Path) -> None:
    async with parent(tmp_path) as made:
        await made.ready.wait()
        os.kill(made.noted("began")[0], signal.SIGKILL)
        await made.until(lambda: len(made.noted("began")) == 3)
        tell(signal.SIGINT)


async def test_while_no_process_can_be_started_the_others_live_on(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    program = tmp_path / "program"
    program.write_text(f'#!/bin/sh\nexec "{sys.executable}" "$@"\n')
    program.chmod(0o700)
    async with parent(tmp_path, program=str(program)) as made:
        await made.ready.wait()
        first, second = made.noted("began")
        away = program.rename(tmp_path / "away")
        os.kill(first, signal.SIGKILL)
        await made.until(lambda: "could not be started" in caplog.text)
        away.rename(program)
        await made.until(lambda: len(made.noted("began")) == 3)
        tell(signal.SIGTERM)
    assert made.failed is None
    assert second in made.noted("drain")


async def test_a_second_signal_leaves_at_once(tmp_path: Path) -> None:
    async with parent(tmp_path, "stays") as made:
        await made.ready.wait()
        tell(signal.SIGTERM)
        await made.until(lambda: len(made.noted("drain")) == 2)
        tell(signal.SIGTERM)
    assert len(made.noted("leave")) == 2


async def test_a_second_signal_does_not_wait_for_one_that_has_not_come_up(tmp_path: Path) -> None:
    async with parent(tmp_path, "begins") as made:
        await made.until(lambda: made.noted("began"))
        tell(signal.SIGTERM)
        tell(signal.SIGINT)
        with anyio.fail_after(20):
            await made.ended.wait()
    assert made.failed is None


async def test_a_second_signal_kills_none_that_has_served_and_writes_its_last(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    async with parent(tmp_path, "tidies") as made:
        await made.ready.wait()
        tell(signal.SIGTERM)
        await made.until(lambda: len(made.noted("drained")) == 2)
        tell(signal.SIGTERM)
        await made.until(lambda: "leaving at once" in caplog.text)
        (tmp_path / "go").touch()
    assert len(made.noted("tidied")) == 2


async def test_one_that_does_not_end_is_killed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MARGIN_SECONDS", 0.2)
    async with parent(tmp_path, "stays", drain=0) as made:
        await made.ready.wait()
        tell(signal.SIGTERM)
    assert made.noted("leave") == []


async def test_one_that_has_done_and_does_not_exit_is_followed_by_another(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "MARGIN_SECONDS", 0.2)
    async with parent(tmp_path, "hangs", workers=1) as made:
        await made.ready.wait()
        tell(signal.SIGHUP)
        await made.until(lambda: len(made.noted("began")) == 2)
        tell(signal.SIGTERM)
    assert made.failed is None


async def test_where_files_run_out_the_others_live_on(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with parent(tmp_path) as made:
        await made.ready.wait()
        first, second = made.noted("began")
        with monkeypatch.context() as patch:
            patch.setattr(socket, "socketpair", no_more_files)
            os.kill(first, signal.SIGKILL)
            await made.until(lambda: "could not be started" in caplog.text)
        await made.until(lambda: len(made.noted("began")) == 3)
        tell(signal.SIGTERM)
    assert made.failed is None
    assert second in made.noted("drain")


def no_more_files() -> None:
    raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))


async def test_calls_have_the_time_to_end_that_was_read_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MARGIN_SECONDS", 0.2)
    async with parent(tmp_path, "stays", drain=30) as made:
        await made.ready.wait()
        made.settings = msgspec.structs.replace(made.settings, gateway=GatewaySection(workers=2, drain_timeout=0))
        tell(signal.SIGHUP)
        await made.until(lambda: len(made.noted("reload")) == 2)
        with anyio.fail_after(20):
            tell(signal.SIGTERM)
            await made.ended.wait()


@pytest.mark.parametrize("status", ["7", "0"])
async def test_where_none_comes_up_the_gateway_ends(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, status: str
) -> None:
    monkeypatch.setattr(module, "FIRST_WAIT_SECONDS", 0.01)
    monkeypatch.setattr(module, "MAX_FAILURES", 3)
    async with parent(tmp_path, status) as made:
        pass
    assert made.failed is not None
    assert made.failed.told is None
    assert f"exit status {status}" in str(made.failed)
    assert len(made.noted("began")) == module.MAX_FAILURES


async def test_while_one_lives_the_gateway_does_not_give_up_however_many_fail(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "LONGEST_WAIT_SECONDS", 0.01)
    monkeypatch.setattr(module, "MAX_FAILURES", 2)
    async with parent(tmp_path, "first:7") as made:
        await made.until(lambda: len(made.noted("began")) > 1 + module.MAX_FAILURES)
        tell(signal.SIGTERM)
    assert made.failed is None
    assert made.noted("drain") == made.noted("began")[:1]


async def test_failures_before_a_worker_came_up_do_not_count(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "LONGEST_WAIT_SECONDS", 0.01)
    monkeypatch.setattr(module, "MAX_FAILURES", 2)
    async with parent(tmp_path, "second:7", workers=1) as made:
        await made.ready.wait()
        os.kill(made.noted("began")[1], signal.SIGKILL)
        await made.until(lambda: len(made.noted("began")) == 4)
        tell(signal.SIGTERM)
    assert made.failed is None


async def test_once_a_worker_came_up_one_that_says_why_it_cannot_start_is_tried_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is wrong may pass: the directory may have been away for a moment."""
    monkeypatch.setattr(module, "LONGEST_WAIT_SECONDS", 0.01)
    monkeypatch.setattr(module, "MAX_FAILURES", 2)
    async with parent(tmp_path, f"first:{ExitCode.NOT_STARTED:d}", workers=1) as made:
        await made.ready.wait()
        os.kill(made.noted("began")[0], signal.SIGKILL)
    assert made.failed is not None
    assert made.failed.told is None
    assert len(made.noted("began")) == 1 + module.MAX_FAILURES


async def test_one_that_is_killed_before_it_heard_what_it_was_told_is_followed_by_another(tmp_path: Path) -> None:
    async with parent(tmp_path) as made:
        await made.ready.wait()
        first, second = made.noted("began")
        os.kill(first, signal.SIGSTOP)
        tell(signal.SIGHUP)
        await made.until(lambda: made.noted("reload") == [second])
        os.kill(first, signal.SIGKILL)
        await made.until(lambda: len(made.noted("began")) == 3)
        tell(signal.SIGTERM)
    assert made.failed is None


async def test_a_stop_does_not_wait_for_the_next_start(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "FIRST_WAIT_SECONDS", 3600.0)
    monkeypatch.setattr(module, "LONGEST_WAIT_SECONDS", 3600.0)
    async with parent(tmp_path, workers=1) as made:
        await made.ready.wait()
        os.kill(made.noted("began")[0], signal.SIGKILL)
        await made.until(lambda: "another one is started" in caplog.text)
        tell(signal.SIGTERM)
    assert made.failed is None


async def test_where_the_gateway_gives_up_one_that_does_not_end_is_killed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "FIRST_WAIT_SECONDS", 0.01)
    monkeypatch.setattr(module, "MARGIN_SECONDS", 2.0)  # those that end by themselves need some of it
    async with parent(tmp_path, "lingers", drain=0) as made:
        await made.until(lambda: made.noted("lingers"))
        tell(signal.SIGHUP)
    assert made.failed is not None
    assert "exit status 7" in str(made.failed)


async def test_a_wrong_setting_is_told_once(tmp_path: Path) -> None:
    async with parent(tmp_path, "2") as made:
        pass
    assert made.failed is not None
    assert made.failed.told == ExitCode.WRONG
    assert len(made.noted("began")) == 1


def test_a_worker_is_run_as_its_parent_was() -> None:
    assert worker_command() == [sys.executable, *sys.orig_argv[1:]]
