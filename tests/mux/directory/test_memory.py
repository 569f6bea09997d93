"""The directory of one process: the contract, and what it promises beyond, that it is bounded."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest
from contract.directory import check_directory, record
from trunkline.mux.directory import ID_BLOCK, Directory
from trunkline.mux.directory.memory import MemoryDirectory

pytestmark = pytest.mark.anyio


@asynccontextmanager
async def maker() -> AsyncIterator[Directory]:
    yield MemoryDirectory()


async def test_it_keeps_the_contract() -> None:
    await check_directory(maker)


async def test_keys_that_ended_are_forgotten_when_there_are_too_many() -> None:
    directory = MemoryDirectory(remembered_keys=3)
    for n in range(5):
        claimed = await directory.claim(record(f"chat-{n}"))
        await directory.remove(claimed.record)
    states = [(await directory.claim(record(f"chat-{n}"))).state for n in range(5)]
    assert states == ["created", "created", "reset", "reset", "reset"]


async def test_what_ended_without_a_key_leaves_nothing_behind() -> None:
    directory = MemoryDirectory()
    for _ in range(10):
        one = record()
        await directory.claim(one)
        await directory.draw_ids(one.session_id)
        await directory.remove(one)
    assert not any((directory._records, directory._by_key, directory._ended, directory._next_id))


async def test_a_session_id_is_drawn_once() -> None:
    directory = MemoryDirectory()
    one = record()
    await directory.claim(one)
    with pytest.raises(ValueError, match="drawn once"):
        await directory.claim(one)
    assert await directory.get(one.session_id) == one


async def test_ids_come_in_blocks() -> None:
    directory = MemoryDirectory()
    one = record()
    await directory.claim(one)
    assert await directory.draw_ids(one.session_id) == range(1, 1 + ID_BLOCK)
    assert await directory.draw_ids(one.session_id) == range(1 + ID_BLOCK, 1 + 2 * ID_BLOCK)
