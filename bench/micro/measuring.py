"""What an operation allocates, measured beside its time."""

import gc
import sys
import tracemalloc
from collections.abc import Callable
from typing import Any

SIZES = (200, 2_048, 20_480, 204_800, 1_048_576)
"""Bytes of text in a message: 0.2 KiB to 1 MiB."""

Measure = Callable[..., Any]


def allocations(operation: Callable[..., Any], *arguments: Any) -> dict[str, int]:
    """What one more run of an operation allocates."""
    gc.collect()
    before = sys.getallocatedblocks()
    held = operation(*arguments)
    blocks = sys.getallocatedblocks() - before
    del held
    tracemalloc.start()
    try:
        operation(*arguments)
        before, _ = tracemalloc.get_traced_memory()
        tracemalloc.reset_peak()
        operation(*arguments)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    return {"peak_bytes": peak - before, "blocks": max(0, blocks)}
