"""The benchmark suite keeps running: each scenario with a handful of calls, and what judges results."""

import asyncio
import contextlib
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from rich.progress import Progress

from bench import load, memory, slow_reader, soak
from bench.budget import budget
from bench.client import Target, arguments, burst, closed_loop, open_loop, opened
from bench.compare import changes, notch
from bench.frames import TEXT, Frames, frame
from bench.load import Bed, measure, steps
from bench.processes import (
    FIRST,
    ROOT,
    Rank,
    awake,
    cores,
    cpu_seconds,
    descriptors,
    free_port,
    in_real_time,
    is_ranked,
    pinned,
    process,
    resident,
    upstream,
)
from bench.results import as_text, percentile, result, results, write_result
from bench.scenarios import DIRECT, FORWARDER, MANY_IDLE, OLD_6, SCENARIOS, TRUNKLINE, VARIANTS

pytestmark = [pytest.mark.anyio, pytest.mark.checkout]

STARTED = {DIRECT, FORWARDER, OLD_6, TRUNKLINE, MANY_IDLE}
"""Variants that the tests start: one of each kind."""


@pytest.fixture(scope="module")
def bed() -> Iterator[Bed]:
    with Bed() as made:
        yield made


@pytest.mark.parametrize("name", SCENARIOS)
async def test_each_scenario_measures_what_it_says(bed: Bed, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    is_slow = SCENARIOS[name].server == "bench50"
    # The old path ends its last session after the answer: that request is to arrive before another variant is counted.
    monkeypatch.setattr(load, "SETTLE_SECONDS", 0.15 if is_slow else 0.1)
    monkeypatch.setitem(VARIANTS, MANY_IDLE, replace(VARIANTS[MANY_IDLE], idle=20))
    shown = tuple(variant for variant in SCENARIOS[name].variants if variant in STARTED)
    monkeypatch.setattr(load, "OPEN_SLOTS", 64)
    asked = SCENARIOS[name]
    seconds = 0.3 if is_slow else 0.05  # what a session does beside its first calls is over by then
    scenario = replace(asked, variants=shown, seconds=seconds, inflight=min(asked.inflight, 64))
    noted = []
    rows = await measure(bed, scenario, 1, lambda: noted.append(1))
    assert len(noted) <= steps(scenario, 1)
    by_name = {row["variant"]: row for row in rows}
    assert set(by_name) == set(shown)
    for row in rows:
        assert row["errors"] == 0
        assert row["calls"] > 0
        assert row["p50_ms"] > 0
        assert row["upstream_requests"] is None or row["upstream_requests"] > 0.9
        assert (row.get("cpu_us") is None) == (row["variant"] == DIRECT)
    for variant in shown:
        if variant in (TRUNKLINE, MANY_IDLE) and scenario.server != "stdio":
            assert by_name[variant]["upstream_initializes"] == 0
            assert by_name[variant]["upstream_requests"] == 1
    if OLD_6 in shown:
        assert by_name[OLD_6]["upstream_requests"] > 4
        assert by_name[OLD_6]["upstream_initializes"] == pytest.approx(1, abs=0.5)
    if scenario.shape == "burst":
        assert by_name[DIRECT]["parallel"] > 4


@pytest.mark.parametrize("anew", [False, True])
async def test_an_answer_that_is_not_the_calls_own_is_an_error(anew: bool) -> None:
    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.closing(writer), contextlib.suppress(OSError, EOFError):
            while True:
                head = await reader.readuntil(b"\r\n\r\n")
                length = next(int(line[16:]) for line in head.split(b"\r\n") if line.startswith(b"Content-Length: "))
                await reader.readexactly(length)
                body = b'{"jsonrpc":"2.0","id":1,"result":{"structuredContent":{"t":"another;"}}}'
                own = b"mcp-session-id: s\r\ncontent-length: %d\r\n\r\n" % len(body)
                writer.write(b"HTTP/1.1 200 OK\r\n" + own + body)

    server = await asyncio.start_server(answer, "127.0.0.1", 0)
    async with server:
        port = server.sockets[0].getsockname()[1]
        async with opened(Target(port, "/mcp"), inflight=2, session="", anew=anew) as slots:
            sample = await closed_loop(slots, calls=5)
    assert (sample.errors, sample.seconds) == (5, [])


@pytest.mark.parametrize("answer", [b"", b"HTTP/1.1 200 OK\r\nmcp-session-id: s\r\ncontent-length: 5\r\n\r\nfour"])
async def test_a_client_that_comes_anew_and_is_cut_has_an_error(answer: bytes) -> None:
    async def cut(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(answer)
        writer.close()

    server = await asyncio.start_server(cut, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    async with server, opened(Target(port, "/mcp"), inflight=2, anew=True) as slots:
        assert (await closed_loop(slots, calls=4)).errors == 4
    async with opened(Target(port, "/mcp"), inflight=2, anew=True) as slots:  # nobody listens any longer
        assert (await closed_loop(slots, calls=4)).errors == 4


async def test_an_open_loop_counts_from_when_a_call_was_due() -> None:
    """A hundred calls a second of 50 ms each through one slot: each waits for all that were due before it."""
    with upstream(cores().client) as port:
        async with opened(Target(port, "/mcp"), inflight=1) as slots:
            sample = await open_loop(slots, rate=100, seconds=0.2, asks=[arguments(ms=50)])
    assert sample.calls == 20
    assert sample.errors == 0
    assert max(sample.seconds) > 0.5


async def test_a_burst_is_made_at_once() -> None:
    with upstream(cores().client) as port:
        async with opened(Target(port, "/mcp"), inflight=8) as slots:
            sample = await burst(slots, asks=[arguments(ms=500)])
    assert sample.calls == 8
    assert sample.elapsed < 8 * 0.5


def test_who_has_a_rank_goes_first_where_that_is_allowed() -> None:
    before = os.getpriority(os.PRIO_PROCESS, 0)
    found = []
    with pinned(cores().client, Rank.BUSY):
        is_allowed = is_ranked()
        for rank in (Rank.PROMPT, Rank.BUSY, None):
            port = free_port()
            command = [sys.executable, "-m", "bench.upstream", "--port", str(port)]
            with process(command, cores().upstream, f"http://127.0.0.1:{port}/recorder", rank=rank) as pid:
                found.append((os.sched_getscheduler(pid) == os.SCHED_RR, os.getpriority(os.PRIO_PROCESS, pid)))
    usual = max(0, before)
    assert found == [(is_allowed, usual), (False, FIRST if is_allowed else usual), (False, usual)]
    assert os.getpriority(os.PRIO_PROCESS, 0) == before


def test_who_is_in_real_time_is_so_for_the_length_of_the_context_where_that_is_allowed() -> None:
    before = os.getpriority(os.PRIO_PROCESS, 0)
    with pinned(cores().client, Rank.BUSY):
        policy = os.SCHED_RR if is_ranked() else os.SCHED_OTHER
        with in_real_time(os.getpid()):
            assert os.sched_getscheduler(0) == policy
        assert os.sched_getscheduler(0) == os.SCHED_OTHER
        assert is_ranked() is (policy == os.SCHED_RR)
    assert os.getpriority(os.PRIO_PROCESS, 0) == before


def test_cores_are_kept_awake_by_who_gives_way() -> None:
    def those_spinning() -> list[int]:  # the kernel's list may leave out some while others come and go
        children = map(int, Path(f"/proc/self/task/{os.getpid()}/children").read_text().split())
        return [pid for pid in children if b"SCHED_IDLE" in Path(f"/proc/{pid}/cmdline").read_bytes()]

    with awake():
        until = time.monotonic() + 30
        while len(spinning := those_spinning()) != os.cpu_count() or any(
            os.sched_getscheduler(pid) != os.SCHED_IDLE for pid in spinning
        ):
            assert time.monotonic() < until, spinning
            time.sleep(0.01)
    assert not any(Path(f"/proc/{pid}").exists() for pid in spinning)


def test_processes_are_measured_with_their_children() -> None:
    program = "import subprocess, sys; subprocess.run([sys.executable, '-c', 'while True: pass'])"
    with pinned(cores().client):
        started = subprocess.Popen([sys.executable, "-c", program])
        try:
            until = time.monotonic() + 30
            while cpu_seconds(started.pid) < 0.3:
                assert time.monotonic() < until
                time.sleep(0.02)
            assert resident(started.pid) > 1.5 * resident_alone(started.pid)
            assert descriptors(started.pid) >= 6
        finally:
            for child in Path(f"/proc/{started.pid}/task/{started.pid}/children").read_text().split():
                os.kill(int(child), 9)
            started.wait()


def resident_alone(pid: int) -> int:
    return int(Path(f"/proc/{pid}/status").read_text().partition("VmRSS:")[2].split()[0])


def test_a_process_that_does_not_start_is_told() -> None:
    with (
        pytest.raises(RuntimeError, match="ended with 3"),
        process([sys.executable, "-c", "raise SystemExit(3)"], cores().client, "http://127.0.0.1:9/"),
    ):
        pass


def test_a_load_that_there_is_not_is_told_with_those_that_there_are() -> None:
    ended = subprocess.run([sys.executable, "-m", "bench.load", "all"], cwd=ROOT, capture_output=True, text=True)
    assert ended.returncode == 2
    assert f"there is no all; there are {', '.join(SCENARIOS)}" in " ".join(ended.stderr.split())


def test_a_soak_tells_whether_memory_is_level() -> None:
    with Progress(disable=True) as progress:
        [row] = soak.run(soak.Plan(minutes=0.03, idle=5, churn=20, rate=50, stretches=2, quiet=0.1), progress)
    assert row["errors"] == 0
    assert row["workflows_ended"] == 20
    assert row["calls"] > 100
    assert len(row["course"]["seconds"]) > 10
    assert len(row["course"]["quiet"]) == 3
    assert row["descriptors_end"] <= row["descriptors_most"]


def test_what_grows_is_not_level() -> None:
    seconds = [float(n) for n in range(100)]
    assert soak.Course(seconds, [100.0] * 60 + [106.0] * 40).rss_drift(10.0) == pytest.approx(0.06)
    assert soak.Course(seconds, [50.0] * 10 + [100.0] * 90).rss_drift(10.0) == 0
    assert soak.Course(quiet=[9, *range(20, 30)]).descriptors_drift == pytest.approx(7 / 21)
    assert soak.Course(quiet=[9, 16, *[17] * 9]).descriptors_drift == 0


HELD_OPEN = [
    pytest.param(one, id=one.name, marks=[] if one.wire in ("stream", "ws") else pytest.mark.slow)
    for one in memory.VARIANTS
    if one.path != "/ws"
]


@pytest.mark.parametrize("variant", HELD_OPEN)
def test_memory_is_measured_with_what_is_held_open(variant: memory.Variant, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory, "SETTLE_SECONDS", 0.05)
    monkeypatch.setattr(memory, "WARM_UP", 20)
    opening = []
    assert memory.one_round(variant, 20, lambda: opening.append(1)) > -1000
    assert len(opening) == 20


def test_a_slow_reader_is_measured() -> None:
    row = slow_reader.run(1, 0.1)
    assert row["errors"] == 0
    assert row["memory_at_most_MiB"] >= row["memory_before_MiB"]


@pytest.mark.parametrize("size", [0, 125, 126, 65_535, 65_536])
def test_frames_are_read_as_they_were_written_however_they_come(size: int) -> None:
    text = frame(b"x" * size, masked=True) + frame(b"last")
    for step in (1 if size < 1000 else 4096, len(text)):
        frames = Frames()
        read = [one for at in range(0, len(text), step) for one in frames.feed(text[at : at + step])]
        assert read == [(TEXT, b"x" * size), (TEXT, b"last")]


def test_a_frame_with_a_mask_is_unmasked() -> None:
    masked = bytes(a ^ b for a, b in zip(b"hello", b"\1\2\3\4\1", strict=True))
    assert list(Frames().feed(b"\x81\x85\1\2\3\4" + masked)) == [(TEXT, b"hello")]


def test_a_percentile_needs_enough_values_to_tell() -> None:
    assert percentile(range(1, 100), 99) is None
    assert percentile(range(1, 101), 99) == 100
    assert percentile(range(1, 1001), 99.9) == 1000
    assert percentile(range(101), 50) == 50


def measured(path: Path, name: str, rounds: dict[str, dict[str, list[float]]]) -> dict[str, Any]:
    rows = [{"variant": variant, "rounds": metrics} for variant, metrics in rounds.items()]
    write_result(path, name, "about", "command", rows)
    return results(path)


def test_what_is_stored_says_on_what_and_with_what(tmp_path: Path) -> None:
    write_result(tmp_path, "some", "about", "command", [{"variant": "a", "rounds": {"cpu_us": [1.0, 2.0]}}])
    stored = result("some", tmp_path)
    assert stored["rows"] == [{"variant": "a", "rounds": {"cpu_us": [1.0, 2.0]}}]
    assert stored["machine"]["cores"] == os.cpu_count()
    assert {"commit", "versions", "command", "at"} <= stored.keys()
    assert "[1.0, 2.0]" in as_text(stored)


def test_a_change_within_the_rounds_own_spread_is_none(tmp_path: Path) -> None:
    noisy = {TRUNKLINE: {"cpu_us": [80.0, 95.0, 88.0, 102.0, 76.0]}}
    after = {TRUNKLINE: {"cpu_us": [90.0, 99.0, 84.0, 104.0, 93.0]}}
    [change] = changes(measured(tmp_path / "a", "some", noisy), measured(tmp_path / "b", "some", after))
    assert change.by == pytest.approx(93 / 88 - 1)
    assert not change.is_real


def test_a_change_beyond_it_is_one_for_better_or_worse(tmp_path: Path) -> None:
    rounds = {TRUNKLINE: {"cpu_us": [80.0, 81.0, 80.5], "calls_per_second": [100.0, 101.0, 100.5]}}
    after = {TRUNKLINE: {"cpu_us": [90.0, 91.0, 90.5], "calls_per_second": [110.0, 111.0, 110.5]}}
    found = changes(measured(tmp_path / "a", "some", rounds), measured(tmp_path / "b", "some", after))
    by_metric = {change.metric: change for change in found}
    assert by_metric["cpu_us"].is_real
    assert not by_metric["cpu_us"].is_better
    assert by_metric["calls_per_second"].is_real
    assert by_metric["calls_per_second"].is_better


def test_a_slower_machine_changes_nothing_where_there_is_a_yardstick(tmp_path: Path) -> None:
    before = {TRUNKLINE: {"cpu_us": [80.0, 81.0, 80.0]}, FORWARDER: {"cpu_us": [40.0, 40.5, 40.0]}}
    slower = {name: {"cpu_us": [2 * value for value in metrics["cpu_us"]]} for name, metrics in before.items()}
    found = {
        change.variant: change
        for change in changes(measured(tmp_path / "a", "some", before), measured(tmp_path / "b", "some", slower))
    }
    assert found[TRUNKLINE].beside == FORWARDER
    assert not found[TRUNKLINE].is_real
    assert found[FORWARDER].is_real


def test_a_notch_narrows_with_the_rounds() -> None:
    assert notch([1.0, 2.0, 3.0] * 12) < notch([1.0, 2.0, 3.0] * 3) * 0.51


def test_the_budget_is_judged_by_ratios_of_the_same_round(tmp_path: Path) -> None:
    measured(
        tmp_path,
        "http_64",
        {TRUNKLINE: {"calls_per_second": [50.0, 500.0]}, FORWARDER: {"calls_per_second": [100.0, 1e3]}},
    )
    stored = result("http_64", tmp_path)
    stored["rows"][0]["calls_per_second"] = 275.0
    write_result(tmp_path, "http_64", "", "", stored["rows"])
    [line] = [one for one in budget(tmp_path) if one.what.startswith("calls/s at 64")]
    assert (line.measured, line.is_met) == ("0.50 (275/s)", False)


def run(*arguments: str) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(
        [sys.executable, "-m", "bench", *arguments], cwd=ROOT, capture_output=True, text=True, check=False
    )


def test_the_command_line_lists_compares_and_judges(tmp_path: Path) -> None:
    listed = run()
    assert all(name in listed.stdout for name in ("bench.load", "bench.soak", *SCENARIOS))
    measured(tmp_path / "a", "some", {TRUNKLINE: {"cpu_us": [80.0, 81.0, 80.5]}})
    measured(tmp_path / "b", "some", {TRUNKLINE: {"cpu_us": [90.0, 91.0, 90.5]}})
    worse = run("compare", str(tmp_path / "a"), str(tmp_path / "b"))
    assert worse.returncode == 1
    assert "1 of them for the worse" in worse.stdout
    assert run("compare", str(tmp_path / "b"), str(tmp_path / "a")).returncode == 0
    assert "there is no" in run("compare", str(tmp_path / "c"), str(tmp_path / "a")).stdout
    assert run("budget", str(tmp_path / "a")).returncode == 2
