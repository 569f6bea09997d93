"""ContextForge as a test and the benchmark hold it: a process of either version, as it is or with trunkline inside.

`TRUNKLINE_CF09_PYTHON` and `TRUNKLINE_CF10_PYTHON` name the interpreters of environments that hold ContextForge 0.9.0
and 1.0.7 with trunkline beside it; `make contextforge` makes them.
"""

import contextlib
import hashlib
import json
import os
import shutil
import sqlite3
import time
import urllib.error
import urllib.request
import uuid
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import jwt

from harness.ports import free_port
from harness.processes import HARNESS_PARENT, ServerProcess, wait_for_status

ROOT = HARNESS_PARENT.parent
Version = Literal["0.9.0", "1.0.7"]
VERSIONS: tuple[Version, ...] = ("0.9.0", "1.0.7")
VARIABLES: Mapping[Version, str] = {"0.9.0": "TRUNKLINE_CF09_PYTHON", "1.0.7": "TRUNKLINE_CF10_PYTHON"}
PLACES: Mapping[Version, str] = {"0.9.0": ".venv-cf09", "1.0.7": ".venv-cf10"}

ADMIN = "admin@example.com"
SECRET = "a-secret-of-the-tests-that-is-long-enough-0123456789"
PASSWORD = "Wq7#mVx2!Lz9@Rt4$Kp8&Hd"
START_SECONDS = 180

_DIRECT = urllib.request.build_opener(urllib.request.ProxyHandler({}))


def python_of(version: Version) -> str | None:
    """The interpreter that has this version beside trunkline; None where there is none."""
    named = os.environ.get(VARIABLES[version]) or str(ROOT / PLACES[version] / "bin" / "python")
    return named if Path(named).exists() else None


def token(version: Version, email: str = ADMIN, *, teams: list[str] | None = None, seconds: float = 3600) -> str:
    """A bearer token that the gateway of the tests accepts. Everybody is an admin: it is not rights that are tested."""
    now = int(time.time())
    claims: dict[str, Any] = {
        "sub": email,
        "iss": "mcpgateway",
        "aud": "mcpgateway-api",
        "iat": now,
        "exp": now + int(seconds),
        "jti": uuid.uuid4().hex,
        "user": {"email": email, "full_name": email, "is_admin": True, "auth_provider": "local"},
        "is_admin": True,
    }
    if teams is not None or version != "0.9.0":  # null is the admin's there, and unknown to 0.9.0
        claims["teams"] = teams
    return jwt.encode(claims, SECRET, algorithm="HS256")


