"""What `trunkline serve` says once it listens: where each server is, and commands to try that work as they stand."""

import shlex
import shutil
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final
from urllib.parse import urlsplit

from ..mux.envelope import request
from ..mux.modern import probe
from .settings import Settings, is_loopback

MODULE: Final = "trunkline.gateway"
KEY: Final = "my-chat"
"""The workflow of all that it says to try: each of it goes on with the session of what was tried before."""

INITIALIZE: Final[Mapping[str, Any]] = {
    "protocolVersion": "2025-11-25",
    "capabilities": {},
    "clientInfo": {"name": "curl", "version": "0"},
}


def welcome(settings: Settings, url: str, *, demo: bool) -> str:
    """The text for a gateway at this URL; with `demo`, the built-in server is beside those of the settings."""
    names = [*settings.servers, *(["demo"] if demo else [])]
    name = names[-1]
    base = _as_clients_name_it(settings, url)
    endpoint = f"{base}/servers/{name}/mcp"
    lines = [f"trunkline listens on {url}", ""]
    lines += [f"  {base}/servers/{one}/mcp    ({_offered(settings, one)})" for one in names]
    lines += ["", *_tried(settings, endpoint, name, demo=demo), ""]
    lines += [f"Or point any MCP client to {endpoint}", *_looked_into(settings, url, base)]
    return "\n".join([*lines, "Ctrl-C drains and stops."])


def _as_clients_name_it(settings: Settings, url: str) -> str:
    """The URL that clients are given: the public one, else one with a name that the listener takes as Host."""
    gateway = settings.gateway
    if gateway.public_url or is_loopback(gateway.host):
        return gateway.public_url.rstrip("/") or url
    name = gateway.allowed_hosts[0]
    if name.count(":") > 1 and not name.startswith("["):  # an IPv6 address, which may be listed so
        name = f"[{name}]"
    port = "" if urlsplit(f"//{name}").port else f":{urlsplit(url).port}"
    return f"{urlsplit(url).scheme}://{name}{port}"


def _looked_into(settings: Settings, url: str, base: str) -> list[str]:
    """Where operators look, and what they have to show there."""
    near = url if is_loopback(settings.gateway.host) else base
    look = f"Look into it: {program()} sessions {near}"
    pages = f"Status: {near}/   Figures: {near}/metrics   Ready: {near}/readyz"
    if settings.auth.mode == "none" and is_loopback(settings.gateway.host):
        return [look, pages]
    if settings.gateway.admin_token or any(token.admin for token in settings.auth.tokens):
        wanted = "Sessions and status want the admin token: export ADMIN_TOKEN=…"
        return [f'{look} --token "$ADMIN_TOKEN"', pages, wanted]
    return [f"{pages}   (sessions and status want gateway.admin_token, which is not set)"]


def program() -> str:
    """How this program is run from the shell that started it."""
    started = Path(sys.argv[0])
    if started.name != "trunkline":
        return f"{shlex.quote(sys.executable)} -m {MODULE}"
    found = shutil.which("trunkline")
    return "trunkline" if found is not None and Path(found).samefile(started) else shlex.quote(sys.argv[0])


def _tried(settings: Settings, url: str, name: str, *, demo: bool) -> list[str]:
    """What to try, and how."""
    shown, named, first = _identity(settings)
    if not _has_sessions(settings, name):
        return [*first, "Try this:", _curl(url, *probe(), named)]
    if settings.auth.mode == "none" and not is_loopback(settings.gateway.host):  # where nobody has keys
        begin = _curl(url, request("initialize", dict(INITIALIZE), b"1"), {}, named, options="-si")
        call = [f"  {program()} call {url} counter"] if demo else []
        return ["Try this: it begins a session, by the id in Mcp-Session-Id.", *call, begin]
    # By the revision that `call` speaks: another one would begin the workflow of the key anew.
    key = {"Trunkline-Workflow": KEY, "MCP-Protocol-Version": INITIALIZE["protocolVersion"]}
    if not demo:
        twice = "Try this twice: the second time, the session is open already."
        return [*first, twice, _curl(url, request("tools/list", {}, b"1"), key, named)]
    return [
        *first,
        "Try one of these twice: the second call continues the session of the first.",
        f"  {program()} call {url} counter --workflow {KEY}{shown}",
        _curl(url, request("tools/call", {"name": "counter", "arguments": {}}, b"1"), key, named),
    ]


def _identity(settings: Settings) -> tuple[str, str, list[str]]:
    """How a client says who it is: as an option of `call`, as one of curl, and what has to be done before."""
    match settings.auth.mode:
        case "tokens" | "jwt":
            said = '"Authorization: Bearer $TOKEN"'
            whence = "`trunkline token` makes one" if settings.auth.mode == "tokens" else f"of {settings.auth.issuer}"
            return f" --header {said}", f" -H {said}", [f"Clients send a token ({whence}): export TOKEN=…"]
        case "proxy" if settings.gateway.public_url:
            return "", "", ["Clients come through the proxy, which says who they are."]
        case "proxy":
            said = f"'{settings.auth.subject_header}: me'"
            return f" --header {said}", f" -H {said}", ["The proxy says who asks; from its address:"]
        case _:
            return "", "", []


def _curl(url: str, body: bytes, headers: Mapping[str, str], named: str, *, options: str = "-s") -> str:
    """One MCP request. Where a key names the session, the gateway does the handshake."""
    more = "".join(f" -H '{header}: {value}'" for header, value in headers.items())
    own = f"   {more}{named} \\\n" if more or named else ""
    return (
        f"  curl {options} {url} \\\n{own}"
        "    -H 'Content-Type: application/json' -H 'Accept: application/json, text/event-stream' \\\n"
        f"    -d '{body.decode()}'"
    )


def _offered(settings: Settings, name: str) -> str:
    if not _has_sessions(settings, name):
        return "2026-07-28 alone, which has no sessions"
    return f"reuse: {_reuse(settings, name)}; also /sse and /ws"


def _has_sessions(settings: Settings, name: str) -> bool:
    return name not in settings.servers or "legacy" in settings.servers[name].eras


def _reuse(settings: Settings, name: str) -> str:
    return settings.pooling_for(name).reuse if name in settings.servers else settings.pooling.reuse
