"""Who is compared, each with the best settings that its own documentation names; as data."""

import json
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final, NamedTuple

from bench.peers.names import NGINX
from bench.processes import ROOT

PLACE: Final = ROOT / ".proxies"
"""Environments of the others, as `make proxies` makes them."""

HERE: Final = Path(__file__).parent


class Behind(NamedTuple):
    """The server that a proxy stands before: a URL, or a command."""

    url: str
    command: Sequence[str]


@dataclass(frozen=True)
class Proxy:
    """A proxy, and how it is started."""

    about: str
    """What it is and with which settings it runs."""
    command: Callable[[Behind, int, Path], list[str]]
    """Of a server, a port and a folder of its own."""
    path: str = "/mcp"
    """Its endpoint, of Streamable HTTP."""
    needs: Path = Path(sys.executable)
    """What has to be there."""
    version: Sequence[str] = ()
    """A command that prints which one it is."""


def _trunkline(behind: Behind, port: int, folder: Path) -> list[str]:
    server = f'url = "{behind.url}"' if behind.url else f"command = {json.dumps(list(behind.command))}"
    settings = folder / "trunkline.toml"
    settings.write_text(f'[servers.bench]\n{server}\neras = ["legacy"]\n')
    command = [sys.executable, "-m", "trunkline.gateway", "serve", str(settings)]
    return [*command, "--port", str(port), "--log-level", "error"]


NGINX_SETTINGS: Final = """
worker_processes 1; daemon off; pid {folder}/pid; error_log /dev/null crit;
events {{ worker_connections 1024; }}
http {{
  access_log off;
  client_body_temp_path {folder}/body; proxy_temp_path {folder}/proxy; fastcgi_temp_path {folder}/fastcgi;
  uwsgi_temp_path {folder}/uwsgi; scgi_temp_path {folder}/scgi;
  upstream server {{ server {authority}; keepalive 64; keepalive_requests 1000000; }}
  server {{
    listen 127.0.0.1:{port} reuseport; keepalive_requests 1000000;
    location / {{
      proxy_pass http://server; proxy_http_version 1.1; proxy_buffering off; proxy_read_timeout 300s;
      proxy_set_header Connection ""; proxy_set_header Host {authority};
    }}
  }}
}}
"""


def _nginx(behind: Behind, port: int, folder: Path) -> list[str]:
    authority = behind.url.partition("://")[2].partition("/")[0]
    settings = folder / "nginx.conf"
    settings.write_text(NGINX_SETTINGS.format(folder=folder, authority=authority, port=port))
    return ["nginx", "-c", str(settings), "-e", "/dev/null"]


def _fastmcp(behind: Behind, port: int, folder: Path) -> list[str]:
    server = [behind.url] if behind.url else ["--", *behind.command]
    return [str(PLACE / "fastmcp/bin/python"), str(HERE / "fastmcp_proxy.py"), str(port), *server]


def _mcp_proxy(behind: Behind, port: int, folder: Path) -> list[str]:
    program = str(PLACE / "mcp-proxy/bin/mcp-proxy")
    return [program, "--port", str(port), "--log-level", "ERROR", "--pass-environment", "--", *behind.command]


def _mcp_proxy_ts(behind: Behind, port: int, folder: Path) -> list[str]:
    program = str(PLACE / "node/node_modules/.bin/mcp-proxy")
    quiet = ["--server", "stream", "--no-eventStore", "--host", "127.0.0.1"]
    return [program, "--port", str(port), *quiet, "--", *behind.command]


def _supergateway(behind: Behind, port: int, folder: Path) -> list[str]:
    program = str(PLACE / "node/node_modules/.bin/supergateway")
    kept = ["--outputTransport", "streamableHttp", "--stateful", "--logLevel", "none"]
    return [program, "--stdio", " ".join(behind.command), *kept, "--port", str(port)]


TRUNKLINE: Final = Proxy("one worker, reuse = workflow, directory in memory", _trunkline, "/servers/bench/mcp")
FASTMCP: Final = Proxy(
    "FastMCPProxy over StatefulProxyClient (a session with the server for each client session), uvicorn, no logs",
    _fastmcp,
    needs=PLACE / "fastmcp/bin/python",
    version=[str(PLACE / "fastmcp/bin/python"), "-c", "import fastmcp; print(fastmcp.__version__)"],
)

BEFORE_HTTP: Final = {
    NGINX: Proxy(
        "plain reverse proxy, one worker, 64 kept connections, no buffering, no access log: knows nothing of MCP",
        _nginx,
        needs=Path("/usr/sbin/nginx"),
        version=["sh", "-c", "nginx -v 2>&1"],
    ),
    "trunkline": TRUNKLINE,
    "fastmcp": FASTMCP,
}
"""Proxies that go before a server of Streamable HTTP."""

BEFORE_STDIO: Final = {
    "trunkline": TRUNKLINE,
    "fastmcp": FASTMCP,
    "mcp-proxy (Python)": Proxy(
        "one process for all clients (it has no other mode), log level ERROR",
        _mcp_proxy,
        needs=PLACE / "mcp-proxy/bin/mcp-proxy",
        version=[str(PLACE / "mcp-proxy/bin/mcp-proxy"), "--version"],
    ),
    "mcp-proxy (TypeScript)": Proxy(
        "--server stream --no-eventStore",
        _mcp_proxy_ts,
        needs=PLACE / "node/node_modules/.bin/mcp-proxy",
        version=[str(PLACE / "node/node_modules/.bin/mcp-proxy"), "--version"],
    ),
    "supergateway": Proxy(
        "--outputTransport streamableHttp --stateful --logLevel none",
        _supergateway,
        needs=PLACE / "node/node_modules/.bin/supergateway",
        version=[str(PLACE / "node/node_modules/.bin/supergateway"), "--version"],
    ),
}
"""Proxies that go before a server that is a process."""
