"""How hosts, origins and tokens are spelled where clients send them: settings that are compared with that. Pure.

Each function tells what is wrong with a text, for people; nothing where it can be met.
"""

import re
from ipaddress import ip_address
from typing import Final

_NAME: Final = re.compile(r"[A-Za-z0-9_-]+(\.[A-Za-z0-9_-]+)*\.?")
_PLACE: Final = re.compile(r"(\[[^\[\]]*\]|[^:\[\]]*)(?::([0-9]{1,5}))?")
_ORIGIN: Final = re.compile(r"([A-Za-z][A-Za-z0-9+.-]*)://([A-Za-z0-9._~:%\[\]-]*)/?")
_TOKEN: Final = re.compile(r"[!-+\--~\xa1-\xff]+")  # visible bytes, and no comma: that would be two

DEFAULT_PORTS: Final = {"http": ":80", "https": ":443"}
FOREIGN: Final = "it goes over the wire in ASCII: write xn--…"


def fault_in_host(text: str) -> str:
    """Of a name as a Host header has it, with a port or without."""
    if "*" in text:
        return "there are no wildcards: list each name; one without a port allows every port"
    if not text.isascii():
        return FOREIGN
    if _is_address(text) or _is_place(text):
        return ""
    return "expected a name as it stands in a URL, with a port or without: mcp.example, [fd00::1]:8443"


def fault_in_origin(text: str) -> str:
    """Of what a browser sends as the origin of a page."""
    if text == "null":
        return ""
    if "*" in text:
        return "there are no wildcards: list each origin, with its port"
    if not text.isascii():
        return FOREIGN
    found = _ORIGIN.fullmatch(text)
    scheme, place = (found[1].lower(), found[2]) if found is not None else ("", "")
    if found is None or (scheme in DEFAULT_PORTS and not _is_place(place)):
        return "expected a page's scheme, name and port, as browsers send them: https://app.example"
    port = DEFAULT_PORTS.get(scheme)
    if port is not None and place.endswith(port):
        return f"browsers leave out the port that a scheme has anyway: write {scheme}://{place.removesuffix(port)}"
    return ""


def fault_in_token(text: str) -> str:
    """Of a bearer token."""
    return "" if _TOKEN.fullmatch(text) else "nobody could send it: take letters and digits, no spaces and no commas"


def _is_place(text: str) -> bool:
    found = _PLACE.fullmatch(text)
    if found is None or (found[2] is not None and not 0 < int(found[2]) <= 65535):
        return False
    name = found[1]
    return _is_address(name[1:-1]) if name.startswith("[") else _NAME.fullmatch(name) is not None


def _is_address(text: str) -> bool:
    """True for an IPv6 address."""
    try:
        return ip_address(text).version == 6
    except ValueError:
        return False
