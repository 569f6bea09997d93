"""Peers of the end-to-end tests: a gateway process for each module, in front of the server that all tests share."""

import itertools
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from harness.gateways import Gateway
from harness.gateways import gateway as running_gateway
from harness.gateways import token_settings as token_settings_text
from harness.upstreams import Upstream

_numbers = itertools.count(1)


@pytest.fixture
def key() -> str:
    """A workflow key that no other test uses."""
    return f"test-{next(_numbers)}"


@pytest.fixture(scope="module")
def gateway_process(upstream_process: Upstream) -> Iterator[Gateway]:
    """A gateway in front of it, under the name `up`."""
    with running_gateway(upstreams={"up": upstream_process.url}) as process:
        yield process


@pytest.fixture
def gateway(gateway_process: Gateway, upstream: Upstream) -> Iterator[Gateway]:
    """The same; a test that ends it fails the ones behind it, with the log."""
    yield gateway_process
    if gateway_process.process.returncode is not None:
        raise gateway_process.process.fail("the gateway ended during a test")


@pytest.fixture
def token_settings(settings_file: Callable[[str], Path], upstream: Upstream) -> Path:
    """Settings with two principals of one tenant (see `TOKENS`), and the server `up`."""
    return settings_file(token_settings_text(up=upstream.url))
