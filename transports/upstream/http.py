"""What an upstream wire asks of an HTTP client, declared by the side that uses it.

One request goes out; what comes back is told by plain calls, as it comes, so that the common case costs no task. Two
clients implement it: `http1`, lean, and `http_proxied`, for servers that are reached through a proxy.
"""

import os
import re
import ssl
from base64 import b64encode
from collections.abc import Callable, Mapping
from typing import Final, Literal, Protocol
from urllib.parse import SplitResult, unquote, urljoin, urlsplit

Headers = Mapping[str, str]

CONNECT_SECONDS: Final = 10.0
"""How long a connection may take to come about, TLS included."""

KEEP_ALIVE_SECONDS: Final = 3.5
"""Idle connections are dropped before common servers do so after 5 s: a request must not meet a closing socket."""

MAX_HEAD_BYTES: Final = 65_536
"""The largest head of an answer that is read."""

ENCODED: Final = "the server encoded its answer in a way that was not asked for"

NO_PROXIED: Final = "no connection through the proxy"

Method = Literal["POST", "GET", "DELETE"]
Fence = Callable[[], bool]
"""Whether a request may still be sent."""

ABSENT: Final = "\nabsent"
"""In place of a value, this very object: a request is to go without a header that others of its session have."""

UNKNOWN_ISSUER: Final = frozenset({2, 18, 19, 20, 21})
"""OpenSSL's codes (x509_vfy.h) of a certificate whose issuer, or itself, nobody said to trust."""

CERTIFICATES: Final[Mapping[int, str]] = {
    9: "its certificate is not valid yet, by the clock here",
    10: "its certificate has expired",
    62: "its certificate is for another name",
    64: "its certificate is for another name",
    **dict.fromkeys(UNKNOWN_ISSUER, "its certificate is not trusted here"),
}
"""What such codes mean; OpenSSL's own words may hold the server's address."""

_TOKEN: Final = re.compile(r"[A-Za-z0-9!#$%&'*+.^_`|~-]+")
_VALUE: Final = re.compile(r"[^\x00-\x08\x0a-\x1f\x7f]*")


class ExchangeBroken(Exception):
    """An exchange ended before its answer was complete; the text says why, without the server's address.

    `sent` is False where the request surely did not reach the server, so that it may be sent again (guarantee G6).
    """

    def __init__(self, why: str, *, sent: bool) -> None:
        super().__init__(why)
        self.sent = sent


class CredentialFailed(ExchangeBroken):
    """There is no credential that the server takes. The request did not run: it was not sent, or answered with 401."""

    def __init__(self, why: str) -> None:
        super().__init__(why, sent=False)


class Withheld(ExchangeBroken):
    """The request was not sent: its fence was closed when it could have been."""

    def __init__(self) -> None:
        super().__init__("it may not be sent any longer", sent=False)


class NotProxied(ConnectionError):
    """No connection came about through the proxy that leads to a server."""


class HeaderBlock:
    """The headers of requests, checked and encoded once for all that carry them.

    Raises:
        ValueError: a name that is no token, or a value that is no text or has control characters, which would end the
            header.
    """

    __slots__ = ("_encoded", "_signed", "headers")

    def __init__(self, headers: Headers) -> None:
        for name, value in headers.items():
            is_text = isinstance(name, str) and isinstance(value, str)
            if not is_text or not _TOKEN.fullmatch(name) or not _VALUE.fullmatch(value):
                raise ValueError(f"the header {str(name)[:64]!r} cannot be sent")
        self.headers = dict(headers)
        self._encoded = b""
        self._signed: tuple[HeaderBlock, HeaderBlock] | None = None

    @property
    def encoded(self) -> bytes:
        """As it stands in a request, each line with its end. What came in as latin-1 goes out as the same bytes."""
        if not self._encoded:
            self._encoded = self._encode()
        return self._encoded

    def _encode(self) -> bytes:
        text = "".join(f"{name}: {value}\r\n" for name, value in self.headers.items())
        try:
            return text.encode("latin-1")
        except UnicodeEncodeError:
            return text.encode("utf-8")

    def with_(self, headers: Headers) -> "HeaderBlock":
        """A block with these besides; a name that is there already is replaced, however it is written.

        One whose value is `ABSENT` is left out.
        """
        if not headers:
            return self
        replaced = {str(name).lower() for name in headers}
        kept = {name: value for name, value in self.headers.items() if name.lower() not in replaced}
        return HeaderBlock({**kept, **{name: value for name, value in headers.items() if value is not ABSENT}})

    def signed(self, signature: "HeaderBlock") -> "HeaderBlock":
        """A block with those of this signature over it. It is made once for as long as the signature stays the same."""
        if self._signed is None or self._signed[0] is not signature:
            self._signed = signature, self.with_(signature.headers)
        return self._signed[1]


