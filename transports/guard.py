"""Who may speak to the listener at all: Host, Origin and CORS (rule X1). Pure."""

import re
from collections.abc import Mapping, Sequence
from typing import Final
from urllib.parse import urlsplit

from .asgi import RawHeaders
from .status import HTTPRefusal

LOOPBACK_NAMES: Final = frozenset({"localhost", "127.0.0.1", "::1"})

MAX_HOST: Final = 261
"""Of characters: the longest name (RFC 1035, 2.3.4), brackets or a dot, and a port. No Host and no Origin is longer."""

ALLOWED_METHODS: Final = b"GET, POST, DELETE, OPTIONS"
ALLOWED_HEADERS: Final = (
    b"Content-Type, Accept, Authorization, Mcp-Session-Id, MCP-Protocol-Version, Last-Event-ID, "
    b"Trunkline-Workflow, Trunkline-End, Mcp-Method, Mcp-Name, Traceparent, Tracestate"
)
_PARAM: Final = re.compile(r"mcp-param-[a-z0-9!#$%&'*+.^_`|~-]+", re.IGNORECASE)
"""A header that repeats an argument of a call: a tool names it as it likes (rule H3)."""

EXPOSED_HEADERS: Final = b"Mcp-Session-Id, Trunkline-Workflow-State, Trunkline-Pool, WWW-Authenticate, Retry-After"


_LAST_SLASH: Final = re.compile(r"(?<=[^/])/$")

OWN_SITES: Final = ("same-origin", "none")
"""Who a browser says that it asks for (Sec-Fetch-Site): a page of the gateway's own, or the user by the address bar."""


class Guard:
    """Checks the Host and the Origin of every request.

    `allowed_hosts` and `allowed_origins` are exact; a host without a port allows every port. On a loopback listener the
    loopback names are allowed as hosts, and pages served from them as origins, where the host is such a name as well: a
    page of any other site that resolves its name to this machine (DNS rebinding) is not, nor one of a visitor's own
    machine where the listener is reached by another name, through a proxy.
    """

    def __init__(
        self, *, loopback: bool, allowed_hosts: Sequence[str] = (), allowed_origins: Sequence[str] = ()
    ) -> None:
        self._loopback = loopback
        self._hosts = frozenset(_plain(host.lower()) for host in allowed_hosts)
        self._origins = frozenset(_LAST_SLASH.sub("", origin.lower()) for origin in allowed_origins)
        self._known_hosts: set[str] = set()

    def check(self, headers: Mapping[str, str]) -> None:
        """Let a request pass, or say why not.

        Raises:
            HTTPRefusal: 421 for a foreign Host, 403 for a foreign Origin.
        """
        host = headers.get("host", "")
        if host not in self._known_hosts:
            if not self._host_is_allowed(host.lower()):
                raise HTTPRefusal(421, "host", "this Host is not served here; see allowed_hosts")
            if len(self._known_hosts) < 256:
                self._known_hosts.add(host)
        origin = headers.get("origin")
        if origin is not None and not self._origin_is_allowed(origin, host):
            raise HTTPRefusal(403, "origin", "this Origin is not allowed; see allowed_origins")

    def check_page(self, headers: Mapping[str, str]) -> None:
        """Refuse what a browser asks for a page of another site without naming its origin, as for an image or a link.

        Raises:
            HTTPRefusal: 403.
        """
        if "origin" not in headers and headers.get("sec-fetch-site", "none") not in OWN_SITES:
            raise HTTPRefusal(403, "cross_site", "no page of another site may ask for this")

    def cors(self, headers: Mapping[str, str]) -> RawHeaders:
        """What lets a page of a configured origin read the answer; nothing for everybody else."""
        origin = headers.get("origin")
        if origin is None or origin.lower() not in self._origins:
            return []
        return [
            (b"access-control-allow-origin", origin.encode("latin-1")),
            (b"access-control-expose-headers", EXPOSED_HEADERS),
            (b"vary", b"Origin"),
        ]

    def preflight(self, headers: Mapping[str, str], passed_on: Sequence[str] = ()) -> RawHeaders:
        """The answer to a CORS preflight from a configured origin; empty for everybody else.

        `passed_on` names the headers that the server is sent besides: a page that may speak may set them.
        """
        granted = self.cors(headers)
        if not granted:
            return []
        asked = [name.strip() for name in headers.get("access-control-request-headers", "").split(",")]
        params = [name.encode("ascii") for name in (*passed_on, *filter(_PARAM.fullmatch, asked))]
        return [
            *granted,
            (b"access-control-allow-methods", ALLOWED_METHODS),
            (b"access-control-allow-headers", b", ".join((ALLOWED_HEADERS, *params))),
            (b"access-control-max-age", b"600"),
        ]

    def _host_is_allowed(self, host: str) -> bool:
        name = _name_of(f"//{host}")
        return host in self._hosts or name in self._hosts or (self._loopback and name in LOOPBACK_NAMES)

    def _origin_is_allowed(self, origin: str, host: str) -> bool:
        if origin.lower() in self._origins:
            return True
        is_page = origin.lower().startswith(("http://", "https://"))
        return self._loopback and is_page and LOOPBACK_NAMES.issuperset((_name_of(origin), _name_of(f"//{host}")))


def _plain(host: str) -> str:
    """Without the brackets of an IPv6 address that has no port."""
    return host[1:-1] if host.startswith("[") and host.endswith("]") else host


def _name_of(url: str) -> str:
    if len(url.partition("//")[2]) > MAX_HOST:
        return ""
    try:
        parts = urlsplit(url)
        return (parts.hostname or "") if not parts.username and not parts.path.strip("/") else ""
    except ValueError:
        return ""
