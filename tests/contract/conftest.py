"""The servers that the contract runs on."""

from collections.abc import Iterator

import pytest
from harness.backends import Backends


@pytest.fixture(scope="session")
def backends() -> Iterator[Backends]:
    """Real servers of shared directories, started as they are needed."""
    started = Backends()
    try:
        yield started
    finally:
        started.close()
