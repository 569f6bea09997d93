"""What the demultiplexer costs a call, with few and with many in flight."""

import json

import pytest
from pytest_benchmark.fixture import BenchmarkFixture
from trunkline.mux.demux import Answered, Demux
from trunkline.mux.envelope import parse
from trunkline.mux.errors import TrunklineError
from trunkline.mux.limits import MAX_BODY_BYTES

from bench.micro.measuring import allocations

CALL = parse(
    json.dumps({"jsonrpc": "2.0", "id": 1, "method": "tools/call", "params": {"name": "x"}}).encode(),
    limit=MAX_BODY_BYTES,
)
ROUND = 1000


class Caller:
    """Who waits; what it hears is of no interest here."""

    is_own = False
    owner = None

    def answered(self, message: bytes, *, is_error: bool) -> None: ...
    def progressed(self, message: bytes) -> None: ...
    def failed(self, error: TrunklineError) -> None: ...


@pytest.mark.parametrize("inflight", [1, 64, 256])
def test_a_thousand_calls(benchmark: BenchmarkFixture, inflight: int) -> None:
    """Open and answer a thousand calls, with so many others in flight."""
    caller = Caller()

    def setup() -> tuple[tuple[Demux], dict[str, object]]:
        demux = Demux(max_inflight=inflight + 1, timeout=300)
        demux.feed(range(1, 2_000))
        for _ in range(inflight):
            demux.open(CALL, caller, 0)  # type: ignore[arg-type]
        return (demux,), {}

    def run(demux: Demux) -> int:
        answered = 0
        for _ in range(ROUND):
            request, _ = demux.open(CALL, caller, 0)  # type: ignore[arg-type]
            answer = parse(b'{"jsonrpc":"2.0","id":%d,"result":{}}' % request.id, limit=MAX_BODY_BYTES)
            answered += isinstance(demux.receive(answer, request, 0), Answered)
        return answered

    assert benchmark.pedantic(run, setup=setup, rounds=20) == ROUND
    benchmark.extra_info.update({"operations": ROUND, **allocations(lambda: run(*setup()[0]))})
