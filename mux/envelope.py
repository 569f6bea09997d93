"""JSON-RPC envelopes: read the outside, keep the inside byte for byte.

A message is decoded one level deep into `dict[str, Raw]`: the gateway reads `id` and `method` and replaces `id`; every
other member, known or not, goes on as it came (guarantee G2, rules E2 and E9). Nothing here does I/O.

Bounds: the caller bounds the size (`limit`, bytes); nesting is bounded by the decoder, at about 900 levels with Python
3.11 and 10,000 with later ones, and answered with -32700 (rule E27).
"""

import re
from typing import Final, Literal

import msgspec
from msgspec import Raw

from .errors import (
    InvalidParams,
    InvalidRequest,
    ParseError,
    TrunklineError,
    UpstreamRefused,
)
from .limits import MAX_BATCH, MAX_ID_BYTES
from .long_strings import LONG_BYTES, members_beside

Kind = Literal["request", "notification", "response"]
IdKey = int | str
"""A request id for look-up: `5` and `"5"` are different keys (rule E2)."""

Members = dict[str, Raw]

_decode_members = msgspec.json.Decoder(Members).decode
_decode_str = msgspec.json.Decoder(str).decode
_decode_raw = msgspec.json.Decoder(Raw).decode
_decode_batch = msgspec.json.Decoder(
    msgspec.defstruct(
        "Batch", [(f"m{n}", Raw, Raw()) for n in range(MAX_BATCH)], array_like=True, forbid_unknown_fields=True
    )
).decode
"""An array of at most so many elements: nothing is made of one that has more."""

_USUAL: Final = ("params", "result", "error", "_meta", "arguments", "data", "content", "messages", "capabilities")
"""Members that may be large, at whatever level."""

_decode_usual = msgspec.json.Decoder(msgspec.defstruct("Usual", [(name, Raw, Raw()) for name in _USUAL])).decode

MAX_UNUSUAL_BYTES: Final = 1_048_576
"""What the others of one level may take together: each small one takes 20 times its bytes, and much longer to read."""

MAX_COLONS: Final = 16_384
"""Where there are no more, whatever they are, not many members are there."""

MAX_SEARCHED_BYTES: Final = 512
"""A larger text is read sooner than searched for a name, and for escapes that may spell it."""

LARGE_BYTES: Final = 65_536
"""A result of more bytes is not copied to be put under another id: two writes more cost less."""

_encode = msgspec.json.Encoder().encode

_VERSION_MEMBER: Final = Raw(b'"2.0"')

_TOKEN_BEGINS: Final = b'"-0123456789'
"""A progress token is a string or a number."""

_NUMBER: Final = re.compile(r"[1-9][0-9]{0,15}")

MAX_DIGITS: Final = 16
"""A number that the gateway gives has at most so many: JSON carries it exactly."""

LF, CR, BACKSLASH, UNDERSCORE, BRACE = 0x0A, 0x0D, 0x5C, 0x5F, 0x7B
"""Looked for as integers, which costs a seventh of what it costs as bytes, and a twentieth of a search for two."""


class Spliced:
    """A message in pieces, one after the other: what is large in it is not copied. `bytes` makes one piece of it."""

    __slots__ = ("_size", "pieces")

    def __init__(self, *pieces: bytes | memoryview) -> None:
        self.pieces = pieces
        self._size = sum(map(len, pieces))

    def __len__(self) -> int:
        return self._size

    def __bytes__(self) -> bytes:
        return b"".join(self.pieces)


Text = bytes | Spliced
"""A message as one line of JSON. Of most there is one piece, which `bytes` leaves as it is."""


class Envelope:
    """One JSON-RPC message whose members are still raw.

    `id` is the raw spelling of the id, empty for a notification and for an error response whose request could not be
    read (rule E8). `method` is empty for a response. `size` is that of the text that was read, in bytes.
    """

    __slots__ = ("_text", "id", "kind", "members", "method", "size")

    def __init__(self, kind: Kind, members: Members, *, id: bytes = b"", method: str = "") -> None:
        self.kind: Kind = kind
        self.members = members
        self.id = id
        self.method = method
        self.size = 0
        self._text = b""

    def __repr__(self) -> str:
        return f"Envelope({self.kind}, id={self.id!r}, method={self.method!r})"

    @property
    def is_error(self) -> bool:
        """True for a response that carries `error`."""
        return "error" in self.members

    def params(self) -> Members | None:
        """The first level of `params`, or None where `params` is absent or not an object."""
        raw = self.members.get("params")
        return None if raw is None else members_of(raw)

    def encode(self) -> bytes:
        """The message as one line of JSON: written once, however many are told it."""
        if not self._text:
            self._text = _encode(self.members)
        return self._text

    def with_id(self, id: bytes) -> bytes:
        """The message as one line of JSON, under another id; this envelope keeps its own.

        An error response that came without an id gets one.
        """
        return with_id(self.members, id)

    def answer_to(self, id: bytes) -> Text:
        """The response as one line of JSON, under the id of who asked; a large result comes last, and is not copied."""
        result = self.members.get("result")
        if result is None or memoryview(result).nbytes <= LARGE_BYTES:
            return with_id(self.members, id)
        rest = {name: raw for name, raw in self.members.items() if name != "result"}
        return Spliced(with_id(rest, id)[:-1] + b',"result":', memoryview(result), b"}")

    def with_params(self, params: Members) -> bytes:
        """The message as one line of JSON, with other params."""
        return _encode({**self.members, "params": Raw(_encode(params))})


