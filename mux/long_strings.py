"""Long strings of a message, checked otherwise than the rest: an image in base64, a file.

The decoder steps over a raw part byte by byte. There is a parser that looks at many bytes of a string at once, which
takes a third of the time, but at each member besides. So the decoder is given the text with a short string in the place
of each long one, and the parser the whole text, where little else is in it: neither members nor escapes.
"""

import re
import secrets
from collections.abc import Callable
from typing import Final

from msgspec import Raw
from pydantic_core import SchemaValidator, core_schema

from .errors import ParseError

LONG_BYTES: Final = 65_536
"""Shorter strings stay where they are; of longer ones, those of twice as many bytes are surely found. All else in the
message may take as much."""

SAMPLE_BYTES: Final = 4_096
MAX_ESCAPES: Final = 42
"""In the middle of a long string: with more of them, as in a text of short lines, the decoder is as fast."""

_check: Final = SchemaValidator(core_schema.typed_dict_schema({})).validate_json
"""Reads an object, and makes nothing of it."""

_NAME: Final = secrets.token_hex(16).encode()
"""Drawn by each process: nobody can have written it into a message."""

_STAND_IN: Final = re.compile(rb'"%b-([0-9]+)"' % _NAME)

_BEFORE_A_STRING: Final = b":[, "

LF, CR, BACKSLASH = 0x0A, 0x0D, 0x5C


def members_beside(text: bytes, decode: Callable[[bytes], dict[str, Raw]]) -> dict[str, Raw] | None:
    """What `decode` makes of the text, where it is little but long strings; else None.

    None says nothing of the text: it has no long string, or much beside them, or many escapes, or line breaks between
    its tokens, is no JSON, or has a member twice.
    """
    strings = _long_strings(text)
    if len(text) - sum(end - start for start, end in strings) > LONG_BYTES:
        return None
    for start, end in strings:
        middle = (start + end) // 2
        if text.count(b"\\", middle, middle + SAMPLE_BYTES) > MAX_ESCAPES:
            return None
    parts: list[bytes] = []
    after = 0
    for number, (start, end) in enumerate(strings):
        parts += text[after:start], b'"%b-%d"' % (_NAME, number)
        after = end
    rest = b"".join((*parts, text[after:]))
    if LF in rest or CR in rest:
        return None
    try:
        members = decode(rest)
        _check(text)
    except (ValueError, RecursionError, ParseError):
        return None
    found = 0
    for name, raw in members.items():
        short = bytes(raw)
        places = list(_STAND_IN.finditer(short))
        if places:
            found += len(places)
            first, last = places[0], places[-1]
            begin = strings[int(first[1])][0] - first.start()
            members[name] = Raw(memoryview(text)[begin : strings[int(last[1])][1] + len(short) - last.end()])
    return members if found == len(strings) else None


def _long_strings(text: bytes) -> list[tuple[int, int]]:
    """Where long strings begin and end, with their quotes, in order; and what may look like one.

    What stands between one quote and the next is a string, if the text is JSON with another string in its place:
    where one ends, none can begin. A backslash before either quote would make it part of one.
    """
    found = []
    position = LONG_BYTES
    while (end := text.find(b'"', position) + 1) > 0:
        start = text.rfind(b'"', 0, position)
        is_plain = text[start - 1] in _BEFORE_A_STRING and text[end - 2] != BACKSLASH
        if is_plain and end - start > LONG_BYTES:
            found.append((start, end))
        position = end + LONG_BYTES
    return found
