"""`trunkline call`: the same tool over three transports, and one line where there is no result."""

import asyncio
import io
import json
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from pathlib import Path

import anyio
import pytest
from harness.gateways import TOKENS, Gateway, command, environment, token_settings
from harness.gateways import gateway as running_gateway
from harness.ports import free_port
from harness.programs import run
from harness.raw_http import Peer, serving
from harness.terminal import on_terminal
from harness.upstreams import Upstream
from harness.upstreams import upstream as running_upstream
from rich.console import Console
from trunkline.gateway import call as call_module
from trunkline.gateway.call import Call, CallFailed, Kind, Outcome, endpoint_of, perform, read_call
from trunkline.gateway.call import show as show_outcome
from trunkline.gateway.exits import WrongArgument

pytestmark = pytest.mark.anyio

KINDS: tuple[Kind, ...] = ("http", "sse", "ws")
PATIENCE = 60.0


@pytest.fixture(scope="module")
def gateway(upstream_process: Upstream) -> Iterator[Gateway]:
    with running_gateway(upstreams={"up": upstream_process.url}) as process:
        yield process


def call(
    url: str, tool: str, arguments: str = "{}", *, kind: str | None = None, headers: Sequence[str] = (), key: str = ""
) -> Call:
    return read_call(url, tool, arguments, kind=kind, headers=headers, workflow=key or None)


async def failure(wanted: Call) -> str:
    with pytest.raises(CallFailed) as caught:
        await perform(wanted)
    line = str(caught.value)
    assert "\n" not in line
    return line


@pytest.mark.parametrize(
    ("url", "kind", "endpoint", "chosen"),
    [
        ("http://h:1/servers/x/mcp", None, "http://h:1/servers/x/mcp", "http"),
        ("http://h:1/servers/x/mcp", "ws", "ws://h:1/servers/x/ws", "ws"),
        ("https://h/servers/x/mcp", "ws", "wss://h/servers/x/ws", "ws"),
        ("https://h/p/servers/x/", "sse", "https://h/p/servers/x/sse", "sse"),
        ("http://h/servers/x/sse", None, "http://h/servers/x/sse", "sse"),
        ("ws://h/servers/x", None, "ws://h/servers/x/ws", "ws"),
        ("https://h/servers/x/ws/", None, "wss://h/servers/x/ws", "ws"),
        ("http://h/ws", None, "ws://h/ws", "ws"),
        ("wss://h/servers/x/ws", "http", "https://h/servers/x/mcp", "http"),
        ("http://h/mcp?a=b", None, "http://h/mcp?a=b", "http"),
        ("http://h/other", "ws", "ws://h/other", "ws"),
        ("http://h/a/sse", None, "http://h/a/sse", "sse"),
    ],
)
def test_a_url_of_a_server_names_its_three_endpoints(url: str, kind: Kind | None, endpoint: str, chosen: Kind) -> None:
    assert endpoint_of(url, kind) == (endpoint, chosen)


@pytest.mark.parametrize("url", ["http://[", "", "nonsense", "ftp://h/x", "http://", "127.0.0.1:8920"])
def test_what_is_no_url_is_told_with_one_that_is(url: str) -> None:
    with pytest.raises(WrongArgument, match="give one like http:"):
        endpoint_of(url, None)


@pytest.mark.parametrize(
    ("arguments", "kind", "header", "words"),
    [
        ("{", None, "A: b", "are not JSON"),
        ("[1]", None, "A: b", "must be a JSON object"),
        ('{"a": NaN}', None, "A: b", "are not JSON"),
        ('{"a": 1e999}', None, "A: b", "are not JSON"),
        ('{"a": "\\ud800"}', None, "A: b", "are not JSON"),
        ('{"a": ' + "[" * 100_000, None, "A: b", "are not JSON"),
        ("{}", "smoke", "A: b", "expected http, sse or ws"),
        ("{}", None, "no colon", "expected 'Name: value'"),
        ("{}", None, ": nameless", "expected 'Name: value'"),
        ("{}", None, "a b: c", "--header: the header 'a b' cannot be sent"),
        ("{}", None, "A: b\r\nc", "--header: the header 'A' cannot be sent"),
    ],
)
def test_a_wrong_argument_is_named(arguments: str, kind: str | None, header: str, words: str) -> None:
    with pytest.raises(WrongArgument, match=words):
        call("http://h/mcp", "t", arguments, kind=kind, headers=[header])


