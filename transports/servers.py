"""Sessions with MCP servers, kept for a program of one's own: an agent that calls tools, for one user or for many.

    async with Servers({"files": "http://127.0.0.1:9000/mcp", "git": ["uvx", "mcp-server-git"]}) as servers:
        async with servers.lease("files", key="chat-7") as files:
            result = await files.call("search", {"query": "trunk"})

A lease with a key comes back to the same session at its server, for as long as that is kept. Where the `pooling` of a
server says `reuse = "user"`, all leases of one principal share a session, whatever their keys.
"""

import asyncio
import os
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
from ..mux.lease import (
    Answer,
    Hear,
    Lease,
    fields_of,
    kind_of,
    refuse_coroutine,
    refuse_no_function,
    refuse_other_loop,
    running_loop,
)
from ..mux.limits import Pooling
from ..mux.pool import Arrival, Begun, Pool
from ..mux.ports import NONE, Headers
from ..mux.principal import ANONYMOUS, Principal
from ..mux.routing import LEGACY
from ..mux.statistics import Statistics
from ..mux.upstream import Upstream
from .holding import Holding
from .upstream.auto import RotatingConnector, connector_for
from .upstream.http import parts_of
from .upstream.http_client import Trusted, trusting


@dataclass(frozen=True, slots=True, kw_only=True, repr=False)
class Server:
    """One MCP server, by `url` or by `command`, and how sessions with it are kept. Its secrets are not shown.

    Raises:
        TypeError: one of them is of another kind than its annotation says.
    """

    url: str = ""
    """`http(s)://`: Streamable HTTP, or HTTP+SSE where the server speaks that; `sse+http(s)://`, `ws(s)://`."""
    command: Sequence[str | os.PathLike[str]] = ()
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

    def __post_init__(self) -> None:
        if not isinstance(self.url, str):
            raise TypeError("a url is a text")
        if not all(isinstance(word, str | os.PathLike) for word in self.command):
            raise TypeError("a command is a list of texts: the program and its arguments")
        if not isinstance(self.cwd, str | os.PathLike | None):
            raise TypeError("cwd is the path of a folder")
        fields_of("headers", self.headers)
        env = fields_of("env", self.env)
        if not all(isinstance(text, str) for pair in env.items() for text in pair):
            raise TypeError("the environment of a command is a dictionary of texts")
        _refuse_no_pooling(self.pooling)

    def __repr__(self) -> str:
        return f"Server({_shown(self.url) if self.url else ' '.join(map(str, self.command[:1]))})"


