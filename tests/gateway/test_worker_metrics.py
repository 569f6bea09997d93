"""Figures of several processes: counts of all that ever ran, gauges of those that live, nothing twice, nothing lost."""

import fcntl
import logging
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import anyio
import pytest
from harness.counting_worker import workers
from harness.memory_wire import echo
from harness.muxing import bench, settle
from prometheus_client.parser import text_string_to_metric_families
from trunkline.gateway.metrics import exposition
from trunkline.gateway.worker_metrics import WorkerMetrics
from trunkline.mux.statistics import Gauges, Statistics

CALLS = ("calls", "x", "tools/call", "ok")
HELD = ("inflight", "x")


def merged(directory: Path) -> tuple[int, float]:
    """Calls and calls in flight, as one that has none itself sees them."""
    counted, held = WorkerMetrics(directory, "test").merged(Statistics(), {})
    seconds = counted.seconds.get(("call_seconds", "x"))
    assert counted.counts[CALLS] == (0 if seconds is None else sum(seconds.counts))
    return counted.counts[CALLS], held.get(HELD, 0)


def files(directory: Path) -> list[str]:
    return sorted(path.stem.partition("-")[0] for path in directory.glob("*.msgpack"))


def test_counts_and_gauges_of_processes_that_live_add_up(tmp_path: Path) -> None:
    with workers(tmp_path, 3) as processes:
        for number, process in enumerate(processes, 1):
            process.do(f"count {number}", f"hold {number}", "publish")
        assert merged(tmp_path) == (6, 6)
        assert files(tmp_path) == ["worker"] * 3


@pytest.mark.parametrize("reaped", [True, False])
def test_what_a_killed_process_counted_stays_and_what_it_held_goes(tmp_path: Path, reaped: bool) -> None:
    with workers(tmp_path, 3) as processes:
        for process in processes:
            process.do("count 5", "hold 2", "publish")
        processes[0].kill(reap=reaped)
        assert merged(tmp_path) == (15, 4)
        assert files(tmp_path) == ["ended", "worker", "worker"]
        processes[1].do("count 1", "publish-last")
        assert merged(tmp_path) == (16, 4)


def test_a_process_that_leaves_says_its_last(tmp_path: Path) -> None:
    with workers(tmp_path, 1) as [process]:
        process.do("publish", "count 7", "hold 1")
        process.leave()
        assert merged(tmp_path) == (7, 0)
    assert files(tmp_path) == ["ended"]


def test_a_process_that_is_started_again_under_its_name_counts_on(tmp_path: Path) -> None:
    for turn in range(1, 5):
        with workers(tmp_path, 1) as [process]:
            process.do("count 3", "hold 1", "publish")
            process.kill()
            assert merged(tmp_path) == (3 * turn, 0)
    assert files(tmp_path) == ["ended"]


def test_files_do_not_pile_up_where_nobody_asks(tmp_path: Path) -> None:
    for _ in range(4):
        with workers(tmp_path, 1) as [process]:
            process.do("count 1", "publish")
            assert len(files(tmp_path)) <= 2
    assert merged(tmp_path) == (4, 0)


def test_a_file_is_written_once_a_second_at_most_and_only_where_something_changed(tmp_path: Path) -> None:
    made, statistics = WorkerMetrics(tmp_path, "1"), Statistics()

    def written() -> int:
        return next(tmp_path.glob("worker-1-*.msgpack")).stat().st_ino

    made.publish(statistics, {})
    first = written()
    statistics.count(*CALLS)
    made.publish(statistics, {})
    assert written() == first, "within the second"
    made.publish(statistics, {}, last=True)
    second = written()
    assert second != first
    made.publish(statistics, {}, last=True)
    assert written() == second, "nothing changed"


@pytest.mark.anyio
async def test_it_publishes_while_it_runs_and_a_last_time(tmp_path: Path) -> None:
    made, statistics, held = WorkerMetrics(tmp_path, "1"), Statistics(), {HELD: 3.0}
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(made.run, statistics, lambda: held)
        await settle()
        assert merged(tmp_path) == (0, 3)
        statistics.count(*CALLS)
        statistics.observe("call_seconds", 0.1, "x")
        tasks.cancel_scope.cancel()
    assert merged(tmp_path) == (1, 3)


# What else can happen.


