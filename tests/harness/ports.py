"""Ports for test servers: on loopback, unless a test has a network of its own, and never from the range that outgoing
connections use.

A probe of a port in the ephemeral range (from 32768 on Linux) can connect to itself, and would then report a server
that is not there.
"""

import random
import socket

LOOPBACK = "127.0.0.1"
LOWEST = 20_000
HIGHEST = 32_000


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
            candidate.bind((host, port or random.randint(LOWEST, HIGHEST)))
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
    """A port that was free a moment ago, for a server that has to bind by itself."""
    with bound_socket() as candidate:
        return int(candidate.getsockname()[1])
