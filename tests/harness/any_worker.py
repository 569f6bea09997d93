"""Several gateways with one redis and no sticky routing: the servers behind them, and the lease of a worker."""

from harness.raw_upstreams import RawUpstream, Transport
from harness.upstreams import Upstream

LEASE = 1.5
"""Seconds for which a worker is taken to live after its last heartbeat."""

OWNED: tuple[Transport, ...] = ("stdio", "sse", "ws")
"""What servers speak whose sessions belong to one worker."""

SHARED = ("shared", "parted")
"""Servers whose sessions a user shares; what one user has on one of them is at one worker."""

PAUSE = 2 * LEASE


def settings(directory: str, upstream: Upstream, owned: dict[Transport, RawUpstream]) -> str:
    """A gateway before all of these servers."""
    return "\n".join(
        [
            f'[directory]\nbackend = "redis"\nurl = "{directory}"',
            "[gateway]\ndrain_timeout = 10",
            f'[servers.up]\nurl = "{upstream.url}"\neras = ["legacy"]',
            *(f'[servers.{name}]\nurl = "{upstream.url}"\neras = ["legacy"]\nreuse = "user"' for name in SHARED),
            *(f'{server.settings(name)}eras = ["legacy"]' for name, server in owned.items()),
        ]
    )
