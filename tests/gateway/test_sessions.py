"""`trunkline sessions`: the table, where it comes from, and that no secret is in it."""

import io
import json
import socket
import struct
import subprocess
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import anyio
import pytest
from harness.gateways import Gateway, command, environment
from harness.gateways import gateway as running_gateway
from harness.ports import bound_socket, free_port
from harness.terminal import on_terminal
from harness.wire import Wire
from rich.console import Console
from trunkline.gateway.call import perform, read_call
from trunkline.gateway.exits import WrongArgument
from trunkline.gateway.sessions import COLUMNS, Source, Unavailable, show, source_of, table_of

pytestmark = pytest.mark.anyio

PATIENCE = 30.0
ROW = {
    "workflow": "2b26b1df3ede",
    "principal": "d71db3933dd5",
    "server": "demo",
    "transport": "websocket",
    "state": "attached",
    "revision": "2025-11-25",
    "reuse": "workflow",
    "keyed": True,
    "inflight": 0,
    "idle": None,
    "channel": "open",
}


@pytest.fixture(scope="module")
def gateway() -> Iterator[Gateway]:
    with running_gateway() as process:
        yield process


def printed(rows: list[dict[str, Any]]) -> list[list[str]]:
    """The table's lines, as words."""
    console = Console(file=io.StringIO(), width=200)
    console.print(table_of(rows, console))
    assert isinstance(console.file, io.StringIO)
    return [line.split() for line in console.file.getvalue().splitlines() if line.strip()]


def shown(source: Source, *, once: bool = False, as_json: bool = False) -> str:
    console = Console(file=io.StringIO(), width=80)
    show(source, once=once, as_json=as_json, console=console)
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()


def test_each_workflow_is_a_line_and_those_in_use_come_first() -> None:
    rows = [
        ROW,
        {**ROW, "workflow": "busy", "inflight": 3},
        {**ROW, "workflow": "idle", "state": "detached", "idle": 61.4},
    ]
    lines = printed(rows)
    assert lines[0] == " ".join(COLUMNS).split()
    assert lines[1] == ["busy", "d71db3933dd5", "demo", "websocket", "attached", "3", "workflow", "open"]
    assert ["idle", "d71db3933dd5", "demo", "websocket", "detached", "0", "61", "s", "workflow", "open"] in lines
    assert lines[-1] == ["3", "workflows,", "2", "attached,", "3", "calls", "in", "flight"]


@pytest.mark.parametrize(
    ("width", "told"), [(80, {"demo", "websocket", "attached"}), (40, {"demo", "attached"}), (28, set())]
)
def test_on_a_narrow_terminal_a_handle_can_still_be_copied(width: int, told: set[str]) -> None:
    console = Console(file=io.StringIO(), width=width, force_terminal=True, no_color=True, color_system=None)
    console.print(table_of([{**ROW, "inflight": 12}], console))
    assert isinstance(console.file, io.StringIO)
    words = set(console.file.getvalue().split())
    assert {ROW["workflow"], *told} <= words


def test_several_workers_are_told_apart_and_one_that_is_silent_is_named() -> None:
    lines = printed([{**ROW, "worker": 1}, {**ROW, "worker": 2}, {"worker": 3, "state": "missing"}])
    assert lines[0] == [*" ".join(COLUMNS).split(), "worker"]
    assert sorted(line[-1] for line in lines[1:3]) == ["1", "2"]
    assert " ".join(lines[-1]) == "2 workflows, 2 attached, 0 calls in flight; no answer from worker 3"


def test_no_workflow_is_a_table_too() -> None:
    assert printed([])[-1] == ["0", "workflows,", "0", "attached,", "0", "calls", "in", "flight"]


def test_a_name_neither_steers_the_terminal_nor_is_markup() -> None:
    text = str(printed([{**ROW, "server": "\x1b[2J[red]x"}]))
    assert "\\x1b" not in text
    assert "[2J[red]x" in text


