"""Tests inside ContextForge, once in each version."""

import pytest
from harness.clients import require
from harness.contextforge import VERSIONS, Version, python_of


@pytest.fixture(scope="module", params=VERSIONS)
def version(request: pytest.FixtureRequest) -> Version:
    found: Version = request.param
    require("sdk1")
    if python_of(found) is None:
        pytest.skip(f"no environment with ContextForge {found}: make contextforge")
    return found
