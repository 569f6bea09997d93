"""What `trunkline serve` says once it listens: where each server is, and commands to try that work as they stand."""

import shlex
import shutil
import sys
from pathlib import Path
from typing import Final

from ..mux.modern import probe
from .settings import Settings

MODULE: Final = "trunkline.gateway.cli"


def welcome(settings: Settings, url: str, *, demo: bool) -> str:
    """The text for a gateway at this URL; with `demo`, the built-in server is beside those of the settings."""
    names = [*settings.servers, *(["demo"] if demo else [])]
    name = names[-1]
    endpoint = f"{url}/servers/{name}/mcp"
    lines = [f"trunkline listens on {url}", ""]
    lines += [f"  {url}/servers/{one}/mcp    ({_offered(settings, one)})" for one in names]
    lines += ["", *_tried(settings, endpoint, name, demo=demo), ""]
    lines += [
        f"Or point any MCP client to {endpoint}",
        f"Look into it: {program()} sessions {url}",
        f"Status: {url}/   Figures: {url}/metrics   Ready: {url}/readyz   Ctrl-C drains and stops.",
    ]
    return "\n".join(lines)


def program() -> str:
    """How this program is run from the shell that started it."""
    started = Path(sys.argv[0])
    if started.name != "trunkline":
        return f"{shlex.quote(sys.executable)} -m {MODULE}"
    found = shutil.which("trunkline")
    return "trunkline" if found is not None and Path(found).samefile(started) else shlex.quote(sys.argv[0])


def _tried(settings: Settings, url: str, name: str, *, demo: bool) -> list[str]:
    """What to try, and how."""
    if not _has_sessions(settings, name):
        return ["Try this:", _curl_without_session(url)]
    if not demo:
        return ["Try this twice: the second time, the session is open already.", _curl(url, '"method":"tools/list"')]
    call = '"method":"tools/call","params":{"name":"counter","arguments":{}}'
    return [
        "Try one of these twice: the second call continues the session of the first.",
        f"  {program()} call {url} counter --workflow me",
        _curl(url, call),
    ]


def _curl_without_session(url: str) -> str:
    """The probe of 2026-07-28, which has no sessions."""
    body, headers = probe()
    named = " ".join(f"-H '{header}: {value}'" for header, value in headers.items())
    return (
        f"  curl -s {url} {named} \\\n"
        "    -H 'Content-Type: application/json' -H 'Accept: application/json, text/event-stream' \\\n"
        f"    -d '{body.decode()}'"
    )


def _curl(url: str, request: str) -> str:
    """A whole MCP request in one: the key names the session, and the gateway does the handshake."""
    return (
        f"  curl -s {url} -H 'Trunkline-Workflow: me' \\\n"
        "    -H 'Content-Type: application/json' -H 'Accept: application/json, text/event-stream' \\\n"
        f'    -d \'{{"jsonrpc":"2.0","id":1,{request}}}\''
    )


def _offered(settings: Settings, name: str) -> str:
    if not _has_sessions(settings, name):
        return "2026-07-28 alone, which has no sessions"
    return f"reuse: {_reuse(settings, name)}; also /sse and /ws"


def _has_sessions(settings: Settings, name: str) -> bool:
    return name not in settings.servers or "legacy" in settings.servers[name].eras


def _reuse(settings: Settings, name: str) -> str:
    return settings.pooling_for(name).reuse if name in settings.servers else settings.pooling.reuse