@pytest.mark.parametrize(
    ("url", "base"),
    [
        ("http://h:1", "http://h:1"),
        ("https://h/", "https://h"),
        ("http://h:1/servers/demo/mcp", "http://h:1"),
        ("ws://h:1/p/servers/demo/ws", "http://h:1/p"),
        ("https://user:secret@h/", "https://h"),
    ],
)
def test_any_url_of_a_gateway_names_it(url: str, base: str) -> None:
    assert source_of(url, None).url == base


@pytest.mark.parametrize("url", ["http://[", "", "nonsense", "ftp://h", "http://"])
def test_what_is_no_url_is_told_with_one_that_is(url: str) -> None:
    with pytest.raises(WrongArgument, match="give one like http:"):
        source_of(url, None)


async def test_it_tells_the_newest_transport_and_the_channel_and_no_secret(gateway: Gateway) -> None:
    source = source_of(gateway.url("demo"), None)
    async with Wire(gateway.url("demo"), {"Trunkline-Workflow": "key-of-a-chat"}) as wire:
        await wire.open()
        assert wire.session_id
        [row] = [row for row in source.fetch() if row["keyed"]]
        assert (row["transport"], row["channel"], row["inflight"]) == ("http", "open", 0)
        for kind, transport in (("sse", "sse"), ("ws", "websocket")):
            wanted = read_call(gateway.url("demo"), "counter", "{}", kind=kind, headers=[], workflow="key-of-a-chat")
            await perform(wanted)
            [row] = [row for row in source.fetch() if row["keyed"]]
            assert row["transport"] == transport
        for text in (shown(source), shown(source, once=True), shown(source, as_json=True)):
            assert row["workflow"] in text
            assert "key-of-a-chat" not in text
            assert wire.session_id not in text
        assert json.loads(shown(source, as_json=True))[0].keys() == row.keys()


def test_piped_it_is_printed_once_and_in_full(gateway: Gateway) -> None:
    ended = subprocess.run(
        command("sessions", gateway.base), env=environment(), capture_output=True, text=True, timeout=PATIENCE
    )
    assert (ended.returncode, ended.stderr) == (0, "")
    assert all(column in ended.stdout for column in COLUMNS)
    assert ended.stdout.isascii()
    assert "\x1b" not in ended.stdout


def test_a_url_of_tls_that_is_none_is_told_as_that(gateway: Gateway) -> None:
    with pytest.raises(Unavailable, match="no TLS is spoken there"):
        source_of(gateway.base.replace("http:", "https:"), None).fetch()


@pytest.mark.parametrize("is_reset", [False, True])
def test_a_connection_that_is_closed_without_an_answer_is_told_as_that(is_reset: bool) -> None:
    def close(listener: socket.socket) -> None:
        peer, _ = listener.accept()
        peer.recv(65_536)
        if is_reset:
            peer.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        peer.close()

    with bound_socket() as listener:
        thread = threading.Thread(target=close, args=(listener,))
        thread.start()
        with pytest.raises(Unavailable, match="closed the connection without an answer"):
            source_of(f"http://127.0.0.1:{listener.getsockname()[1]}", None).fetch()
        thread.join()


def test_nobody_there_is_one_line() -> None:
    ended = subprocess.run(
        command("sessions", f"http://127.0.0.1:{free_port()}"),
        env=environment(),
        capture_output=True,
        text=True,
        timeout=PATIENCE,
    )
    assert (ended.returncode, ended.stdout) == (1, "")
    [line] = ended.stderr.splitlines()
    assert "nobody answers" in line


