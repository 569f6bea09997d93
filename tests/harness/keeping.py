"""What is left behind where the garbage collector does not look: what refers to itself."""

import gc
import tracemalloc
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def nothing_kept(most: int) -> Iterator[None]:
    """What is inside may leave so many bytes behind, without a collector."""
    gc.collect()
    gc.disable()
    tracemalloc.start()
    try:
        yield
        assert tracemalloc.get_traced_memory()[0] < most
    finally:
        tracemalloc.stop()
        gc.enable()
