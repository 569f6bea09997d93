"""Two gateways with one redis, in front of servers of every kind; without sticky routing."""

from collections.abc import Iterator
from contextlib import ExitStack

import pytest
from harness.any_worker import OWNED, settings
from harness.gateways import Gateway
from harness.hosts import Hosts, hosts
from harness.raw_upstreams import RawUpstream, Transport, raw_upstream
from harness.redis_server import RedisServer
from harness.upstreams import Upstream


@pytest.fixture(scope="module")
def owned(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[Transport, RawUpstream]]:
    """Servers whose sessions belong to one worker."""
    with ExitStack() as stack:
        yield {one: stack.enter_context(raw_upstream(one, tmp_path_factory.mktemp(one))) for one in OWNED}


@pytest.fixture(scope="module")
def several(
    redis: RedisServer,
    upstream_process: Upstream,
    owned: dict[Transport, RawUpstream],
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[Hosts]:
    toml = tmp_path_factory.mktemp("hosts") / "trunkline.toml"
    toml.write_text(settings(redis.url, upstream_process, owned))
    with hosts(toml) as running:
        yield running


@pytest.fixture
def pair(several: Hosts, upstream: Upstream) -> tuple[Gateway, Gateway]:
    """Two gateways with one redis: most tests lose the first one."""
    first, second = several.complete()
    return first, second
