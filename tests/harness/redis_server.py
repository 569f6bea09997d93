"""Real redis servers: one that is stopped, killed, paused and restarted; a cluster; one behind Sentinel.

with redis_server() as server:
    ...  # server.url; server.pause(), server.kill(), server.restart()

They keep an append-only file, written at each command, so that a restart loses nothing.
"""

import os
import shutil
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import redis

from harness.ports import free_port
from harness.processes import ServerProcess
from harness.unprivileged import as_nobody, missing, own_directory

PATIENCE = 20.0
NODES = 3
SLOTS = 16384
SERVICE = "trunkline"


class RedisServer:
    """One redis-server on a port of its own. `start` it first."""

    def __init__(self, place: Path, *options: str, port: int = 0) -> None:
        self.port = port or free_port()
        self._place = place
        self._options = options
        self._process: ServerProcess | None = None

    @property
    def url(self) -> str:
        return self.url_at(self.port)

    def url_at(self, port: int) -> str:
        """The same, reached by another port."""
        return f"redis://127.0.0.1:{port}/0"

    @property
    def process(self) -> ServerProcess:
        assert self._process is not None, "it was not started"
        return self._process

    def start(self) -> None:
        """Start it, and return when it answers."""
        program = shutil.which("redis-server")
        assert program is not None
        command = [
            program,
            *("--port", str(self.port), "--bind", "127.0.0.1", "--dir", str(self._place), "--save", ""),
            *("--appendonly", "yes", "--appendfsync", "no", "--daemonize", "no"),
            *self._options,
        ]
        self._process = ServerProcess(as_nobody(command), cwd=self._place)
        wait_for(lambda: self.command("PING") in (b"PONG", True), self._process)

    def stop(self) -> None:
        """SIGTERM: it writes what it has, and ends."""
        self.process.send_signal(signal.SIGTERM)
        self.process.wait(PATIENCE)
        self.process.kill()

    def kill(self) -> None:
        """SIGKILL."""
        self.process.kill()

    def pause(self) -> None:
        """SIGSTOP: connections stay, nobody answers."""
        self.process.send_signal(signal.SIGSTOP)

    def resume(self) -> None:
        """SIGCONT."""
        self.process.send_signal(signal.SIGCONT)

    def restart(self) -> None:
        """Stop and start it, on the same port with the same data."""
        self.stop()
        self.start()

    def copy(self, to: Path) -> None:
        """Keep what it has by now."""
        shutil.copytree(self._data, to)

    def go_back(self, to: Path) -> None:
        """Restart it with what was kept there: what it was told since is lost."""
        self.stop()
        owner = self._data.stat()
        shutil.rmtree(self._data)
        shutil.copytree(to, self._data)
        for path in (self._data, *self._data.iterdir()):
            os.chown(path, owner.st_uid, owner.st_gid)
        self.start()

    @property
    def _data(self) -> Path:
        return self._place / "appendonlydir"

    def command(self, *words: str | bytes | int) -> Any:
        """Say something to it, on a connection of its own."""
        with redis.Redis(port=self.port, socket_timeout=5, protocol=2) as client:
            return client.execute_command(*words)


def wait_for(condition: Callable[[], object], process: ServerProcess) -> None:
    """Return once a condition holds; a server that cannot be reached yet does not hold it."""
    deadline = time.monotonic() + PATIENCE
    while time.monotonic() < deadline:
        if process.returncode is not None:
            raise process.fail(f"ended with {process.returncode}")
        try:
            if condition():
                return
        except redis.RedisError:
            pass
        time.sleep(0.02)
    raise process.fail(f"was not ready within {PATIENCE} s")


def need_redis() -> None:
    """Skip the test where there is no redis-server; fail where it is required."""
    if shutil.which("redis-server") is None:
        missing("redis-server", "redis-server")


@contextmanager
def redis_server(*options: str) -> Iterator[RedisServer]:
    """A redis-server with such options, running."""
    need_redis()
    with own_directory() as place:
        server = RedisServer(place, *options)
        try:
            server.start()
            yield server
        finally:
            if server._process is not None:
                server.kill()


