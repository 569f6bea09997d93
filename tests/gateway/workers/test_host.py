"""What counts as one host."""

import os
import subprocess
import sys

import pytest
from trunkline.gateway.workers.host import host_id

TOLD = [sys.executable, "-c", "from trunkline.gateway.workers.host import host_id; print(host_id())"]


def test_processes_of_one_host_agree() -> None:
    told = subprocess.run(TOLD, capture_output=True, text=True, check=True, timeout=30)
    assert told.stdout.strip() == host_id()


@pytest.mark.parametrize("namespace", ["--net", "--mount"])
def test_another_namespace_is_another_host(namespace: str) -> None:
    command = ["unshare", namespace, *(() if os.getuid() == 0 else ("--map-root-user",)), *TOLD]
    try:
        told = subprocess.run(command, capture_output=True, text=True, timeout=30)
    except FileNotFoundError:
        pytest.skip("there is no unshare")
    if told.returncode:
        pytest.skip(f"no namespace may be made here: {told.stderr.strip()[:100]}")
    assert told.stdout.strip() != host_id()