@pytest.mark.parametrize("key", ["a b", "ü", "k" * 129])
def test_a_key_that_is_none_is_named(key: str) -> None:
    with pytest.raises(WrongArgument, match="--workflow: expected 1-128 characters"):
        call("http://h/mcp", "t", key=key)


def test_headers_and_key_are_taken_as_they_are() -> None:
    wanted = call("http://h/mcp", "t", '{"a": [1]}', headers=["A: b:c", "D:e"], key="mine")
    assert wanted.headers == {"A": "b:c", "D": "e", "trunkline-workflow": "mine"}
    assert wanted.arguments == {"a": [1]}


async def test_a_counter_goes_on_over_three_transports_with_one_key(gateway: Gateway) -> None:
    outcomes = [await perform(call(gateway.url(), "counter", kind=kind, key="three")) for kind in KINDS]
    assert [outcome.texts for outcome in outcomes] == [["1"], ["2"], ["3"]]
    assert [outcome.structured for outcome in outcomes] == [{"result": 1}, {"result": 2}, {"result": 3}]


async def test_a_key_names_a_session_also_where_the_server_speaks_without_them(upstream: Upstream) -> None:
    with running_gateway(upstreams={"up": upstream.url}, eras=("legacy", "modern")) as gateway:
        counted = [await perform(call(gateway.url(), "counter", kind=kind, key="mine")) for kind in KINDS]
        assert [outcome.texts for outcome in counted] == [["1"], ["2"], ["3"]]
        spelled = await perform(call(gateway.url(), "counter", headers=["Trunkline-Workflow: mine"]))
        assert spelled.texts == ["4"]
        another = await perform(call(gateway.url(), "counter", key="another"))
        assert another.texts == ["1"]


async def test_a_header_that_cannot_be_sent_is_not_told_as_a_gateway_that_is_away(gateway: Gateway) -> None:
    assert "nobody answers" not in await failure(call(gateway.url(), "counter", headers=["X-Name: Zo\u20ac"]))


async def test_a_key_for_a_server_without_sessions_is_told_as_that(upstream: Upstream) -> None:
    with running_gateway(upstreams={"up": upstream.url}, eras=("modern",)) as gateway:
        assert "served without sessions" in await failure(call(gateway.url(), "counter", key="mine"))
        assert (await perform(call(gateway.url(), "counter"))).texts == ["1"]


async def test_without_a_key_each_call_has_its_own_session(gateway: Gateway) -> None:
    for kind in KINDS:
        assert (await perform(call(gateway.url(), "counter", kind=kind))).texts == ["1"]


@pytest.mark.parametrize("kind", KINDS)
async def test_a_tool_that_fails_is_told(gateway: Gateway, kind: str) -> None:
    line = await failure(call(gateway.url(), "fail", '{"message": "no"}', kind=kind))
    assert line == "the tool 'fail' failed: Error executing tool fail"


async def test_what_a_tool_says_of_its_failure_is_one_line() -> None:
    with running_upstream("sdk1") as server:
        line = await failure(call(server.url, "fail", json.dumps({"message": "first\nsecond\u001b[2J"})))
    assert line.endswith("first second [2J")


@pytest.mark.parametrize("kind", KINDS)
async def test_an_unknown_tool_is_told_with_those_that_are_known(gateway: Gateway, kind: str) -> None:
    line = await failure(call(gateway.url(), "nope", kind=kind))
    assert "there is no tool 'nope' here" in line
    assert "counter" in line


@pytest.mark.parametrize("kind", KINDS)
async def test_a_url_of_tls_that_is_none_is_told_as_that(gateway: Gateway, kind: str) -> None:
    line = await failure(call(gateway.url().replace("http:", "https:"), "counter", kind=kind))
    assert "no TLS is spoken there" in line
    assert "nobody answers" not in line


