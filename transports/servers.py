"""Sessions with MCP servers, kept for a program of one's own: an agent that calls tools, for one user or for many.

    async with Servers({"files": "http://127.0.0.1:9000/mcp", "git": ["uvx", "mcp-server-git"]}) as servers:
        async with servers.lease("files", key="chat-7") as files:
            result = await files.call("search", {"query": "trunk"})

A lease with a key comes back to the same session at its server, for as long as that is kept. Where the `pooling` of a
server says `reuse = "user"`, all leases of one principal share a session, whatever their keys.
"""

import asyncio
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from functools import partial
from importlib.metadata import version
from pathlib import Path
from types import TracebackType
from typing import Any

import msgspec

from ..mux.directory.memory import MemoryDirectory
from ..mux.errors import ServerError, UpstreamRefused
from ..mux.handshake import own_initialize
from ..mux.lease import Answer, Hear, Lease, refuse_coroutine
from ..mux.limits import Pooling
from ..mux.pool import Arrival, Begun, Pool
from ..mux.ports import NONE, Headers
from ..mux.principal import ANONYMOUS, Principal
from ..mux.routing import LEGACY
from ..mux.statistics import Statistics
from ..mux.upstream import Upstream
from .upstream.auto import RotatingConnector, connector_for


@dataclass(frozen=True, slots=True, kw_only=True)
class Server:
    """One MCP server, by `url` or by `command`, and how sessions with it are kept."""

    url: str = ""
    """`http(s)://`: Streamable HTTP, or HTTP+SSE where the server speaks that; `sse+http(s)://`, `ws(s)://`."""
    command: Sequence[str] = ()
    """A server on its standard input and output: the program and its arguments."""
    headers: Headers = field(default_factory=dict)
    """Sent with every request: what the program proves itself with."""
    ca: str = ""
    """A file of certificates that are trusted instead of the system's."""
    env: Mapping[str, str] | None = None
    """Added to the small part of the environment that `command` inherits, which holds no secret."""
    cwd: str | Path | None = None
    """Where `command` runs; None for here."""
    pooling: Pooling | None = None
    """Reuse and limits; None for those of `Servers`."""
    stateless: bool = False
    """True where a session may be lost without a loss: it is opened anew."""
    trust_annotations: bool = False
    """True where a tool that the server calls read-only or idempotent may be called a second time."""


