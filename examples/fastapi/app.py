r"""MCP in a FastAPI application, over Streamable HTTP, HTTP+SSE and WebSocket, for callers that it knows.

    pip install fastapi uvicorn
    uvicorn app:app --port 8000 --timeout-graceful-shutdown 5
    trunkline call http://127.0.0.1:8000/tools/mcp add '{"n": 5}' --workflow sum \
        --header 'Authorization: Bearer secret-of-alice'

Each conversation has a sum of its own, which outlives its connections.
"""

from collections.abc import Mapping
from typing import Any

from fastapi import FastAPI
from trunkline.mux import Principal
from trunkline.transports import Host, Transport, Unauthorized

USERS = {"Bearer secret-of-alice": "alice", "Bearer secret-of-bob": "bob"}
"""Take them from where your application has them."""

TOOL = {
    "name": "add",
    "description": "Add to this conversation's sum.",
    "inputSchema": {"type": "object", "properties": {"n": {"type": "number"}}, "required": ["n"]},
}


def authenticate(headers: Mapping[str, str]) -> Principal:
    """Who asks, by the request's headers, whose names are in lower case."""
    user = USERS.get(headers.get("authorization", ""))
    if user is None:
        raise Unauthorized("send a token that this application has given out")
    return Principal(issuer="my-app", tenant="", subject=user)


async def serve(transport: Transport) -> None:
    """One conversation, from its handshake to its end."""
    total = 0.0
    await transport.connect()
    async for message in transport.receive_message():
        if "id" not in message:
            continue
        answer: dict[str, Any] = {"jsonrpc": "2.0", "id": message["id"]}
        match message:
            case {"method": "initialize", "params": {"protocolVersion": revision}}:
                about = {"name": "sums", "version": "1"}
                answer["result"] = {"protocolVersion": revision, "capabilities": {"tools": {}}, "serverInfo": about}
            case {"method": "tools/list"}:
                answer["result"] = {"tools": [TOOL]}
            case {"method": "tools/call", "params": {"name": "add", "arguments": {"n": int() | float() as n}}}:
                total += n
                answer["result"] = {"content": [{"type": "text", "text": f"{total:g}"}]}
            case _:
                answer["error"] = {"code": -32601, "message": "there is only the tool add"}
        await transport.send_message(answer)


host = Host(serve, authenticate=authenticate)
app = FastAPI(lifespan=host.lifespan)
app.mount("/tools", host)


@app.get("/health")
def health() -> dict[str, int]:
    """What the application serves beside."""
    return {"conversations": host.conversations}
