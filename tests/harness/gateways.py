"""The gateway under test, as a process of its own."""

import contextlib
import hashlib
import json
import os
import sys
import urllib.request
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import anyio
import anyio.to_thread

from harness.ports import LOOPBACK, free_port
from harness.processes import HARNESS_PARENT, ServerProcess, wait_for_status

MODULE = "trunkline.gateway"
TOKENS = {"alice": "token-of-alice", "bob": "token-of-bob"}
"""Bearer tokens of two principals of one tenant, in a gateway with `token_settings`."""


def bearer(name: str, **headers: str) -> dict[str, str]:
    """The headers of one of them, and others."""
    return {"Authorization": f"Bearer {TOKENS[name]}", **headers}


_DIRECT = urllib.request.build_opener(urllib.request.ProxyHandler({}))


class Gateway:
    """A running gateway."""

    def __init__(self, process: ServerProcess, port: int, host: str = LOOPBACK) -> None:
        self.process = process
        self.port = port
        self.base = f"http://{host}:{port}"

    def url(self, name: str = "up") -> str:
        """The Streamable HTTP endpoint of a server."""
        return f"{self.server_url(name)}/mcp"

    def server_url(self, name: str = "up") -> str:
        """Below which all endpoints of a server are."""
        return f"{self.base}/servers/{name}"

    def fetch(self, path: str, headers: Mapping[str, str] | None = None) -> str:
        """The body of a GET that has to succeed."""
        request = urllib.request.Request(self.base + path, headers=dict(headers or {}))
        with _DIRECT.open(request, timeout=10) as answer:
            return str(answer.read().decode())

    def fetch_json(self, path: str) -> Any:
        """The same, as JSON."""
        return json.loads(self.fetch(path))

    def metrics(self) -> dict[str, float]:
        """Every sample of /metrics, by its name with labels as it is written there."""
        samples = {}
        for line in self.fetch("/metrics").splitlines():
            if line and not line.startswith("#"):
                name, _, value = line.rpartition(" ")
                samples[name] = float(value)
        return samples

    def metric(self, name: str, **labels: str) -> float:
        """The sum of the samples of a metric that carry these labels."""
        wanted = [f'{label}="{value}"' for label, value in labels.items()]
        return sum(
            value
            for sample, value in self.metrics().items()
            if sample.partition("{")[0] == name and all(pair in sample for pair in wanted)
        )


async def until(condition: Callable[[], object], *, timeout: float = 10) -> None:
    """Wait until something holds that the gateway tells only when it is asked; asked in a thread, as it blocks.

    Raises:
        TimeoutError: it did not hold within `timeout` seconds.
    """
    with anyio.fail_after(timeout):
        while not await anyio.to_thread.run_sync(condition):  # noqa: ASYNC110 - another process has no event for us
            await anyio.sleep(0.02)


def token_settings(**upstreams: str) -> str:
    """TOML for a gateway that knows the holders of `TOKENS`, in front of these servers."""
    entries = [
        f'{{ sha256 = "{hashlib.sha256(token.encode()).hexdigest()}", tenant = "acme", subject = "{subject}" }}'
        for subject, token in TOKENS.items()
    ]
    servers = [f'[servers.{name}]\nurl = "{url}"\neras = ["legacy"]' for name, url in upstreams.items()]
    return "\n".join(["[auth]", 'mode = "tokens"', f"tokens = [{', '.join(entries)}]", *servers])


def command(*arguments: str, module: str = MODULE) -> list[str]:
    """The command line of the gateway's program."""
    return [sys.executable, "-m", module, *arguments]


def environment() -> dict[str, str]:
    """This process's environment without what would be a setting of the gateway."""
    return {name: value for name, value in os.environ.items() if not name.startswith("TRUNKLINE_")}


@contextlib.contextmanager
def gateway(
    *arguments: str,
    upstreams: Mapping[str, str] | None = None,
    toml: Path | None = None,
    eras: Sequence[str] = ("legacy",),
    module: str = MODULE,
    host: str = LOOPBACK,
    within: Callable[[Sequence[str]], list[str]] = list,
) -> Iterator[Gateway]:
    """`trunkline serve`, ready when this is entered and gone when it is left.

    `upstreams` are given as `--upstream NAME=URL`; `toml` is a settings file without a port. Of those upstreams `eras`
    are offered: by default sessions alone, since that is where clients that speak both have a state to be tested.
    `module` runs the program, if it is one of the harness in surroundings of its own. It listens on `host`, and is run
    by what `within` makes of its command.
    """
    port = free_port()
    offered = {f"TRUNKLINE_SERVERS__{name.upper()}__ERAS": json.dumps(list(eras)) for name in upstreams or {}}
    named = [argument for name, url in (upstreams or {}).items() for argument in ("--upstream", f"{name}={url}")]
    settings = [str(toml)] if toml else []
    address = ["--port", str(port), *(["--host", host] if host != LOOPBACK else [])]
    process = ServerProcess(
        within(command("serve", *settings, *named, *address, *arguments, module=module)),
        env=environment() | offered | ({} if module == MODULE else {"PYTHONPATH": str(HARNESS_PARENT)}),
    )
    try:
        wait_for_status(process, port, "/readyz", host=host)
        yield Gateway(process, port, host)
    finally:
        process.kill()
