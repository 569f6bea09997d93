"""What a message of 2026-07-28 must hold: every request stands for itself, without a handshake or a session. Pure.

A transport reads a body with `read`, holds it against the headers that came with it with `checked_headers`, and sends
it on with those that are made anew from the body (rules H1-H4). `status_of` says which HTTP status an error has in
this era (rule E20); `revisions_of` what a server's answer to the probe tells (rule L29). The revisions of this era
stand here and nowhere else.
"""

import base64
import binascii
import re
from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Final

import msgspec
from msgspec import Raw

from . import envelope as wire_format
from .envelope import Envelope, encode_members, members_of, string_of
from .errors import InvalidMessage, InvalidParams, InvalidRequest, ParseError, TrunklineError, UnsupportedRevision
from .limits import MAX_BODY_BYTES
from .routing import LEGACY, MODERN

REVISIONS: Final = (MODERN,)
"""The revisions without a handshake that are served, oldest first."""

DISCOVER: Final = "server/discover"
LISTEN: Final = "subscriptions/listen"
"""The one request whose stream is quiet by nature, and lasts until its client leaves (rule L28)."""

VERSION_HEADER: Final = "mcp-protocol-version"
METHOD_HEADER: Final = "mcp-method"
NAME_HEADER: Final = "mcp-name"
PARAM_PREFIX: Final = "mcp-param-"

VERSION_KEY: Final = "io.modelcontextprotocol/protocolVersion"
CAPABILITIES_KEY: Final = "io.modelcontextprotocol/clientCapabilities"

NAMED_BY: Final[Mapping[str, str]] = {
    "tools/call": "name",
    "prompts/get": "name",
    "resources/read": "uri",
    "tasks/get": "taskId",
    "tasks/update": "taskId",
    "tasks/cancel": "taskId",
}
"""The member of `params` that `Mcp-Name` repeats (rules H2, R15)."""

MISSING_CAPABILITY: Final = -32021

MAX_LIST_BYTES: Final = 65_536
"""What a server's list of revisions may take: each short text takes 20 times its bytes, and much longer to read."""

Lines = Iterable[tuple[str, str]]
"""Header lines as they came: a name in lower case, and its value. A name may come twice."""

_SENTINEL: Final = re.compile(r"=\?base64\?(.*)\?=")
_PLAIN: Final = re.compile(r"[\x20-\x7e]*")
_NO_VERDICT: Final = frozenset({401, 403, 407, 408, 421, 425, 429})
"""Refusals of the request as such: they tell nothing of what the server speaks."""


_ABSENT: Final = Raw(b"")


class _Params(msgspec.Struct):
    """What is looked at of a request's `params`; whatever else there is takes neither time nor memory."""

    meta: Raw = msgspec.field(default=_ABSENT, name="_meta")
    name: Raw = _ABSENT
    uri: Raw = _ABSENT
    task_id: Raw = msgspec.field(default=_ABSENT, name="taskId")


class _Meta(msgspec.Struct):
    """What is looked at of `params._meta`."""

    version: Raw = msgspec.field(default=_ABSENT, name=VERSION_KEY)
    capabilities: Raw = msgspec.field(default=_ABSENT, name=CAPABILITIES_KEY)


_decode_params: Final = msgspec.json.Decoder(_Params).decode
_decode_meta: Final = msgspec.json.Decoder(_Meta).decode


class HeaderMismatch(InvalidMessage):
    """A header that repeats a part of the body is absent, malformed, there twice, or says something else (rule H2)."""

    code = -32020
    reason = "header_mismatch"


STATUS: Final[Mapping[int, int]] = {
    ParseError.code: 400,
    InvalidRequest.code: 400,
    InvalidParams.code: 400,
    HeaderMismatch.code: 400,
    MISSING_CAPABILITY: 400,
    UnsupportedRevision.code: 400,
    -32601: 404,
}


def status_of(code: int) -> int:
    """The HTTP status of an answer that is an error of this code (rule E20)."""
    return STATUS.get(code, 200)


def stripped(value: str) -> str:
    """A header's value without the white space around it, which belongs to the line (RFC 9110, 5.5)."""
    return value.strip(" \t")


def claims(body: bytes, revision: str | None) -> bool:
    """True if a POST wants to be a message of this era: by its version header, or without one by its body.

    A body that names its revision needs the header; it is refused for the want of it, and not for a missing session.
    """
    if revision is not None:
        return stripped(revision) not in LEGACY
    if b"clientCapabilities" not in body:
        return False
    try:
        message = read(body)
        return message.kind == "request" and revision_in(message) is not None
    except TrunklineError:
        return False


