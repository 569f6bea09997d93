"""`trunkline explain` and `/api/sessions/HANDLE` of a gateway that runs: why, what happened, and no secret."""

import io
import json
import subprocess
import urllib.error
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import anyio
import anyio.to_thread
import pytest
from harness.gateways import TOKENS, Gateway, bearer, command, environment, token_settings, until
from harness.gateways import gateway as running_gateway
from harness.upstreams import Upstream
from harness.upstreams import upstream as running_upstream
from harness.wire import Wire
from rich.console import Console
from trunkline.gateway.call import perform, read_call
from trunkline.gateway.explain import rendered, show
from trunkline.gateway.sessions import Source, Unavailable
from websockets.asyncio.client import connect

pytestmark = pytest.mark.anyio

PATIENCE = 30.0
ADMIN = "the-admin-token"
SECRETS = (ADMIN, *TOKENS.values(), "key-of-a-chat", "tenant-of-nobody-else", "acme", "alice")
KEYED = {"Trunkline-Workflow": "key-of-a-chat"}


@pytest.fixture(scope="module")
def upstream() -> Iterator[Upstream]:
    with running_upstream() as server:
        yield server


@pytest.fixture(scope="module")
def gateway(upstream: Upstream, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Gateway]:
    """A gateway of two principals, in front of one server by each reuse."""
    text = token_settings(user=upstream.url, workflow=upstream.url, none=upstream.url)
    for name in ("user", "workflow", "none"):
        section = f"[servers.{name}]\n"
        text = text.replace(section, f'{section}reuse = "{name}"\nsession_headers = ["X-Tenant"]\n')
    path = tmp_path_factory.mktemp("settings") / "trunkline.toml"
    path.write_text(f'[gateway]\nadmin_token = "{ADMIN}"\n[pooling]\nmax_inflight_per_channel = 1\n{text}')
    with running_gateway(toml=path) as process:
        yield process


def source(gateway: Gateway) -> Source:
    return Source(gateway.base, ADMIN)


def newest(gateway: Gateway) -> str:
    """The handle of the workflow that began last."""
    return str(source(gateway).fetch()[-1]["workflow"])


def told(gateway: Gateway, handle: str) -> dict[str, Any]:
    """The account as JSON; whatever is told to people is read, too, and no secret is in either."""
    account: dict[str, Any] = source(gateway).read(f"/api/sessions/{handle}")
    console = Console(file=io.StringIO(), width=200)
    show(source(gateway), handle, as_json=False, console=console)
    assert isinstance(console.file, io.StringIO)
    text = console.file.getvalue() + json.dumps(account)
    assert handle in text
    for secret in SECRETS:
        assert secret not in text
    return account


def ran(*arguments: str, token: str = ADMIN) -> subprocess.CompletedProcess[str]:
    env = {**environment(), "TRUNKLINE_GATEWAY__ADMIN_TOKEN": token}
    return subprocess.run(command("explain", *arguments), env=env, capture_output=True, text=True, timeout=PATIENCE)


async def test_a_session_that_is_shared_tells_whose_and_what_kept_another_apart(gateway: Gateway) -> None:
    url = gateway.url("user")
    handles = []
    apart = {"X-Tenant": "tenant-of-nobody-else"}
    for headers in (bearer("alice"), bearer("alice"), bearer("alice", **apart), bearer("bob")):
        async with Wire(url, headers) as wire:
            await wire.open(capabilities={"roots": {}} if len(handles) % 2 else {})
            assert wire.session_id
            await (await wire.call("counter")).response()
            handles.append(newest(gateway))
            account = told(gateway, handles[-1])
            assert wire.session_id not in json.dumps(account)
            assert (account["pool"]["result"], account["pool"]["reason"]) == ("hit", "open")
    first, second, other, bobs = (told(gateway, handle) for handle in handles)
    assert (first["initialize"]["result"], first["initialize"]["reason"]) == ("miss", "first")
    assert (second["initialize"]["result"], second["initialize"]["reason"]) == ("hit", "open")
    assert second["channel"]["shared_with"] == 1
    assert other["initialize"]["differs"] == [{"part": "session_headers", "names": ["x-tenant"]}]
    assert [difference["part"] for difference in bobs["initialize"]["differs"]] == ["principal"]


