"""A process ends when its work has, whatever is left running."""

import subprocess
import sys

import pytest

PROCESS = """
import asyncio
from contextlib import suppress
from trunkline.gateway import loop

loop.END_SECONDS = 0.1

async def {left}(begun):
    try:
        while True:
            with suppress({swallowed}):
                begun.set()
                await asyncio.sleep(3600)
    finally:
        print("cleaned up")

async def work():
    begun = asyncio.Event()
    asyncio.get_running_loop().left = asyncio.create_task({left}(begun), name="{left}")
    await begun.wait()
    {end}

loop.run(work())
print("over")
"""


def ended(**parts: str) -> subprocess.CompletedProcess[str]:
    script = PROCESS.format(**{"left": "left", "swallowed": "ValueError", "end": "return", **parts})
    return subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=60, check=False)


def test_what_is_left_running_is_cancelled() -> None:
    done = ended()
    assert (done.returncode, done.stdout.split("\n")[:2], done.stderr) == (0, ["cleaned up", "over"], "")


def test_what_swallows_cancellation_is_told_and_left() -> None:
    done = ended(left="stubborn", swallowed="asyncio.CancelledError")
    assert (done.returncode, "over" in done.stdout) == (0, True)
    assert "a task does not end" in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize("swallowed", ["ValueError", "asyncio.CancelledError"])
def test_a_failure_is_raised_all_the_same(swallowed: str) -> None:
    done = ended(swallowed=swallowed, end='raise LookupError("a test")')
    assert done.returncode == 1
    assert "LookupError: a test" in done.stderr
