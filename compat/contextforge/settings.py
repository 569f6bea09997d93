"""What ContextForge's users set: the environment names that they know, and the few that trunkline adds.

Names that have no meaning here are told once, so that nobody believes in them.
"""

import importlib
import logging
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Final, get_args

import msgspec

from ...mux.limits import Pooling, Reuse

logger = logging.getLogger(__name__)

SWITCH: Final = "TRUNKLINE_CONTEXTFORGE"
"""Set to `off`, it leaves ContextForge as it was."""

OFF: Final = frozenset({"off", "0", "false", "no"})

MEANINGLESS: Final = {
    "MCP_SESSION_POOL_ACQUIRE_TIMEOUT": "no call waits for a session: one carries many at once",
    "MCP_SESSION_POOL_CIRCUIT_BREAKER_RESET": "a server that fails costs its own calls an error at once",
    "MCP_SESSION_POOL_CIRCUIT_BREAKER_THRESHOLD": "a server that fails costs its own calls an error at once",
    "MCP_SESSION_POOL_CREATE_TIMEOUT": "a handshake may take 30 s",
    "MCP_SESSION_POOL_EXPLICIT_HEALTH_RPC": "a session is dead when a send fails or it closes, not by a probe",
    "MCP_SESSION_POOL_HEALTH_CHECK_INTERVAL": "a session is dead when a send fails or it closes, not by a probe",
    "MCP_SESSION_POOL_HEALTH_CHECK_METHODS": "a session is dead when a send fails or it closes, not by a probe",
    "MCP_SESSION_POOL_HEALTH_CHECK_TIMEOUT": "a session is dead when a send fails or it closes, not by a probe",
    "MCP_SESSION_POOL_IDENTITY_HEADERS": "the user and the tenant are always part of the key",
    "MCP_SESSION_POOL_TRANSPORT_TIMEOUT": "the time-out of a call is the gateway's own",
    "MCPGATEWAY_SESSION_AFFINITY_MAX_SESSIONS": "workflows are bounded by TRUNKLINE_MAX_WORKFLOWS",
}
"""Names of the pool that ContextForge had, and why they change nothing."""

REQUEST_SECONDS: Final = 300.0

_POOL: Final = "MCP_SESSION_POOL_"
_MEANT: Final = frozenset(_POOL + name for name in ("ENABLED", "IDLE_EVICTION", "MAX_PER_KEY", "TTL"))


class SettingError(ValueError):
    """A value that cannot be used; the text names the variable."""