@pytest.mark.parametrize("kind", KINDS)
async def test_a_server_that_is_away_is_told_with_what_starts_one(kind: str) -> None:
    line = await failure(call(f"http://user:secret@127.0.0.1:{free_port()}/servers/x/mcp", "counter", kind=kind))
    assert "nobody answers at " in line
    assert "trunkline serve" in line
    assert "secret" not in line


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    "proxy", ["http://127.0.0.1:{port}", "socks5://127.0.0.1:{port}", "nonsense://x", "http://h:x"]
)
async def test_a_proxy_that_is_away_or_none_is_not_taken_for_the_server(
    monkeypatch: pytest.MonkeyPatch, kind: str, proxy: str
) -> None:
    monkeypatch.setenv("http_proxy", proxy.format(port=free_port()))
    line = await failure(call("http://mcp.example/servers/x/mcp", "counter", kind=kind))
    assert "reached through the proxy that HTTP_PROXY or HTTPS_PROXY names" in line
    assert "NO_PROXY" in line


@pytest.mark.parametrize("kind", KINDS)
async def test_a_server_that_is_not_there_is_told_with_where_they_are(gateway: Gateway, kind: str) -> None:
    line = await failure(call(gateway.url("none"), "counter", kind=kind))
    assert "answered HTTP 404" in line
    assert "no such server" in line or "/servers/NAME/mcp" in line


async def test_what_is_no_mcp_server_is_asked_about(gateway: Gateway) -> None:
    assert "is this the URL of an MCP server" in await failure(call(f"{gateway.base}/healthz", "x", kind="sse"))
    assert "another --transport" in await failure(call(f"{gateway.base}/healthz", "x"))


@pytest.mark.parametrize(
    ("status", "told"),
    [
        (308, "it leads elsewhere"),
        (421, "gateway.allowed_hosts"),
        (502, "a proxy before the gateway does not reach it"),
        (504, "a proxy before the gateway does not reach it"),
    ],
)
async def test_what_stands_between_is_not_laid_to_the_url(status: int, told: str) -> None:
    async def serve(peer: Peer) -> None:
        while True:
            await peer.request()
            await peer.say(b"HTTP/1.1 %d No\r\nContent-Length: 0\r\n\r\n" % status)

    async with serving(serve) as server:
        for kind in KINDS:
            assert told in await failure(call(server.url, "counter", kind=kind))


@pytest.mark.parametrize("kind", KINDS)
async def test_a_token_is_asked_for_and_taken(upstream: Upstream, tmp_path: Path, kind: str) -> None:
    settings = tmp_path / "trunkline.toml"
    settings.write_text(token_settings(up=upstream.url))
    with running_gateway(toml=settings) as gateway:
        assert "--header 'Authorization: Bearer TOKEN'" in await failure(call(gateway.url(), "counter", kind=kind))
        header = f"Authorization: Bearer {TOKENS['alice']}"
        assert (await perform(call(gateway.url(), "counter", kind=kind, headers=[header]))).texts == ["1"]


async def test_what_is_no_text_is_named() -> None:
    with running_upstream("everything") as server:
        outcome = await perform(call(server.url, "test_image_content"))
    assert outcome.texts == ["[image image/png]"]
    assert isinstance(outcome.structured, list)
    assert outcome.structured[0]["mimeType"] == "image/png"


def test_the_program_prints_texts_or_json(gateway: Gateway) -> None:
    plain = run("call", gateway.url(), "echo", '{"value": [1, "ä"]}', "--transport", "ws")
    assert (plain.returncode, plain.stderr) == (0, "")
    assert json.loads(plain.stdout) == {"value": [1, "ä"]}
    structured = run(
        "call", gateway.url(), "counter", "--json", "--workflow", "mine", "--header", "A: b", "--header", "C: d"
    )
    assert (structured.returncode, structured.stderr) == (0, "")
    assert json.loads(structured.stdout) == {"result": 1}


