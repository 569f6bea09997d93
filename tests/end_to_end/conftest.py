"""Peers of the end-to-end tests: a gateway process for each module, in front of the server that all tests share."""

import contextlib
import itertools
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Final

import pytest
from harness import raw_client, raw_upstreams
from harness.gateways import Gateway
from harness.gateways import gateway as running_gateway
from harness.gateways import token_settings as token_settings_text
from harness.raw_pair import CAPABILITIES, Pair
from harness.raw_upstreams import RawUpstream, raw_upstream
from harness.upstreams import Upstream

DOWNSTREAM: Final[tuple[raw_client.Transport, ...]] = ("http", "sse", "ws")
UPSTREAM: Final[tuple[raw_upstreams.Transport, ...]] = ("http", "sse", "ws", "stdio")

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


@pytest.fixture(scope="module")
def raw_servers(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, RawUpstream]]:
    """A raw server on each transport."""
    record = tmp_path_factory.mktemp("record")
    with contextlib.ExitStack() as stack:
        yield {up: stack.enter_context(raw_upstream(up, record)) for up in UPSTREAM}


@pytest.fixture(scope="module")
def raw_gateway(raw_servers: dict[str, RawUpstream], tmp_path_factory: pytest.TempPathFactory) -> Iterator[Gateway]:
    """One gateway in front of all of them."""
    toml = tmp_path_factory.mktemp("settings") / "trunkline.toml"
    toml.write_text("".join(server.settings(name) for name, server in raw_servers.items()))
    with running_gateway(toml=toml) as process:
        yield process


@pytest.fixture(params=[(down, up) for up in UPSTREAM for down in DOWNSTREAM], ids="-".join)
def pair(
    request: pytest.FixtureRequest, raw_gateway: Gateway, raw_servers: dict[str, RawUpstream], key: str
) -> Iterator[Pair]:
    """Each transport of a client with each of a server."""
    down, up = request.param
    yield Pair(raw_gateway, down, raw_servers[up], key=key, capabilities=CAPABILITIES)
    if raw_gateway.process.returncode is not None:
        raise raw_gateway.process.fail("the gateway ended during a test")
