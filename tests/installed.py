"""Fail unless what is installed in an environment runs and is typed: `python tests/installed.py THAT_ONES_PYTHON`.

It runs in an empty folder, with nothing of the checkout in reach.
"""

import json
import re
import subprocess
import sys
import tempfile
import urllib.request
from pathlib import Path

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
SEEN = "def (servers: trunkline.transports.servers.Servers) -> typing.Coroutine[Any, Any, "

_DIRECT = urllib.request.build_opener(urllib.request.ProxyHandler({}))


def counted(url: str) -> str:
    request = urllib.request.Request(url, json.dumps(CALL).encode(), HEADERS)
    with _DIRECT.open(request, timeout=30) as answer:
        return str(json.load(answer)["result"]["content"][0]["text"])


def serves(program: Path, place: str) -> None:
    """The demo answers, and its session counts."""
    command = [program, "serve", "--port", "0"]
    with subprocess.Popen(command, cwd=place, stdout=subprocess.PIPE, text=True) as gateway:
        try:
            assert gateway.stdout is not None
            listening = re.fullmatch(r"trunkline listens on (\S+)\n", gateway.stdout.readline())
            assert listening, "it does not say where it listens"
            assert [counted(f"{listening[1]}/servers/demo/mcp") for _ in range(2)] == ["1", "2"]
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


def main(python: str) -> None:
    with tempfile.TemporaryDirectory() as place:
        said = subprocess.run(
            [Path(python).parent / "trunkline", "--version"], capture_output=True, text=True, check=True
        )
        assert said.stdout == "trunkline 0.1.0\n", said.stdout
        serves(Path(python).parent / "trunkline", place)
        is_typed(python, place)
    print("installed: it runs, and is typed")


if __name__ == "__main__":
    main(sys.argv[1])
