"""Hosts of their own for gateways: network namespaces of Linux, which a test cuts off the network and mends again.

with network("a", "b") as at:
    ...  # servers listen on at.address(); at.hosts["a"].command(…) runs a command there, which listens on its address()
    at.hosts["a"].cut()
    at.hosts["a"].mend()

Each host has two ways to where the tests run: `front`, for its clients, and `back`, for the directory. Hosts do not
reach each other. Whatever is made is gone when the context is left. It needs root, and `ip` of Debian's iproute2.
"""

import os
import secrets
import shutil
import subprocess
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Final, Literal

import pytest

from harness.unprivileged import missing

Way = Literal["front", "back"]
WAYS: Final[tuple[Way, Way]] = ("front", "back")


class Network:
    """The hosts, and this end of their ways."""

    def __init__(self, names: Sequence[str], stack: ExitStack) -> None:
        self._token = secrets.token_hex(3)
        # Of the addresses for tests of network equipment (RFC 2544), which no host of the outside world has.
        third = secrets.randbelow(256)
        self._prefixes: dict[Way, str] = {"front": f"198.18.{third}", "back": f"198.19.{third}"}
        for prefix in self._prefixes.values():
            # Who is cut off is unreachable, and not looked for in the outside world.
            ip("route", "add", "unreachable", f"{prefix}.0/24")
            stack.callback(ip, "route", "delete", "unreachable", f"{prefix}.0/24")
        self.hosts = {name: Host(self, name, number) for number, name in enumerate(names, 2)}
        for host in self.hosts.values():
            host.make(stack)

    def address(self, way: Way = "front", number: int = 1) -> str:
        """Where the tests run, as hosts see it; or the address of the host of this number."""
        return f"{self._prefixes[way]}.{number}"

    def interface(self, name: str) -> str:
        """A name that nothing else on this machine has."""
        return f"tl{self._token}{name}"


class Host:
    """One namespace."""

    def __init__(self, network: Network, name: str, number: int) -> None:
        self._network = network
        self._number = number
        self._namespace = network.interface(name)

    def address(self, way: Way = "front") -> str:
        """Its own address on one of its ways."""
        return self._network.address(way, self._number)

    def command(self, command: Sequence[str]) -> list[str]:
        """What runs a command in it."""
        return ["ip", "netns", "exec", self._namespace, *command]

    def cut(self, *ways: Way) -> None:
        """Nothing comes through on these ways, on all if none is named; the host is not told: a cable is pulled."""
        for way in ways or WAYS:
            ip("link", "set", self._link(way), "down")

    def mend(self, *ways: Way) -> None:
        """It does again."""
        for way in ways or WAYS:
            ip("link", "set", self._link(way), "up")

    def make(self, stack: ExitStack) -> None:
        """Make it, and note how it is removed."""
        ip("netns", "add", self._namespace)
        stack.callback(ip, "netns", "delete", self._namespace)
        ip("-n", self._namespace, "link", "set", "lo", "up")
        for way in WAYS:
            here, there = self._network.address(way), self.address(way)
            ip("link", "add", self._link(way), "type", "veth", "peer", "name", way, "netns", self._namespace)
            stack.callback(ip, "link", "delete", self._link(way))  # a process that ends late keeps its namespace
            ip("address", "add", here, "peer", there, "dev", self._link(way))
            ip("-n", self._namespace, "address", "add", there, "peer", here, "dev", way)
            ip("-n", self._namespace, "link", "set", way, "up")
            self.mend(way)

    def _link(self, way: Way) -> str:
        return f"{self._namespace}{way[0]}"


def ip(*words: str) -> None:
    """Run iproute2's program.

    Raises:
        AssertionError: it refuses.
    """
    done = subprocess.run(["ip", *words], capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"ip {' '.join(words)}: {done.stderr}"


@contextmanager
def network(*names: str) -> Iterator[Network]:
    """Hosts of these short names. Skips the test where they cannot be made: without root, without `ip`."""
    if os.geteuid() != 0:
        pytest.skip("network namespaces are made by root alone")
    if shutil.which("ip") is None:
        missing("ip", "iproute2")
    with ExitStack() as stack:
        yield Network(names, stack)
