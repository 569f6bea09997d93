"""The tools, resources and prompts of the test servers, for either line of the SDK.

| tool | what it is for |
| --- | --- |
| `counter` | state of one session: 1, 2, 3, … |
| `echo` | any JSON value, back as structured content |
| `barrier` | returns when so many calls are inside at once, in the order of `place`: proves interleaving |
| `hold` | returns when the test opens the gate (`POST /__recorder/open?gate=NAME`) |
| `forever` | never returns; records `cancelled` when it is cancelled |
| `slow` | `steps` progress reports, each behind a gate where `gate` is given |
| `ask`, `sample`, `roots` | requests to the client: elicitation, sampling, roots |
| `log`, `notify`, `touch` | notifications: message, list_changed, resources/updated |
| `fail` | a tool error |

State is kept by the session that a request names: what the server believes its session to be. Over stdio the process is
the session.
"""
# mypy: disable-error-code="untyped-decorator,attr-defined,unused-ignore"
# (One text for two lines of the SDK: neither types the decorators of the other.)

from collections import Counter
from typing import Any

import anyio
from mcp import types
from pydantic import BaseModel

try:
    from mcp.server.mcpserver import Context
except ImportError:  # the 1.x line
    from mcp.server.fastmcp import Context  # type: ignore[import-not-found,no-redef,unused-ignore]

from harness.recorder import SESSION_HEADER, Recorder

WATCHED = "test://watched"


class Colour(BaseModel):
    """What `ask` asks for."""

    colour: str


class Meeting:
    """Calls that wait for each other: all are inside before the first one leaves."""

    def __init__(self) -> None:
        self.inside = 0
        self.full = anyio.Event()
        self.left = 0
        self.peak = 0
        self.moved = anyio.Event()

    async def attend(self, parties: int, place: int | None) -> int:
        """Wait for the others, then for the turn that `place` gives; the most that were inside at once."""
        self.inside += 1
        self.peak = max(self.peak, self.inside)
        try:
            if self.inside >= parties:
                self.full.set()
            await self.full.wait()
            while place is not None and self.left < place:
                await self.moved.wait()
            return self.peak
        finally:
            self.inside -= 1
            self.left += 1
            self.moved.set()
            self.moved = anyio.Event()


class State:
    """What one server process remembers."""

    def __init__(self) -> None:
        self.counters: Counter[str] = Counter()
        self.meetings: dict[str, Meeting] = {}
        self.subscribers: dict[tuple[str, str], Any] = {}
        self.touched = 0


def session_id(request: Any) -> str:
    """The id of the session that an HTTP request came in; over stdio there is none."""
    if request is None:
        return "process"
    return str(request.headers.get(SESSION_HEADER) or request.query_params.get("session_id", ""))


def register(server: Any, recorder: Recorder, state: State) -> None:
    """Add everything of this module to an `MCPServer` (2.x) or a `FastMCP` (1.x)."""
    _register_state(server, recorder, state)
    _register_waiting(server, recorder, state)
    _register_requests(server)
    _register_notifications(server, state)
    _register_resources(server, state)


def _register_state(server: Any, recorder: Recorder, state: State) -> None:
    @server.tool()
    async def counter(ctx: Context) -> int:
        """Count the calls of this session."""
        session = session_id(ctx.request_context.request)
        state.counters[session] += 1
        return state.counters[session]

    @server.tool()
    async def echo(value: Any) -> dict[str, Any]:
        """Give back what was given."""
        return {"value": value}

    @server.tool()
    async def fail(message: str) -> str:
        """End with a tool error."""
        recorder.mark("failed")
        raise ValueError(message)


