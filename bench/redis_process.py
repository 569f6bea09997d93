"""A redis-server for a measurement: on a port of its own, empty, ended with the context."""

import shutil
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import redis


@contextmanager
def redis_process(port: int, *options: str) -> Iterator["redis.Redis[Any]"]:
    """A running redis-server with these options, and a client of it."""
    program = shutil.which("redis-server")
    if program is None:
        raise SystemExit("there is no redis-server: apt-get install redis-server")
    with tempfile.TemporaryDirectory() as place:
        command = [program, "--port", str(port), "--bind", "127.0.0.1", "--save", "", "--dir", place, *options]
        started = subprocess.Popen(command, stdout=subprocess.DEVNULL)
        try:
            with redis.Redis(port=port) as client:
                _wait_for(client, started)
                yield client
        finally:
            started.kill()
            started.wait()


def _wait_for(client: "redis.Redis[Any]", started: "subprocess.Popen[bytes]") -> None:
    for _ in range(200):
        if started.poll() is not None:
            break
        try:
            client.ping()
        except redis.ConnectionError:
            time.sleep(0.05)
        else:
            return
    raise SystemExit(f"redis-server did not start (status {started.poll()})")


def redis_version(client: "redis.Redis[Any]") -> str:
    """The server's version."""
    return str(client.info("server")["redis_version"])
