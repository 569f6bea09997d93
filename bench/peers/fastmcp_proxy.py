"""FastMCP's proxy, as its documentation has it for servers with state. It runs where FastMCP is installed.

Run: `python fastmcp_proxy.py PORT URL`, or `python fastmcp_proxy.py PORT -- COMMAND...`.
"""

import sys
from typing import Any

from fastmcp.client.transports import StdioTransport, StreamableHttpTransport
from fastmcp.server.providers.proxy import FastMCPProxy, StatefulProxyClient


def main() -> None:
    """Serve."""
    port, first, *rest = sys.argv[1:]
    transport: Any = StdioTransport(rest[0], rest[1:]) if first == "--" else StreamableHttpTransport(first)
    proxy = FastMCPProxy(client_factory=StatefulProxyClient(transport).new_stateful, name="bench")
    proxy.run(
        transport="http",
        host="127.0.0.1",
        port=int(port),
        path="/mcp",
        show_banner=False,
        uvicorn_config={"log_level": "error", "access_log": False},
    )


if __name__ == "__main__":
    main()
