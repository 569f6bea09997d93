"""A stateful MCP server on the SDK's 1.x line. Run: `PYTHON_OF_1X -m harness.upstream_sdk1 --fd LISTENING_SOCKET`.

`--transport sse` serves HTTP+SSE instead of Streamable HTTP, `--transport stdio` standard input and output. `--events`
makes its streams resumable (event ids, priming event), `--json` makes it answer in JSON.
"""
# mypy: ignore-errors
# (The checker sees the 2.x line, in which these names do not exist.)

import argparse

from mcp.server.fastmcp import FastMCP

from harness.recorder import Recorder, serve
from harness.upstream_events import event_store
from harness.upstream_tools import State, register, session_id


def build(*, events: bool = False, json: bool = False, sse: bool = False) -> tuple[FastMCP, Recorder]:
    """The server, and the recorder before its HTTP application."""
    server = FastMCP(
        "upstream-sdk1",
        instructions="A server to test with.",
        log_level="WARNING",
        json_response=json,
        event_store=event_store() if events else None,
        retry_interval=100 if events else None,
    )
    state = State()
    recorder = Recorder(server.sse_app() if sse else server.streamable_http_app())
    register(server, recorder, state)
    inner = server._mcp_server

    def key(uri):
        return session_id(inner.request_context.request), str(uri)

    @inner.subscribe_resource()
    async def subscribe(uri):
        state.subscribers[key(uri)] = inner.request_context.session

    @inner.unsubscribe_resource()
    async def unsubscribe(uri):
        state.subscribers.pop(key(uri), None)

    @inner.set_logging_level()
    async def set_level(level):
        recorder.mark("level", level=level)

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
