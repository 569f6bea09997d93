"""An agent with fifty tool calls under way at once, on one session of each server.

    trunkline serve &                       # or any MCP server
    python agent.py http://127.0.0.1:8920/servers/demo/mcp

A call that takes too long is given up, and withdrawn at the server; one that fails says whether it may have run.
"""

import asyncio
import sys
import time

from trunkline.mux import Lease
from trunkline.mux.errors import TrunklineError
from trunkline.transports import Servers

CALLS = 50
PATIENCE = 30.0
"""Seconds that one call may take."""


async def work(lease: Lease, number: int) -> str:
    """One of the calls: what it gave, or why it gave nothing."""
    try:
        async with asyncio.timeout(PATIENCE):
            result = await lease.call("slow", {"steps": 2, "seconds": 0.5})
    except TimeoutError:
        return f"call {number} took too long"
    except TrunklineError as error:
        return f"call {number} failed: {error.message} (did it run? {error.data.get('executed', 'unknown')})"
    return result.text


async def main(url: str) -> None:
    """Make the calls, and say what became of them."""
    async with Servers({"demo": url}) as servers, servers.lease("demo", key="agent-1") as demo:
        began = time.monotonic()
        told = await asyncio.gather(*(work(demo, number) for number in range(CALLS)))
        seconds = time.monotonic() - began
        for line in sorted(set(told)):
            print(f"{told.count(line)} x {line}")
        handshakes = servers.statistics.counts["upstream_requests", "demo", "initialize"]
        print(f"{CALLS} calls in {seconds:.1f} s, over {handshakes} session")


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1]))
