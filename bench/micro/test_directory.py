"""What each operation of a directory costs, one after the other."""

import asyncio
import sys
from collections.abc import Awaitable, Callable, Iterator
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import msgspec
import pytest
from pytest_benchmark.fixture import BenchmarkFixture
from trunkline.mux.directory import Entry, SharedDirectory, Worker
from trunkline.mux.limits import EventLogLimits

sys.path.append(str(Path(__file__).parents[2] / "tests"))

from contract.directory import ALICE, record
from harness.backends import Backends
from harness.shared_memory import SharedMemoryDirectory

from bench.micro.measuring import allocations

BACKENDS = ("memory", "redis", "sqlite", "postgresql")
OPERATIONS = ("claim", "get", "find", "replace", "touch", "draw_ids", "append", "beat", "settle")
Operation = Callable[[], Awaitable[Any]]


class Bench:
    """One directory on a loop of its own, with a record and a worker in it."""

    def __init__(self, backends: Backends, name: str) -> None:
        self.loop = asyncio.new_event_loop()
        self._stack = AsyncExitStack()
        self.loop.run_until_complete(self._start(backends, name))

    async def _start(self, backends: Backends, name: str) -> None:
        self.directory: SharedDirectory = SharedMemoryDirectory()
        if name != "memory":
            self.directory = await self._stack.enter_async_context(backends.empty(name))
        self.record = record("chat")
        await self.directory.claim(self.record)
        self.worker = await self.directory.enroll(Worker("bench"))

    def close(self) -> None:
        self.loop.run_until_complete(self._stack.aclose())
        self.loop.close()

    def operation(self, name: str) -> Operation:
        directory, session_id = self.directory, self.record.session_id
        entries = [Entry("event", 1, 1, b"x" * 200)]

        async def replace() -> None:
            changed = await directory.replace(self.record)
            assert changed is not None
            self.record = msgspec.structs.replace(changed)

        return {
            "claim": lambda: directory.claim(record()),
            "get": lambda: directory.get(session_id),
            "find": lambda: directory.find(ALICE, "x", "chat"),
            "replace": replace,
            "touch": lambda: directory.touch([session_id]),
            "draw_ids": lambda: directory.draw_ids(session_id),
            "append": lambda: directory.append(session_id, entries, EventLogLimits()),
            "beat": lambda: directory.beat(self.worker),
            "settle": lambda: directory.settle("name", self.worker),
        }[name]


@pytest.fixture(scope="module")
def backends() -> Iterator[Backends]:
    started = Backends()
    try:
        yield started
    finally:
        started.close()


@pytest.fixture(scope="module", params=BACKENDS)
def bench(request: pytest.FixtureRequest, backends: Backends) -> Iterator[Bench]:
    made = Bench(backends, request.param)
    yield made
    made.close()


@pytest.mark.parametrize("op", OPERATIONS)
def test_one_operation(benchmark: BenchmarkFixture, bench: Bench, op: str) -> None:
    operation = bench.operation(op)

    def once() -> None:
        bench.loop.run_until_complete(operation())

    benchmark.pedantic(once, rounds=100, warmup_rounds=5)
    benchmark.extra_info.update(allocations(once))