def with_id(members: Members, id: bytes) -> bytes:
    """A message of these members as one line of JSON, under this id."""
    return _encode({**members, "id": Raw(id)})


def parse(text: bytes, *, limit: int) -> Envelope:
    """Read one message.

    Raises:
        ParseError: not JSON, not UTF-8, too large or nested too deeply.
        InvalidRequest: JSON, but no JSON-RPC 2.0 message with a legal id (rules E1, E7).
    """
    size = len(text)
    try:
        members = members_beside(text, lambda rest: _members(rest, limit)) if LONG_BYTES < size <= limit else None
        if members is None:
            members = _decode_members(_checked(text, size, limit))
    except msgspec.ValidationError:
        raise InvalidRequest("a JSON-RPC message is an object") from None
    except msgspec.DecodeError as error:
        raise ParseError(f"the message is not JSON: {error}") from None
    except RecursionError:
        raise ParseError("the message is nested too deeply") from None
    message = _classify(members)
    message.size = size
    return message


def is_batch(text: bytes) -> bool:
    """True if the text is a JSON array, as far as its first character tells."""
    return text[:1] != b"{" and text[:64].lstrip(b" \t\r\n")[:1] == b"["


def parse_batch(text: bytes, *, limit: int) -> list[Envelope]:
    """Read a batch of 2025-03-26 as single messages (rule E11).

    Raises:
        ParseError: not JSON.
        InvalidRequest: an empty batch, one of more than `MAX_BATCH` messages, or an element that is no message.
    """
    try:
        elements = [bytes(raw) for raw in msgspec.structs.astuple(_decode_batch(_checked(text, len(text), limit)))]
    except msgspec.ValidationError:
        raise InvalidRequest(f"a batch is an array of at most {MAX_BATCH} JSON-RPC messages") from None
    except msgspec.DecodeError as error:
        raise ParseError(f"the batch is not JSON: {error}") from None
    except RecursionError:
        raise ParseError("the batch is nested too deeply") from None
    if not elements[0]:
        raise InvalidRequest("an empty batch holds no message")
    return [parse(element, limit=limit) for element in elements if element]


def _members(text: bytes, limit: int) -> Members:
    return _decode_members(_checked(text, len(text), limit))


def _checked(text: bytes, size: int, limit: int) -> bytes:
    """The text, known to be UTF-8 and free of line breaks (rules E24, E25).

    The decoder keeps raw parts unread, so both are checked here, once, for the whole message. A line break between
    two tokens would end a line-delimited frame or an SSE event early: one message would become two.
    """
    if size > limit:
        raise ParseError(f"the message is larger than {limit} bytes")
    if not text.isascii():
        try:
            text.decode()
        except UnicodeDecodeError as error:
            raise ParseError(f"the message is not UTF-8 (byte {error.start})") from None
    if size > MAX_UNUSUAL_BYTES:
        _check_number(text)
    if LF in text or CR in text:
        return msgspec.json.format(text, indent=-1)
    return text


def _check_number(text: bytes) -> None:
    """Make sure that a large object has no more members at its first level than can be read in short time.

    Raises:
        ParseError: it has.
        msgspec.MsgspecError, RecursionError: as its decoder.
    """
    # Taken out, they are looked for from one to the next; `count` looks at each byte, which takes eight times as long.
    colons = len(text) - len(text.replace(b":", b"", MAX_COLONS + 1))
    if colons <= MAX_COLONS or text.lstrip()[:1] != b"{":
        return
    usual = sum(memoryview(raw).nbytes for raw in msgspec.structs.astuple(_decode_usual(text)))
    if len(text) - usual > MAX_UNUSUAL_BYTES:
        raise ParseError("the message has too many members at one level")


