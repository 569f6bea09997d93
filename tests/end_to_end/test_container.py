"""A gateway as the first process of a container: what dead processes left behind is its own to reap."""

import os
import signal
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
from harness.gateways import gateway as running_gateway
from harness.gateways import until
from harness.unprivileged import missing
from harness.wire import Wire

pytestmark = pytest.mark.anyio

SERVER = """
import json, os, subprocess, sys
for line in sys.stdin:
    message = json.loads(line)
    if message.get("method") == "initialize":
        result = {"protocolVersion": "2025-11-25", "capabilities": {}, "serverInfo": {"name": "x", "version": "1"}}
        subprocess.Popen(["sleep", "0.1"], start_new_session=True)
        print(json.dumps({"jsonrpc": "2.0", "id": message["id"], "result": result}), flush=True)
"""
"""Leaves another process behind, in a group of its own."""


def in_a_container(command: Sequence[str]) -> list[str]:
    """As the first process of a process namespace."""
    unshare = ["unshare", "--pid", "--fork", "--kill-child", "--mount-proc"]
    if subprocess.run([*unshare, "true"], capture_output=True).returncode:
        missing("unshare with root's rights", "util-linux")
    return [*unshare, *command]


def children(pid: int) -> list[int]:
    return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


async def test_a_gateway_that_is_the_first_process_keeps_none(
    tmp_path: Path, settings_file: Callable[[str], Path]
) -> None:
    toml = settings_file(f"[servers.up]\ncommand = ['{sys.executable}', '-c', '''{SERVER}''']\n")
    with running_gateway(toml=toml, within=in_a_container) as gateway:
        (first,) = children(gateway.process.pid)
        async with Wire(gateway.url()) as wire:
            await wire.open()
            await wire.delete()
        await until(lambda: len(children(first)) == 1)  # the one that looks after servers


async def test_nor_does_the_parent_of_workers(tmp_path: Path, settings_file: Callable[[str], Path]) -> None:
    toml = settings_file(
        f"[directory]\nbackend = 'database'\nurl = 'sqlite+aiosqlite:///{tmp_path}/x.db'\n"
        f"[servers.up]\ncommand = ['{sys.executable}', '-c', '''{SERVER}''']\n"
    )
    with running_gateway("--workers", "2", toml=toml, within=in_a_container) as gateway:
        (first,) = children(gateway.process.pid)
        async with Wire(gateway.url()) as wire:
            await wire.open()
            before = children(first)
            for pid in before:
                os.kill(pid, signal.SIGKILL)
        await until(lambda: len(children(first)) == 2 and not set(children(first)) & set(before))
