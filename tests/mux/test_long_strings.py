"""A message with long strings is read as any other, and refused where a plain decoder refuses it."""

import json
import random

import msgspec
import pytest
from trunkline.mux.envelope import parse
from trunkline.mux.errors import InvalidRequest, ParseError
from trunkline.mux.long_strings import LONG_BYTES
from trunkline.mux.mending import parse_served

LIMIT = 1 << 24
IMAGE = b"iVBORw0KGgo=" * (LONG_BYTES // 6)
"""Twice as long as makes a string a long one: it is found, wherever it stands."""

HEAD = b'{"jsonrpc":"2.0","id":7,'

BITS = [b'"', b"\\", b":", b",", b"{", b"}", b"[", b"]", b" ", b"\n", b"\x00", b"\xff", b'"",', b"null", b"\\u0022"]


def plain(text: bytes) -> dict[str, object] | None:
    """What Python's own decoder and msgspec's agree on; None where it is no JSON object."""
    try:
        text.decode()
        return msgspec.json.decode(text, type=dict[str, object])
    except (msgspec.MsgspecError, UnicodeDecodeError):
        return None


def read(text: bytes) -> dict[str, object] | None:
    try:
        message = parse(text, limit=LIMIT)
    except ParseError:
        return None
    except InvalidRequest:
        return {}
    encoded = message.encode()
    assert b"\n" not in encoded
    return msgspec.json.decode(encoded, type=dict[str, object])


@pytest.mark.parametrize(
    "text",
    [
        HEAD + b'"result":{"content":[{"type":"image","data":"' + IMAGE + b'"}],"isError":false}}',
        HEAD + b'"result":{"a":"' + IMAGE + b'","b":["' + IMAGE + b'" , "' + IMAGE + b'"]},"c":"' + IMAGE + b'"}',
        b'{"result":{"text":"' + IMAGE + b'"},"jsonrpc":"2.0","id":7}',
        HEAD + b'"result":{"text":\r\n"' + IMAGE + b'"\n}\n}\n',
        HEAD + b'"result":{"' + IMAGE + b'":1}}',
        HEAD + b'"result":{},"' + IMAGE + b'":[1]}',
        HEAD + b'"result":{"a":"' + IMAGE + b'"},"result":{"a":"b"}}',
        HEAD + b'"result":{"a":"b"},"result":{"a":"' + IMAGE + b'"}}',
        HEAD + b'"result":{"numbers":[' + b"1, " * LONG_BYTES + b'2], "next":"page:"}}',
        HEAD + b'"result":{"text":"it says \\"' + IMAGE + b'\\""}}',
        HEAD + b'"result":{"text":" \\\\"   ' + b" " * len(IMAGE) + b',"next":"' + IMAGE + b'"}}',
        HEAD + b'"result":{"text":"' + "grüße ".encode() * LONG_BYTES + b'"}}',
        HEAD + b'"result":{"text":"' + b"\\n\\u00e9\\/" * LONG_BYTES + b'"}}',
        HEAD + b'"result":{"text":"' + (b"\\n\\u00e9\\/" + b" " * 600) * (LONG_BYTES // 256) + b'"}}',
    ],
    ids=[
        "an image",
        "several",
        "the id after it",
        "with line breaks between tokens",
        "a name",
        "the name of a member",
        "a member given again without it",
        "a member given again with it",
        "what only looks like one",
        "begun by an escaped quote",
        "after an escaped backslash",
        "not ASCII",
        "of escapes",
        "of some escapes",
    ],
)
def test_is_read_as_it_is(text: bytes) -> None:
    expected = json.loads(text)
    assert read(text) == expected


def test_goes_on_byte_for_byte() -> None:
    result = b'{"a" : "' + IMAGE + b'\\u0041", "b":1.50, "c":"' + IMAGE + b'"}'
    message = parse(HEAD + b'"result":' + result + b"}", limit=LIMIT)
    assert message.with_id(b"8") == b'{"jsonrpc":"2.0","id":8,"result":' + result + b"}"


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        (HEAD + b'"result":{"a":"' + IMAGE + b"\x01" + IMAGE + b'"}}', "not JSON"),
        (HEAD + b'"result":{"a":"' + IMAGE + b"\n" + IMAGE + b'"}}', "not JSON"),
        (HEAD + b'"result":{"a":"' + IMAGE + b"\xff" + IMAGE + b'"}}', "not UTF-8"),
        (HEAD + b'"result":{"a":"' + IMAGE + b'"' + IMAGE + b'"}}', "not JSON"),
        (HEAD + b'"result":{"a":"' + IMAGE + b'"}', "not JSON"),
        (HEAD + b'"result":{"a":"' + IMAGE, "not JSON"),
        (HEAD + b'"result":' + b'{"a":' * 20_000 + b'"' + IMAGE + b'"' + b"}" * 20_000 + b"}", "nested too deeply"),
        (b'"' + IMAGE + b'"', "is an object"),
    ],
)
def test_is_refused_as_it_would_be(text: bytes, complaint: str) -> None:
    with pytest.raises((ParseError, InvalidRequest), match=complaint):
        parse(text, limit=LIMIT)


def test_larger_than_the_limit_is_not_looked_into() -> None:
    with pytest.raises(ParseError, match=f"larger than {LONG_BYTES} bytes"):
        parse(HEAD + b'"result":{"a":"' + IMAGE + b'"}}', limit=LONG_BYTES)


def test_half_of_a_surrogate_pair_in_one_is_read_as_in_any() -> None:
    text = HEAD + b'"result":{"a":"' + IMAGE + b"\\ud83d" + b'"}}'
    assert b"\\ufffd" in parse_served(text).encode()


def test_no_mutation_is_read_otherwise_than_by_a_plain_decoder() -> None:
    source = random.Random(7)
    text = HEAD + b'"result":{"a":["' + IMAGE + b'", "' + IMAGE + b'"], "b":"' + IMAGE + b'"}}'
    edges = [place for place, byte in enumerate(text) if place > len(HEAD) and byte in b'"{}[]:,']
    is_json = 0
    for _ in range(2_000):
        mutated = text
        for _ in range(source.randint(1, 3)):
            place = source.choice(edges) + source.randint(-1, 2)
            mutated = mutated[:place] + source.choice(BITS) + mutated[place + source.randint(0, 1) :]
        expected = plain(mutated)
        told = read(mutated)
        assert (told is None) == (expected is None)
        assert told in (expected, {})
        is_json += expected is not None
    assert is_json > 100
