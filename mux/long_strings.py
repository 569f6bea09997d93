"""Long strings of a message, checked by themselves: an image in base64, a file.

The decoder steps over a raw part byte by byte. A parser that makes a string of one checks it in a fraction of that
time: so long ones are taken out of the text, and what is left is decoded with a short string in the place of each. The
figures are in docs/design.md.
"""

import re
import secrets
from collections.abc import Callable
from typing import Final

import msgspec
from msgspec import Raw
from pydantic_core import from_json

from .errors import ParseError

LONG_BYTES: Final = 65_536
"""Shorter strings stay where they are. Of longer ones, those of twice as many bytes are surely found."""

_NAME: Final = secrets.token_hex(16).encode()
"""Drawn by each process: nobody can have written it into a message."""

_STAND_IN: Final = re.compile(rb'"%b-([0-9]+)"' % _NAME)

_BEFORE_A_STRING: Final = b":[, \t\r\n"


def members_beside(text: bytes, decode: Callable[[bytes], dict[str, Raw]]) -> dict[str, Raw] | None:
    """What `decode` makes of the text, where long strings of it can be taken out first; else None.

    None says nothing of the text: it has no long string, is no JSON, or has a member twice.
    """
    strings = _long_strings(text)
    if not strings:
        return None
    parts: list[bytes] = []
    end = 0
    for number, (start, string) in enumerate(strings):
        parts += text[end:start], b'"%b-%d"' % (_NAME, number)
        end = start + len(string)
    try:
        members = decode(b"".join((*parts, text[end:])))
    except (msgspec.MsgspecError, RecursionError, ParseError):
        return None
    found = 0
    for name, raw in members.items():
        whole, count = _STAND_IN.subn(lambda place: strings[int(place[1])][1], bytes(raw))
        if count:
            members[name] = Raw(whole)
            found += count
    return members if found == len(strings) else None


def _long_strings(text: bytes) -> list[tuple[int, bytes]]:
    """Where long strings begin, and each with its quotes, in order; and what may look like one.

    What stands between one quote and the next is a string if it can be one, and if the text is JSON with another
    string in its place: where one ends, none can begin. A backslash before the first quote would make it part of one.
    """
    found = []
    position = LONG_BYTES
    while (end := text.find(b'"', position) + 1) > 0:
        start = text.rfind(b'"', 0, position)
        if end - start > LONG_BYTES and text[start - 1] in _BEFORE_A_STRING and _is_string(string := text[start:end]):
            found.append((start, string))
        position = end + LONG_BYTES
    return found


def _is_string(text: bytes) -> bool:
    try:
        from_json(text)
    except ValueError:
        return False
    return True
