"""A directory that tells how long it takes keeps the contract, and times every operation."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest
from contract.directory import check_directory, record
from harness.muxing import ALICE, SlowDirectory
from harness.shared_memory import SharedMemoryDirectory
from trunkline.mux.directory import Directory
from trunkline.mux.directory.memory import MemoryDirectory
from trunkline.mux.directory.timed import timed
from trunkline.mux.statistics import Statistics

pytestmark = pytest.mark.anyio

OPERATIONS = ("claim", "get", "find", "replace", "draw_ids", "remove")


@asynccontextmanager
async def maker() -> AsyncIterator[Directory]:
    yield timed(MemoryDirectory(), Statistics())


async def test_it_keeps_the_contract() -> None:
    await check_directory(maker)


async def use(directory: Directory, op: str) -> object:
    one = record("chat")
    match op:
        case "claim":
            return await directory.claim(one)
        case "get":
            return await directory.get("unknown")
        case "find":
            return await directory.find(ALICE, "x", "unknown")
        case "replace":
            return await directory.replace(one)
        case "remove":
            return await directory.remove(one)
    return await directory.draw_ids("unknown")


@pytest.mark.parametrize("op", OPERATIONS)
async def test_every_operation_is_timed_under_its_name_though_it_fails(op: str) -> None:
    inner, statistics = SlowDirectory(), Statistics()
    directory = timed(inner, statistics)
    inner.failing[op] = ConnectionError("the directory is away")
    for _ in range(2):
        with pytest.raises(ConnectionError):
            await use(directory, op)
    [(labels, histogram)] = statistics.seconds.items()
    assert labels == ("directory_seconds", op)
    assert sum(histogram.counts) == 2
    assert histogram.total >= 0


async def test_the_watch_is_not_timed_since_it_lasts() -> None:
    statistics = Statistics()
    inner = SharedMemoryDirectory()
    one = record()
    await inner.claim(one)
    async with timed(inner, statistics).watch() as changes:
        await inner.remove(one)
        assert await anext(changes) == one.session_id
    assert statistics.seconds == {}
