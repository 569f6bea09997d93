"""What large messages took is kept for the next ones, and not given back to the system after each.

Memory that comes anew from the system is cleared first, page by page: half of the CPU that a message of 1 MiB took.
"""

from typing import Final

from ..mux.limits import MAX_EVENT_BYTES

BLOCK_BYTES: Final = MAX_EVENT_BYTES // 2
"""Twice as much is kept at first, for the whole process: the largest message that a server may send."""


def keep_what_large_messages_took() -> None:
    """From now on the process keeps some memory that is free. Does nothing where the C library is not glibc.

    glibc learns from the largest block that was freed: up to that size a block is no mapping of its own any longer, and
    up to twice as much is kept at the end of the heap (mallopt(3), M_MMAP_THRESHOLD). A gateway that has once passed on
    a message of 16 MiB keeps 32 MiB, and none more than 64; one that has not would go on giving back what it needs
    again at once.
    """
    bytes(BLOCK_BYTES)  # a mapping of zeros that nobody touches, so that it costs no page