class Servers:
    """Servers by name, and the sessions with them; between entering and leaving it as a context.

    A server is a `Server`, a URL, or a command. Leaving ends every session. `client_info`, a name and a version, is
    what servers are told of the program; trunkline's own without it.

    Raises:
        ValueError: a URL, command, header or file of certificates that cannot be used; or `reuse = "none"`, which keeps
            no session.
    """

    def __init__(
        self,
        servers: Mapping[str, Server | str | Sequence[str]],
        *,
        pooling: Pooling | None = None,
        client_info: Mapping[str, str] | None = None,
    ) -> None:
        self.statistics = Statistics()
        """What happened, counted: pool hits, calls and their seconds, channels closed."""
        self._client_info = client_info or {"name": "trunkline", "version": version("trunkline")}
        self._pooling = pooling or Pooling()
        self._connectors: list[RotatingConnector] = []
        upstreams = {name: self._upstream(name, _server(given)) for name, given in servers.items()}
        self._pool = Pool(upstreams, MemoryDirectory(), pooling=self._pooling, statistics=self.statistics)
        self._stack = AsyncExitStack()
        self._given_up: set[asyncio.Task[Any]] = set()

    def __repr__(self) -> str:
        return f"Servers({', '.join(self._pool.upstreams)}; {self._pool!r})"

    async def __aenter__(self) -> "Servers":
        if self._pool.has_begun:
            raise RuntimeError("these Servers were entered before: make new ones")
        for connector in self._connectors:
            self._stack.push_async_callback(connector.close)
        await self._stack.enter_async_context(self._pool.running())
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> bool | None:
        return await self._stack.__aexit__(kind, error, trace)

    @asynccontextmanager
    async def lease(
        self,
        server: str,
        *,
        key: str | None = None,
        principal: Principal = ANONYMOUS,
        capabilities: Mapping[str, Any] = NONE,
        session_headers: Headers = NONE,
        hear: Hear | None = None,
        answer: Answer | None = None,
    ) -> AsyncIterator[Lease]:
        """A workflow with this server, opened if need be, for the length of the context.

        Without a key the workflow ends with it. With one it stays, for `idle_timeout`, and the next lease of this key,
        principal and server goes on with it. `capabilities` tell the server what `answer` answers, such as
        `{"elicitation": {}}`; `hear` takes what the server tells.

        Raises:
            UnknownServer: there is no server of this name.
            UpstreamUnreachable: the server cannot be reached.
            ServerError: it refused the handshake.
            Overloaded: a cap on workflows or sessions is met.
            InvalidParams: the key is in use with other capabilities or session headers.
            RuntimeError: these servers were not entered yet, or were left.
            TypeError: `hear` would have to be awaited, or the principal is none.
        """
        self._check()
        if not isinstance(principal, Principal):
            raise TypeError(f"a principal is a Principal(issuer, tenant, subject), not {principal!r}")
        refuse_coroutine("hear", hear)
        begun = await self._begin(server, key, principal, capabilities, session_headers)
        lease = Lease(begun.workflow, begun.state, begun.pool_result, hear=hear, answer=answer)
        try:
            yield lease
        finally:
            lease.close()
            if key is None:
                await self._pool.end(begun.workflow, "closed")

    async def end(self, server: str, key: str, *, principal: Principal = ANONYMOUS) -> None:
        """End the workflow of this key; nothing where there is none.

        Raises:
            RuntimeError: these servers were not entered yet, or were left.
        """
        self._check()
        workflow = await self._pool.lookup.find_key(principal, server, key)
        if workflow is not None:
            await self._pool.end(workflow, "closed")

    # Inside.

    def _check(self) -> None:
        if not self._pool.has_begun:
            raise RuntimeError("these Servers are not entered: use them within `async with Servers(...) as servers:`")
        if self._pool.draining:
            raise RuntimeError("these Servers were left: make new ones")

    def _upstream(self, name: str, server: Server) -> Upstream:
        pooling = server.pooling or self._pooling
        if pooling.reuse == "none":
            raise ValueError(f'{name}: reuse = "none" keeps no session that could be leased')
        try:
            connector = connector_for(
                name,
                self.statistics,
                url=server.url,
                command=server.command,
                headers=server.headers,
                ca=server.ca,
                env=server.env,
                cwd=server.cwd,
            )
        except ValueError as error:
            raise ValueError(f"{name}: {error}") from None
        except OSError as error:
            raise ValueError(f"{name}: no certificates can be read from {server.ca}: {error.strerror}") from None
        self._connectors.append(connector)
        return Upstream(
            name,
            connector,
            pooling,
            stateless=server.stateless,
            trust_annotations=server.trust_annotations,
        )

    async def _begin(
        self,
        server: str,
        key: str | None,
        principal: Principal,
        capabilities: Mapping[str, Any],
        session_headers: Headers,
    ) -> Begun:
        message = own_initialize(LEGACY[-1], capabilities, self._client_info)
        arrival = Arrival(key=key, session_headers=session_headers)
        beginning = asyncio.get_running_loop().create_task(self._pool.begin(principal, server, message, arrival))
        try:
            return await asyncio.shield(beginning)
        except asyncio.CancelledError:  # what begins must be somebody's
            self._see_through(beginning)
            if key is None:
                beginning.add_done_callback(self._give_up)
            raise
        except UpstreamRefused as refused:
            raise ServerError(msgspec.json.decode(refused.raw)) from refused

    def _give_up(self, beginning: "asyncio.Task[Begun]") -> None:
        """End what began for a caller that has gone."""
        if not beginning.cancelled() and beginning.exception() is None:
            end = self._pool.end(beginning.result().workflow, "closed")
            self._see_through(asyncio.get_running_loop().create_task(end))

    def _see_through(self, task: "asyncio.Task[Any]") -> None:
        self._given_up.add(task)
        task.add_done_callback(partial(_forget, self._given_up))


def _forget(tasks: "set[asyncio.Task[Any]]", task: "asyncio.Task[Any]") -> None:
    tasks.discard(task)
    if not task.cancelled():
        task.exception()  # nobody waits for it


def _server(given: Server | str | Sequence[str]) -> Server:
    if isinstance(given, Server):
        return given
    return Server(url=given) if isinstance(given, str) else Server(command=given)
