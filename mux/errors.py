"""Every way a message can fail, as one tree, and the JSON-RPC codes that say so.

Codes below -32000 are JSON-RPC's own. trunkline's own codes lie outside the range that JSON-RPC and MCP reserve
(MCP 2026-07-28, "Error codes"): -31001 … -31005, so that a client can tell the gateway's word from the server's.

    TrunklineError
    ├── InvalidMessage          the peer broke JSON-RPC or MCP
    │   ├── ParseError          -32700
    │   ├── InvalidRequest      -32600
    │   ├── MethodNotFound      -32601
    │   ├── InvalidParams       -32602
    │   └── UnsupportedRevision -32022
    ├── UpstreamFault           -32603  the server's answer is not one
    │   └── RevisionNotServed
    ├── UpstreamRefused         the server's own error to the handshake, word for word
    ├── ServerError             the server's own error to a request of this process
    ├── UpstreamUnreachable     -31001
    │   ├── HandshakeTimedOut
    │   ├── CircuitOpen                 data.retry_after: seconds
    │   └── CredentialRefused           the server takes no credential of the gateway's
    ├── SessionLost             -31002  data.executed: "no" | "unknown"
    ├── Overloaded              -31003  data.limit
    │   ├── DirectoryUnavailable        data.limit: "directory"
    │   └── LeaseEnded                  data.limit: "lease"
    ├── TimedOut                -31004
    ├── Unattributable          -31005
    ├── Cancelled               -32800
    ├── UnknownSession          (HTTP 404; never a JSON-RPC answer of its own)
    │   └── UnknownServer
    └── WorkflowEnded           -31002  why a workflow was closed

What one part alone can fail with is a leaf that stands there: `Trimmed`, `HeaderMismatch`, `HTTPRefusal`. No failures
of messages: `Elsewhere`, one is another worker's; `IllegalMove`, a defect.
"""

from collections.abc import Callable, Mapping
from typing import Any, ClassVar, Literal, TypeVar

from .principal import Principal

Executed = Literal["no", "unknown"]

Failure = TypeVar("Failure", bound=Exception)


class TrunklineError(Exception):
    """A failure with a JSON-RPC code, a message for people, and data for programs.

    `reason` is a short fixed word for counters and logs: never the peer's text.
    """

    code: int = -32603
    reason: ClassVar[str] = "internal"

    def __init__(self, message: str, **data: object) -> None:
        super().__init__(message)
        self.message = message
        self.data = data

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.message!r})"

    def __reduce__(self) -> tuple[object, ...]:
        """What a copy is made of, and what another process is sent: not what a constructor takes, which differs."""
        return _copied, (type(self), self.args, vars(self))

    @property
    def word(self) -> str:
        """The fixed word under which a refusal is counted: the limit that was met, else the `reason`."""
        return self.reason


def _copied(kind: type[TrunklineError], args: tuple[object, ...], members: dict[str, object]) -> TrunklineError:
    copied = kind.__new__(kind, *args)
    vars(copied).update(members)
    return copied


class InvalidMessage(TrunklineError):
    """What the peer sent is not a message of this protocol."""

    code = -32600
    reason = "invalid_request"


class ParseError(InvalidMessage):
    """The text is not JSON, not UTF-8, or nested too deeply."""

    code = -32700
    reason = "parse_error"


class InvalidRequest(InvalidMessage):
    """JSON, but not a JSON-RPC message that MCP allows here."""


class MethodNotFound(InvalidMessage):
    """The method does not exist on this path."""

    code = -32601
    reason = "method_not_found"


class InvalidParams(InvalidMessage):
    """The method exists; its parameters contradict the session or the rules."""

    code = -32602
    reason = "invalid_params"


class UnsupportedRevision(InvalidMessage):
    """The protocol revision asked for is not served here; `data.supported` lists those that are."""

    code = -32022
    reason = "unsupported_revision"


class UpstreamFault(TrunklineError):
    """The server answered with something that is no JSON-RPC response (rule E7)."""

    code = -32603
    reason = "upstream_fault"


class RevisionNotServed(UpstreamFault):
    """The server began a session in a revision that is not served here: it may be what its client asked for."""


class UpstreamRefused(TrunklineError):
    """The server answered the handshake with an error, which goes to the client word for word (rule E23).

    `raw` is the server's error object.
    """

    reason = "upstream_refused"

    def __init__(self, raw: bytes) -> None:
        super().__init__("the server refused the handshake")
        self.raw = raw


class ServerError(TrunklineError):
    """The server answered a request of this process with an error of its own: `code`, `message`, `details` are its."""

    reason = "server_error"

    def __init__(self, error: Mapping[str, Any]) -> None:
        super().__init__(str(error.get("message", "")))
        self.code = error.get("code", -32603)
        self.details = error.get("data")
        """The `data` of the error; None where there is none."""


