"""What is measured, as data: what stands before the server, and under which load."""

from dataclasses import dataclass
from typing import Literal

from bench.client import SMALL, arguments

DIRECT = "direct"
FLOOR = "bare uvicorn"
FORWARDER = "bare forwarder"
OLD_6 = "old path, 6 requests"
OLD_4 = "old path, 4 requests"
TRUNKLINE = "trunkline"
BY_USER = "trunkline, reuse = user"
FEW_IDLE = "trunkline, 10 idle workflows"
MANY_IDLE = "trunkline, 10,000 idle workflows"


@dataclass(frozen=True)
class Variant:
    """What stands before the server. A gateway has settings; what has none is no gateway."""

    about: str
    settings: str | None = None
    idle: int = 0
    """Workflows that it holds beside those that call, without a connection."""


VARIANTS = {
    DIRECT: Variant("no gateway"),
    FLOOR: Variant("uvicorn alone, which answers at once with what it was asked"),
    FORWARDER: Variant(
        "forwards each POST by the gateway's own HTTP client, and knows nothing of MCP; always over HTTP"
    ),
    OLD_6: Variant(
        "a session for each call with the habits of the SDK's client: initialize, initialized, the GET stream, "
        "tools/list, the call, DELETE, and the answer after that",
        '[pooling]\nreuse = "none"\n[compat]\nsdk_habits = true\n',
    ),
    OLD_4: Variant(
        "the least that a session for each call can cost: without the stream and the list",
        '[pooling]\nreuse = "none"\n',
    ),
    TRUNKLINE: Variant("one session for each workflow", '[pooling]\nreuse = "workflow"\n'),
    BY_USER: Variant("one session for all workflows of a user", '[pooling]\nreuse = "user"\n'),
    FEW_IDLE: Variant("with 10 idle workflows beside", "[pooling]\nmax_workflows = 20000\n", idle=10),
    MANY_IDLE: Variant("with 10,000 of them", "[pooling]\nmax_workflows = 20000\n", idle=10_000),
}

YARDSTICKS = (FORWARDER, DIRECT)
"""What other variants are compared with, round by round: the first that a scenario has."""

ALL = (DIRECT, FLOOR, FORWARDER, OLD_6, OLD_4, TRUNKLINE)
PATHS = (DIRECT, OLD_6, OLD_4, TRUNKLINE)


@dataclass(frozen=True)
class Scenario:
    """A load, and who takes it in turns."""

    about: str
    variants: tuple[str, ...]
    inflight: int = 1
    workflows: int = 1
    """Those that the calls in flight are spread over."""
    transport: Literal["http", "modern", "sse", "ws"] = "http"
    """What the client speaks."""
    server: str = "bench"
    """The server's name in the gateway: it says its transport and its delay."""
    shape: Literal["closed", "open", "burst"] = "closed"
    anew: bool = False
    """Each call by a client that comes anew, with the key of its workflow."""
    asks: tuple[bytes, ...] = SMALL
    """Arguments of the calls, one after the other."""
    seconds: float = 1.0
    """Of one turn."""
    turns: int = 1
    """Of each variant in one round, one after the other: many short ones, where what differs is less than noise."""
    has_own_processes: bool = False
    """Whether each round has processes of its own: equal ones differ by where the kernel has put their memory."""
    is_quick: bool = False
    """Whether `make bench` has it."""

    @property
    def has_pauses(self) -> bool:
        """Whether every core has time to sleep between two calls."""
        return self.inflight == 1 or self.shape != "closed"


CALL_MS = 50.0
"""What a call of the burst takes."""

SHARE_OF_MAXIMUM = 0.7
"""The rate of the open loop, of the most that a closed loop reached in the same round."""

MIXED = (*[arguments()] * 16, *[arguments(kib=2)] * 10, *[arguments(kib=20)] * 5, arguments(kib=256))

