"""A stateful MCP server on the SDK's 2.x line. Run: `python -m harness.upstream_sdk2 --fd LISTENING_SOCKET`.

`--transport sse` serves HTTP+SSE instead of Streamable HTTP, `--transport stdio` standard input and output. `--events`
makes its streams resumable (event ids, priming event), `--json` makes it answer in JSON.
"""

import argparse
from typing import Any

from mcp import types
from mcp.server.mcpserver import MCPServer

from harness.recorder import Recorder, serve
from harness.upstream_events import event_store
from harness.upstream_tools import State, register, session_id


def build(*, events: bool = False, json: bool = False, sse: bool = False) -> tuple[MCPServer, Recorder]:
    """The server, and the recorder before its HTTP application."""
    server = MCPServer("upstream-sdk2", version="2", instructions="A server to test with.", log_level="WARNING")
    state = State()
    app = (
        server.sse_app()
        if sse
        else server.streamable_http_app(
            json_response=json, event_store=event_store() if events else None, retry_interval=100 if events else None
        )
    )
    recorder = Recorder(app)
    register(server, recorder, state)

    async def subscribe(ctx: Any, params: types.SubscribeRequestParams) -> types.EmptyResult:
        state.subscribers[session_id(ctx.request), str(params.uri)] = ctx.session
        return types.EmptyResult()

    async def unsubscribe(ctx: Any, params: types.UnsubscribeRequestParams) -> types.EmptyResult:
        state.subscribers.pop((session_id(ctx.request), str(params.uri)), None)
        return types.EmptyResult()

    async def set_level(ctx: Any, params: types.SetLevelRequestParams) -> types.EmptyResult:
        recorder.mark("level", level=params.level)
        return types.EmptyResult()

    # The high-level server offers no registration for these three.
    inner = server._lowlevel_server
    inner.add_request_handler("resources/subscribe", types.SubscribeRequestParams, subscribe)
    inner.add_request_handler("resources/unsubscribe", types.UnsubscribeRequestParams, unsubscribe)
    inner.add_request_handler("logging/setLevel", types.SetLevelRequestParams, set_level)
    return server, recorder


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--fd", type=int)
    parser.add_argument("--transport", choices=["http", "sse", "stdio"], default="http")
    parser.add_argument("--events", action="store_true")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    built, recording = build(events=options.events, json=options.json, sse=options.transport == "sse")
    if options.transport == "stdio":
        built.run("stdio")
    else:
        serve(recording, options.fd)
