"""Several workers behind one socket, with one redis: any of them serves any request, and none is needed (G7, G8)."""

import os
import signal
import subprocess
import sys
import urllib.error
from collections.abc import AsyncIterator, Callable, Iterable, Iterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any

import aiohttp
import anyio
import anyio.to_thread
import pytest
from harness.counting_process import PROGRAM
from harness.gateways import command, environment, until
from harness.ports import free_port
from harness.redis_server import RedisServer
from harness.upstreams import Upstream
from harness.wire import text_of
from harness.worker_gateways import WorkerGateway, worker_gateway

pytestmark = pytest.mark.anyio

WORKERS = 3
WORKFLOWS = 8
CALLS = 12
PATIENCE = 60.0


@pytest.fixture(scope="module")
def process_gateway(
    redis: RedisServer, upstream_process: Upstream, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[WorkerGateway]:
    """Several workers before a server over HTTP (`up`) and one that is a process (`process`)."""
    place = tmp_path_factory.mktemp("workers")
    (place / "trunkline.toml").write_text(
        f'[directory]\nbackend = "redis"\nurl = "{redis.url}"\n[gateway]\ndrain_timeout = 20\n'
        f'[servers.up]\nurl = "{upstream_process.url}"\neras = ["legacy"]\n'
        f'[servers.process]\ncommand = ["{sys.executable}", "{PROGRAM}"]\n'
    )
    with worker_gateway(place / "trunkline.toml", WORKERS) as running:
        yield running


@pytest.fixture
async def workers(process_gateway: WorkerGateway, upstream: Upstream) -> AsyncIterator[WorkerGateway]:
    """The same, with all of its workers there."""
    await process_gateway.complete()
    yield process_gateway
    if process_gateway.running.process.returncode is not None:
        raise process_gateway.running.process.fail("the gateway ended during a test")


async def test_g7_any_worker_serves_any_request_and_the_upstream_session_is_one(
    workers: WorkerGateway, upstream: Upstream
) -> None:
    counted: list[list[str]] = []

    async def live() -> None:
        session = await workers.open()
        counted.append([text_of(await workers.call(session, "counter")) for _ in range(CALLS)])

    with anyio.fail_after(PATIENCE):
        async with anyio.create_task_group() as tasks:
            for _ in range(WORKFLOWS):
                tasks.start_soon(live)
    assert counted == [[str(n) for n in range(1, CALLS + 1)]] * WORKFLOWS
    assert upstream.counts()["initialize"] == WORKFLOWS
    assert upstream.counts()["method:tools/call"] == WORKFLOWS * CALLS


async def test_operators_are_told_of_all_workers_by_any(workers: WorkerGateway) -> None:
    sessions = [await workers.open() for _ in range(WORKFLOWS)]
    rows: list[dict[str, Any]] = []
    accounts: list[dict[str, Any]] = []

    def all_answer() -> bool:  # in their second, on a machine that is busy with other tests
        rows[:] = workers.running.fetch_json("/api/sessions")
        return not any(row["state"] == "missing" for row in rows)

    await until(all_answer)
    assert len({row["workflow"] for row in rows}) >= len(sessions)
    assert all(row["worker"] > 0 for row in rows)
    one = rows[0]

    def is_explained() -> bool:
        try:
            accounts.append(workers.running.fetch_json(f"/api/sessions/{one['workflow']}"))
        except urllib.error.HTTPError as refused:
            with refused:
                if refused.code != 503:  # it is somewhere, whoever has not answered
                    raise
        return bool(accounts)

    await until(is_explained)
    assert accounts[0]["workflow"]["workflow"] == one["workflow"]

    assert len({row["worker"] for row in rows}) > 1

    def counts_all() -> bool:
        counted = workers.running.metric("trunkline_upstream_requests_total", kind="initialize", server="up")
        return counted >= len(sessions)

    for _ in range(WORKERS):
        await until(counts_all)


async def test_settings_are_read_again_by_all_workers(workers: WorkerGateway) -> None:
    workers.running.process.send_signal(signal.SIGHUP)
    await until(lambda: workers.running.metric("trunkline_reloads_total", outcome="applied") == WORKERS)


async def test_g7_a_killed_worker_takes_no_session_with_it(workers: WorkerGateway, upstream: Upstream) -> None:
    sessions = [await workers.open() for _ in range(4)]
    for turn in range(1, 3):
        for session in sessions:
            assert text_of(await workers.call(session, "counter")) == str(turn)
        victim = workers.pids()[0]
        workers.end(victim, signal.SIGKILL)
    with anyio.fail_after(PATIENCE):
        for session in sessions:
            assert text_of(await workers.call(session, "counter")) == "3"
    assert upstream.counts()["initialize"] == len(sessions)
    assert upstream.counts()["method:tools/call"] == 3 * len(sessions)
    await workers.complete()


@asynccontextmanager
async def load(workers: WorkerGateway, answers: list[str]) -> AsyncIterator[None]:
    """Clients that go on calling, each on fresh connections; they end with the last answer that they wait for."""
    ends = anyio.Event()

    async def live() -> None:
        session = await workers.open()
        while not ends.is_set():
            answers.append(text_of(await workers.call(session, "echo", {"value": len(answers)})))

    with anyio.fail_after(PATIENCE):
        async with anyio.create_task_group() as tasks:
            for _ in range(4):
                tasks.start_soon(live)
            yield
            ends.set()


async def test_g8_a_rolling_restart_under_load_loses_no_call(workers: WorkerGateway, upstream: Upstream) -> None:
    answers: list[str] = []
    async with load(workers, answers):
        for victim in workers.pids()[:2]:
            workers.end(victim, signal.SIGTERM)
            await workers.complete(without=victim)
            before = len(answers)
            await until(lambda before=before: len(answers) > before + 10)
    assert upstream.counts()["method:tools/call"] == len(answers)


async def test_g8_a_call_in_flight_is_answered_by_the_worker_that_drains(
    workers: WorkerGateway, upstream: Upstream, key: str
) -> None:
    session = await workers.open()
    answers: list[str] = []

    async def hold() -> None:
        answers.append(text_of(await workers.call(session, "hold", {"gate": key})))

    with anyio.fail_after(PATIENCE):
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(hold)
            await upstream.saw("mark:holding")
            for victim in workers.pids():
                workers.end(victim, signal.SIGTERM)
            await until(lambda: len(workers.running.process.output().split(": draining")) > WORKERS)
            await anyio.to_thread.run_sync(upstream.open, key)
    assert len(answers) == 1
    await workers.complete()


async def test_g8_a_stop_of_all_processes_at_once_is_no_second_signal_to_the_workers(
    redis: RedisServer, upstream: Upstream, settings_file: Callable[[str], Path], key: str
) -> None:
    """As systemd does it by itself: the parent has told its workers by the time that they are signalled."""
    directory = f'[directory]\nbackend = "redis"\nurl = "{redis.url}"\n'
    toml = settings_file(f'{directory}[servers.up]\nurl = "{upstream.url}"\neras = ["legacy"]\n')
    with worker_gateway(toml, 2) as running, anyio.fail_after(PATIENCE):
        await running.complete()
        session, workers, process = await running.open(), running.pids(), running.running.process
        async with anyio.create_task_group() as tasks:

            async def hold() -> None:
                assert "result" in await running.call(session, "hold", {"gate": key})

            tasks.start_soon(hold)
            await upstream.saw("mark:holding")
            process.send_signal(signal.SIGTERM)
            await until(lambda: process.output().count("the parent has stopped: draining") == 2)
            for pid in workers:
                with suppress(ProcessLookupError):  # the one that has nothing to do may be gone
                    os.kill(pid, signal.SIGTERM)
            await until(lambda: "SIGTERM: draining already" in process.output() or not any(map(is_running, workers)))
            await anyio.to_thread.run_sync(upstream.open, key)
        assert await anyio.to_thread.run_sync(process.wait, 30) == 0


async def test_a_second_signal_to_the_parent_waits_for_no_calls_of_its_workers(
    redis: RedisServer, upstream: Upstream, settings_file: Callable[[str], Path], key: str
) -> None:
    settings = f'[directory]\nbackend = "redis"\nurl = "{redis.url}"\n[gateway]\ndrain_timeout = 600\n'
    toml = settings_file(f'{settings}[servers.up]\nurl = "{upstream.url}"\neras = ["legacy"]\n')
    with worker_gateway(toml, 2) as running, anyio.fail_after(PATIENCE):
        await running.complete()
        session, process = await running.open(), running.running.process
        async with anyio.create_task_group() as tasks:

            async def hold() -> None:
                with suppress(aiohttp.ClientError, AssertionError):
                    await running.call(session, "hold", {"gate": key})

            tasks.start_soon(hold)
            await upstream.saw("mark:holding")
            process.send_signal(signal.SIGTERM)
            await until(lambda: process.output().count("the parent has stopped: draining") == 2)
            process.send_signal(signal.SIGTERM)
            await anyio.to_thread.run_sync(process.wait, 30)
            await anyio.to_thread.run_sync(upstream.open, key)
        assert "the parent was told again: leaving at once" in process.output()


async def test_g7_a_server_that_is_a_process_is_reached_from_every_worker(workers: WorkerGateway) -> None:
    session = await workers.open("process")
    with anyio.fail_after(PATIENCE):
        counted = [text_of(await workers.call(session, "counter", name="process")) for _ in range(CALLS)]
    assert counted == [str(n) for n in range(1, CALLS + 1)]


async def test_g7_calls_of_a_killed_owner_are_told_at_once_and_a_session_begins_elsewhere(
    workers: WorkerGateway, tmp_path: Path
) -> None:
    session = await workers.open("process")
    owner = int(text_of(await workers.call(session, "owner", name="process")))
    outcomes: list[int | None] = []

    async def hang(number: int) -> None:
        try:
            answer = await workers.call(session, "hang", {"told": str(tmp_path / str(number))}, name="process")
            outcomes.append(answer["error"]["code"])
        except (aiohttp.ClientError, AssertionError):  # it was the owner that had the client's connection
            outcomes.append(None)

    def begun() -> int:
        return len(list(tmp_path.iterdir()))

    def connected(pids: Iterable[int]) -> int:
        return sum(map(workers.connections, pids))

    others = set(workers.pids()) - {owner}
    await until(lambda: not connected(workers.pids()))
    with anyio.fail_after(PATIENCE):
        async with anyio.create_task_group() as tasks:
            calls = 0
            while calls < CALLS or not connected(others):  # the kernel gives a connection to any worker
                tasks.start_soon(hang, calls)
                calls += 1
                await until(lambda calls=calls: connected(workers.pids()) == calls)
            await until(lambda: workers.running.metric("trunkline_inflight", server="process") == calls)
            await until(begun)
            workers.end(owner, signal.SIGKILL)
            await until(lambda: len(outcomes) == calls)
    assert -31002 in outcomes
    assert set(outcomes) <= {-31002, None}
    with anyio.fail_after(PATIENCE):
        again = await workers.open("process")
        assert text_of(await workers.call(again, "counter", name="process")) == "1"
    await workers.complete(without=owner)


async def test_the_end_of_the_parent_is_the_end_of_its_workers(
    redis: RedisServer, settings_file: Callable[[str], Path]
) -> None:
    text = f'[directory]\nbackend = "redis"\nurl = "{redis.url}"\n'
    with worker_gateway(settings_file(text), 2, "--demo") as running:
        await running.complete()
        pids = running.pids()
        os.kill(running.running.process.pid, signal.SIGKILL)
        await until(lambda: not any(is_running(pid) for pid in pids), timeout=40)


def is_running(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    except OSError:
        return False


@pytest.mark.parametrize("workers", ["1", "2"])
def test_a_directory_that_is_not_there_is_told_once(settings_file: Callable[[str], Path], workers: str) -> None:
    url = f"redis://user:s3cret@127.0.0.1:{free_port()}/0"
    toml = settings_file(f'[directory]\nbackend = "redis"\nurl = "{url}"\n')
    arguments = command("serve", str(toml), "--workers", workers, "--port", str(free_port()))
    ended = subprocess.run(arguments, env=environment(), capture_output=True, text=True, timeout=60)
    assert ended.returncode == 3, ended.stderr
    assert ended.stderr.count("directory.url") == 1
    assert "s3cret" not in ended.stderr
    assert "Traceback" not in ended.stderr
