"""A server on the SDK that is a process for each session; run by its path, so it needs nothing of the harness."""

import os
from pathlib import Path
from time import sleep

from mcp.server.mcpserver import MCPServer

PROGRAM = Path(__file__)
"""Where this is, for the command of a server."""

server = MCPServer("process")
count = 0


@server.tool()
def counter() -> int:
    global count
    count += 1
    return count


@server.tool()
def pid() -> int:
    return os.getpid()


@server.tool()
def owner() -> int:
    """The pid of who started it."""
    return os.getppid()


@server.tool()
def variable(name: str) -> str:
    return os.environ.get(name, "none")


@server.tool()
def hang(told: str) -> str:
    """Write the pid to a file, and answer nothing."""
    Path(told).write_text(str(os.getpid()))
    sleep(600)
    return "never"


if __name__ == "__main__":
    server.run("stdio")
