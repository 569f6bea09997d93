"""A server of the SDK's lowlevel line with its own session manager: what its sessions cost is measured beside ours.

Run: `python -m bench.sdk_sessions --port 9321`. It answers in JSON, as the lean upstream does.
"""

import argparse
from typing import Any

import uvicorn
from mcp import types
from mcp.server.lowlevel import Server
from starlette.responses import PlainTextResponse
from starlette.routing import Route


async def list_tools(context: Any, params: types.PaginatedRequestParams | None) -> types.ListToolsResult:
    """One tool."""
    return types.ListToolsResult(tools=[types.Tool(name="echo", input_schema={"type": "object"})])


async def ready(request: Any) -> PlainTextResponse:
    """That the server is there."""
    return PlainTextResponse("ready")


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--port", type=int, required=True)
    server = Server("sdk", version="1", on_list_tools=list_tools)
    app = server.streamable_http_app(json_response=True, custom_starlette_routes=[Route("/readyz", ready)])
    uvicorn.run(app, port=parser.parse_args().port, log_level="error", access_log=False)
