"""Large messages, one after the other: what a process needs for the next one, it has from the one before."""

import json
import platform
from pathlib import Path

import pytest
from harness.gateways import Gateway
from harness.wire import Wire

pytestmark = [
    pytest.mark.anyio,
    pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="others keep what they like"),
]

MIB = 1024 * 1024
PAGE = 4096
CALLS = 10


async def test_a_large_call_needs_no_memory_anew(gateway: Gateway) -> None:
    async with Wire(gateway.url()) as wire:
        await wire.open()
        await call(wire)
        before = pages(gateway)
        for _ in range(CALLS):
            await call(wire)
        assert (pages(gateway) - before) / CALLS < MIB / PAGE / 2


async def call(wire: Wire) -> None:
    """A call with 1 MiB, which come back."""
    answer = await wire.call("echo", {"value": "x" * MIB})
    assert len(json.dumps(await answer.response())) > MIB


def pages(gateway: Gateway) -> int:
    """Pages that the system has given the process so far."""
    return int(Path(f"/proc/{gateway.process.pid}/stat").read_text().rpartition(") ")[2].split()[7])
