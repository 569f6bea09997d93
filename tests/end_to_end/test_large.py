"""Large messages, one after the other: what a process needs for the next one, it has from the one before."""

import json
import platform
from pathlib import Path

import anyio
import pytest
from harness.gateways import Gateway
from harness.wire import Wire, raw_members

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


async def test_g1_a_large_answer_has_the_id_of_who_asked_byte_for_byte(gateway: Gateway) -> None:
    asked = {
        b'"\\u0061"': "a" * MIB,
        b'"a"': "\\\n" * (MIB // 8),
        b"123456789012345678901": "ä" * (MIB // 8),
        b"1": "short",
    }
    answers: dict[bytes, bytes] = {}

    async def ask(id: bytes, value: str) -> None:
        answer = await wire.call("echo", {"value": value}, id=id)
        answers[id] = await answer.raw_response()

    async with Wire(gateway.url()) as wire:
        await wire.open()
        async with anyio.create_task_group() as asking:
            for spelled, value in asked.items():
                asking.start_soon(ask, spelled, value)
    for spelled, value in asked.items():
        assert raw_members(answers[spelled])["id"] == spelled
        is_same = value in json.loads(answers[spelled])["result"]["structuredContent"].values()
        assert is_same, f"{len(answers[spelled])} bytes"


async def call(wire: Wire) -> None:
    """A call with 1 MiB, which come back."""
    answer = await wire.call("echo", {"value": "x" * MIB})
    assert len(json.dumps(await answer.response())) > MIB


def pages(gateway: Gateway) -> int:
    """Pages that the system has given the process so far."""
    return int(Path(f"/proc/{gateway.process.pid}/stat").read_text().rpartition(") ")[2].split()[7])
