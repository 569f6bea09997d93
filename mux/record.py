"""What a directory knows of a workflow: enough for any worker to check, find and continue it."""

import hashlib
import secrets
from typing import Literal, NamedTuple

import msgspec

from .limits import Reuse
from .principal import Principal

WorkflowState = Literal["created", "resumed", "reset"]


class Handshake(msgspec.Struct, frozen=True):
    """What a client's `initialize` fixes for the session; raw JSON where it goes on byte for byte."""

    revision: str
    """The revision that the client asked for."""
    params: bytes
    """The whole `params` of its `initialize`."""
    capabilities: bytes
    """Its capabilities, in canonical JSON: equal where they are equal."""
    session_headers: tuple[tuple[str, str], ...] = ()
    """Request headers that go on to the server and are fixed for the session, by name."""


class Wish(msgspec.Struct, frozen=True):
    """What one workflow wants of the global state of a session that it shares with others."""

    level: str = ""
    """The log level that it named; empty where it named none."""
    subscriptions: tuple[str, ...] = ()
    """The resources that it watches."""


class Terms(NamedTuple):
    """What the settings of a server say that all have to go by who serve one workflow."""

    place: str = ""
    """Where it is, and as whom it is asked: elsewhere nobody knows its sessions (`Upstream.place`)."""
    keeping: str = ""
    """How long workflows are kept, and how much of their logs (`Pooling.keeping`)."""


class WorkflowRecord(msgspec.Struct, frozen=True):
    """One workflow, as it is stored. `epoch` counts its changes: a change names the epoch that it changes."""

    session_id: str
    principal: Principal
    server: str
    key: str | None
    handshake: Handshake
    epoch: int = 0
    revision: str = ""
    """The negotiated revision; empty until the upstream session is open."""
    result: bytes = b""
    """The server's InitializeResult, raw."""
    worker: str = ""
    """The id of the worker that holds it; empty where none does."""
    upstream_session: str = ""
    """The server's id of the upstream session, a secret, where any worker can go on with that session."""
    wish: Wish = Wish()
    """For the worker that comes after its holder: the session itself does not tell for whom it has what."""
    first_id: int = 1
    """Where its request ids begin: above all that a directory may have given out which has forgotten them."""
    reuse: Reuse = "workflow"
    """How far its upstream session is shared: who has other settings by now can do nothing with that."""
    settings: Terms | msgspec.UnsetType = msgspec.UNSET
    """Those of its server under which it goes on; not set by builds that did not tell."""
    lifetime: float = 86400
    """Seconds after which a record is forgotten that no worker has touched."""

    @property
    def handle(self) -> str:
        """The public name of the workflow, for pages, logs and commands; the session id itself is a secret."""
        return derived(self.session_id, b"handle", 6)

    @property
    def event_token(self) -> str:
        """The secret that stands for this workflow in its event ids."""
        return derived(self.session_id, b"event", 16)

    def follows(self, before: "WorkflowRecord") -> bool:
        """True for what the worker that held it made of the one `before`: no other one has had it in between."""
        return self._is_of(before) and self.epoch == before.epoch + 1

    def is_behind(self, known: "WorkflowRecord") -> bool:
        """True for an older state of `known` under the same worker: what a directory has that lost the last changes."""
        return self._is_of(known) and self.epoch < known.epoch

    def _is_of(self, other: "WorkflowRecord") -> bool:
        """True for a state of the same workflow, as the same worker holds it: by its id, another one may have begun."""
        return self.worker == other.worker != "" and self.handshake == other.handshake


def new_session_id() -> str:
    """A fresh session id: 192 random bits, visible ASCII (rules L4, X3), which no command takes for an option."""
    return f"s{secrets.token_urlsafe(24)}"


def derived(session_id: str, purpose: bytes, size: int) -> str:
    """A name that follows from a session id but does not lead back to it; `size` bytes as hex."""
    return hashlib.blake2b(session_id.encode(), digest_size=size, person=purpose).hexdigest()
