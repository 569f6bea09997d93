"""No bytes, however mutated, make the codec fail otherwise than by its two words, or change what it lets pass."""

import json
import random
from contextlib import suppress

from hypothesis import given, settings
from hypothesis import strategies as st
from trunkline.mux.envelope import Envelope, parse
from trunkline.mux.errors import InvalidRequest, ParseError, UpstreamFault
from trunkline.mux.mending import parse_upstream

LIMIT = 1 << 16
SEEDS = [
    b'{"jsonrpc":"2.0","id":1,"method":"tools/call","params":{"name":"x","_meta":{"progressToken":"t"}}}',
    b'{"jsonrpc":"2.0","id":"a\\u00e9","result":{"content":[{"type":"text","text":"\\n"}],"n":1e400}}',
    b'{"jsonrpc":"2.0","method":"notifications/progress","params":{"progressToken":0,"progress":1.5}}',
    b'{"jsonrpc":"2.0","id":null,"error":{"code":-32700,"message":"no","data":[[[[{}]]]]}}',
    b'[{"jsonrpc":"2.0","id":1,"method":"ping"},\r\n{"jsonrpc":"2.0","method":"n"}]',
]
BITS = [
    b"{",
    b"}",
    b"[",
    b"]",
    b'"',
    b"\\",
    b"\\u",
    b"\n",
    b"\r",
    b"null",
    b"1.0",
    b"\xff",
    b"\x00",
    b":",
    b",",
    b'"id":',
]
ROUNDS = 30_000
"""Mutations in one run: some seconds."""


def read(text: bytes) -> Envelope | None:
    try:
        parsed = parse(text, limit=LIMIT)
    except (ParseError, InvalidRequest):
        parsed = None
    with suppress(UpstreamFault):
        parse_upstream(text)
    return parsed


def check(text: bytes) -> bool:
    parsed = read(text)
    if parsed is None:
        return False
    encoded = parsed.encode()
    assert b"\n" not in encoded
    assert b"\r" not in encoded
    again = read(encoded)
    assert again is not None
    assert (again.kind, again.id, again.method) == (parsed.kind, parsed.id, parsed.method)
    assert again.encode() == encoded
    if parsed.kind == "notification":
        assert "id" not in json.loads(text)
    elif parsed.id:
        assert json.loads(parsed.id) == json.loads(text)["id"]
    return True


def test_mutated_messages() -> None:
    rng = random.Random(20261123)
    passed = 0
    for _ in range(ROUNDS):
        text = bytearray(rng.choice(SEEDS))
        for _ in range(rng.randint(1, 4)):
            at = rng.randrange(len(text) + 1)
            match rng.randrange(4):
                case 0:
                    text[at:at] = rng.choice(BITS)
                case 1:
                    del text[at : at + rng.randint(1, 8)]
                case 2:
                    text[at : at + 1] = bytes([rng.randrange(256)])
                case _:
                    text[at:at] = text[rng.randrange(len(text) + 1) :][:20]
        passed += check(bytes(text))
    assert passed > ROUNDS / 100, "the mutations should leave some messages whole"


@given(st.binary(max_size=200))
@settings(max_examples=500, deadline=None)
def test_random_bytes(text: bytes) -> None:
    check(text)
