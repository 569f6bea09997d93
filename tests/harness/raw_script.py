"""What the raw server does with a message: a pure function of its text.

A request or notification of any method whose params have a `script` plays it; the client that sends it decides, byte
by byte, what the server says. The steps of a script are objects:

| step | what |
| --- | --- |
| `{"say": MESSAGE}` | say this whole message, on the stream of the request |
| `{"ask": REQUEST}` | the same, then wait for the response with that id |
| `{"reply": MEMBERS}` | answer the request: `MEMBERS` has `result` or `error`, and whatever else is to be there |
| `{"large": BYTES}` | answer with a text of so many bytes |
| `{"pass": GATE}` | wait until the gate is opened, by another script of the same session |
| `{"open": GATE}` | open it |
| `{"saw": KIND, "count": N}` | wait until so many of a kind (a method, or `response`) came in on this session |

`say` and `ask` with `"unasked": true` go on the stream that belongs to no request, where the transport has one. `say`
with `"level"` is said if the client wants log messages of that level, with `"uri"` if it subscribed to that resource.
In a message, `"$TOKEN"` stands for the progress token of the request that carries the script, `"$ANSWER"` for the whole
text of the newest answer to an `ask`.

Without a script, the handshake goes well, what needs no answer but `{}` gets that, and every other request is answered
with `{"echo": MESSAGE}`: the very text that came in.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

import msgspec

Members = dict[str, bytes]
"""Each value as it was spelled."""

LEVELS: Final = ("debug", "info", "notice", "warning", "error", "critical", "alert", "emergency")
QUIET: Final = ("ping", "logging/setLevel", "resources/subscribe", "resources/unsubscribe")
INITIALIZE_RESULT: Final = (
    b'{"protocolVersion":%s,"capabilities":{"tools":{"listChanged":true},"prompts":{"listChanged":true},'
    b'"resources":{"subscribe":true,"listChanged":true},"logging":{},'
    b'"tasks":{"list":{},"cancel":{},"requests":{"tools":{"call":{}}}},'
    b'"experimental":{"x-raw":{"n":123456789012345678901234567890}}},'
    b'"serverInfo":{"name":"raw","version":"1","x-odd":"\\u0072\\/w"},"instructions":"R\\u0061w."}'
)


@dataclass(frozen=True, slots=True)
class Say:
    """Say this; with `level` or `uri`, only to a client that wants it."""

    text: bytes
    unasked: bool = False
    level: str = ""
    uri: str = ""


@dataclass(frozen=True, slots=True)
class Ask:
    """Say this request, and wait for its answer."""

    text: bytes
    id: bytes
    unasked: bool = False


@dataclass(frozen=True, slots=True)
class Reply:
    """Say this, which answers the request."""

    text: bytes


@dataclass(frozen=True, slots=True)
class Pass:
    """Wait at a gate."""

    gate: str


@dataclass(frozen=True, slots=True)
class Open:
    """Open a gate."""

    gate: str


@dataclass(frozen=True, slots=True)
class Saw:
    """Wait until so many of a kind came in."""

    kind: str
    count: int


Step = Say | Ask | Reply | Pass | Open | Saw


def members(text: bytes) -> Members:
    """The first level of an object; empty where the text is no object."""
    try:
        return {name: bytes(raw) for name, raw in msgspec.json.decode(text, type=dict[str, msgspec.Raw]).items()}
    except msgspec.ValidationError:
        return {}


def kind(message: Members) -> str:
    """The method of a message, or `response`."""
    return _string(message.get("method")) or "response"


def behave(text: bytes) -> tuple[Step, ...]:
    """What the server does with this message; nothing for a response, or a notification without a script."""
    message = members(text)
    method = kind(message)
    if method == "response":
        return ()
    params = members(message.get("params", b"{}"))
    raw_id = message.get("id", b"")
    if "script" in params:
        token = members(params.get("_meta", b"{}")).get("progressToken", b"null")
        script = msgspec.json.decode(params["script"], type=list[msgspec.Raw])
        return tuple(
            _step(members(bytes(step)), raw_id, lambda told: told.replace(b'"$TOKEN"', token)) for step in script
        )
    if not raw_id:
        return ()
    return (Reply(_answer(raw_id, b'{"result":%s}' % _result(method, params, text))),)


def _result(method: str, params: Members, text: bytes) -> bytes:
    if method == "initialize":
        return INITIALIZE_RESULT % params["protocolVersion"]
    return b"{}" if method in QUIET else b'{"echo":%s}' % text


def _step(step: Members, id: bytes, filled: Callable[[bytes], bytes]) -> Step:
    unasked = step.get("unasked") == b"true"
    match next(iter(step)):
        case "say":
            level, uri = _string(step.get("level")), _string(step.get("uri"))
            return Say(filled(step["say"]), unasked, level, uri)
        case "ask":
            text = filled(step["ask"])
            return Ask(text, members(text)["id"], unasked)
        case "reply":
            return Reply(_answer(id, filled(step["reply"])))
        case "large":
            content = b'{"content":[{"type":"text","text":"%s"}]}' % (b"x" * int(step["large"]))
            return Reply(_answer(id, b'{"result":%s}' % content))
        case "pass":
            return Pass(_string(step["pass"]))
        case "open":
            return Open(_string(step["open"]))
        case "saw":
            return Saw(_string(step["saw"]), int(step.get("count", b"1")))
        case unknown:
            raise ValueError(f"a script has no step {unknown!r}")


def _answer(id: bytes, rest: bytes) -> bytes:
    return b'{"jsonrpc":"2.0","id":%s,%s' % (id, rest.lstrip()[1:])


def _string(raw: bytes | None) -> str:
    return "" if raw is None else msgspec.json.decode(raw, type=str)