class Answer(Protocol):
    """Who hears what a server answers to one request. None of the calls blocks or raises."""

    def began(self, status: int, headers: Headers) -> None:
        """The status and the headers, by lower-case name."""

    def came(self, chunk: bytes) -> None:
        """Some of the body."""

    def ended(self, error: ExchangeBroken | None) -> None:
        """The answer is complete, or broke. Nothing follows; also where it broke before it began."""


class HTTPClient(Protocol):
    """Sends requests to one server: to its URL, or to another target of the same origin."""

    def send(
        self,
        method: Method,
        headers: HeaderBlock,
        body: bytes,
        answer: Answer,
        *,
        target: str | None = None,
        fence: Fence | None = None,
    ) -> Callable[[], None]:
        """Put one request on its way, without waiting. Only a POST has a body, and it is JSON.

        `target` is a path with its query, as `target_within` gives it; without one, the request goes to the URL.
        `fence` is asked once there is a connection: where it says no, nothing is sent, and the answer is `Withheld`.
        Nothing is told within this call. What is returned cuts the exchange: nothing is told from then on.
        """

    async def close(self) -> None:
        """Close every connection; what is under way breaks."""


def words_of(error: OSError) -> str:
    """Why a server cannot be reached, without its address: an error must not tell a client what lies behind us."""
    if isinstance(error, TimeoutError):
        return "no connection in time"
    if isinstance(error, NotProxied):
        return NO_PROXIED
    if isinstance(error, ssl.SSLCertVerificationError):
        return CERTIFICATES.get(getattr(error, "verify_code", 0), "its certificate does not verify")
    if isinstance(error, ssl.SSLError):
        return "TLS could not be set up"
    if type(error).__module__ == "socket":  # what looked its name up
        return "no address could be found for its name"
    return os.strerror(error.errno) if error.errno is not None and error.errno > 0 else "no connection"


def words_of_status(status: int) -> str:
    """What a server did in place of an answer to a request; of what might be taken for well, what is wrong with it."""
    told = f"the server answered HTTP {status}"
    if 200 <= status < 300:
        return f"{told} with what is no response, by its status or its Content-Type"
    return f"{told}, which leads elsewhere and is not followed" if 300 <= status < 400 else told


def parts_of(url: str) -> SplitResult:
    """What a URL is made of; nothing where it cannot be taken apart: brackets round what is no address."""
    try:
        return urlsplit(url)
    except ValueError:
        return urlsplit("")


def target_of(parts: SplitResult) -> str:
    """The path and the query of a URL, as they stand in the first line of a request."""
    return (parts.path or "/") + (f"?{parts.query}" if parts.query else "")


def host_of(parts: SplitResult) -> str:
    """The host of a URL; empty where it has none, or one that no name server can be asked for."""
    host = parts.hostname or ""
    try:
        host.encode("idna")  # as the event loop does: of a name, each part has 1 to 63 bytes (RFC 1035, 2.3.4)
    except UnicodeError:
        return ""
    return host


def proof_in(url: str) -> Headers:
    """The user and the password in a URL, as the header that proves them (RFC 7617); nothing where there are none."""
    parts = urlsplit(url)
    user, password = unquote(parts.username or ""), unquote(parts.password or "")
    if not user and not password:
        return {}
    pair = f"{user}:{password}"
    return {"Authorization": f"Basic {b64encode(pair.encode()).decode()}"}


def target_within(url: str, reference: str) -> str:
    """The target on the server of `url` that a reference, relative or absolute, leads to.

    Raises:
        ValueError: it leads to another origin, or cannot be sent as it stands.
    """
    if not all("\x21" <= character <= "\x7e" for character in reference):
        raise ValueError("it is not visible ASCII")
    there = urlsplit(urljoin(url, reference))
    if _origin(there) != _origin(urlsplit(url)):
        raise ValueError("it leads to another origin")
    return target_of(there)


def _origin(parts: SplitResult) -> tuple[str, str | None, int | None]:
    return parts.scheme, parts.hostname, parts.port or {"http": 80, "https": 443}.get(parts.scheme)