class UpstreamUnreachable(TrunklineError):
    """No answer could be had from the server: it did not run the call, or refused it on the HTTP level."""

    code = -31001
    reason = "upstream_unreachable"


class CredentialRefused(UpstreamUnreachable):
    """The gateway has no credential that the server takes: none was issued, or the server refused it."""

    reason = "credential"

    def __init__(self, message: str) -> None:
        super().__init__(message, executed="no")


class HandshakeTimedOut(UpstreamUnreachable):
    """The server did not finish the handshake in time."""

    reason = "handshake_timed_out"


class CircuitOpen(UpstreamUnreachable):
    """The server could not be reached so often that it is not tried now; `data.retry_after` says for how long."""

    reason = "circuit_open"

    def __init__(self, server: str, seconds: float) -> None:
        wait = round(seconds, 1)
        message = (
            f"{server} cannot be reached; its circuit is open, and it is tried again in {wait:.1f} s at the earliest"
        )
        super().__init__(message, executed="no", retry_after=wait)


class SessionLost(TrunklineError):
    """The upstream session, or the stream that should have carried the answer, is gone.

    `data.executed` says `"no"` where the call surely did not run and `"unknown"` where it may have (guarantee G6).
    """

    code = -31002
    reason = "session_lost"

    def __init__(self, message: str, *, executed: Executed) -> None:
        super().__init__(message, executed=executed)


class Overloaded(TrunklineError):
    """A limit was reached; `data.limit` names it (guarantee G10)."""

    code = -31003
    reason = "overloaded"

    def __init__(self, message: str, *, limit: str) -> None:
        super().__init__(message, limit=limit)
        self.limit = limit

    @property
    def word(self) -> str:
        """See `TrunklineError.word`."""
        return self.limit


class DirectoryUnavailable(Overloaded):
    """The directory cannot be reached: what this worker does not hold cannot be found or begun (HTTP 503).

    `remedy` tells operators, and no client, what to do; None where nothing more is known.
    """

    reason = "directory_unavailable"

    def __init__(self, message: str, *, remedy: str | None = None) -> None:
        super().__init__(message, limit="directory")
        self.remedy = remedy


class LeaseEnded(Overloaded):
    """Another worker may hold the session by now: nothing is sent to its server until it is known that none does."""

    reason = "lease_ended"

    def __init__(self) -> None:
        super().__init__(
            "this worker cannot reach the directory, and may not use the session; try again", limit="lease"
        )
        self.data["executed"] = "no"


class TimedOut(TrunklineError):
    """The server gave neither answer nor progress within `request_timeout`, and was told to cancel."""

    code = -31004
    reason = "timed_out"


class Unattributable(TrunklineError):
    """A server's request that could concern more than one client: refused, never broadcast (rule R1)."""

    code = -31005
    reason = "unattributable"


class Cancelled(TrunklineError):
    """The client cancelled the request; an HTTP exchange still needs an end (rule E16)."""

    code = -32800
    reason = "cancelled"


class UnknownSession(TrunklineError):
    """No session of that id for this principal on this server: never existed, ended, or another's (guarantee G4)."""

    code = -32600
    reason = "unknown_session"


class UnknownServer(UnknownSession):
    """There is no server of that name, or not any longer: nothing begins on it."""

    reason = "unknown_server"

    def __init__(self, server: str) -> None:
        super().__init__(f"there is no server {server}")


class WorkflowEnded(TrunklineError):
    """The workflow was closed; `cause` is the word that counters and logs carry."""

    code = -31002
    reason = "workflow_ended"

    def __init__(self, cause: str, *, executed: Executed = "unknown") -> None:
        super().__init__(f"the workflow ended: {cause}", executed=executed)
        self.cause = cause


class IllegalMove(AssertionError):
    """What a table of states does not hold has happened: a defect of trunkline, and never a peer's fault."""


class Elsewhere(Exception):
    """The request belongs to a workflow that another worker holds; nothing was done. No answer to a client."""

    def __init__(self, worker: str) -> None:
        super().__init__(worker)
        self.worker = worker
        """The id of that worker."""
        self.identity: tuple[Principal, float] | None = None
        """Who asks, and when that identity expires in wall time; set by who verified it."""
        self.lay_down: Callable[[], None] | None = None
        """To be called once what was read of the request is kept no longer: it counts until then."""


class Everywhere(Elsewhere):
    """A cancellation, whose call may be in flight at any worker; nothing was done."""

    def __init__(self) -> None:
        super().__init__("")


def first_of(failures: ExceptionGroup[Failure]) -> Failure:
    """The first failure of a group, however deep it lies."""
    first = failures.exceptions[0]
    return first_of(first) if isinstance(first, ExceptionGroup) else first