def revision_in(request: Envelope) -> str | None:
    """The revision that a request names for itself, empty where that is no text; None where it names none.

    An `initialize` names one in its own way.

    Raises:
        ParseError: nested too deeply.
    """
    raw = _ABSENT if request.method == "initialize" else _meta(_params(request)).version
    return None if raw is _ABSENT else string_of(raw) or ""


def read(body: bytes) -> Envelope:
    """The one request or notification that a body holds (rule H1).

    Raises:
        ParseError: it is not JSON.
        InvalidRequest: a batch, a response, or no message.
    """
    if not wire_format.is_batch(body):
        message = wire_format.parse(body, limit=MAX_BODY_BYTES)
        if message.kind != "response":
            return message
    raise InvalidRequest("a body holds one request or one notification")


def checked_headers(message: Envelope, lines: Lines, served: Sequence[str] = REVISIONS) -> dict[str, str]:
    """The headers that go on with a message: what repeats its body, made anew, and `Mcp-Param-*` as it came.

    Raises:
        InvalidParams: a request without its revision or its client's capabilities (rule L19).
        HeaderMismatch: headers and body disagree.
        UnsupportedRevision: they agree on a revision that is not `served`, whose revisions it names (rule L20).
    """
    headers = _routing(lines)
    if message.kind == "notification":  # what headers it needs is not defined; it only has to be of this era
        revision = headers.get(VERSION_HEADER, "")
        _check_served(revision, served)
        return {VERSION_HEADER: revision}
    params = _params(message)
    meta = _meta(params)
    needed = {VERSION_KEY: meta.version, CAPABILITIES_KEY: meta.capabilities}
    missing = [key for key, raw in needed.items() if raw is _ABSENT]
    if missing:
        raise InvalidParams(f"params._meta must have {' and '.join(missing)}")
    found = string_of(meta.version)
    if found is None or headers.get(VERSION_HEADER) != found:
        raise HeaderMismatch(f"MCP-Protocol-Version must be what params._meta has as {VERSION_KEY}")
    if decoded(headers.get(METHOD_HEADER)) != message.method:
        raise HeaderMismatch("Mcp-Method must be the method of the body")
    made = {VERSION_HEADER: found, METHOD_HEADER: encoded(message.method)}
    name = _checked_name(message.method, params, headers.get(NAME_HEADER))
    if name is not None:
        made[NAME_HEADER] = encoded(name)
    _check_served(found, served)
    return made | {header: value for header, value in headers.items() if header.startswith(PARAM_PREFIX)}


def body_of(message: Envelope, body: bytes) -> bytes:
    """The body of a checked request as it goes on: byte for byte, if all parsers find the same in it (rule E26).

    What was checked may stand there twice, or in another spelling; then it is written anew from what was parsed.

    Raises:
        ParseError: nested too deeply.
    """
    params = message.params() or {}
    params["_meta"] = encode_members(members_of(params["_meta"]) or {})
    again = message.with_params(params)
    if again == body:
        return body
    try:
        same = msgspec.json.format(body, indent=-1) == msgspec.json.format(again, indent=-1)
    except RecursionError:
        raise ParseError("the message is nested too deeply") from None
    return body if same else again


def encoded(value: str) -> str:
    """A value as a header carries it: as it is, or in base64 where a header would change it (rule H2)."""
    if _PLAIN.fullmatch(value) and value == value.strip() and not _SENTINEL.fullmatch(value):
        return value
    return f"=?base64?{base64.b64encode(value.encode()).decode()}?="


def decoded(value: str | None) -> str | None:
    """The value that a header carries; None where there is none, or its base64 is not what `encoded` would write."""
    found = None if value is None else _SENTINEL.fullmatch(value)
    if found is None:
        return value
    try:
        raw = base64.b64decode(found[1], validate=True)
        return raw.decode() if base64.b64encode(raw).decode() == found[1] else None
    except (binascii.Error, UnicodeDecodeError):
        return None


def probe() -> tuple[bytes, dict[str, str]]:
    """A `server/discover` of the gateway's own, and its headers: whoever answers it as this era has it speaks it."""
    revision = REVISIONS[-1]
    meta = {
        VERSION_KEY: revision,
        CAPABILITIES_KEY: {},
        "io.modelcontextprotocol/clientInfo": {"name": "trunkline", "version": "0"},
    }
    body = wire_format.request(DISCOVER, {"_meta": meta}, b"1")
    return body, {VERSION_HEADER: revision, METHOD_HEADER: DISCOVER}


