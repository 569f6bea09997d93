"""Bytes that come in parts, kept until the last one is there, in not much more memory than they take. Pure."""

from typing import Final

SMALL_PART: Final = 1024
"""A part by itself takes some 50 bytes beside its own: below this size, that would count."""


def keep(parts: list[bytes | bytearray], part: bytes) -> None:
    """Add a part to those before it, however small they are: who sends bytes one by one takes no more memory."""
    if not parts or len(part) >= SMALL_PART:
        parts.append(part)
    elif isinstance(last := parts[-1], bytearray):
        last += part
    else:
        parts.append(bytearray(part))