class ContextForgeSettings(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """How far upstream sessions are reused. Times are seconds."""

    reuse: Reuse = "workflow"
    """`workflow`: an upstream session for each session of a client. `user`: one for all sessions of a user. `none`: the
    stock gateway's own code, for every call a session of its own."""
    reuse_user: tuple[str, ...] = ()
    """Names of gateway records for which `user` holds, whatever the default is."""
    reuse_none: tuple[str, ...] = ()
    """Names of gateway records for which `none` holds."""
    idle_timeout: float = 1800.0
    """An upstream session that no call has used for this long is ended."""
    request_timeout: float = REQUEST_SECONDS
    """A call without answer or progress for this long is cancelled; ContextForge's own time-outs hold beside it."""
    max_workflows: int = 10_000
    """Client sessions with an upstream session, in one worker. Over it, calls go the gateway's own way."""
    max_workflows_per_user: int = 1_000
    max_sessions_per_user: int = 16
    """Upstream sessions of one user with one server under `user`; more are opened only when the first is full."""
    max_inflight: int = 64
    """Calls of one client session that wait for an answer; over it they are refused with -31003."""

    def pooling(self, reuse: Reuse) -> Pooling:
        """The limits of one server."""
        return Pooling(
            reuse=reuse,
            idle_timeout=self.idle_timeout,
            request_timeout=self.request_timeout,
            max_workflows=self.max_workflows,
            max_workflows_per_user=self.max_workflows_per_user,
            max_workflows_per_tenant=self.max_workflows,
            max_channels_per_user=self.max_sessions_per_user,
            max_inflight_per_workflow=self.max_inflight,
        )


def read_environment(folder: Path = Path()) -> dict[str, str]:
    """What ContextForge's settings are read from: the environment, and below it a file `.env`; names in capitals."""
    file = folder / ".env"
    written: Mapping[str, str | None] = {}
    if file.is_file():
        written = importlib.import_module("dotenv").dotenv_values(file)
    both = {**{name.upper(): value for name, value in written.items()}, **os.environ}
    return {name.upper(): value for name, value in both.items() if value is not None}


def is_off(environ: Mapping[str, str], switch: str = SWITCH) -> bool:
    """True where the environment asks for ContextForge as it was, or for something else not to be."""
    return environ.get(switch, "").strip().lower() in OFF


def read_settings(environ: Mapping[str, str], **options: object) -> ContextForgeSettings:
    """The settings of the environment; `options` are fields of `ContextForgeSettings`, and win.

    Raises:
        SettingError: a value that cannot be used, or an option that does not exist.
    """
    found: dict[str, object] = {
        "reuse_user": _names(environ, "TRUNKLINE_REUSE_USER"),
        "reuse_none": _names(environ, "TRUNKLINE_REUSE_NONE"),
    }
    if is_off(environ, _POOL + "ENABLED"):
        found["reuse"] = "none"
    if "TRUNKLINE_REUSE" in environ:
        found["reuse"] = environ["TRUNKLINE_REUSE"].strip().lower()
    _numbers(
        environ,
        found,
        idle_timeout=("TRUNKLINE_IDLE_TIMEOUT", _POOL + "IDLE_EVICTION", _POOL + "TTL", "SESSION_TTL"),
        request_timeout=("TRUNKLINE_REQUEST_TIMEOUT",),
        max_workflows=("TRUNKLINE_MAX_WORKFLOWS",),
        max_workflows_per_user=("TRUNKLINE_MAX_WORKFLOWS_PER_USER",),
        max_sessions_per_user=("TRUNKLINE_MAX_SESSIONS_PER_USER", _POOL + "MAX_PER_KEY"),
        max_inflight=("TRUNKLINE_MAX_INFLIGHT",),
    )
    found.setdefault("request_timeout", max(REQUEST_SECONDS, _tool_timeout(environ)))
    if found.get("reuse", "workflow") not in get_args(Reuse):
        raise SettingError("TRUNKLINE_REUSE: must be none, workflow or user")
    try:
        return msgspec.convert({**found, **options}, ContextForgeSettings)
    except msgspec.ValidationError as error:
        raise SettingError(str(error)) from error


def tell_meaningless(environ: Mapping[str, str]) -> None:
    """Say of each name that is set and changes nothing why it does."""
    for name in sorted(environ):
        if name in MEANINGLESS:
            logger.warning("%s has no meaning with trunkline: %s", name, MEANINGLESS[name])
        elif name.startswith(_POOL) and name not in _MEANT:
            logger.warning("%s has no meaning with trunkline: it is not known", name)


def _tool_timeout(environ: Mapping[str, str]) -> float:
    """How long ContextForge lets a tool take, where that is set: a call for which it waits is not cancelled before."""
    text = environ.get("TOOL_TIMEOUT", "").strip()
    return float(text) if text.isdecimal() else 0.0


def _names(environ: Mapping[str, str], variable: str) -> tuple[str, ...]:
    return tuple(name.strip() for name in environ.get(variable, "").split(",") if name.strip())


def _numbers(environ: Mapping[str, str], found: dict[str, object], **variables: tuple[str, ...]) -> None:
    """For each field the first of its variables that is set."""
    for field, names in variables.items():
        name = next((name for name in names if name in environ), None)
        if name is None:
            continue
        try:
            value = float(environ[name])
        except ValueError:
            raise SettingError(f"{name}: must be a number") from None
        if not 0 < value < float("inf"):
            raise SettingError(f"{name}: must be greater than zero")
        is_time = field.endswith("timeout")
        if not is_time and not value.is_integer():
            raise SettingError(f"{name}: must be a whole number")
        found[field] = value if is_time else int(value)
