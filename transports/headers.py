"""The header names of the contract, and what their values may be."""

import re
from collections.abc import Mapping
from functools import lru_cache
from typing import Final

from .status import HTTPRefusal

SESSION_ID: Final = "mcp-session-id"
PROTOCOL_VERSION: Final = "mcp-protocol-version"
LAST_EVENT_ID: Final = "last-event-id"
WORKFLOW: Final = "trunkline-workflow"
WORKFLOW_STATE: Final = "trunkline-workflow-state"
END: Final = "trunkline-end"
POOL: Final = "trunkline-pool"

MAX_ACCEPT: Final = 1024
"""A longer Accept header admits nothing: what was decided is kept, and must stay small."""

_KEY: Final = re.compile(r"[A-Za-z0-9._:-]{1,128}")


def workflow_key(headers: Mapping[str, str]) -> str | None:
    """The key that the client chose for its workflow; None where it sent none.

    Raises:
        HTTPRefusal: 400, not 1-128 characters of `A-Z a-z 0-9 . _ : -`.
    """
    key = headers.get(WORKFLOW)
    if key is not None and not _KEY.fullmatch(key):
        raise HTTPRefusal(400, "workflow_key", "Trunkline-Workflow must be 1-128 characters of A-Z a-z 0-9 . _ : -")
    return key


def accepts(headers: Mapping[str, str], *types: str) -> bool:
    """True if the Accept header admits every one of these media types; absent, it admits all (RFC 9110, 12.5.1)."""
    accept = headers.get("accept")
    if accept is None:
        return True
    if len(accept) > MAX_ACCEPT:
        return False
    return all(_admits(accept, media) for media in types)


@lru_cache(maxsize=256)
def _admits(accept: str, media: str) -> bool:
    ranges = {part.partition(";")[0].strip().lower() for part in accept.split(",")}
    return not ranges.isdisjoint((media, "*/*", media.partition("/")[0] + "/*"))
