"""The old path on a test's bench."""

from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import replace
from typing import Any

import pytest
from harness.muxing import Bench
from trunkline.compat.per_request import PerRequestLine
from trunkline.mux.limits import Pooling
from trunkline.mux.upstream import ChannelMaker


@asynccontextmanager
async def running(*, habits: bool = False, stateless: bool = False, **pooling: Any) -> AsyncIterator[Bench]:
    """A bench whose servers are used as the old path did; when the test is over, nothing may be left."""
    made = Bench(Pooling(reuse="none", **pooling), stateless=stateless, revision="2025-11-25", total_bytes=1 << 20)

    def make_line(make_channel: ChannelMaker) -> PerRequestLine:
        return PerRequestLine(make_channel, habits=habits)

    for name, upstream in made.pool.upstreams.items():
        made.pool.upstreams[name] = replace(upstream, make_line=make_line)
    async with made.server.running(), made.other.running():
        async with made.pool.running():
            yield made
        made.at_rest()


@pytest.fixture
def old_path() -> Callable[..., AbstractAsyncContextManager[Bench]]:
    """Makes such a bench: `habits` and `stateless`, and any key of `Pooling`."""
    return running
