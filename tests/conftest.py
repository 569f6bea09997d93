"""What all tests share: the event loop they run on, and the path to the harness."""

import sys
from pathlib import Path

import pytest

# The harness is a package of its own; appended, so that no folder of tests hides a module of that name.
sys.path.append(str(Path(__file__).parent))


@pytest.fixture(scope="session")
def anyio_backend() -> str:
    """asyncio: what the gateway and its libraries run on."""
    return "asyncio"
