"""The SDK's 2.x client over a WebSocket, whose session goes on when the connection is cut.

    pip install 'mcp>=2'
    trunkline serve &
    python client.py ws://127.0.0.1:8920/servers/demo/ws

The SDK itself has no WebSocket any more. This transport comes back by itself, and what was missed comes first.
"""

import asyncio
import sys

from mcp import Client
from trunkline.transports.client import websocket_client


async def main(url: str) -> None:
    """Call a tool three times in one session."""
    async with Client(websocket_client(url), mode="legacy") as client:
        for _ in range(3):
            result = await client.call_tool("counter", {})
            print(*(block.text for block in result.content if block.type == "text"))


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1]))
