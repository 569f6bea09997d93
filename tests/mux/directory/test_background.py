"""Work beside a directory is kept going, and ends with it."""

import asyncio

import anyio
import pytest
from trunkline.mux.directory import background
from trunkline.mux.directory.background import beside

pytestmark = pytest.mark.anyio


async def test_work_that_fails_is_begun_again_and_ends_with_its_context(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(background, "RETRY_SECONDS", 0.001)
    begun: list[int] = []
    again, ended = anyio.Event(), anyio.Event()

    async def work() -> None:
        begun.append(len(begun))
        if len(begun) < 3:
            raise RuntimeError("secret")
        again.set()
        try:
            await anyio.sleep_forever()
        finally:
            ended.set()

    async with beside(work):
        with anyio.fail_after(5):
            await again.wait()
    assert ended.is_set()


async def test_errors_of_the_context_pass_unchanged() -> None:
    with pytest.raises(KeyError, match="mine"):
        async with beside(anyio.sleep_forever):
            raise KeyError("mine")


async def test_it_ends_though_the_work_fails_just_as_it_is_cancelled(monkeypatch: pytest.MonkeyPatch) -> None:
    """As a connection does that breaks at that moment: a task group tells of the failure alone."""
    monkeypatch.setattr(background, "RETRY_SECONDS", 0.001)
    cancelled = 0

    async def work() -> None:
        nonlocal cancelled
        try:
            await anyio.sleep_forever()
        except asyncio.CancelledError:
            cancelled += 1
            if cancelled == 1:
                raise ConnectionError from None
            raise

    async def live() -> None:
        async with beside(work):
            await anyio.lowlevel.checkpoint()

    living = asyncio.create_task(live())
    ended, _ = await asyncio.wait([living], timeout=5)  # without another cancellation, as a time-out would bring it
    living.cancel()
    assert ended
    assert cancelled == 2
