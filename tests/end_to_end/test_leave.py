"""Workflows that are opened and left: nothing is held for them once they have been idle long enough (guarantee G10)."""

from collections.abc import Callable
from pathlib import Path

import anyio
import pytest
from harness.gateways import Gateway, until
from harness.gateways import gateway as running_gateway
from harness.raw_client import raw_client
from harness.upstreams import Upstream

pytestmark = pytest.mark.anyio

AT_ONCE = 8
SMALL, LARGE = 300, 10_000
GROWTH = 1.1


@pytest.mark.parametrize("reuse", ["workflow", "user"])
async def test_g10_nothing_is_held_for_workflows_that_were_left(
    reuse: str, upstream: Upstream, settings_file: Callable[[str], Path]
) -> None:
    await leave(SMALL, settings_file(settings(reuse, upstream, idle_timeout=1)), within=60)


@pytest.mark.slow
@pytest.mark.timeout(1200)
@pytest.mark.parametrize("reuse", ["workflow", "user"])
async def test_g10_nothing_is_held_for_ten_thousand_workflows_that_were_left(
    reuse: str, upstream: Upstream, settings_file: Callable[[str], Path]
) -> None:
    await leave(LARGE, settings_file(settings(reuse, upstream, idle_timeout=30)), within=300)


def settings(reuse: str, upstream: Upstream, *, idle_timeout: float) -> str:
    return (
        f'[pooling]\nreuse = "{reuse}"\nidle_timeout = {idle_timeout}\nmax_workflows = {LARGE}\n'
        f'[servers.up]\nurl = "{upstream.url}"\neras = ["legacy"]\n'
    )


async def leave(workflows: int, toml: Path, *, within: float) -> None:
    """Twice: what the process held after the first time, which warms it up, is what it may hold after the second."""
    with running_gateway(toml=toml) as gateway:
        held = []
        for _ in range(2):
            await open_and_leave(gateway, workflows)
            await until(lambda: not gateway.metric("trunkline_workflows"), timeout=within)
            await until(lambda: not gateway.metric("trunkline_channels"), timeout=within)
            held.append(gateway.process.rss_bytes())
        assert gateway.metric("trunkline_workflows_closed_total", reason="idle") == 2 * workflows
        assert held[1] <= GROWTH * held[0]


async def open_and_leave(gateway: Gateway, workflows: int) -> None:
    numbers = iter(range(workflows))

    async def worker() -> None:
        for _ in numbers:
            async with raw_client("http", gateway.server_url(), name="leaver") as client:
                await client.open()

    async with anyio.create_task_group() as tasks:
        for _ in range(AT_ONCE):
            tasks.start_soon(worker)
