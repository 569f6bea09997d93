"""The one place where failures become HTTP: status, headers and body (rules E20, E21, X1).

A legacy request that is well formed and fails is a JSON-RPC error inside HTTP 200. Other statuses are refusals of the
transport: made here, for this hop, and never copied from a server.
"""

from typing import Final, NamedTuple

from ..mux import envelope as wire_format
from ..mux.errors import InvalidRequest, Overloaded, ParseError, TrunklineError, UnknownSession, UnsupportedRevision
from ..mux.event_log import Trimmed
from .asgi import JSON, RawHeaders

INVALID_CREDENTIAL: Final = 'Bearer error="invalid_token"'
"""The challenge to a credential that was sent and does not count (RFC 6750, 3.1)."""

RETRY_AFTER: Final = (b"retry-after", b"10")
PER_PRINCIPAL: Final = frozenset(
    {
        "max_channels_per_user",
        "max_large_bytes_per_user",
        "max_workflows_per_tenant",
        "max_workflows_per_user",
        "tickets_per_user",
    }
)
AT_ADMISSION: Final = frozenset(
    {
        "directory",
        "draining",
        "issuer_keys",
        "max_large_bytes",
        "max_large_bytes_per_server",
        "max_workflows",
        "opening",
        "reconfigured",
        "tickets",
        "worker",
    }
)


class Unauthorized(Exception):
    """No verified identity came with the request: 401, with the `WWW-Authenticate` value that says what is wanted."""

    def __init__(self, message: str, *, challenge: str = "Bearer") -> None:
        super().__init__(message)
        self.message = message
        self.challenge = challenge


class HTTPRefusal(TrunklineError):
    """A request that HTTP itself refuses: wrong method, type, length, or header; or not for this listener."""

    code = -32600

    def __init__(self, status: int, reason: str, message: str, *, headers: RawHeaders | None = None) -> None:
        super().__init__(message)
        self.status = status
        self.headers = headers or []
        self._word = reason

    @property
    def word(self) -> str:
        """See `TrunklineError.word`."""
        return self._word


class Answer(NamedTuple):
    """A complete HTTP answer, and the word under which a refusal is counted; empty where it is none."""

    status: int
    headers: RawHeaders
    body: bytes
    refused: str


def answer_to(error: Exception, id: bytes = b"") -> Answer:
    """The HTTP answer for a failure; `id` is that of the request, where it could be read."""
    if isinstance(error, Unauthorized):
        headers = [JSON, (b"www-authenticate", error.challenge.encode("latin-1"))]
        return Answer(401, headers, _body(error.message, id), "unauthorized")
    if isinstance(error, HTTPRefusal):
        return Answer(error.status, [JSON, *error.headers], wire_format.failure(id, error), error.word)
    if not isinstance(error, TrunklineError):
        return Answer(500, [JSON], _body("internal error", id), "internal")
    body = wire_format.failure(id, error)
    if isinstance(error, UnknownSession | Trimmed):
        return Answer(404, [JSON], body, error.word)
    if isinstance(error, ParseError | InvalidRequest | UnsupportedRevision):
        return Answer(400, [JSON], body, error.word)
    if isinstance(error, Overloaded) and error.limit in PER_PRINCIPAL:
        return Answer(429, [JSON, RETRY_AFTER], body, error.word)
    if isinstance(error, Overloaded) and error.limit in AT_ADMISSION:
        return Answer(503, [JSON, RETRY_AFTER], body, error.word)
    return Answer(200, [JSON], body, "")


def _body(message: str, id: bytes) -> bytes:
    return wire_format.failure(id, InvalidRequest(message))
