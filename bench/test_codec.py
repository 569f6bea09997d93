"""What the envelope codec costs, over a ladder of sizes. Run: `python -m pytest bench --benchmark-only`."""

import json

import pytest
from pytest_benchmark.fixture import BenchmarkFixture
from trunkline.mux.envelope import Envelope, parse
from trunkline.mux.limits import MAX_EVENT_BYTES

SIZES = (200, 2_000, 20_000, 200_000, 1_000_000)


def call(size: int) -> bytes:
    params = {"name": "echo", "arguments": {"text": "x" * size}, "_meta": {"progressToken": "p"}}
    return json.dumps({"jsonrpc": "2.0", "id": 17, "method": "tools/call", "params": params}).encode()


def answer(size: int) -> bytes:
    result = {"content": [{"type": "text", "text": "x" * size}], "isError": False}
    return json.dumps({"jsonrpc": "2.0", "id": 17, "result": result}).encode()


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("make", [call, answer])
def test_parse(benchmark: BenchmarkFixture, make: type[bytes], size: int) -> None:
    text = make(size)
    message = benchmark(parse, text, limit=MAX_EVENT_BYTES)
    assert message.id == b"17"


@pytest.mark.parametrize("size", SIZES)
def test_rewrite_the_id(benchmark: BenchmarkFixture, size: int) -> None:
    message = parse(answer(size), limit=MAX_EVENT_BYTES)
    rewritten = benchmark(message.with_id, b'"client"')
    assert parse(rewritten, limit=MAX_EVENT_BYTES).id == b'"client"'


@pytest.mark.parametrize("size", SIZES)
def test_there_and_back(benchmark: BenchmarkFixture, size: int) -> None:
    """Parse an answer and give it the client's id: what each answer costs."""
    text = answer(size)

    def once() -> bytes:
        message: Envelope = parse(text, limit=MAX_EVENT_BYTES)
        return message.with_id(b"1")

    assert len(benchmark(once)) > size