@pytest.mark.parametrize(
    ("arguments", "code"),
    [
        (["fail", '{"message": "no"}'], 1),
        (["nope", "{}"], 1),
        (["counter", "{"], 2),
        (["counter", "{}", "--header", "none"], 2),
    ],
)
def test_the_program_ends_with_one_line(gateway: Gateway, arguments: list[str], code: int) -> None:
    for transport in ("http", "ws"):
        ended = run("call", gateway.url(), *arguments, "--transport", transport)
        assert (ended.returncode, ended.stdout) == (code, "")
        [line] = ended.stderr.splitlines()
        assert line.startswith("trunkline: ")


@pytest.mark.parametrize(
    ("url", "code"),
    [("nonsense", 2), ("http://127.0.0.1:1/mcp", 1), ("ws://127.0.0.1:1/ws", 1), ("http://127.0.0.1:1/sse", 1)],
)
def test_the_program_ends_with_one_line_where_nobody_is(url: str, code: int) -> None:
    ended = run("call", url, "counter")
    assert (ended.returncode, ended.stdout) == (code, "")
    assert len(ended.stderr.splitlines()) == 1


@pytest.mark.parametrize(
    ("structured", "is_table"),
    [
        ([{"id": 1, "name": "a"}, {"id": 2, "name": "\x1b[2Jb"}], True),
        ({"result": [{"id": 1, "name": "a"}]}, True),
        ([{"id": 1}, {"name": "a"}], False),
        ([{"id": [1]}], False),
        ([1, 2], False),
        ([], False),
        ({"result": 1}, False),
        ({"id": 1}, False),
    ],
)
def test_a_list_of_records_is_a_table_on_a_terminal(structured: object, is_table: bool) -> None:
    shown = {}
    for is_terminal in (True, False):
        console = Console(file=io.StringIO(), width=80, force_terminal=is_terminal, no_color=True)
        show_outcome(Outcome(["the text"], structured), as_json=False, console=console)
        assert isinstance(console.file, io.StringIO)
        shown[is_terminal] = console.file.getvalue()
    assert ("name" in shown[True]) is is_table
    assert ("the text" in shown[True]) is not is_table
    assert "\x1b[2J" not in shown[True]
    assert shown[False] == "the text\n"


def test_progress_of_the_server_is_a_bar_on_a_terminal_and_nothing_elsewhere(gateway: Gateway) -> None:
    with running_gateway() as demo:
        arguments = (demo.url("demo"), "slow", '{"steps": 40, "seconds": 5}')
        with on_terminal(command("call", *arguments), environment()) as terminal:
            terminal.read_until("slow runs")
            terminal.read_until("/40")
            assert terminal.end() == 0
            assert terminal.text.rstrip().endswith("40 steps in 5 s")
        piped = run("call", demo.url("demo"), "slow", '{"steps": 2, "seconds": 2.5}')
        assert (piped.returncode, piped.stdout, piped.stderr) == (0, "2 steps in 2.5 s\n", "")


def test_a_call_that_is_interrupted_ends_with_130(upstream: Upstream) -> None:
    with (
        running_gateway(upstreams={"up": upstream.url}) as gateway,
        on_terminal(command("call", gateway.url(), "hold", '{"gate": "never"}'), environment()) as terminal,
    ):
        terminal.read_until("hold runs")
        terminal.interrupt()
        assert terminal.end() == 130
        assert "Traceback" not in terminal.text


async def test_a_call_that_is_interrupted_is_not_taken_for_one_that_failed(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever what is left of its connection says when it is ended."""
    begun = anyio.Event()

    @asynccontextmanager
    async def transport(*_: object) -> AsyncIterator[None]:
        begun.set()
        try:
            await anyio.sleep_forever()
            yield
        finally:
            raise ConnectionResetError

    async def find(*arguments: object) -> AbstractAsyncContextManager[None]:
        return transport(*arguments)

    monkeypatch.setattr(call_module, "_transport", find)
    call = asyncio.create_task(perform(read_call("http://h/mcp", "t", "{}", kind=None, headers=(), workflow=None)))
    with anyio.fail_after(10):
        await begun.wait()
    call.cancel()
    with pytest.raises(asyncio.CancelledError):
        await call
