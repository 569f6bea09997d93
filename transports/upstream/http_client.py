"""The HTTP client for one server: lean, or through the proxy that the environment names; with a credential or not."""

import ssl

from .credentials import AuthorizedClient, Credential
from .http import HTTPClient
from .http1 import HTTP1Client
from .proxy import proxy_of

Trusted = str | ssl.SSLContext
"""Whose certificates count: a file of them instead of the system's, which are meant where it is empty; or a context."""


def trusting(ca: Trusted) -> ssl.SSLContext:
    """The side of a client that trusts these.

    Raises:
        OSError: they cannot be read.
    """
    return ca if isinstance(ca, ssl.SSLContext) else ssl.create_default_context(cafile=ca or None)


def http_client(url: str, ca: Trusted = "", credential: Credential | None = None) -> HTTPClient:
    """A client of this URL.

    Raises:
        ValueError: a URL that cannot be used.
        OSError: `ca` cannot be read.
    """
    context = trusting(ca)
    proxy = proxy_of(url)
    http: HTTPClient = HTTP1Client(url, context) if proxy is None else _proxied(url, context, proxy)
    return http if credential is None else AuthorizedClient(http, credential)


def _proxied(url: str, context: ssl.SSLContext, proxy: str) -> HTTPClient:
    from .http_proxied import ProxiedClient  # whose package takes a good part of a start, and of the memory after it

    return ProxiedClient(url, context, proxy)