def _classify(members: Members) -> Envelope:
    if members.get("jsonrpc") != _VERSION_MEMBER:
        raise InvalidRequest('the member "jsonrpc" must be "2.0"')
    raw_id = members.get("id")
    raw_method = members.get("method")
    if raw_method is None:
        return _response(members, raw_id)
    if "result" in members or "error" in members:
        raise InvalidRequest('a message has either "method" or one of "result" and "error"')
    try:
        method = _decode_str(raw_method)
    except msgspec.DecodeError:
        raise InvalidRequest('the member "method" must be a string') from None
    params = members.get("params")
    if params is not None and memoryview(params)[0] not in b"{[n":  # null is not ours to forbid
        raise InvalidRequest('the member "params" must be an object or an array')
    if raw_id is None:
        return Envelope("notification", members, method=method)
    return Envelope("request", members, id=checked_id(raw_id), method=method)


def _response(members: Members, raw_id: Raw | None) -> Envelope:
    result = members.get("result")
    error = members.get("error")
    if (result is None) == (error is None):
        raise InvalidRequest('a message has "method", or exactly one of "result" and "error"')
    if result is not None:
        if memoryview(result)[0] != BRACE:
            raise InvalidRequest('the member "result" must be an object')
        if raw_id is None:
            raise InvalidRequest("a result without an id answers nothing")
    else:
        _check_error(members["error"])
        if raw_id is None or bytes(raw_id) == b"null":
            return Envelope("response", members)
    return Envelope("response", members, id=checked_id(raw_id))


def _check_error(raw: Raw) -> None:
    code = (members_of(raw) or {}).get("code")
    if code is None or not _is_integer(bytes(code)):
        raise InvalidRequest('the member "error" must be an object with an integer "code"')


def _is_integer(text: bytes) -> bool:
    return text.isdigit() or (text[:1] == b"-" and text[1:].isdigit())


def checked_id(raw: Raw) -> bytes:
    """The raw spelling of a legal id: a string, or a number written as an integer (rule E1).

    Raises:
        InvalidRequest: null, a fraction, a boolean, an object or array, or longer than `MAX_ID_BYTES`.
    """
    text = bytes(raw)
    if len(text) > MAX_ID_BYTES:
        raise InvalidRequest(f"the id is longer than {MAX_ID_BYTES} bytes")
    if text.isdigit() or text[:1] == b'"' or _is_integer(text):
        return text
    raise InvalidRequest(f"an id must be a string or an integer, not {text[:32].decode('ascii', 'replace')}")


def id_key(id: bytes) -> IdKey:
    """The id as a key for look-up: equal for all spellings of one value, different for `5` and `"5"`."""
    return _decode_str(id) if id[:1] == b'"' else int(id)


def key_or_none(raw: Raw | None) -> IdKey | None:
    """The key of a raw id; None where there is none, or one that is not legal."""
    try:
        return None if raw is None else id_key(checked_id(raw))
    except InvalidRequest:
        return None


def coerced_key(key: IdKey) -> IdKey:
    """The integer that a string of digits spells, else the key itself.

    Some peers echo an integer id as a string (rule E2); ids that trunkline minted are integers.
    """
    if isinstance(key, str) and key.isascii() and key.isdigit() and len(key) <= 19:
        return int(key)
    return key


def minted(id: bytes) -> int:
    """The number that an id or a token spells which the gateway gave, 0 where it surely gave none.

    Some peers echo a number as a string of its digits (rule E2).
    """
    digits = (string_of(Raw(id)) or "").encode() if id[:1] == b'"' else id
    return int(digits) if digits.isdigit() and len(digits) <= MAX_DIGITS else 0


def members_of(raw: Raw) -> Members | None:
    """The first level of a raw JSON value, or None where it is not an object.

    Raises:
        ParseError: nested too deeply, or too many members.
    """
    try:
        if memoryview(raw).nbytes > MAX_UNUSUAL_BYTES:
            _check_number(bytes(raw))
        return _decode_members(raw)
    except msgspec.ValidationError:
        return None
    except RecursionError:
        raise ParseError("the message is nested too deeply") from None


def encode_members(members: Members) -> Raw:
    """Members as one raw JSON object."""
    return Raw(_encode(members))


def string_of(raw: Raw | None) -> str | None:
    """The text of a raw JSON string, or None where it is absent or something else."""
    try:
        return None if raw is None else _decode_str(raw)
    except msgspec.DecodeError:
        return None


