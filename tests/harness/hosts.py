"""Gateways with one directory, as on several hosts: each has a port of its own, so that a test says which is asked."""

import signal
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path

import anyio

from harness.gateways import Gateway, gateway
from harness.redis_server import RedisServer
from harness.wire import PATIENCE, Answer, Wire


class Hosts:
    """Gateways with the same settings. A test that ends one leaves it to `complete` to start another."""

    def __init__(self, stack: ExitStack, toml: Path, count: int) -> None:
        self._stack = stack
        self._toml = toml
        self._count = count
        self.all: list[Gateway] = []
        """Those that live, as far as no test has ended them."""

    def complete(self) -> list[Gateway]:
        """As many as there are to be, and all of them alive."""
        self.all = [one for one in self.all if one.process.returncode is None]
        while len(self.all) < self._count:
            self.all.append(self._stack.enter_context(gateway("--log-level", "warning", toml=self._toml)))
        return self.all


@contextmanager
def hosts(toml: Path, count: int = 2) -> Iterator[Hosts]:
    """So many gateways; gone when this is left, also those that a test has stopped."""
    with ExitStack() as stack:
        yield Hosts(stack, toml, count)


def kill(host: Gateway) -> None:
    """SIGKILL, to the gateway alone."""
    host.process.send_signal(signal.SIGKILL)
    host.process.wait(10)


@contextmanager
def paused(host: Gateway) -> Iterator[None]:
    """SIGSTOP, for the length of the context: its connections stay, and it does nothing."""
    host.process.send_signal(signal.SIGSTOP)
    try:
        yield
    finally:
        host.process.send_signal(signal.SIGCONT)


class Patient(Wire):
    """A client that asks again where nobody can tell for a moment who lives: on a busy machine, heartbeats are late."""

    async def request(
        self,
        method: str,
        body: bytes | None = None,
        headers: Mapping[str, str | None] | None = None,
        *,
        path: str = "",
        timeout: float = PATIENCE,
    ) -> Answer:
        with anyio.fail_after(timeout):
            while True:
                answer = await super().request(method, body, headers, path=path, timeout=timeout)
                if answer.status != 503 or (await answer.json())["error"]["data"] != {"limit": "directory"}:
                    return answer
                await anyio.sleep(0.05)


def elsewhere(host: Gateway, client: Wire, server: str = "up") -> Patient:
    """A client of another host that goes on with the session of this one."""
    return Patient(host.url(server), client.headers)


def is_kept(redis: RedisServer, text: bytes) -> bool:
    """Whether an event with this text has come to an event log in redis."""
    for key in redis.command("KEYS", "*"):
        if redis.command("TYPE", key) in (b"stream", "stream"):
            entries = redis.command("XRANGE", key, "-", "+")
            if any(text in value for _, fields in entries for value in fields.values()):
                return True
    return False


def draining(redis: RedisServer) -> int:
    """How many workers say in redis that they are to end."""
    named = redis.command("KEYS", "*")
    texts = [redis.command("GET", key) for key in named if redis.command("TYPE", key) in (b"string", "string")]
    return sum(b"\xa6drains\xc3" in text for text in texts)
