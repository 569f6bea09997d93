"""The 1.x SDK's client, driven by a scenario (see `clients.Scenario`): JSON on stdin, the outcome as JSON on stdout.

Run: `PYTHON_OF_1X client_sdk1.py < scenario.json`.
"""
# mypy: ignore-errors
# (The checker sees the 2.x line, in which these names do not exist.)

import functools
import json
import os
import sys
import warnings

import anyio
import httpx
from mcp import ClientSession, types
from mcp.client import websocket
from mcp.client.sse import sse_client
from mcp.client.streamable_http import streamable_http_client
from mcp.client.websocket import websocket_client
from mcp.shared.exceptions import McpError


async def play(scenario):
    """Connect, make the calls, close; what came back (see `clients.Outcome`)."""
    outcome = {"results": [], "notifications": [], "progress": [], "asked": []}
    timeout = httpx.Timeout(30, read=60)
    terminate = scenario.get("terminate", True)
    session_ids = []
    if scenario.get("transport") == "websocket" and "headers" in scenario:  # the SDK's client has no place for them
        websocket.ws_connect = functools.partial(websocket.ws_connect, additional_headers=scenario["headers"])
    async with httpx.AsyncClient(headers=scenario.get("headers", {}), timeout=timeout, trust_env=False) as http:
        connection = {
            "http": lambda: streamable_http_client(scenario["url"], http_client=http, terminate_on_close=terminate),
            "sse": lambda: sse_client(
                scenario["url"],
                scenario.get("headers"),
                httpx_client_factory=direct,
                on_session_created=session_ids.append,
            ),
            "websocket": lambda: websocket_client(scenario["url"]),
        }[scenario.get("transport", "http")]()
        async with connection as (read, write, *rest):  # noqa: SIM117 - the second is made of the first
            async with ClientSession(read, write, **callbacks(scenario, outcome)) as session:
                result = await session.initialize()
                outcome["revision"] = result.protocolVersion
                for uri in scenario.get("subscribe", []):
                    await session.subscribe_resource(uri)
                await calls(session, scenario, outcome)
                with anyio.fail_after(10):
                    # The SDK's handler only fills the list.
                    while len(outcome["notifications"]) < scenario.get("await_notifications", 0):  # noqa: ASYNC110
                        await anyio.sleep(0.01)
                outcome["session"] = rest[0]() if rest else (session_ids or [None])[0]
    return outcome


def direct(headers=None, timeout=None, auth=None):
    """A client that goes to no proxy."""
    return httpx.AsyncClient(headers=headers, timeout=timeout, auth=auth, trust_env=False)


async def calls(session, scenario, outcome):
    """Make the calls of the scenario, in turn or all at once."""
    wanted = [call for call in scenario.get("calls", []) for _ in range(call.get("times", 1))]
    results = [None] * len(wanted)

    async def one(n, call):
        async def progress(done, total, message):
            outcome["progress"].append([done, total, message])

        try:
            result = await session.call_tool(call["tool"], call.get("arguments", {}), progress_callback=progress)
        except McpError as error:
            results[n] = {"error": {"code": error.error.code, "message": error.error.message}}
        else:
            text = "".join(block.text for block in result.content if block.type == "text")
            results[n] = {"text": text, "structured": result.structuredContent, "failed": bool(result.isError)}

    if scenario.get("concurrent", False):
        async with anyio.create_task_group() as tasks:
            for n, call in enumerate(wanted):
                tasks.start_soon(one, n, call)
    else:
        for n, call in enumerate(wanted):
            await one(n, call)
    outcome["results"] = results


def callbacks(scenario, outcome):
    """The SDK's callbacks, for those requests that the scenario has an answer to."""
    answers = scenario.get("answers", {})

    async def elicit(context, params):
        outcome["asked"].append(["elicitation/create", params.message])
        return types.ElicitResult(action="accept", content=answers["elicitation"])

    async def sample(context, params):
        outcome["asked"].append(["sampling/createMessage", params.messages[0].content.text])
        text = types.TextContent(type="text", text=answers["sampling"])
        return types.CreateMessageResult(role="assistant", content=text, model="test")

    async def roots(context):
        outcome["asked"].append(["roots/list", None])
        return types.ListRootsResult(roots=[types.Root(uri=uri) for uri in answers["roots"]])

    async def message(incoming):
        if isinstance(incoming, Exception):
            outcome["notifications"].append(["exception", repr(incoming)])
        elif isinstance(incoming, types.ServerNotification) and incoming.root.method != "notifications/progress":
            params = incoming.root.params
            dumped = None if params is None else params.model_dump(by_alias=True, mode="json", exclude_none=True)
            outcome["notifications"].append([incoming.root.method, dumped])

    made = {"elicitation": elicit, "sampling": sample, "roots": roots}
    names = {"elicitation": "elicitation_callback", "sampling": "sampling_callback", "roots": "list_roots_callback"}
    return {"message_handler": message, **{names[kind]: made[kind] for kind in answers}}


if __name__ == "__main__":
    warnings.simplefilter("ignore")
    # The machine may name a proxy for the outside world; the gateways of tests are on loopback.
    os.environ["NO_PROXY"] = "*"
    json.dump(anyio.run(play, json.load(sys.stdin)), sys.stdout)
