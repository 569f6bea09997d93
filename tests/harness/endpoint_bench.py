"""The endpoint of Streamable HTTP over a pool whose servers a test plays, and clients of it without a socket."""

from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from typing import Any

from trunkline.mux.principal import ANONYMOUS, Principal
from trunkline.transports import EndpointConfig, Guard, StreamableHTTPEndpoint, Unauthorized
from trunkline.transports.asgi import ASGIApp
from trunkline.transports.at_once import AtOnce

from harness.asgi_client import Answer, ASGIClient, asgi_client
from harness.duplex_clients import initialize
from harness.muxing import ALICE, BOB, Bench, bench
from harness.whole_requests import offering

NEWEST = "2025-11-25"

PRINCIPALS: dict[str | None, Principal] = {None: ANONYMOUS, "alice": ALICE, "bob": BOB}
"""Who comes with which `Authorization`."""


def authenticate(headers: Mapping[str, str]) -> Principal:
    """See `Authenticate`."""
    principal = PRINCIPALS.get(headers.get("authorization"))
    if principal is None:
        raise Unauthorized("who are you?", challenge='Bearer realm="test"')
    return principal


def call(id: Any = 1, **arguments: Any) -> dict[str, Any]:
    """A tool call."""
    return {"jsonrpc": "2.0", "id": id, "method": "tools/call", "params": {"name": "x", "arguments": arguments}}


async def shake_hands(
    client: ASGIClient, revision: str = NEWEST, capabilities: Mapping[str, Any] | None = None, **headers: str
) -> Answer:
    """Begin a session anew; from then on the client sends its id."""
    client.headers.pop("mcp-session-id", None)
    answer = await client.post(initialize(revision=revision, capabilities=capabilities), headers)
    assert (await answer.json())["result"]["protocolVersion"] == revision
    client.headers["mcp-session-id"] = answer.headers["mcp-session-id"]
    return answer


class Front:
    """Endpoints over one pool, and a client of the server `x`."""

    def __init__(self, here: Bench, client: ASGIClient) -> None:
        self.bench = here
        self.client = client
        self.server = here.server
        self.counts = here.counts


@asynccontextmanager
async def front(
    *,
    revision: str = NEWEST,
    guard: Guard | None = None,
    options: Mapping[str, Any] | None = None,
    offers_whole: bool = False,
    **pooling: Any,
) -> AsyncIterator[Front]:
    """Clients of one endpoint; `options` are those of `EndpointConfig`. Whole requests may be taken without a task."""
    async with bench(revision=revision, **pooling) as here:
        config = EndpointConfig("x", here.pool, guard or Guard(loopback=True), authenticate, **(options or {}))
        app: ASGIApp = StreamableHTTPEndpoint(config)
        if offers_whole:
            app = offering(app, AtOnce(config).take)
        async with asgi_client(app) as client:
            yield Front(here, client)


@asynccontextmanager
async def opened(
    revision: str = NEWEST, *, capabilities: Mapping[str, Any] | None = None, **pooling: Any
) -> AsyncIterator[Front]:
    """The same, with a session of the client."""
    async with front(revision=revision, **pooling) as here:
        await shake_hands(here.client, revision, capabilities)
        yield here
