"""How an operation is measured."""

from collections.abc import Callable
from typing import Any

import pytest
from pytest_benchmark.fixture import BenchmarkFixture

from bench.micro.measuring import Measure, allocations


@pytest.fixture
def measured(benchmark: BenchmarkFixture) -> Measure:
    """Measures an operation in time, then what it allocates; what it returned.

    `peak_bytes` is the most that it held at once beyond what was there before, `blocks` the memory blocks of what it
    returns.
    """

    def measure(operation: Callable[..., Any], *arguments: Any) -> Any:
        result = benchmark(operation, *arguments)
        benchmark.extra_info.update(allocations(operation, *arguments))
        return result

    return measure