def _register_waiting(server: Any, recorder: Recorder, state: State) -> None:
    @server.tool()
    async def barrier(name: str, parties: int, tag: str, place: int | None = None) -> dict[str, Any]:
        """Return when `parties` calls are inside at once; with `place`, in that order."""
        meeting = state.meetings.setdefault(name, Meeting())
        recorder.mark("barrier")
        return {"tag": tag, "peak": await meeting.attend(parties, place)}

    @server.tool()
    async def hold(gate: str, tag: str = "") -> str:
        """Return when the gate is opened."""
        recorder.mark("holding", gate=gate)
        try:
            await recorder.gate(gate)
        except anyio.get_cancelled_exc_class():
            recorder.mark("cancelled", gate=gate)
            raise
        recorder.mark("held", gate=gate)
        return f"{gate} is open {tag}".strip()

    @server.tool()
    async def forever() -> str:
        """Never return; record the cancellation."""
        recorder.mark("started")
        try:
            await anyio.sleep_forever()
        except anyio.get_cancelled_exc_class():
            recorder.mark("cancelled")
            raise
        return "never"

    @server.tool()
    async def slow(ctx: Context, steps: int = 3, gate: str = "") -> str:
        """Report progress `steps` times; with `gate`, wait at `GATE.1`, `GATE.2`, … before each."""
        for step in range(1, steps + 1):
            if gate:
                recorder.mark("waiting", gate=f"{gate}.{step}")
                await recorder.gate(f"{gate}.{step}")
            await ctx.report_progress(step, steps, f"step {step}")
        return f"{steps} steps"


def _register_requests(server: Any) -> None:
    @server.tool()
    async def ask(ctx: Context, question: str = "Which colour?") -> str:
        """Ask the user, on the stream of this call."""
        answer = await ctx.elicit(question, Colour)
        return f"accept {answer.data.colour}" if answer.action == "accept" else answer.action

    @server.tool()
    async def sample(ctx: Context, prompt: str, attributed: bool = True) -> str:
        """Ask the client's model; not `attributed`: on the stream that belongs to no call."""
        text = types.TextContent(type="text", text=prompt)
        answer = await ctx.session.create_message(
            messages=[types.SamplingMessage(role="user", content=text)],
            max_tokens=10,
            related_request_id=ctx.request_id if attributed else None,
        )
        return str(getattr(answer.content, "text", answer.content))

    @server.tool()
    async def roots(ctx: Context) -> list[str]:
        """Ask the client for its roots, on the stream that belongs to no call."""
        return [str(root.uri) for root in (await ctx.session.list_roots()).roots]


def _register_notifications(server: Any, state: State) -> None:
    @server.tool()
    async def log(ctx: Context, text: str, times: int = 1, attributed: bool = True) -> str:
        """Send log messages, on the stream of this call or on the one that belongs to no call."""
        related = ctx.request_id if attributed else None
        for n in range(1, times + 1):
            data = f"{text} {n}"
            await ctx.session.send_log_message("info", data, logger="test", related_request_id=related)
        return f"{times} messages"

    @server.tool()
    async def notify(ctx: Context, what: str) -> str:
        """Say that a list has changed: tools, prompts or resources."""
        session = ctx.session
        send = {
            "tools": session.send_tool_list_changed,
            "prompts": session.send_prompt_list_changed,
            "resources": session.send_resource_list_changed,
        }[what]
        await send()
        return what

    @server.tool()
    async def touch(uri: str = WATCHED) -> int:
        """Change a resource, and tell each session that subscribed to it; how many those are."""
        state.touched += 1
        told = 0
        for key in [key for key in state.subscribers if key[1] == uri]:
            try:
                await state.subscribers[key].send_resource_updated(uri)
                told += 1
            except (anyio.ClosedResourceError, anyio.BrokenResourceError):
                # Its session ended without unsubscribing, as sessions do.
                del state.subscribers[key]
        return told


def _register_resources(server: Any, state: State) -> None:
    @server.resource(WATCHED)
    def watched() -> str:
        """How often it was touched."""
        return f"touched {state.touched} times"

    @server.resource("test://greeting/{name}")
    def greeting(name: str) -> str:
        """A template."""
        return f"hello {name}"

    @server.prompt()
    def poem(topic: str) -> str:
        """A prompt."""
        return f"Write a poem about {topic}."