SCENARIOS = {
    "http_1": Scenario("no delay, 1 call in flight", ALL, is_quick=True),
    "http_16": Scenario("no delay, 16 calls in flight", ALL, inflight=16, is_quick=True),
    "http_64": Scenario("no delay, 64 calls in flight", ALL, inflight=64, is_quick=True),
    "http_256": Scenario("no delay, 256 calls in flight, in 16 workflows", ALL, inflight=256, workflows=16),
    "http_many": Scenario(
        "no delay, 64 calls in flight, each in a workflow of its own", (FORWARDER, OLD_4, TRUNKLINE), 64, workflows=64
    ),
    "reuse": Scenario("16 calls in flight in 16 workflows, by reuse", (OLD_4, TRUNKLINE, BY_USER), 16, workflows=16),
    "delay5": Scenario("5 ms network delay, 1 call in flight", PATHS, server="bench5", seconds=1.5, is_quick=True),
    "delay5x16": Scenario("5 ms network delay, 16 calls in flight", PATHS, 16, server="bench5"),
    "delay50": Scenario("50 ms network delay, 1 call in flight", PATHS, server="bench50", seconds=3.0),
    "delay50x16": Scenario("50 ms network delay, 16 calls in flight", PATHS, 16, server="bench50", seconds=2.0),
    "anew": Scenario(
        "clients that come anew with each call, 16 at once, no delay",
        (OLD_6, OLD_4, TRUNKLINE),
        16,
        anew=True,
        is_quick=True,
    ),
    "anew5": Scenario(
        "clients that come anew with each call, 16 at once, 5 ms network delay",
        (OLD_6, OLD_4, TRUNKLINE),
        16,
        server="bench5",
        anew=True,
    ),
    "open": Scenario(
        "open loop at 70 % of what 64 calls in flight reach",
        (DIRECT, FORWARDER, TRUNKLINE),
        64,
        shape="open",
        seconds=2.0,
        is_quick=True,
    ),
    "burst": Scenario(
        "16 calls of 50 ms at once on one session",
        (DIRECT, OLD_4, TRUNKLINE),
        16,
        shape="burst",
        asks=(arguments(ms=CALL_MS),),
        is_quick=True,
    ),
    "mixed": Scenario(
        "answers of 0.3 to 256 KiB, 16 calls in flight", (DIRECT, FORWARDER, OLD_4, TRUNKLINE), 16, asks=MIXED
    ),
    "large": Scenario(
        "answers of 1 MiB, 4 calls in flight", (DIRECT, FORWARDER, TRUNKLINE), 4, asks=(arguments(kib=1024),)
    ),
    "large_calls": Scenario(
        "calls of 1 MiB, with answers as large, 4 in flight",
        (DIRECT, FORWARDER, TRUNKLINE),
        4,
        asks=(arguments(pad=1 << 20),),
    ),
    "events": Scenario(
        "answers as streams of one event, 16 calls in flight", (DIRECT, FORWARDER, TRUNKLINE), 16, server="events"
    ),
    "large_events": Scenario(
        "answers of 1 MiB as streams of one event, 4 calls in flight",
        (DIRECT, FORWARDER, TRUNKLINE),
        4,
        server="events",
        asks=(arguments(kib=1024),),
    ),
    "modern": Scenario(
        "without sessions (2026-07-28), 16 calls in flight", (DIRECT, FORWARDER, TRUNKLINE), 16, transport="modern"
    ),
    "sse_http": Scenario("HTTP+SSE to HTTP, 16 calls in flight", (OLD_4, TRUNKLINE), 16, transport="sse"),
    "ws_http": Scenario("WebSocket to HTTP, 16 calls in flight", (OLD_4, TRUNKLINE), 16, transport="ws"),
    "ws_ws": Scenario(
        "WebSocket to WebSocket, 16 calls in flight",
        (DIRECT, FORWARDER, OLD_4, TRUNKLINE),
        16,
        transport="ws",
        server="ws",
        is_quick=True,
    ),
    "http_stdio": Scenario("HTTP to stdio, 16 calls in flight", (TRUNKLINE,), 16, server="stdio"),
    "growth": Scenario(
        "16 calls in flight beside idle workflows",
        (FEW_IDLE, MANY_IDLE),
        16,
        seconds=0.2,
        turns=10,
        has_own_processes=True,
    ),
}