class RedisCluster:
    """Three nodes, each a third of the slots, no replicas.

    The ports by which they speak to each other are chosen: those that redis takes by itself, 10,000 above the others,
    are of the range that outgoing connections use.
    """

    def __init__(self, nodes: list[RedisServer], buses: list[int]) -> None:
        self.nodes = nodes
        self._buses = buses

    @property
    def url(self) -> str:
        return "redis+cluster://" + ",".join(f"127.0.0.1:{node.port}" for node in self.nodes)

    def flush(self) -> None:
        for node in self.nodes:
            node.command("FLUSHALL")

    def join(self) -> None:
        """Make them one cluster."""
        bounds = [SLOTS * n // len(self.nodes) for n in range(len(self.nodes) + 1)]
        for n, node in enumerate(self.nodes):
            node.command("CLUSTER", "ADDSLOTS", *range(bounds[n], bounds[n + 1]))
            node.command("CLUSTER", "SET-CONFIG-EPOCH", n + 1)
        for node, bus in zip(self.nodes[1:], self._buses[1:], strict=True):
            self.nodes[0].command("CLUSTER", "MEET", "127.0.0.1", node.port, bus)
        for node in self.nodes:
            wait_for(lambda node=node: self._sees_all(node), node.process)

    def _sees_all(self, node: RedisServer) -> bool:
        info = node.command("CLUSTER", "INFO")
        words = info if isinstance(info, dict) else dict(line.split(":") for line in info.decode().split())
        return (words["cluster_state"], int(words["cluster_known_nodes"])) == ("ok", len(self.nodes))


@contextmanager
def redis_cluster() -> Iterator[RedisCluster]:
    """A cluster, running."""
    with ExitStack() as stack:
        buses = [free_port() for _ in range(NODES)]
        nodes = []
        for bus in buses:
            options = ("--cluster-enabled", "yes", "--cluster-node-timeout", "15000", "--cluster-port", str(bus))
            nodes.append(stack.enter_context(redis_server(*options)))
        cluster = RedisCluster(nodes, buses)
        cluster.join()
        yield cluster


@contextmanager
def redis_behind_sentinel() -> Iterator[tuple[str, RedisServer]]:
    """The URL of a redis that a sentinel watches over, and the redis."""
    with redis_server() as server, watched(server) as url:
        yield url, server


@contextmanager
def redis_with_replica() -> Iterator[tuple[str, RedisServer, RedisServer]]:
    """The same with a replica, which takes its place once it has not been heard for a second; and the replica."""
    with redis_server() as server, redis_server("--replicaof", "127.0.0.1", str(server.port)) as replica:
        wait_for(lambda: replica.command("INFO", "replication")["master_link_status"] == "up", replica.process)
        with watched(server) as url:
            yield url, server, replica


@contextmanager
def watched(server: RedisServer) -> Iterator[str]:
    """The URL of a redis by a sentinel that watches over it."""
    with own_directory() as place:
        settings = place / "sentinel.conf"
        settings.write_text(
            f"sentinel monitor {SERVICE} 127.0.0.1 {server.port} 1\n"
            f"sentinel down-after-milliseconds {SERVICE} 1000\nsentinel failover-timeout {SERVICE} 4000\n"
        )
        settings.chmod(0o666)
        program = shutil.which("redis-server")
        assert program is not None
        port = free_port()
        command = [program, str(settings), "--sentinel", "--port", str(port), "--bind", "127.0.0.1"]
        process = ServerProcess(as_nobody([*command, "--dir", str(place)]), cwd=place)
        try:
            with redis.Redis(port=port, socket_timeout=5) as client:
                wait_for(lambda: client.execute_command("SENTINEL", "GET-MASTER-ADDR-BY-NAME", SERVICE), process)
            yield f"redis+sentinel://127.0.0.1:{port}/{SERVICE}/0"
        finally:
            process.kill()
