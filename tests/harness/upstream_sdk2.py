"""A stateful MCP server on the SDK's 2.x line. Run: `python -m harness.upstream_sdk2 --fd LISTENING_SOCKET`.

`--events` makes its streams resumable (event ids, priming event), `--json` makes it answer in JSON.
"""

import argparse
from typing import Any

from mcp import types
from mcp.server.mcpserver import MCPServer

from harness.recorder import SESSION_HEADER, Recorder, serve
from harness.upstream_events import event_store
from harness.upstream_tools import State, register


def build(*, events: bool, json: bool) -> Recorder:
    """The server behind its recorder."""
    server = MCPServer("upstream-sdk2", version="2", instructions="A server to test with.", log_level="WARNING")
    state = State()
    recorder = Recorder(
        server.streamable_http_app(
            json_response=json, event_store=event_store() if events else None, retry_interval=100 if events else None
        )
    )
    register(server, recorder, state)

    async def subscribe(ctx: Any, params: types.SubscribeRequestParams) -> types.EmptyResult:
        state.subscribers[ctx.request.headers[SESSION_HEADER], str(params.uri)] = ctx.session
        return types.EmptyResult()

    async def unsubscribe(ctx: Any, params: types.UnsubscribeRequestParams) -> types.EmptyResult:
        state.subscribers.pop((ctx.request.headers[SESSION_HEADER], str(params.uri)), None)
        return types.EmptyResult()

    async def set_level(ctx: Any, params: types.SetLevelRequestParams) -> types.EmptyResult:
        recorder.mark("level", level=params.level)
        return types.EmptyResult()

    # The high-level server offers no registration for these three.
    inner = server._lowlevel_server
    inner.add_request_handler("resources/subscribe", types.SubscribeRequestParams, subscribe)
    inner.add_request_handler("resources/unsubscribe", types.UnsubscribeRequestParams, unsubscribe)
    inner.add_request_handler("logging/setLevel", types.SetLevelRequestParams, set_level)
    return recorder


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--fd", type=int, required=True)
    parser.add_argument("--events", action="store_true")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    serve(build(events=options.events, json=options.json), options.fd)
