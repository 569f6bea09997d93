"""Workers that forward to each other, for a test."""

from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from pathlib import Path

import pytest
from harness.worker_house import House


@pytest.fixture
async def house(tmp_path: Path) -> AsyncIterator[House]:
    """A house whose worker `a` is a member."""
    async with AsyncExitStack() as stack:
        made = House(tmp_path, stack)
        await stack.enter_async_context(made.member.running())
        yield made