def swap_progress_token(params: Raw, token: bytes) -> tuple[Raw, bytes]:
    r"""Put `token` where a request's `_meta.progressToken` is; the new params and the raw token that was there.

    The token is empty where the request asks for no progress (rulebook 1.3). Keys may be spelled with escapes, so only
    a text without `_meta` and without any `\u` is surely free of a token. A text that mentions one where the parser
    sees none (a key given twice) is written anew from what was parsed, so that no server reads it otherwise (rule E26).

    Raises:
        InvalidParams: a token that is neither a string nor a number, or longer than `MAX_ID_BYTES`.
    """
    text = bytes(params)
    is_read = MAX_SEARCHED_BYTES < len(text) <= MAX_UNUSUAL_BYTES
    may_be_named = UNDERSCORE in text and (is_read or b"_meta" in text)
    if not may_be_named and not (BACKSLASH in text and (is_read or b"\\u" in text)):
        return params, b""
    outer = members_of(params)
    raw_meta = outer.get("_meta") if outer else None
    meta = members_of(raw_meta) if raw_meta is not None else None
    if outer is None or raw_meta is None:
        return params, b""
    if meta is None:
        return (encode_members(outer) if b"progressToken" in text or b"\\u" in text else params), b""
    if "progressToken" not in meta:
        if b"progressToken" not in text and b"\\u" not in text:
            return params, b""
        outer["_meta"] = encode_members(meta)
        return encode_members(outer), b""
    original = bytes(meta["progressToken"])
    if len(original) > MAX_ID_BYTES or original[:1] not in _TOKEN_BEGINS:
        raise InvalidParams("a progress token must be a string or a number of at most 1024 bytes")
    meta["progressToken"] = Raw(token)
    outer["_meta"] = encode_members(meta)
    return encode_members(outer), original


def begins_task(params: Raw) -> bool:
    """Whether a request with these params asks for a task: its progress goes on once it is answered (rule E18)."""
    text = bytes(params)
    is_read = MAX_SEARCHED_BYTES < len(text) <= MAX_UNUSUAL_BYTES
    return (is_read or b"task" in text or b"\\u" in text) and "task" in (members_of(params) or {})


def lasting_token(number: int, token: bytes) -> bytes:
    """A progress token that brings the caller's own along: whoever gets it back can tell, however much later."""
    return _encode(f"{number}:{token.decode()}")


def read_lasting_token(raw: Raw | None) -> tuple[int, bytes]:
    """The number and the caller's token that a lasting token was made of; 0 and nothing where it is none."""
    number, _, text = (string_of(raw) or "").partition(":")
    token = text.encode()
    if not _NUMBER.fullmatch(number) or token[:1] not in _TOKEN_BEGINS or not token or len(token) > MAX_ID_BYTES:
        return 0, b""
    try:
        is_value = bytes(_decode_raw(token)) == token
    except msgspec.DecodeError:
        return 0, b""
    return (int(number), token) if is_value else (0, b"")


def canonical(raw: Raw | None) -> bytes:
    """One spelling for equal JSON objects (keys sorted, no spaces); `{}` where absent.

    Raises:
        InvalidParams: a number in it is too large to be compared, or it is nested too deeply.
    """
    if raw is None:
        return b"{}"
    try:
        return msgspec.json.encode(msgspec.json.decode(raw), order="sorted")
    except (msgspec.DecodeError, ValueError):
        raise InvalidParams("a number is too large here") from None
    except RecursionError:
        raise InvalidParams("nested too deeply") from None


def encoded(value: object) -> Raw:
    """A value of the gateway's own, raw values in it as they are."""
    return Raw(_encode(value))


def request(method: str, params: object, id: bytes) -> bytes:
    """A request of the gateway's own."""
    return _encode({"jsonrpc": "2.0", "id": Raw(id), "method": method, "params": params})


def notification(method: str, params: object = None) -> bytes:
    """A notification of the gateway's own."""
    members: dict[str, object] = {"jsonrpc": "2.0", "method": method}
    if params is not None:
        members["params"] = params
    return _encode(members)


def result(id: bytes, body: Raw) -> bytes:
    """A result of the gateway's own, or a relayed one, for the caller's `id`."""
    return _encode({"jsonrpc": _VERSION_MEMBER, "id": Raw(id), "result": body})


def failure(id: bytes, error: TrunklineError) -> bytes:
    """An error response; an empty `id` becomes null, as JSON-RPC wants where the id could not be read."""
    body: object
    if isinstance(error, UpstreamRefused):
        body = Raw(error.raw)
    elif error.data:
        body = {"code": error.code, "message": error.message, "data": error.data}
    else:
        body = {"code": error.code, "message": error.message}
    return _encode({"jsonrpc": _VERSION_MEMBER, "id": Raw(id or b"null"), "error": body})


def answered(text: bytes, *, limit: int) -> bytes:
    """The raw id that a server's text names, which is no message, but meant for a response; empty where it is none.

    Some servers leave out what is empty, and answer with neither a result nor an error.
    """
    try:
        members = _members(text, limit)
    except (msgspec.MsgspecError, RecursionError, ParseError):
        return b""
    is_response = "method" not in members and not members.keys().isdisjoint(("jsonrpc", "result", "error"))
    return bytes(members.get("id", b"")) if is_response else b""