async def test_a_second_call_at_once_tells_that_the_session_was_full(gateway: Gateway, upstream: Upstream) -> None:
    upstream.reset()
    async with Wire(gateway.url("user"), bearer("bob")) as one, Wire(gateway.url("user"), bearer("bob")) as two:
        await one.open()
        await two.open()
        handle = newest(gateway)
        waiting = await one.call("hold", {"gate": "explained"})
        await upstream.saw("mark:holding")
        await (await two.call("counter")).response()
        account = told(gateway, handle)
        assert (account["pool"]["result"], account["pool"]["reason"]) == ("miss", "full")
        assert "max_inflight_per_channel = 1" in account["pool"]["says"]
        upstream.open("explained")
        await waiting.response()


async def test_the_old_path_tells_that_nothing_is_kept(gateway: Gateway) -> None:
    async with Wire(gateway.url("none"), bearer("alice")) as wire:
        await wire.open()
        await (await wire.call("counter")).response()
        account = told(gateway, newest(gateway))
        assert {account["pool"]["reason"], account["initialize"]["reason"]} == {"per_call"}
        assert account["channel"] is None


async def test_a_keyed_workflow_tells_that_it_came_back_moved_and_began_anew(gateway: Gateway) -> None:
    async with Wire(gateway.url("workflow"), bearer("alice", **KEYED)) as wire:
        await wire.open()
        handle = newest(gateway)
        assert told(gateway, handle)["initialize"]["reason"] == "own"
        wire.headers.pop("Mcp-Session-Id")
        assert (await wire.open()).headers["Trunkline-Workflow-State"] == "resumed"
        account = told(gateway, handle)
        assert (account["initialize"]["reason"], account["initialize"]["detail"]) == ("returned", "key")
        socket = gateway.url("workflow").replace("http:", "ws:").removesuffix("mcp") + "ws"
        async with connect(socket, subprotocols=["mcp"], additional_headers=bearer("alice", **KEYED)):
            await until(lambda: source(gateway).read(f"/api/sessions/{handle}")["workflow"]["state"] == "attached")
        await until(lambda: source(gateway).read(f"/api/sessions/{handle}")["workflow"]["state"] == "detached")
        happened = [event["what"] for event in told(gateway, handle)["timeline"]]
        assert happened == ["created", "resumed", "moved", "attached", "left"]
        await wire.delete({"Trunkline-End": "workflow"})
        ended = told(gateway, handle)
        assert (ended["ended"]["cause"], ended["workflow"]["state"]) == ("deleted", "ended")
        wire.headers.pop("Mcp-Session-Id")
        wire.headers.pop("MCP-Protocol-Version")
        assert (await wire.open("2025-06-18")).headers["Trunkline-Workflow-State"] == "reset"
        again = newest(gateway)
        assert told(gateway, again)["origin"]["before"] == handle
        assert told(gateway, again)["origin"]["cause"] == "deleted"
        wire.headers.pop("Mcp-Session-Id")
        wire.headers.pop("MCP-Protocol-Version")
        await wire.open("2025-11-25")
        origin = told(gateway, newest(gateway))["origin"]
        assert (origin["cause"], origin["differs"]) == ("reset", [{"part": "revision", "names": []}])


@pytest.mark.parametrize("reuse", ["workflow", "user"])
async def test_a_server_that_began_anew_is_told(tmp_path: Path, reuse: str) -> None:
    settings = tmp_path / "trunkline.toml"
    with running_upstream() as first:
        settings.write_text(f'[servers.up]\nurl = "{first.url}"\neras = ["legacy"]\nreuse = "{reuse}"\n')
        with running_gateway(toml=settings) as gateway:
            async with Wire(gateway.url()) as wire:
                await wire.open()
                handle = Source(gateway.base).fetch()[-1]["workflow"]
                first.process.kill()
                with ExitStack() as stack:  # in a thread: the client hears meanwhile if its connection ends
                    again = running_upstream(port=first.port)
                    await anyio.to_thread.run_sync(stack.enter_context, again)
                    answer = await (await wire.call("counter")).response()
                account = Source(gateway.base).read(f"/api/sessions/{handle}")
                happened = [event["what"] for event in account["timeline"]]
                if reuse == "user":
                    assert "result" in answer
                    assert (account["pool"]["result"], account["pool"]["reason"]) == ("miss", "lost")
                    assert happened == ["created", "lost", "reopened"]
                else:
                    assert "error" in answer
                    assert account["ended"]["cause"] == "upstream_lost"
                    assert "stateless" in account["ended"]["says"]
                    assert happened == ["created", "lost", "ended"]


# Who may ask, and for what.


