"""Settings that are read again and again leave nothing behind."""

import asyncio
import gc
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from harness.gateways import bearer, until
from harness.gateways import gateway as running_gateway
from harness.muxing import begin
from harness.operators import Operator, both
from harness.upstreams import Upstream
from harness.wire import Wire, text_of
from trunkline.gateway import app
from trunkline.gateway.settings import load
from trunkline.mux.principal import ANONYMOUS

pytestmark = pytest.mark.anyio

PATIENCE = 10.0


async def counted(wire: Wire) -> str:
    """What the counter of the wire's session says."""
    return text_of(await (await wire.call("counter")).response())


async def test_a_hundred_reloads_leave_no_descriptor(upstream: Upstream, settings_file: Callable[[str], Path]) -> None:
    path = settings_file(both(upstream))
    with running_gateway(toml=path) as gateway:
        await reload_often(Operator(gateway, path), upstream)


async def reload_often(operator: Operator, upstream: Upstream) -> None:
    gateway = operator.gateway
    async with Wire(gateway.url("other"), bearer("bob")) as kept:
        await kept.open()
        assert await counted(kept) == "1"
        await operator.reload(both(upstream, "stateless = true"))
        before = operator.descriptors()
        for n in range(100):
            async with Wire(gateway.url(), bearer("alice")) as wire:
                await wire.open()
                await operator.reload(both(upstream, f"request_timeout = {n + 1}"))
                await wire.delete()
        assert await counted(kept) == "2"
    await until(lambda: gateway.metric("trunkline_channels", server="up") == 0)
    await until(lambda: operator.descriptors() <= before)


async def test_a_hundred_reloads_leave_no_connector(upstream: Upstream, settings_file: Callable[[str], Path]) -> None:
    def settings(n: int) -> str:
        return f'[servers.up]\nurl = "{upstream.url}"\nrequest_timeout = {n + 1}\n'

    path = settings_file(settings(0))
    old: list[weakref.ref[Any]] = []
    async with app.Gateway(load(path, environ={})).running() as gateway:
        for n in range(1, 101):
            workflow = (await begin(gateway.pool, ANONYMOUS, "up")).workflow
            old.append(weakref.ref(gateway.pool.upstreams["up"].connector))
            path.write_text(settings(n))
            await gateway.reload(lambda: load(path, environ={}))
            assert gateway.pool.upstreams["up"].pooling.request_timeout == n + 1
            await gateway.pool.end(workflow, "deleted")
        del workflow
        async with asyncio.timeout(PATIENCE):
            while any(connector() is not None for connector in old):
                await asyncio.sleep(0.02)  # what is unused is swept up, and nobody is told
                gc.collect()
        assert len(gateway._open) == 1
        assert gateway.statistics.counts["reloads", "applied"] == 100
