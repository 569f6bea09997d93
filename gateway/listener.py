"""The socket that a gateway listens on."""

import errno
import os
import socket
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Final

from .settings import NotStarted, Settings, SettingsError

WAYS_OUT: Final[Mapping[int, str]] = {
    errno.EADDRINUSE: "end what listens there, or choose another port (--port)",
    errno.EACCES: "ports below 1024 are for root; choose another (--port)",
    errno.EADDRNOTAVAIL: "this machine has no such address; choose one of its own (--host)",
}

BACKLOG: Final = 2048
"""Connections that wait to be accepted."""


@contextmanager
def listen(settings: Settings) -> Iterator[socket.socket]:
    """The listening socket, for the length of the context.

    Raises:
        SettingsError: the host is no address at all.
        NotStarted: the address cannot be listened on.
    """
    host, port = settings.gateway.host, settings.gateway.port
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family, socket.SOCK_STREAM) as listener:
        try:
            _bind(listener, host, port)
        except TypeError as error:  # what sockets say of text that is no host at all
            told = f"there is no address for {host}; give one of this machine's"
            raise SettingsError("gateway.host", told) from error
        except (OSError, OverflowError) as error:
            raise NotStarted("gateway.port", f"cannot listen on {host}:{port}: {_reason(error)}") from error
        yield listener


def _bind(listener: socket.socket, host: str, port: int) -> None:
    """As `socket.create_server` does, which leaves its socket open where it raises no OSError."""
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    if listener.family == socket.AF_INET6:
        listener.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
    listener.bind((host, port))
    listener.listen(BACKLOG)


def _reason(error: OSError | OverflowError) -> str:
    """What is wrong with the address, and what to do."""
    code = error.errno if isinstance(error, OSError) else None
    if code is not None and code in WAYS_OUT:
        return f"{os.strerror(code)}; {WAYS_OUT[code]}"
    said = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
    return f"{said}; choose another address (--host)"


def url_of(listener: socket.socket, settings: Settings) -> str:
    """Where clients on this machine reach a gateway that listens there."""
    host, port = listener.getsockname()[:2]
    scheme = "https" if settings.gateway.tls.cert else "http"
    shown = f"[{host}]" if ":" in host else host
    return f"{scheme}://{shown}:{port}"