@dataclass
class Forge:
    """A running gateway."""

    process: ServerProcess
    port: int
    version: Version
    database: Path
    servers: dict[str, str] = field(default_factory=dict)
    """Virtual servers by the name of the server behind them."""
    gateways: dict[str, str] = field(default_factory=dict)
    """Gateway records, by the same name."""

    @property
    def base(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def api(self, method: str, path: str, body: object = None, *, email: str = ADMIN) -> Any:
        """Ask the gateway's own interface; AssertionError with its words where it refuses."""
        request = urllib.request.Request(
            f"{self.base}{path}",
            method=method,
            data=None if body is None else json.dumps(body).encode(),
            headers={"Authorization": f"Bearer {token(self.version, email)}", "Content-Type": "application/json"},
        )
        try:
            with _DIRECT.open(request, timeout=30) as answer:
                text = answer.read()
        except urllib.error.HTTPError as refused:
            with refused:
                raise AssertionError(f"{method} {path}: {refused.code} {refused.read()[:2000]!r}") from None
        return json.loads(text) if text[:1] in (b"{", b"[") else text.decode()

    def register(self, name: str, url: str, *, transport: str = "STREAMABLEHTTP", **more: object) -> str:
        """Register an MCP server, put a virtual server with all of its tools before it, and return that one's id.

        Its prompts and resources are removed again: ContextForge 0.9.0 takes one of each name only.
        """
        record = self.api("POST", "/gateways", {"name": name, "url": url, "transport": transport, **more})
        for kind in ("prompts", "resources"):
            for one in self.api("GET", f"/{kind}"):
                self.api("DELETE", f"/{kind}/{one['id']}")
        self.gateways[name] = record["id"]
        tools = [tool for tool in self.api("GET", "/tools") if tool.get("gatewayId") == record["id"]]
        virtual = {"name": f"virtual-{name}", "associated_tools": [tool["id"] for tool in tools]}
        made = self.api("POST", "/servers", {"server": virtual})
        self.servers[name] = made["id"]
        return str(made["id"])

    def add_user(self, email: str) -> None:
        """Let another user in."""
        body = {"email": email, "password": PASSWORD, "full_name": email, "is_admin": True}
        self.api("POST", "/auth/email/admin/users", body)
        with contextlib.closing(sqlite3.connect(self.database, timeout=30)) as database:  # 0.9.0 makes no admins
            database.execute("UPDATE email_users SET is_admin = 1 WHERE email = ?", (email,))
            database.commit()

    def url(self, name: str, transport: Literal["http", "sse", "ws"]) -> str:
        """Where clients find a registered server. `/ws` has no virtual servers."""
        if transport == "ws":
            return f"ws://127.0.0.1:{self.port}/ws"
        return f"{self.base}/servers/{self.servers[name]}/{'mcp' if transport == 'http' else 'sse'}"

    def metrics(self) -> str:
        """What Prometheus would scrape."""
        return str(self.api("GET", "/metrics/prometheus"))


def environment(version: Version, port: int, place: Path, more: Mapping[str, str]) -> dict[str, str]:
    """The environment of a gateway: small, on loopback, and the same for both variants."""
    return {
        **{name: value for name, value in os.environ.items() if not name.startswith(("TRUNKLINE_", "PYTHON"))},
        "HOST": "127.0.0.1",
        "PORT": str(port),
        "DATABASE_URL": f"sqlite:///{place / 'mcp.db'}",
        "CACHE_TYPE": "memory",
        "USE_STATEFUL_SESSIONS": "true",
        "JWT_SECRET_KEY": SECRET,
        "AUTH_ENCRYPTION_SECRET": SECRET,
        "BASIC_AUTH_PASSWORD": SECRET,
        "PLATFORM_ADMIN_EMAIL": ADMIN,
        "PLATFORM_ADMIN_PASSWORD": PASSWORD,
        "DEFAULT_USER_PASSWORD": PASSWORD,
        "AUTH_REQUIRED": "true",
        "MCPGATEWAY_UI_ENABLED": "false",
        "MCPGATEWAY_ADMIN_API_ENABLED": "true",
        "MCPGATEWAY_A2A_ENABLED": "false",
        "MCPGATEWAY_WS_RELAY_ENABLED": "true",
        "PLUGINS_ENABLED": "false",
        "FEDERATION_ENABLED": "false",
        "SSRF_ALLOW_LOCALHOST": "true",
        "SSRF_ALLOW_PRIVATE_NETWORKS": "true",
        "RATE_LIMITING_ENABLED": "false",
        "MCPGATEWAY_CATALOG_ENABLED": "false",
        "HEALTH_CHECK_INTERVAL": "3600",
        "LOG_LEVEL": "ERROR",
        "STRUCTURED_LOGGING_DATABASE_ENABLED": "false",  # as 1.0 has it; 0.9.0 writes each line to the database
        "DB_POOL_SIZE": "20",
        "OBSERVABILITY_ENABLED": "false",
        **more,
    }


def sourced(variables: dict[str, str]) -> dict[str, str]:
    """The same environment, with the checkout that `TRUNKLINE_SOURCES` names instead of what is installed there."""
    paths = (variables.get("PYTHONPATH"), os.environ.get("TRUNKLINE_SOURCES"))
    return {**variables, "PYTHONPATH": os.pathsep.join(path for path in paths if path)}


@contextlib.contextmanager
def contextforge(
    version: Version, place: Path, *, stock: bool = False, workers: int = 1, env: Mapping[str, str] | None = None
) -> Iterator[Forge]:
    """A gateway that answers when this is entered, and is gone when it is left. `place` holds its database."""
    python = python_of(version)
    assert python is not None, f"no environment with ContextForge {version}: make contextforge"
    port = free_port()
    database = place / "mcp.db"
    made = _made(version)
    if made.exists():
        shutil.copy(made, database)
    variables = sourced(environment(version, port, place, env or {}))
    module = ["uvicorn", "mcpgateway.main:app"] if stock else ["trunkline.compat.contextforge", "--"]
    command = [python, "-m", *module, "--host", "127.0.0.1", "--port", str(port), "--log-level", "warning"]
    if workers > 1:
        command += ["--workers", str(workers)]
    process = ServerProcess(command, env=variables, cwd=place)
    try:
        wait_for_status(process, port, "/health", timeout=START_SECONDS)
        if not made.exists():
            _keep(made, database)
        yield Forge(process, port, version, database)
    finally:
        process.kill()


def _made(version: Version) -> Path:
    """Where a database is kept as a gateway makes it, for those that start later: that takes most of a first start.

    It stands beside the interpreter, for as long as what decides its contents stays the same.
    """
    settled = {name: value for name, value in environment(version, 0, Path(), {}).items() if name not in os.environ}
    digest = hashlib.blake2b(json.dumps(settled, sort_keys=True).encode(), digest_size=6).hexdigest()
    python = python_of(version)
    assert python is not None
    return Path(python).parent.parent / f"made-{digest}.db"


def _keep(made: Path, database: Path) -> None:
    """Store what a gateway has made; whoever starts meanwhile finds nothing or all of it."""
    part = made.with_suffix(f".{os.getpid()}")
    with (
        contextlib.closing(sqlite3.connect(database, timeout=30)) as source,
        contextlib.closing(sqlite3.connect(part)) as copy,
    ):
        source.backup(copy)
    part.replace(made)