@contextmanager
def locked(directory: Path) -> Iterator[None]:
    """As if another process were folding, and stopped in the middle."""
    with (directory / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def test_a_process_that_is_stopped_while_it_folds_holds_nobody_up(tmp_path: Path) -> None:
    with workers(tmp_path, 2) as processes:
        for process in processes:
            process.do("count 2", "hold 1", "publish")
        with locked(tmp_path):
            processes[0].kill()
            assert merged(tmp_path) == (4, 1)
            assert files(tmp_path) == ["worker", "worker"]
        assert merged(tmp_path) == (4, 1)
        assert files(tmp_path) == ["ended", "worker"]


def test_a_process_that_is_killed_while_it_folds_counts_nothing_twice(tmp_path: Path) -> None:
    with workers(tmp_path, 1) as [process]:
        process.do("count 2", "publish")
        process.kill()
    [left] = tmp_path.glob("worker-*.msgpack")
    text = left.read_bytes()
    assert merged(tmp_path) == (2, 0)
    left.write_bytes(text)  # it had folded, and had not removed it yet
    assert merged(tmp_path) == (2, 0)
    assert files(tmp_path) == ["ended"]
    assert merged(tmp_path) == (2, 0)


def test_whoever_asks_while_others_fold_sees_each_count_once(tmp_path: Path) -> None:
    """Processes end one after the other, while three threads ask all the time."""
    count, seen, over = 6, set[int](), threading.Event()

    def ask() -> None:
        while not over.is_set():
            seen.add(merged(tmp_path)[0])

    with workers(tmp_path, count) as processes:
        for process in processes:
            process.do("count 5", "publish")
        threads = [threading.Thread(target=ask) for _ in range(3)]
        for thread in threads:
            thread.start()
        try:
            for process in processes:
                process.kill()
                assert merged(tmp_path) == (5 * count, 0)
        finally:
            over.set()
            for thread in threads:
                thread.join()
    assert seen == {5 * count}


def test_a_file_that_cannot_be_read_is_passed_over(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with workers(tmp_path, 2) as processes:
        for process in processes:
            process.do("count 1", "publish")
        next(tmp_path.glob("worker-1-*.msgpack")).write_bytes(b"\xff")
        (tmp_path / "something.else").touch()
        with caplog.at_level(logging.WARNING):
            assert merged(tmp_path) == (1, 0)
    assert "cannot be read" in caplog.text


def test_a_number_of_a_process_that_was_given_again_is_not_taken_for_it(tmp_path: Path) -> None:
    with workers(tmp_path, 1) as [process]:
        process.do("count 1", "hold 1", "publish")
        [path] = tmp_path.glob("worker-1-*.msgpack")
        name, started = path.stem.rsplit("-", 1)
        path.rename(path.with_name(f"{name}-{int(started) - 1}.msgpack"))
        assert merged(tmp_path) == (1, 0)


def test_without_the_directory_a_process_stands_for_itself(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    directory = tmp_path / "gone"
    directory.mkdir()
    made, statistics, held = WorkerMetrics(directory, "1"), Statistics(), Gauges({HELD: 1})
    (directory / "lock").unlink()
    directory.rmdir()
    statistics.count(*CALLS)
    made.publish(statistics, held)
    assert made.merged(statistics, held) == (statistics, held)
    assert "could not be written" in caplog.text


@pytest.mark.parametrize("name", ["", "a/b", "../a", "a-b", "x" * 65, "a\n"])
def test_a_name_that_could_be_another_file_is_refused(tmp_path: Path, name: str) -> None:
    with pytest.raises(ValueError, match="a worker's id"):
        WorkerMetrics(tmp_path, name)


@pytest.mark.anyio
async def test_whoever_is_scraped_tells_what_all_have_counted_and_hold(tmp_path: Path) -> None:
    async with bench(on_request=echo) as at:
        client = await at.client()
        await client.answer(client.call())
        with workers(tmp_path, 1) as [process]:
            process.do("count 4", "hold 2", "publish")
            text = exposition(at.pool, workers=WorkerMetrics(tmp_path, "here"))().decode()
    told = {
        (sample.name, sample.labels.get("server"), sample.labels.get("state")): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
        if sample.value
    }
    assert told["trunkline_calls_total", "x", None] == 5
    assert told["trunkline_call_seconds_count", "x", None] == 5
    assert told["trunkline_inflight", "x", None] == 2
    assert told["trunkline_channels", "x", "idle"] == 1
