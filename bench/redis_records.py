"""Records and events like those of a real conversation, for measurements of a directory."""

from typing import Final

import msgspec
from trunkline.mux.directory import Entry
from trunkline.mux.limits import EventLogLimits, Pooling
from trunkline.mux.principal import Principal
from trunkline.mux.record import Handshake, WorkflowRecord, new_session_id

PARAMS: Final = (
    b'{"protocolVersion":"2025-11-25","capabilities":{"roots":{"listChanged":true},"sampling":{},"elicitation":{}},'
    b'"clientInfo":{"name":"an-agent","title":"An agent","version":"1.12.3"}}'
)
CAPABILITIES: Final = b'{"elicitation":{},"roots":{"listChanged":true},"sampling":{}}'
RESULT: Final = (
    b'{"protocolVersion":"2025-11-25","capabilities":{"logging":{},"prompts":{"listChanged":true},"resources":'
    b'{"listChanged":true,"subscribe":true},"tools":{"listChanged":true}},"serverInfo":{"name":"files","version":"2.4.0"},'
    b'"instructions":"' + b"Paths are relative to the root of the project. " * 5 + b'"}'
)
"""What a server with a paragraph of instructions answers to `initialize`."""

EVENT: Final = b'{"jsonrpc":"2.0","id":12,"result":{"content":[{"type":"text","text":"' + b"x" * 425 + b'"}]}}'
"""500 bytes: an answer."""

KEEP: Final[EventLogLimits] = Pooling().event_log


def record(n: int, *, keyed: bool = False) -> WorkflowRecord:
    """The record of an open workflow, one of many; each of its principal's own."""
    pooling = Pooling()
    return WorkflowRecord(
        new_session_id(),
        Principal("https://login.example", "acme", f"user-{n:07}"),
        "files",
        f"chat-{n:07}" if keyed else None,
        Handshake("2025-11-25", PARAMS, CAPABILITIES),
        revision="2025-11-25",
        result=RESULT,
        worker=f"{n % 200:032x}",
        upstream_session=f"{n:032x}",
        lifetime=pooling.idle_timeout + pooling.resume_window,
    )


def event(n: int) -> Entry:
    """The nth event of a stream."""
    return Entry("event", 1, n, EVENT)


def size(of: WorkflowRecord) -> int:
    """Bytes of a record as it is stored."""
    return len(msgspec.msgpack.encode(of))