def revisions_of(status: int, answer: Envelope | None) -> tuple[str, ...] | None:
    """The revisions of ours that a server speaks, by its answer to the probe; None where that is no verdict (5.1).

    `answer` is the response that it gave, if it gave one. Whatever is not positively of this era is a server of
    sessions, except refusals and failures that any server may give to any request. No single code decides.

    Raises:
        ParseError: nested too deeply, or too many members or revisions.
    """
    if answer is None:
        is_verdict = 200 <= status < 300 or (400 <= status < 500 and status not in _NO_VERDICT)
        return LEGACY if is_verdict else None
    error = members_of(answer.members["error"]) if answer.is_error else None
    if error is None:
        named = _strings((members_of(answer.members["result"]) or {}).get("supportedVersions"))
    else:
        code = bytes(error["code"])
        if code in (b"%d" % HeaderMismatch.code, b"%d" % MISSING_CAPABILITY):
            return REVISIONS  # only servers of this era know these codes
        is_other = code != b"%d" % UnsupportedRevision.code
        data = None if is_other else members_of(error.get("data", Raw(b"null")))
        named = _strings((data or {}).get("supported"))
    spoken = tuple(revision for revision in (*LEGACY, *REVISIONS) if revision in named)
    return LEGACY if set(spoken).isdisjoint(REVISIONS) else spoken


def offered(answer: Envelope, offers: Collection[str]) -> Envelope:
    """The response to a `server/discover` without the revisions that are not served here (rule L21).

    Raises:
        ParseError: nested too deeply, or too many members or revisions.
    """
    result = members_of(answer.members.get("result", Raw(b"null")))
    named = _strings((result or {}).get("supportedVersions"))
    served = [revision for revision in named if revision in offers]
    if result is None or len(served) == len(named):
        return answer
    told = encode_members({**result, "supportedVersions": wire_format.encoded(served)})
    return Envelope("response", {**answer.members, "result": told}, id=answer.id)


def is_doubtful(status: int, code: int) -> bool:
    """Whether an error, under the HTTP status that it came with, leaves open if the server still speaks this era.

    What was checked here is neither malformed nor of an unknown revision to a server that does.
    """
    if code in (ParseError.code, InvalidRequest.code, UnsupportedRevision.code):
        return True
    return status >= 400 and STATUS.get(code) != status


def is_spoken(revisions: Iterable[str]) -> bool:
    """True if one of these revisions is of this era."""
    return not set(REVISIONS).isdisjoint(revisions)


def error_code(message: Envelope) -> int | None:
    """The code of a response that is an error, 0 for one that nobody assigns; None of a result."""
    error = members_of(message.members["error"]) if message.is_error else None
    if error is None:
        return None
    code = bytes(error["code"])
    return int(code) if len(code) < 12 else 0


def _params(message: Envelope) -> _Params:
    """What is looked at of the params: nothing is there where they are no object."""
    try:
        return _decode_params(message.members["params"])
    except (KeyError, msgspec.ValidationError):
        return _Params()
    except RecursionError:
        raise ParseError("the message is nested too deeply") from None


def _meta(params: _Params) -> _Meta:
    try:
        return _decode_meta(params.meta)
    except msgspec.DecodeError:
        return _Meta()


def _routing(lines: Lines) -> dict[str, str]:
    """The headers of this era's own; one that comes twice is refused: two readers could take two values."""
    headers: dict[str, str] = {}
    for name, value in lines:
        if name in (VERSION_HEADER, METHOD_HEADER, NAME_HEADER) or name.startswith(PARAM_PREFIX):
            if name in headers:
                raise HeaderMismatch(f"the header {name[:64]} comes more than once")
            headers[name] = stripped(value)
    return headers


def _checked_name(method: str, params: _Params, header: str | None) -> str | None:
    member = NAMED_BY.get(method)
    if member is None:
        return None
    raw = {"name": params.name, "uri": params.uri, "taskId": params.task_id}[member]
    if bytes(raw) in (b"", b"null") and header is None:
        return None  # the server will say what it lacks
    name = string_of(raw)
    if name is None or decoded(header) != name:
        raise HeaderMismatch(f"Mcp-Name must be params.{member} of the body")
    return name


def _check_served(revision: str, served: Sequence[str]) -> None:
    if revision not in served or revision not in REVISIONS:
        raise UnsupportedRevision("this revision is not served here", supported=list(served), requested=revision[:64])


def _strings(raw: Raw | None) -> list[str]:
    if raw is None:
        return []
    if memoryview(raw).nbytes > MAX_LIST_BYTES:
        raise ParseError("the list of revisions is too long")
    try:
        return msgspec.json.decode(raw, type=list[str])
    except msgspec.DecodeError:
        return []
