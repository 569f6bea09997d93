"""Fail unless what is installed in an environment runs and is typed: `python tests/installed.py THAT_ONES_PYTHON`.

It runs in an empty folder, with nothing of the checkout in reach; with `--database` on a database.
"""

import json
import os
import re
import subprocess
import sys
import tempfile
import urllib.request
from pathlib import Path

from websockets.sync.client import connect

CALL = {"jsonrpc": "2.0", "id": 1, "method": "tools/call", "params": {"name": "counter", "arguments": {}}}
HEADERS = {
    "Trunkline-Workflow": "me",
    "Content-Type": "application/json",
    "Accept": "application/json, text/event-stream",
}
TYPED = """
from trunkline.mux import Lease, Pool
from trunkline.transports import Host, Servers
from trunkline.compat.contextforge import install

async def use(servers: Servers) -> str:
    async with servers.lease("x") as lease:
        return (await lease.call("y")).text

reveal_type(use)
"""
WITH_DATABASE = {
    "TRUNKLINE_DIRECTORY__BACKEND": "database",
    "TRUNKLINE_DIRECTORY__URL": "sqlite+aiosqlite:///directory.db",
}

SEEN = "def (servers: trunkline.transports.servers.Servers) -> typing.Coroutine[Any, Any, "

_DIRECT = urllib.request.build_opener(urllib.request.ProxyHandler({}))


def counted(url: str) -> str:
    request = urllib.request.Request(url, json.dumps(CALL).encode(), HEADERS)
    with _DIRECT.open(request, timeout=30) as answer:
        return str(json.load(answer)["result"]["content"][0]["text"])


def counted_on_a_websocket(url: str) -> str:
    headers = {"Trunkline-Workflow": HEADERS["Trunkline-Workflow"]}
    with connect(f"ws{url.removeprefix('http')}", subprotocols=["mcp"], additional_headers=headers, proxy=None) as wire:
        wire.send(json.dumps(CALL))
        return str(json.loads(wire.recv(timeout=30))["result"]["content"][0]["text"])


def serves(program: Path, place: str, settings: dict[str, str]) -> None:
    """The demo answers, and its session counts."""
    command, environ = [program, "serve", "--demo", "--port", "0"], os.environ | settings
    with subprocess.Popen(command, cwd=place, env=environ, stdout=subprocess.PIPE, text=True) as gateway:
        try:
            assert gateway.stdout is not None
            listening = re.fullmatch(r"trunkline listens on (\S+)\n", gateway.stdout.readline())
            assert listening, "it does not say where it listens"
            demo = f"{listening[1]}/servers/demo"
            assert [counted(f"{demo}/mcp") for _ in range(2)] == ["1", "2"]
            assert counted_on_a_websocket(f"{demo}/ws") == "3"
        finally:
            gateway.terminate()
    assert gateway.returncode == 0, gateway.returncode


def is_typed(python: str, place: str) -> None:
    """A type checker sees its types."""
    Path(place, "use.py").write_text(TYPED)
    command = [sys.executable, "-m", "mypy", "--strict", "--python-executable", python, "use.py"]
    done = subprocess.run(command, cwd=place, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout
    assert SEEN in done.stdout, done.stdout


def main(python: str, *options: str) -> None:
    with tempfile.TemporaryDirectory() as place:
        said = subprocess.run(
            [Path(python).parent / "trunkline", "--version"], capture_output=True, text=True, check=True
        )
        assert said.stdout == "trunkline 0.1.0\n", said.stdout
        subprocess.run([python, "-c", "import trunkline.gateway.jwt_identity"], cwd=place, check=True)
        serves(Path(python).parent / "trunkline", place, WITH_DATABASE if "--database" in options else {})
        is_typed(python, place)
    print("installed: it runs, and is typed")


if __name__ == "__main__":
    main(*sys.argv[1:])
