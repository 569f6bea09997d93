"""The media types of the protocol: what a message declares itself to be, and what its sender accepts. Pure."""

from collections.abc import Mapping
from functools import lru_cache
from typing import Final

JSON_TYPE: Final = "application/json"
STREAM_TYPE: Final = "text/event-stream"

MAX_ACCEPT: Final = 1024
"""A longer Accept header admits nothing: what was decided is kept, and must stay small."""


def content_type(headers: Mapping[str, str]) -> str:
    """The media type, without its parameters."""
    declared = headers.get("content-type", "")
    return declared if declared == JSON_TYPE else declared.partition(";")[0].strip().lower()


def accepts(headers: Mapping[str, str], *types: str) -> bool:
    """True if the Accept header admits every one of these media types; absent, it admits all (RFC 9110, 12.5.1)."""
    accept = headers.get("accept")
    if accept is None:
        return True
    if len(accept) > MAX_ACCEPT:
        return False
    for media in types:  # noqa: SIM110 - a generator would cost as much as the look-ups
        if not _admits(accept, media):
            return False
    return True


@lru_cache(maxsize=256)
def _admits(accept: str, media: str) -> bool:
    ranges = {part.partition(";")[0].strip().lower() for part in accept.split(",")}
    return not ranges.isdisjoint((media, "*/*", media.partition("/")[0] + "/*"))
