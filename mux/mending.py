"""What servers send, read as JSON-RPC, and mended where JavaScript wrote half a character. Pure."""

import re
from collections.abc import Callable
from functools import partial
from typing import Final, TypeVar

from .envelope import Envelope, is_batch, parse, parse_batch
from .errors import InvalidMessage, ParseError, UpstreamFault
from .limits import MAX_EVENT_BYTES

T = TypeVar("T")

_HALF: Final = re.compile(
    rb"\\u[dD][89abAB][0-9a-fA-F]{2}(?!\\u[dD][c-fC-F])"
    rb"|(?<!\\u[dD][89abAB][0-9a-fA-F]{2})\\u[dD][c-fC-F][0-9a-fA-F]{2}"
)
"""Half of a surrogate pair by itself, in a text without escaped backslashes."""

MAX_MENDED_BYTES: Final = 1_048_576
"""The largest message of a server in which that is looked for: it takes many times as long as to read it."""


def parse_upstream(text: bytes) -> list[Envelope]:
    """Read what a server sent as one frame: one message, or an array that is split (rule E11), as `parse_served`.

    Raises:
        UpstreamFault: anything that is not JSON-RPC, with the reason.
    """
    if text[:1] == b"{" or not is_batch(text):
        return [parse_served(text)]
    try:
        return parse_batch(text, limit=MAX_EVENT_BYTES)
    except InvalidMessage as error:
        return _mended(partial(parse_batch, limit=MAX_EVENT_BYTES), text, error)


def parse_served(text: bytes) -> Envelope:
    """Read one message of a server.

    Half of a surrogate pair by itself, which the decoder refuses, is read as U+FFFD: JavaScript writes one wherever a
    text was cut between the two (ECMA-262, JSON.stringify), and as that once the text is sent as UTF-8.

    Raises:
        UpstreamFault: anything that is no JSON-RPC message, with the reason.
    """
    try:
        return parse(text, limit=MAX_EVENT_BYTES)
    except InvalidMessage as error:
        return _mended(partial(parse, limit=MAX_EVENT_BYTES), text, error)


def _mended(read: Callable[[bytes], T], text: bytes, error: InvalidMessage) -> T:
    """What is read of a text without halves of surrogate pairs, which was refused for this error."""
    whole = _without_halves(text) if isinstance(error, ParseError) else text
    if whole == text:
        raise _no_message(error) from error
    try:
        return read(whole)
    except InvalidMessage as amiss:
        raise _no_message(amiss) from amiss


def _without_halves(text: bytes) -> bytes:
    """The text with U+FFFD for each half of a surrogate pair that stands by itself, if it is JSON otherwise."""
    if len(text) > MAX_MENDED_BYTES or b"\0" in text:
        return text
    return _HALF.sub(rb"\\ufffd", text.replace(rb"\\", b"\0")).replace(b"\0", rb"\\")


def _no_message(error: InvalidMessage) -> UpstreamFault:
    return UpstreamFault(f"the server sent what is no JSON-RPC message: {error.message}")