async def test_only_the_admin_may_ask(gateway: Gateway) -> None:
    async with Wire(gateway.url("workflow"), bearer("alice")) as wire:
        await wire.open()
        handle = newest(gateway)
        for token in ("", "wrong", TOKENS["alice"]):
            ended = ran(handle, gateway.base, token=token)
            assert (ended.returncode, ended.stdout) == (1, "")
            assert "admin_token" in ended.stderr
        with pytest.raises(urllib.error.HTTPError, match="401"):
            gateway.fetch(f"/api/sessions/{handle}", bearer("alice"))


async def test_the_command_prints_tables_or_json_and_ends_with_1_where_there_is_nothing(gateway: Gateway) -> None:
    async with Wire(gateway.url("workflow"), bearer("alice")) as wire:
        await wire.open()
        await (await wire.call("counter")).response()
        handle = newest(gateway)
        table = ran(handle[:6], gateway.url("workflow"))
        assert (table.returncode, table.stderr) == (0, "")
        assert f"{handle} on workflow" in table.stdout
        assert "last call" in table.stdout
        assert "\x1b" not in table.stdout
        as_json = ran(handle, gateway.base, "--json")
        assert json.loads(as_json.stdout)["workflow"]["workflow"] == handle
        for spelled, words in (("0000ffff0000", "lists them"), (handle[:3], "at least 4"), ("", "give a"), ("a/b", "")):
            ended = ran(spelled, gateway.base)
            assert (ended.returncode, ended.stdout) == (2 if words == "give a" else 1, "")
            [line] = ended.stderr.splitlines()
            assert words in line
        secret = ran(str(wire.session_id), gateway.base)
        assert secret.returncode == 1
        assert str(wire.session_id) not in secret.stderr


async def test_pages_are_asked_for_and_the_list_is_what_it_was(gateway: Gateway) -> None:
    for _ in range(2):
        async with Wire(gateway.url("workflow"), bearer("alice")) as wire:
            await wire.open()
    everything = source(gateway).fetch()
    assert len(everything) >= 2
    first = source(gateway).read("/api/sessions?limit=1")
    [row] = first["sessions"]
    assert first == {"total": len(everything), "sessions": [row], "next": first["next"]}
    assert row == {**everything[0], "idle": row["idle"]}, "the same row, a moment later"
    second = source(gateway).read(f"/api/sessions?limit=1&after={first['next']}")
    assert second["sessions"][0]["workflow"] == everything[1]["workflow"]
    found = source(gateway).read(f"/api/sessions?q={everything[1]['workflow']}&server={everything[1]['server']}")
    assert [row["workflow"] for row in found["sessions"]] == [everything[1]["workflow"]]
    with pytest.raises(Unavailable, match="limit is a number from 1 to 1000"):
        source(gateway).read("/api/sessions?limit=0")


async def test_the_demo_can_be_explained() -> None:
    with running_gateway() as gateway:
        await perform(read_call(gateway.url("demo"), "counter", "{}", kind=None, headers=[], workflow="key-of-a-chat"))
        handle = Source(gateway.base).fetch()[0]["workflow"]
        ended = ran(handle, gateway.base, token="")
        assert ended.returncode == 0
        assert "key-of-a-chat" not in ended.stdout


# What is shown.


def test_what_a_gateway_says_neither_steers_the_terminal_nor_is_markup() -> None:
    account = {
        "workflow": {
            **{"workflow": "2b26b1df3ede", "principal": "d71db3933dd5", "server": "\x1b[2J[red]x", "inflight": 0},
            **{"transport": "http", "state": "detached", "idle": 61.4},
        },
        "channel": {"state": "idle", "age": 3.0, "inflight": 0, "shared_with": 2, "sessions": 2},
        "ended": None,
        "origin": {"says": "why", "before": ""},
        "initialize": None,
        "asked": "initialize",
        "pool": None,
        "timeline": [{"at": 0.0, "what": "unheard", "detail": "[red]\x1b"}],
    }
    console = Console(file=io.StringIO(), width=200, force_terminal=False)
    console.print(*rendered(account, console))
    assert isinstance(console.file, io.StringIO)
    text = console.file.getvalue()
    assert "\x1b" not in text
    assert "[2J[red]x" in text
    assert "shared with 2 other workflows, one of 2" in text
    assert "days ago" in text
    assert "1970-01-01T00:00:00Z" in text, "as the log says it, wherever who looks may be"


def test_an_account_of_another_version_is_told_in_one_line() -> None:
    class Other(Source):
        def read(self, path: str, *, patience: float = 1.0) -> Any:
            return {"workflow": []}

    with pytest.raises(Unavailable, match="another version"):
        show(Other("http://h"), "2b26b1df3ede", as_json=False, console=Console(file=io.StringIO()))
