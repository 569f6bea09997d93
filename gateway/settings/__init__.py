"""Everything that the program can be told: what there is, how it is read, and what cannot hold together."""

from .consistency import check, is_loopback
from .definitions import (
    NAME,
    TLS,
    AuthSection,
    DirectorySection,
    GatewaySection,
    NotStarted,
    OAuth,
    Read,
    Server,
    Settings,
    SettingsError,
    TokenEntry,
)
from .reading import load, unread

__all__ = [
    "NAME",
    "TLS",
    "AuthSection",
    "DirectorySection",
    "GatewaySection",
    "NotStarted",
    "OAuth",
    "Read",
    "Server",
    "Settings",
    "SettingsError",
    "TokenEntry",
    "check",
    "is_loopback",
    "load",
    "unread",
]
