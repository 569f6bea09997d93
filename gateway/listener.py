"""The socket that a gateway listens on."""

import socket
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

from .settings import Settings, SettingsError

BACKLOG: Final = 2048
"""Connections that wait to be accepted."""


@contextmanager
def listen(settings: Settings) -> Iterator[socket.socket]:
    """The listening socket, for the length of the context.

    Raises:
        SettingsError: the address cannot be listened on.
    """
    host, port = settings.gateway.host, settings.gateway.port
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        listener = socket.create_server((host, port), family=family, backlog=BACKLOG)
    except (OSError, OverflowError) as error:
        reason = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
        raise SettingsError("gateway.port", f"cannot listen on {host}:{port}: {reason}") from error
    with listener:
        yield listener


def url_of(listener: socket.socket, settings: Settings) -> str:
    """Where clients on this machine reach a gateway that listens there."""
    host, port = listener.getsockname()[:2]
    scheme = "https" if settings.gateway.tls.cert else "http"
    shown = f"[{host}]" if ":" in host else host
    return f"{scheme}://{shown}:{port}"
