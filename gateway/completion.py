"""What the shell completes: names and URLs of servers from a settings file, handles from a gateway on this machine.

Each is as cheap as reading one file, or one request to loopback; where that fails, there is nothing to complete.
"""

import tomllib
from pathlib import Path
from typing import Any, Final

DEFAULT_FILE: Final = "trunkline.toml"
DEFAULT_URL: Final = "http://127.0.0.1:8920"
PATIENCE_SECONDS: Final = 1.0
LOOPBACK: Final = "127.0.0.1"
EVERYWHERE: Final = ("", "0.0.0.0", "::")  # noqa: S104 - what is listened on, not by us


def server_names(file: Path | None = None) -> list[str]:
    """The servers of a settings file; of the one in this directory, where none is given."""
    return [str(name) for name in _table(_read(file), "servers")]


def server_urls(file: Path | None = None) -> list[str]:
    """Where a gateway with that file serves them on this machine."""
    read = _read(file)
    gateway = _table(read, "gateway")
    scheme = "https" if _table(gateway, "tls").get("cert") else "http"
    host = str(gateway.get("host", LOOPBACK))
    host = LOOPBACK if host in EVERYWHERE else f"[{host}]" if ":" in host else host
    base = f"{scheme}://{host}:{gateway.get('port', 8920)}"
    return [f"{base}/servers/{name}/mcp" for name in _table(read, "servers")]


def handles(url: str, token: str | None) -> list[str]:
    """The workflows of a gateway."""
    from .exits import Failure
    from .sessions import source_of

    try:
        rows = source_of(url, token).fetch(patience=PATIENCE_SECONDS)
    except Failure:
        return []
    return [str(row["workflow"]) for row in rows if "workflow" in row]


def _read(file: Path | None) -> dict[str, Any]:
    try:
        return tomllib.loads((file or Path(DEFAULT_FILE)).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}


def _table(read: dict[str, Any], key: str) -> dict[str, Any]:
    table = read.get(key)
    return table if isinstance(table, dict) else {}
