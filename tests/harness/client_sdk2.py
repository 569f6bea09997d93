"""The 2.x SDK's client, driven by a scenario (see `clients.Scenario`), in this process."""

import warnings
from collections.abc import Mapping
from typing import Any

import anyio
import httpx2
from mcp import Client, types
from mcp.client.sse import sse_client
from mcp.client.streamable_http import streamable_http_client
from mcp.shared.exceptions import MCPError


async def play(scenario: Mapping[str, Any]) -> dict[str, Any]:
    """Connect, make the calls, close; what came back (see `clients.Outcome`)."""
    outcome: dict[str, Any] = {"results": [], "notifications": [], "progress": [], "asked": []}
    headers = scenario.get("headers", {})
    timeout = httpx2.Timeout(30, read=60)
    async with httpx2.AsyncClient(headers=headers, timeout=timeout, trust_env=False) as http:
        transport: Any = streamable_http_client(
            scenario["url"], http_client=http, terminate_on_close=scenario.get("terminate", True)
        )
        if scenario.get("transport") == "sse":
            transport = sse_client(scenario["url"], headers, httpx_client_factory=_direct)
        with warnings.catch_warnings():
            # Sampling, roots and logging are deprecated by 2026-07-28; the servers of today use them.
            warnings.simplefilter("ignore")
            async with Client(
                transport, mode=scenario.get("mode", "legacy"), **_callbacks(scenario, outcome)
            ) as client:
                outcome["revision"] = client.protocol_version
                for uri in scenario.get("subscribe", []):
                    await client.subscribe_resource(uri)
                await _calls(client, scenario, outcome)
                await _notifications(outcome, scenario.get("await_notifications", 0))
    return outcome


def _direct(
    headers: dict[str, str] | None = None, timeout: httpx2.Timeout | None = None, auth: httpx2.Auth | None = None
) -> httpx2.AsyncClient:
    return httpx2.AsyncClient(headers=headers, timeout=timeout, auth=auth, trust_env=False)


async def _calls(client: Client, scenario: Mapping[str, Any], outcome: dict[str, Any]) -> None:
    calls = [call for call in scenario.get("calls", []) for _ in range(call.get("times", 1))]
    results: list[Any] = [None] * len(calls)

    async def one(n: int, call: Mapping[str, Any]) -> None:
        async def progress(progress: float, total: float | None, message: str | None) -> None:
            outcome["progress"].append([progress, total, message])

        try:
            result = await client.call_tool(call["tool"], call.get("arguments", {}), progress_callback=progress)
        except MCPError as error:
            results[n] = {"error": {"code": error.error.code, "message": error.error.message}}
        else:
            texts = [block.text for block in result.content if isinstance(block, types.TextContent)]
            results[n] = {"text": "".join(texts), "structured": result.structured_content, "failed": result.is_error}

    if scenario.get("concurrent", False):
        async with anyio.create_task_group() as tasks:
            for n, call in enumerate(calls):
                tasks.start_soon(one, n, call)
    else:
        for n, call in enumerate(calls):
            await one(n, call)
    outcome["results"] = results


async def _notifications(outcome: dict[str, Any], count: int) -> None:
    with anyio.fail_after(10):
        while len(outcome["notifications"]) < count:  # noqa: ASYNC110 - the SDK's handler only fills the list
            await anyio.sleep(0.01)


def _callbacks(scenario: Mapping[str, Any], outcome: dict[str, Any]) -> dict[str, Any]:
    answers = scenario.get("answers", {})

    async def elicit(context: Any, params: Any) -> types.ElicitResult:
        outcome["asked"].append(["elicitation/create", params.message])
        return types.ElicitResult(action="accept", content=answers["elicitation"])

    async def sample(context: Any, params: Any) -> types.CreateMessageResult:
        outcome["asked"].append(["sampling/createMessage", params.messages[0].content.text])
        text = types.TextContent(type="text", text=answers["sampling"])
        return types.CreateMessageResult(role="assistant", content=text, model="test")

    async def roots(context: Any) -> types.ListRootsResult:
        outcome["asked"].append(["roots/list", None])
        return types.ListRootsResult(roots=[types.Root(uri=uri) for uri in answers["roots"]])

    async def message(incoming: Any) -> None:
        if isinstance(incoming, Exception):
            outcome["notifications"].append(["exception", repr(incoming)])
        elif not hasattr(incoming, "id") and incoming.method != "notifications/progress":
            params = incoming.params
            dumped = None if params is None else params.model_dump(by_alias=True, mode="json", exclude_none=True)
            outcome["notifications"].append([incoming.method, dumped])

    callbacks = {"elicitation": elicit, "sampling": sample, "roots": roots}
    names = {"elicitation": "elicitation_callback", "sampling": "sampling_callback", "roots": "list_roots_callback"}
    return {"message_handler": message, **{names[kind]: callbacks[kind] for kind in answers}}
