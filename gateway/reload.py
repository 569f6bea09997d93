"""What a settings file that was read again changes in a gateway that runs: a pure decision, performed by `app`."""

import hashlib
from dataclasses import dataclass
from typing import Final

import msgspec

from ..mux.limits import EventLogLimits
from .settings import GatewaySection, Server, Settings

FIXED: Final = ("host", "port", "workers", "tls")
"""Keys of `[gateway]` that only a restart changes; `[directory]` is another."""

CREDENTIAL_WORDS: Final = frozenset(
    {"apikey", "auth", "authorization", "cookie", "credential", "key", "password", "secret", "token"}
)
"""A header whose name ends with one of these proves who the gateway is: another value is the same one, rotated.

In doubt it is none: that costs sessions that are opened anew, while the other way they would go on as somebody else's.
"""


@dataclass(frozen=True, slots=True)
class Changes:
    """What differs between the settings that held and those that were read, by the names of servers and sections."""

    settings: Settings
    """What holds from now on: what was read, but for what needs a restart."""
    added: tuple[str, ...] = ()
    removed: tuple[str, ...] = ()
    changed: tuple[str, ...] = ()
    """Servers whose sessions are to be opened anew, under another generation."""
    rotated: tuple[str, ...] = ()
    """Servers of which only the value of a credential differs: their sessions go on with the new one."""
    unchanged: tuple[str, ...] = ()
    beside: tuple[str, ...] = ()
    """What else differs and applies."""
    needs_restart: tuple[str, ...] = ()
    """What differs and was left as it was."""

    def __str__(self) -> str:
        """One line for the log: names, never values."""
        named = {"added": self.added, "removed": self.removed, "changed": self.changed, "rotated": self.rotated}
        parts = [f"{len(names)} {word} ({', '.join(names)})" for word, names in named.items() if names]
        return ", ".join([*parts, f"{len(self.unchanged)} unchanged", *self.beside])


def compare(old: Settings, new: Settings) -> Changes:
    """What becomes of a gateway that runs with `old`, where `new` was read."""
    settings = msgspec.structs.replace(
        new,
        gateway=msgspec.structs.replace(new.gateway, **{key: getattr(old.gateway, key) for key in FIXED}),
        directory=old.directory,
    )
    both = [name for name in settings.servers if name in old.servers]
    changed = tuple(name for name in both if _effective(old, name) != _effective(settings, name))
    rotated = tuple(
        name for name in both if name not in changed and _credentials(old, name) != _credentials(settings, name)
    )
    before, after = old.gateway, new.gateway
    differing = [key for key in GatewaySection.__struct_fields__ if getattr(before, key) != getattr(after, key)]
    return Changes(
        settings,
        added=tuple(name for name in settings.servers if name not in old.servers),
        removed=tuple(name for name in old.servers if name not in settings.servers),
        changed=changed,
        rotated=rotated,
        unchanged=tuple(name for name in both if name not in changed and name not in rotated),
        beside=(
            *(f"gateway.{key}" for key in differing if key not in FIXED),
            *(["auth"] if old.auth != new.auth else []),
        ),
        needs_restart=(
            *(f"gateway.{key}" for key in differing if key in FIXED),
            *(["directory"] if old.directory != new.directory else []),
        ),
    )


def renew(old: Server, new: Server) -> Server | None:
    """`old` with the values that its credentials have in `new`; None where none differs, or that leads elsewhere."""
    if place_of(old) != place_of(new):
        return None
    renewed = msgspec.structs.replace(old, headers=new.headers, oauth=new.oauth)
    return renewed if renewed != old else None


def place_of(server: Server) -> str:
    """Names where a server is, and as whom it is asked: elsewhere nobody knows its sessions."""
    headers = {header.lower(): value for header, value in _without_values(server).items()}
    told = server.url, headers, server.oauth.identity if server.oauth is not None else None
    return hashlib.blake2b(msgspec.json.encode(told, order="sorted"), digest_size=8).hexdigest()


def _without_values(server: Server) -> dict[str, str]:
    """Its headers, without the values of its credentials."""
    return {header: "" if is_credential(header) else value for header, value in server.headers.items()}


def _credentials(settings: Settings, name: str) -> tuple[object, ...]:
    server = settings.servers[name]
    return server.headers, server.oauth


def _effective(settings: Settings, name: str) -> tuple[Server, str | None, object, object]:
    """All that a session with this server depends on, but for the values of credentials."""
    server, pooling = settings.servers[name], settings.pooling_for(name)
    headers = _without_values(server)
    oauth = server.oauth.identity if server.oauth is not None else None
    own = {key: None for key in Server.__struct_fields__ if key in pooling.__struct_fields__}
    # How much all logs hold together is the process's bound, not the server's.
    log = msgspec.structs.replace(pooling.event_log, total_bytes=EventLogLimits().total_bytes)
    return (
        msgspec.structs.replace(server, headers=headers, oauth=None, **own),
        oauth,
        msgspec.structs.replace(pooling, event_log=log),
        settings.compat if pooling.reuse == "none" else None,
    )


def is_credential(header: str) -> bool:
    """True for a header that proves who the gateway is, by its name."""
    return header.lower().replace("_", "-").rpartition("-")[2] in CREDENTIAL_WORDS
