"""What a client's `initialize` fixes for its session, and how a later one differs from it. Pure."""

from . import envelope as wire_format
from .envelope import Envelope
from .errors import InvalidParams
from .limits import MAX_HANDSHAKE_BYTES
from .ports import Headers
from .record import Handshake, WorkflowRecord


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
    fixed = tuple(sorted(session_headers.items()))
    return Handshake(revision, bytes(message.members["params"]), capabilities, fixed)


def difference(record: WorkflowRecord, handshake: Handshake) -> str | None:
    """The field in which a later handshake differs from the one that opened the workflow; clientInfo is none."""
    if handshake.revision not in (record.handshake.revision, record.revision):
        return "protocolVersion"
    if handshake.capabilities != record.handshake.capabilities:
        return "capabilities"
    return None if handshake.session_headers == record.handshake.session_headers else "session headers"
