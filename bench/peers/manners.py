"""What becomes of what clients rely on, through any proxy: each answer is True, False, or what went wrong.

The client is the SDK's, but for ids: no SDK client uses the same one twice, and most clients count from 1.
"""

import asyncio
import uuid
import warnings
from collections.abc import Awaitable, Callable
from typing import Any, Final

import anyio
import httpx2
from mcp import Client, types
from mcp.client.streamable_http import streamable_http_client

from bench.wires import INITIALIZE, INITIALIZED

PATIENCE: Final = 8.0
"""Seconds that any of it may take."""

BOTH: Final = {"Content-Type": "application/json", "Accept": "application/json, text/event-stream"}


async def manners(url: str, prefix: str = "", token: str = "") -> dict[str, bool | str]:
    """Each of the manners by its name; `prefix` stands before the tools' names."""
    headers = {"Authorization": f"Bearer {token}"} if token else {}
    asked = Asked(url, prefix, headers)
    return {name: await _judged(check(asked)) for name, check in MANNERS.items()}


class Asked:
    """A proxy that is asked."""

    def __init__(self, url: str, prefix: str, headers: dict[str, str]) -> None:
        self.url = url
        self.prefix = prefix
        self.headers = headers

    def http(self) -> httpx2.AsyncClient:
        """An HTTP client."""
        return httpx2.AsyncClient(headers=self.headers, timeout=httpx2.Timeout(PATIENCE), trust_env=False)

    async def with_client(self, do: Callable[[Client], Awaitable[Any]], **callbacks: Any) -> Any:
        """What this comes to with a client of the SDK that has a session."""
        async with (
            self.http() as http,
            Client(streamable_http_client(self.url, http_client=http), mode="legacy", **callbacks) as client,
        ):
            return await do(client)

    async def call(self, client: Client, tool: str, arguments: dict[str, Any] | None = None, **more: Any) -> str:
        """The text of a tool's answer."""
        result = await client.call_tool(self.prefix + tool, arguments or {}, **more)
        return "".join(block.text for block in result.content if isinstance(block, types.TextContent))


async def _judged(check: Awaitable[bool]) -> bool | str:
    try:
        with anyio.fail_after(PATIENCE), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return await check
    except TimeoutError:
        return "no answer"
    except Exception as error:
        return type(error).__name__


async def counters(asked: Asked) -> bool:
    """Each of two clients counts 1, 2, 3."""

    async def count(client: Client) -> list[str]:
        return [await asked.call(client, "counter") for _ in range(3)]

    first, second = await asyncio.gather(asked.with_client(count), asked.with_client(count))
    return bool(first == second == ["1", "2", "3"])


async def same_ids(asked: Asked) -> bool:
    """Two calls with one id, in flight at once on one session, are both answered, each with its own."""
    async with asked.http() as http:
        opened = await http.post(asked.url, content=INITIALIZE, headers=BOTH)
        session = {**BOTH, "Mcp-Session-Id": opened.headers.get("mcp-session-id", "")}
        await http.post(asked.url, content=INITIALIZED, headers=session)

        async def call(text: str, seconds: float) -> bool:
            params = {"name": f"{asked.prefix}late", "arguments": {"text": text, "seconds": seconds}}
            body = {"jsonrpc": "2.0", "id": 1, "method": "tools/call", "params": params}
            answer = await http.post(asked.url, json=body, headers=session)
            return text in answer.text

        return all(await asyncio.gather(call("first-of-two", 0.6), call("second-of-two", 0.3)))


async def progress(asked: Asked) -> bool:
    """Progress reaches the call that asked for it."""
    seen: list[float] = []

    async def note(step: float, total: float | None, message: str | None) -> None:
        seen.append(step)

    async def ask(client: Client) -> bool:
        await asked.call(client, "steps", progress_callback=note)
        return seen == [1, 2, 3]

    return bool(await asked.with_client(ask))


async def elicitation(asked: Asked) -> bool:
    """A server's question reaches the client whose call it belongs to, of two that call at once."""

    async def ask(name: str) -> str:
        async def answer(context: Any, params: Any) -> types.ElicitResult:
            return types.ElicitResult(action="accept", content={"name": name})

        async def call(client: Client) -> str:
            return await asked.call(client, "ask")

        return str(await asked.with_client(call, elicitation_callback=answer))

    first, second = await asyncio.gather(ask("alice"), ask("bob"))
    return (first, second) == ("alice", "bob")


async def cancellation(asked: Asked) -> bool:
    """A call that its client gives up ends at the server."""
    token = uuid.uuid4().hex

    async def give_up(client: Client) -> bool:
        with anyio.move_on_after(1):
            await asked.call(client, "hang", {"token": token})
        with anyio.move_on_after(3):
            while await asked.call(client, "cancellations", {"token": token}) != "1":  # noqa: ASYNC110
                await anyio.sleep(0.1)  # the server is another process
            return True
        return False

    return bool(await asked.with_client(give_up))


MANNERS: Final[dict[str, Callable[[Asked], Awaitable[bool]]]] = {
    "counters": counters,
    "same_ids": same_ids,
    "progress": progress,
    "elicitation": elicitation,
    "cancellation": cancellation,
}
