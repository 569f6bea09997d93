"""The program that ends what a killed process left: it hears what there is, and ends it in order."""

import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
from trunkline.transports.upstream import orphans

SECONDS = 0.2

PATIENT = "import time; print(flush=True); time.sleep(600)"
STUBBORN = f"import signal; signal.signal(signal.SIGTERM, signal.SIG_IGN); {PATIENT}"
LEADER = f"import subprocess, sys; print(subprocess.Popen([sys.executable, '-c', {STUBBORN!r}]).pid, flush=True)"
"""Leaves somebody in its group, and exits."""


@contextmanager
def group(program: str) -> Iterator[subprocess.Popen[bytes]]:
    """A process with a group of its own, once it has said a line."""
    with subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, process_group=0) as made:
        assert made.stdout is not None
        made.stdout.readline()
        try:
            yield made
        finally:
            orphans.tell(made.pid, signal.SIGKILL)


def test_what_has_begun_and_not_ended_is_left() -> None:
    assert orphans.heard([b"+11\n", b"+12\n", b"-11\n", b"+13\n", b"-14\n"]) == {12, 13}
    assert orphans.heard([]) == set()


def test_a_line_that_is_cut_names_another_group_and_is_not_heard() -> None:
    assert orphans.heard([b"+12345\n", b"+1234"]) == {12345}


def test_they_end_in_order() -> None:
    with group(PATIENT) as patient, group(STUBBORN) as stubborn, group(LEADER) as leader:
        leader.wait()
        orphans.end({patient.pid, stubborn.pid, leader.pid}, SECONDS)
        assert (patient.wait(10), stubborn.wait(10)) == (-signal.SIGTERM, -signal.SIGKILL)
        assert leader.stdout is not None
        leader.stdout.read()  # nobody of its group holds it any longer


def test_who_ends_by_itself_is_sent_nothing() -> None:
    with group("print(flush=True); import time; time.sleep(0.1)") as soon:
        reaping = threading.Thread(target=soon.wait)
        reaping.start()
        orphans.end({soon.pid}, 600.0)
        reaping.join()
        assert soon.returncode == 0


def test_where_nobody_is_left_it_is_done_at_once() -> None:
    with group("print()") as gone:
        gone.wait()
    orphans.end({gone.pid}, 600.0)
    orphans.end(set(), 600.0)


def test_those_of_another_user_are_left(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(group: int, number: int) -> None:
        raise PermissionError

    monkeypatch.setattr(os, "killpg", refuse)
    orphans.end({12345}, 0.0)


def test_as_a_program_it_takes_no_signal_for_its_own() -> None:
    command = [sys.executable, "-I", "-S", orphans.__file__, str(SECONDS)]
    with group(PATIENT) as patient, subprocess.Popen(command, stdin=subprocess.PIPE) as program:
        assert program.stdin is not None
        program.stdin.write(b"+%d\n" % patient.pid)
        program.stdin.flush()
        wait_until_ignored(program.pid, signal.SIGTERM)
        program.send_signal(signal.SIGTERM)
        program.stdin.close()
        assert program.wait(10) == 0
        assert patient.wait(10) == -signal.SIGTERM


def wait_until_ignored(pid: int, number: signal.Signals) -> None:
    while True:
        with open(f"/proc/{pid}/status") as status:
            ignored = next(int(line.split()[1], 16) for line in status if line.startswith("SigIgn:"))
        if ignored >> (number - 1) & 1:
            return
