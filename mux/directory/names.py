"""Names under which shared backends store things: digests, so that neither session ids nor keys are readable there."""

import hashlib
from typing import Final

import msgspec

from ..principal import Principal
from ..record import WorkflowRecord, derived

UNREADABLE: Final = "another program, or another version of this one, writes there, too: give it a store of its own"
"""What to do about what cannot be read under these names."""


def token_of(session_id: str) -> str:
    """The name of a workflow's record: its event token."""
    return derived(session_id, b"event", 16)


def key_digest(principal: Principal, server: str, key: str) -> str:
    """The name of what (principal, server, key) stands for; parts that run together when joined differ."""
    parts = (principal.issuer, principal.tenant, principal.subject, server, key)
    return hashlib.blake2b(msgspec.msgpack.encode(parts), digest_size=20, person=b"key").hexdigest()


def key_digest_of(record: WorkflowRecord) -> str:
    """The same for a record; empty where it has no key."""
    return "" if record.key is None else key_digest(record.principal, record.server, record.key)


def name_digest(name: str) -> str:
    """The name of any other thing."""
    return hashlib.blake2b(name.encode(), digest_size=20, person=b"name").hexdigest()
