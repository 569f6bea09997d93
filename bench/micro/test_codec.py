"""What the envelope codec costs, over a ladder of sizes."""

import json
from collections.abc import Callable

import pytest
from trunkline.mux.envelope import Envelope, parse
from trunkline.mux.limits import MAX_EVENT_BYTES

from bench.micro.measuring import SIZES, Measure


def call(size: int) -> bytes:
    params = {"name": "echo", "arguments": {"text": "x" * size}, "_meta": {"progressToken": "p"}}
    return json.dumps({"jsonrpc": "2.0", "id": 17, "method": "tools/call", "params": params}).encode()


def answer(size: int) -> bytes:
    result = {"content": [{"type": "text", "text": "x" * size}], "isError": False}
    return json.dumps({"jsonrpc": "2.0", "id": 17, "result": result}).encode()


def lines(size: int) -> bytes:
    """An answer as of a file: a text of lines, with quotes in them."""
    text = "".join(f'line {number} of a file, which says "line {number}"\n' for number in range(size // 38 + 1))
    return answer(0).replace(b'""', json.dumps(text[:size]).encode())


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("make", [call, answer, lines])
def test_parse(measured: Measure, make: Callable[[int], bytes], size: int) -> None:
    message = measured(lambda text: parse(text, limit=MAX_EVENT_BYTES), make(size))
    assert message.id == b"17"


@pytest.mark.parametrize("size", SIZES)
def test_rewrite_the_id(measured: Measure, size: int) -> None:
    message = parse(answer(size), limit=MAX_EVENT_BYTES)
    rewritten = measured(message.with_id, b'"client"')
    assert parse(rewritten, limit=MAX_EVENT_BYTES).id == b'"client"'


@pytest.mark.parametrize("size", SIZES)
def test_there_and_back(measured: Measure, size: int) -> None:
    """Parse an answer and give it the client's id: what each answer costs."""
    text = answer(size)

    def once() -> bytes:
        message: Envelope = parse(text, limit=MAX_EVENT_BYTES)
        return message.with_id(b"1")

    assert len(measured(once)) > size