def test_a_gateway_that_authenticates_wants_its_admin_token(tmp_path: Path) -> None:
    settings = tmp_path / "trunkline.toml"
    settings.write_text(
        '[gateway]\nadmin_token = "the-admin-token"\n[auth]\nmode = "tokens"\n'
        f'tokens = [{{ sha256 = "{"0" * 64}", tenant = "acme", subject = "alice" }}]\n'
        '[servers.x]\nurl = "http://127.0.0.1:1/mcp"\n'
    )
    with running_gateway(toml=settings) as gateway:
        for token in (None, "wrong"):
            with pytest.raises(Unavailable, match="HTTP 401: send its admin token"):
                Source(gateway.base, token).fetch()
        assert Source(gateway.base, "the-admin-token").fetch() == []
        env = {**environment(), "TRUNKLINE_GATEWAY__ADMIN_TOKEN": "the-admin-token"}
        ended = subprocess.run(
            command("sessions", gateway.base, "--json"), env=env, capture_output=True, text=True, timeout=PATIENCE
        )
        assert json.loads(ended.stdout) == []


class _Handler(BaseHTTPRequestHandler):
    seen: list[Mapping[str, str]]
    status = 200
    headers_out: Mapping[str, str]
    body = b""

    def do_GET(self) -> None:
        type(self).seen.append(dict(self.headers))
        self.send_response(self.status)
        for name, value in self.headers_out.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(self.body)

    def log_message(self, format: str, *args: object) -> None:
        pass


@contextmanager
def answering(status: int, body: bytes = b"", **headers: str) -> Iterator[tuple[str, list[Mapping[str, str]]]]:
    """A server that answers everything so; its URL, and the headers that it saw."""
    seen: list[Mapping[str, str]] = []
    handler = type("Handler", (_Handler,), {"seen": seen, "status": status, "headers_out": headers, "body": body})
    with HTTPServer(("127.0.0.1", 0), handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_address[1]}", seen
        finally:
            server.shutdown()
            thread.join()


@pytest.mark.parametrize(
    ("status", "body", "words"),
    [
        (200, b"<html>", "is no gateway of trunkline"),
        (200, b"{}", "is no gateway of trunkline"),
        (200, b"[1]", "is no gateway of trunkline"),
        (200, b"\xff", "is no gateway of trunkline"),
        (403, b"", "--token"),
        (404, b"", "has no /api/sessions"),
        (421, b"this Host is not served here\n", "allowed_hosts"),
        (500, b"", "HTTP 500"),
    ],
)
def test_what_is_no_gateway_is_told(status: int, body: bytes, words: str) -> None:
    with answering(status, body) as (url, _), pytest.raises(Unavailable, match=words):
        Source(url).fetch()


def test_a_proxy_that_is_away_is_not_taken_for_the_gateway(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("http_proxy", f"http://127.0.0.1:{free_port()}")
    with pytest.raises(Unavailable, match="reached through the proxy that HTTP_PROXY"):
        Source("http://mcp.example").fetch()


@pytest.mark.parametrize("token", ["of a file\n", "s\u20accret", ""])
def test_a_token_that_nobody_could_send_is_not_laid_to_the_gateway(token: str) -> None:
    if token:
        with pytest.raises(WrongArgument, match="--token") as caught:
            source_of("http://127.0.0.1:1", token)
        assert token.strip() not in str(caught.value)
    else:
        assert source_of("http://127.0.0.1:1", token).token == ""


def test_a_redirect_does_not_take_the_token_along() -> None:
    with answering(200, b"[]") as (other, seen), answering(302, Location=other) as (url, asked):
        with pytest.raises(Unavailable, match="HTTP 302: it leads elsewhere"):
            Source(url, "secret").fetch()
        assert asked[0]["Authorization"] == "Bearer secret"
        assert seen == []


def test_on_a_terminal_it_goes_on_until_it_is_interrupted(gateway: Gateway) -> None:
    with on_terminal(command("sessions", gateway.base), environment()) as terminal:
        terminal.read_until("calls in flight")
        known = {row["workflow"] for row in Source(gateway.base).fetch()}
        anyio.run(perform, read_call(gateway.url("demo"), "counter", "{}", kind=None, headers=[], workflow="another"))
        [newest] = {row["workflow"] for row in Source(gateway.base).fetch()} - known
        terminal.read_until(str(newest))
        terminal.interrupt()
        assert terminal.end() == 0
