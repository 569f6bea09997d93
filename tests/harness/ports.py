"""Ports for test servers: on loopback, unless a test has a network of its own, and never from the range that outgoing
connections use.

A probe of a port in the ephemeral range (from 32768 on Linux) can connect to itself, and would then report a server
that is not there.

A port that was given is free until somebody binds it, and some servers bind late, or never: nobody else is given it
meanwhile. Processes of tests that run at once each have ports of their own, and each goes through all of its.
"""

import os
import random
import socket
from collections.abc import Iterator, Mapping
from itertools import cycle

LOOPBACK = "127.0.0.1"
LOWEST = 20_000
HIGHEST = 32_000


def own_ports(environment: Mapping[str, str]) -> range:
    """Those of one of the processes that pytest-xdist runs at once, or all of them."""
    count, name = int(environment.get("PYTEST_XDIST_WORKER_COUNT", "1")), environment.get("PYTEST_XDIST_WORKER", "gw0")
    return range(LOWEST + int(name.removeprefix("gw")) % count, HIGHEST + 1, count)


def _in_turn(own: range) -> Iterator[int]:
    """All of them again and again; from a random one on, as another run of tests may have the same."""
    first = random.randrange(len(own))
    return cycle([*own[first:], *own[:first]])


_ports = _in_turn(own_ports(os.environ))


def bound_socket(port: int = 0, host: str = LOOPBACK) -> socket.socket:
    """A listening socket, inheritable by a child process; its port is below 32768.

    Whoever connects before the server accepts waits in the backlog, so a server that inherits the socket needs no
    readiness probe.

    Raises:
        OSError: the given `port`, or every one that was tried, is taken.
    """
    for attempt in range(100):
        candidate = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
        candidate.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            candidate.bind((host, port or next(_ports)))
            candidate.listen(1024)
        except OSError:
            candidate.close()
            if port or attempt == 99:
                raise
            continue
        candidate.set_inheritable(True)
        return candidate
    raise OSError("no port is free")


def free_port() -> int:
    """A port that is free, for a server that has to bind by itself, or for one that is away."""
    with bound_socket() as candidate:
        return int(candidate.getsockname()[1])
