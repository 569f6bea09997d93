"""The raw server as a test holds it: where a gateway finds it, and what came in there."""

import contextlib
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Final, Literal

from harness.ports import LOOPBACK, bound_socket
from harness.processes import HARNESS_PARENT, served_on
from harness.raw_script import kind, members

Transport = Literal["http", "sse", "ws", "stdio"]

MODULE: Final = "harness.raw_server"
LIGHT: Final = str(Path(__file__).with_name("light_server.py"))
URLS: Final = {"http": "http://{}/mcp", "sse": "sse+http://{}/sse", "ws": "ws://{}/ws"}


class RawUpstream:
    """A raw server on one transport; over stdio a process for each session, started by the gateway."""

    def __init__(self, transport: Transport, record: Path, *, url: str = "", command: tuple[str, ...] = ()) -> None:
        self.transport = transport
        self.url = url
        self.command = command
        self._record = record

    def settings(self, name: str) -> str:
        """The table of a settings file that names it."""
        where = f"url = {json.dumps(self.url)}" if self.url else f"command = {json.dumps(self.command)}"
        return f"[servers.{name}]\n{where}\n"

    def received(self, client: str, of: str = "") -> list[bytes]:
        """The texts that came in on the sessions of the client of this name, in order; those of a kind, if given."""
        lines = (self._record / client).read_bytes().splitlines()
        texts = [json.loads(line).encode() for line in lines]
        return [text for text in texts if not of or kind(members(text)) == of]


def light_upstream(record: Path) -> RawUpstream:
    """A server over stdio, a process for each session, that plays no scripts and starts fast; `record` is a folder."""
    return RawUpstream("stdio", record, command=(sys.executable, "-I", "-S", LIGHT, str(record)))


@contextlib.contextmanager
def raw_upstream(transport: Transport, record: Path, host: str = LOOPBACK) -> Iterator[RawUpstream]:
    """A raw server for as long as this is entered; `record` is a folder."""
    if transport == "stdio":
        # What a server's process inherits of the environment is the gateway's to decide: the path is given here.
        run = ("/usr/bin/env", f"PYTHONPATH={HARNESS_PARENT}", sys.executable, "-m", MODULE)
        yield RawUpstream(transport, record, command=(*run, transport, "--record", str(record)))
        return
    listener = bound_socket(host=host)
    address = f"{host}:{listener.getsockname()[1]}"
    with served_on(listener, MODULE, transport, "--record", str(record), path="/ready"):
        yield RawUpstream(transport, record, url=URLS[transport].format(address))
