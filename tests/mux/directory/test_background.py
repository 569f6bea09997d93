"""Work beside a directory is kept going, and ends with it."""

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
