"""The messages that begin a session: what they fix, how a later `initialize` differs, what is left to be told. Pure.

The same handshake is met on two sides: a client's `initialize` is read, and one is written for its server.
"""

from collections.abc import Mapping
from typing import Final

from msgspec import Raw

from . import envelope as wire_format
from .envelope import Envelope
from .errors import InvalidParams, ParseError, RevisionNotServed, UpstreamFault, UpstreamRefused
from .limits import MAX_GREETING_BYTES, MAX_HANDSHAKE_BYTES
from .own import own_request
from .ports import Headers, Opened
from .record import Handshake, WorkflowRecord
from .routing import LEGACY

REVISIONS: Final = {revision: revision for revision in LEGACY}
"""One object of each for all that hold it. `sys.intern` would keep what clients make up, with Python 3.12 for good."""

ANSWERS_ONLY: Final = frozenset({"completions", "prompts", "resources", "tools"})
"""Capabilities of servers that are for answering alone, as far as all their flags are false."""

NEUTRAL: Final = frozenset({"experimental", "extensions"})
"""Capabilities that stand for nothing while they are empty."""


def read_handshake(message: Envelope, session_headers: Headers) -> Handshake:
    """What a client's `initialize` fixes for its session.

    Raises:
        InvalidParams: no protocol version, capabilities that are no object, or more than `MAX_HANDSHAKE_BYTES`.
    """
    if len(bytes(message.members.get("params", b""))) > MAX_HANDSHAKE_BYTES:
        raise InvalidParams(f"initialize: the params are larger than {MAX_HANDSHAKE_BYTES} bytes")
    params = message.params()
    revision = wire_format.string_of(params.get("protocolVersion")) if params else None
    if params is None or revision is None:
        raise InvalidParams("initialize needs params with a protocolVersion")
    capabilities = wire_format.canonical(params.get("capabilities"))
    if capabilities[:1] != b"{":
        raise InvalidParams("initialize: capabilities must be an object")
    params_read = bytes(message.members["params"])
    return Handshake(REVISIONS.get(revision, revision), params_read, capabilities, _fixed(session_headers))


def _fixed(session_headers: Headers) -> tuple[tuple[str, str], ...]:
    return tuple(sorted(session_headers.items())) if session_headers else ()


def repeats(handshake: Handshake, message: Envelope, session_headers: Headers) -> bool:
    """Whether a client's `initialize` is byte for byte the one that this was read from; False tells nothing."""
    return message.members.get("params") == Raw(handshake.params) and handshake.session_headers == _fixed(
        session_headers
    )


def initialize(handshake: Handshake) -> Envelope:
    """The `initialize` for the server, with the client's own params; the channel that carries it mints its id."""
    return own_request("initialize", Raw(handshake.params))


def own_initialize(revision: str, capabilities: Mapping[str, object], client_info: Mapping[str, str]) -> Envelope:
    """An `initialize` that no client has sent, for who begins without one; read as a client's own."""
    params = {"protocolVersion": revision, "capabilities": dict(capabilities), "clientInfo": dict(client_info)}
    return own_request("initialize", params)


def read_answer(response: bytes) -> Opened:
    """What the server says of the session that it begins.

    Raises:
        UpstreamRefused: it begins none.
        RevisionNotServed: it chose one that is not served here.
        UpstreamFault: it named no revision, or said more than `MAX_GREETING_BYTES`.
    """
    if len(response) > MAX_GREETING_BYTES:
        raise UpstreamFault(f"the server answered initialize with more than {MAX_GREETING_BYTES} bytes")
    answer = wire_format.parse(response, limit=MAX_GREETING_BYTES)
    if answer.is_error:
        raise UpstreamRefused(bytes(answer.members["error"]))
    result = answer.members["result"]
    revision = wire_format.string_of((wire_format.members_of(result) or {}).get("protocolVersion"))
    if revision is None:
        raise UpstreamFault("the server named no protocol revision")
    if revision not in REVISIONS:
        raise RevisionNotServed(f"the server chose a protocol revision that is not served here: {revision[:32]}")
    return Opened(REVISIONS[revision], bytes(result))


def difference(record: WorkflowRecord, handshake: Handshake) -> str | None:
    """The field in which a later handshake differs from the one that opened the workflow; clientInfo is none."""
    if handshake.revision not in (record.handshake.revision, record.revision):
        return "protocolVersion"
    if handshake.capabilities != record.handshake.capabilities:
        return "capabilities"
    return None if handshake.session_headers == record.handshake.session_headers else "session headers"


def is_mute(result: bytes, capabilities: bytes) -> bool:
    """True where a server with this InitializeResult has nothing to tell unasked to a client of these capabilities.

    Both sides keep to what they declared (Lifecycle, "Operation"): it cannot ask where the client answers nothing, and
    it has declared no log, no list that changes, nothing to subscribe to, no tasks, and nothing that is not known here.
    """
    try:
        declared = _members((wire_format.members_of(Raw(result)) or {}).get("capabilities"))
        if declared is None or capabilities != b"{}":
            return False
        return all(_is_quiet(name, _members(raw)) for name, raw in declared.items())
    except ParseError:
        return False


def _is_quiet(name: str, features: wire_format.Members | None) -> bool:
    if name in NEUTRAL:
        return features == {}
    return name in ANSWERS_ONLY and features is not None and all(bytes(flag) == b"false" for flag in features.values())


def _members(raw: Raw | None) -> wire_format.Members | None:
    return None if raw is None else wire_format.members_of(raw)
