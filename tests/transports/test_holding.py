"""A context that a task of its own holds."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager

import pytest
from trunkline.transports.holding import Holding

pytestmark = pytest.mark.anyio


class Told:
    """What became of a context; `entered` is waited for where it is entered, and `fails` where it is left."""

    def __init__(self, entered: "asyncio.Future[None] | None" = None, *, fails: bool = False) -> None:
        self.words: list[str] = []
        self._entered = entered
        self._fails = fails

    @asynccontextmanager
    async def _context(self) -> AsyncIterator[None]:
        if self._entered is not None:
            await self._entered
        entered_by = asyncio.current_task()
        self.words.append("entered")
        yield
        assert asyncio.current_task() is entered_by
        self.words.append("left")
        if self._fails:
            raise KeyError("leaving")

    def held(self) -> AbstractAsyncContextManager[object]:
        return self._context()


async def test_it_is_entered_and_left_once_by_one_task_whoever_begins_and_ends() -> None:
    told = Told()
    holding = Holding(told.held())
    await asyncio.create_task(holding.begin())
    assert (told.words, holding.is_left) == (["entered"], False)
    await asyncio.create_task(holding.end())
    await holding.end()
    assert (told.words, holding.is_left) == (["entered", "left"], True)


async def test_what_entering_or_leaving_raises_is_told() -> None:
    entered = asyncio.get_running_loop().create_future()
    entered.set_exception(KeyError("entering"))
    with pytest.raises(KeyError, match="entering"):
        await Holding(Told(entered).held()).begin()
    holding = Holding(Told(fails=True).held())
    await holding.begin()
    with pytest.raises(KeyError, match="leaving"):
        await holding.end()


async def test_who_is_cancelled_while_it_is_entered_has_it_left() -> None:
    entered = asyncio.get_running_loop().create_future()
    told = Told(entered)
    holding = Holding(told.held())
    beginning = asyncio.create_task(holding.begin())
    await asyncio.sleep(0)
    beginning.cancel()
    await asyncio.wait([beginning])
    assert beginning.cancelled()
    entered.set_result(None)
    await holding.end()
    assert told.words == ["entered", "left"]