class Servers:
    """Servers by name, and the sessions with them; between entering and leaving it as a context.

    A server is a `Server`, a URL, or a command. Leaving ends every session. `client_info`, a name and a version, is
    what servers are told of the program; trunkline's own without it.

    Raises:
        TypeError: something is of another kind than it says here.
        ValueError: a URL, command, header or file of certificates that cannot be used; or `reuse = "none"`, which keeps
            no session.
    """

    def __init__(
        self,
        servers: Mapping[str, Server | str | Sequence[str | os.PathLike[str]]],
        *,
        pooling: Pooling | None = None,
        client_info: Mapping[str, str] | None = None,
    ) -> None:
        _refuse_no_pooling(pooling)
        self.statistics = Statistics()
        """What happened, counted: pool hits, calls and their seconds, channels closed."""
        self._client_info = _client_info(client_info)
        self._pooling = pooling or Pooling()
        self._connectors: list[RotatingConnector] = []
        self._system: Trusted = ""
        """The system's certificates, once a server has needed them: they are read once for all."""
        if not isinstance(servers, Mapping) or not all(isinstance(name, str) for name in servers):
            raise TypeError("Servers are made of a dictionary: the name of each, and what it is")
        upstreams = {name: self._upstream(name, _server(name, given)) for name, given in servers.items()}
        self._pool = Pool(upstreams, MemoryDirectory(), pooling=self._pooling, statistics=self.statistics)
        self._holding: Holding | None = None
        self._loop: asyncio.AbstractEventLoop
        self._given_up: set[asyncio.Task[Any]] = set()

    def __repr__(self) -> str:
        return f"Servers({', '.join(self._pool.upstreams)}; {self._pool!r})"

    async def __aenter__(self) -> "Servers":
        if self._holding is not None:
            raise RuntimeError("these Servers were entered before: make new ones")
        self._loop = running_loop("Servers")
        self._holding = Holding(self._running())
        await self._holding.begin()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        assert self._holding is not None, "what is left was entered"
        await self._holding.end()

    @asynccontextmanager
    async def _running(self) -> AsyncIterator[None]:
        async with AsyncExitStack() as stack:
            for connector in self._connectors:
                stack.push_async_callback(connector.close)
            await stack.enter_async_context(self._pool.running())
            yield

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
            RuntimeError: these servers were not entered yet, were left, or are another event loop's.
            TypeError: `hear` would have to be awaited, the principal is none, or something else is of another kind than
                it should be.
        """
        self._check()
        if not isinstance(principal, Principal):
            raise TypeError(f"a principal is a Principal(issuer, tenant, subject), not {kind_of(principal)}")
        if key is not None and not isinstance(key, str):
            raise TypeError(f"a key is a text, not {kind_of(key)}")
        refuse_coroutine("hear", hear)
        refuse_no_function("answer", answer)
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
            RuntimeError: these servers were not entered yet, were left, or are another event loop's.
        """
        self._check()
        workflow = await self._pool.lookup.find_key(principal, server, key)
        if workflow is not None:
            await self._pool.end(workflow, "closed")

    # Inside.

    def _check(self) -> None:
        if self._holding is None:
            raise RuntimeError("these Servers are not entered: use them within `async with Servers(...) as servers:`")
        if self._holding.is_left or self._pool.draining:
            raise RuntimeError("these Servers were left: make new ones")
        refuse_other_loop(self._loop)

    def _upstream(self, name: str, server: Server) -> Upstream:
        pooling = server.pooling or self._pooling
        if pooling.reuse == "none":
            raise ValueError(f'{name}: reuse = "none" keeps no session that could be leased')
        try:
            if server.url and not server.ca:
                self._system = trusting(self._system)
            connector = connector_for(
                name,
                self.statistics,
                url=server.url,
                command=server.command
                if isinstance(server.command, str)
                else [os.fspath(word) for word in server.command],
                headers=server.headers,
                ca=server.ca or self._system,
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
        message = own_initialize(LEGACY[-1], fields_of("capabilities", capabilities), self._client_info)
        arrival = Arrival(key=key, session_headers=fields_of("session_headers", session_headers))
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


def _shown(url: str) -> str:
    """Scheme and host of a URL: each other part may hold a secret, or a piece of one that is not escaped."""
    parts = parts_of(url)
    return f"{parts.scheme}://{parts.hostname}" if parts.hostname else "no URL"


def _forget(tasks: "set[asyncio.Task[Any]]", task: "asyncio.Task[Any]") -> None:
    tasks.discard(task)
    if not task.cancelled():
        task.exception()  # nobody waits for it


def _server(name: str, given: Server | str | Sequence[str | os.PathLike[str]]) -> Server:
    if isinstance(given, Server):
        return given
    if isinstance(given, str):
        return Server(url=given)
    if not isinstance(given, Sequence):
        raise TypeError(f"{name}: a server is a Server(url=…) or Server(command=[…]), a URL, or the list of a command")
    return Server(command=given)


def _client_info(given: Mapping[str, str] | None) -> dict[str, Any]:
    if given is None:
        return {"name": "trunkline", "version": version("trunkline")}
    told = fields_of("client_info", given)
    if not all(isinstance(told.get(field), str) for field in ("name", "version")):
        raise TypeError("client_info has a name and a version, both of them texts")
    return told


def _refuse_no_pooling(pooling: object) -> None:
    if pooling is not None and not isinstance(pooling, Pooling):
        raise TypeError("pooling is a Pooling(…)")
