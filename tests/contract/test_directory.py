"""Every directory there is keeps the contract; and the contract tells a directory that does not."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import anyio
import msgspec
import pytest
from harness.muxing import SlowDirectory
from trunkline.mux.directory import Claimed, Directory
from trunkline.mux.directory.memory import MemoryDirectory
from trunkline.mux.directory.timed import timed
from trunkline.mux.record import WorkflowRecord
from trunkline.mux.statistics import Statistics

from contract.directory import CHECKS, Check, Maker, check_directory

pytestmark = pytest.mark.anyio


@asynccontextmanager
async def memory() -> AsyncIterator[Directory]:
    yield MemoryDirectory()


@asynccontextmanager
async def timing() -> AsyncIterator[Directory]:
    yield timed(MemoryDirectory(), Statistics())


@asynccontextmanager
async def slow() -> AsyncIterator[Directory]:
    yield SlowDirectory()


@pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.__name__)
@pytest.mark.parametrize("maker", [memory, timing, slow], ids=lambda maker: maker.__name__)
async def test_a_directory_keeps_the_contract(maker: Maker, check: Check) -> None:
    async with maker() as directory:
        with anyio.fail_after(10):
            await check(directory)


async def test_the_whole_contract_in_one_call() -> None:
    await check_directory(memory)


class Torn(MemoryDirectory):
    """Looks, lets others run, then acts."""

    async def claim(self, record: WorkflowRecord) -> Claimed:
        found = await self.find(record.principal, record.server, record.key or "")
        await anyio.lowlevel.checkpoint()
        if found is None:
            self._by_key.pop((record.principal, record.server, record.key or ""), None)
        return await super().claim(record)


class Overwriting(MemoryDirectory):
    """The last change wins."""

    async def replace(self, record: WorkflowRecord) -> WorkflowRecord | None:
        stored = await self.get(record.session_id)
        if stored is None:
            return None
        return await super().replace(msgspec.structs.replace(record, epoch=stored.epoch))


class Removing(MemoryDirectory):
    """Removes whatever stands under the name."""

    async def remove(self, record: WorkflowRecord) -> bool:
        stored = await self.get(record.session_id)
        return stored is not None and await super().remove(stored)


class Repeating(MemoryDirectory):
    """Gives ids out twice after a change."""

    async def replace(self, record: WorkflowRecord) -> WorkflowRecord | None:
        replaced = await super().replace(record)
        if replaced is not None:
            self._next_id[record.session_id] = 1
        return replaced


class Sharing(MemoryDirectory):
    """A key means the same for everybody."""

    async def claim(self, record: WorkflowRecord) -> Claimed:
        for stored in self._records.values():
            if record.key is not None and stored.key == record.key:
                return Claimed(stored, "resumed")
        return await super().claim(record)


class Forgetful(MemoryDirectory):
    """Does not tell that a key began anew."""

    async def claim(self, record: WorkflowRecord) -> Claimed:
        claimed = await super().claim(record)
        return claimed if claimed.state == "resumed" else Claimed(claimed.record, "created")


@pytest.mark.parametrize("broken", [Torn, Overwriting, Removing, Repeating, Sharing, Forgetful])
async def test_a_broken_directory_is_found(broken: type[MemoryDirectory], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("contract.directory.PATIENCE", 1.0)

    @asynccontextmanager
    async def maker() -> AsyncIterator[Directory]:
        yield broken()

    with pytest.raises((AssertionError, TimeoutError)) as found:
        await check_directory(maker)
    assert any(note.startswith("broken: ") for note in found.value.__notes__)
