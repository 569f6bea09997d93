"""G9: a server that is slow, dead, flapping or hostile costs its own calls a clear error, and nobody else anything."""

from collections.abc import AsyncIterator, Iterator

import pytest
from harness.duplex_clients import initialize
from harness.gateways import Gateway
from harness.gateways import gateway as running_gateway
from harness.ports import free_port
from harness.upstream_scripted import (
    AwaitMessage,
    Cut,
    Forever,
    Hang,
    Json,
    OpenStream,
    Raw,
    Reply,
    ScriptedUpstream,
    Send,
    Status,
    Step,
)
from harness.upstreams import Upstream
from harness.wire import Wire, text_of

pytestmark = pytest.mark.anyio

MIB = 1024 * 1024
TIMED_OUT, UNREACHABLE, LOST, FAULT = -31004, -31001, -31002, -32603
GOOD = [Reply({"content": [{"type": "text", "text": "good"}]})]

PLAYS: dict[str, tuple[list[Step], int, str]] = {
    "silence": ([Hang()], TIMED_OUT, "unknown"),
    "a stream of comments": ([OpenStream(), *[Raw(b": still here\n\n")] * 50, Hang()], TIMED_OUT, "unknown"),
    "half an event": ([OpenStream(), Raw(b'data: {"jsonrpc":"2.0",'), Hang()], TIMED_OUT, "unknown"),
    "an endless stream": ([OpenStream(), Forever(b": still here\n\n")], TIMED_OUT, "unknown"),
    "an endless event": ([OpenStream(), Forever(b"data: " + b"x" * 1000 + b"\n")], FAULT, "unknown"),
    "500": ([Status(500, "oops")], UNREACHABLE, "unknown"),
    "503": ([Status(503)], UNREACHABLE, "unknown"),
    "401": ([Status(401, headers={"WWW-Authenticate": "Bearer"})], UNREACHABLE, "no"),
    "403": ([Status(403)], UNREACHABLE, "no"),
    "307": ([Status(307, headers={"Location": "http://127.0.0.1:1/mcp"})], UNREACHABLE, "unknown"),
    "202": ([Status(202)], FAULT, "unknown"),
    "cut within the stream": ([OpenStream(), Raw(b"data: x"), Cut()], LOST, "unknown"),
    "the stream ends early": ([OpenStream(), Raw(b": bye\n\n")], LOST, "unknown"),
    "no JSON": ([Json("{nope")], FAULT, "unknown"),
    "no JSON-RPC": ([Json({"hello": "world"})], FAULT, "unknown"),
    "no UTF-8": ([OpenStream(), Raw(b"data: \xff\xfe\n\n"), Hang()], FAULT, "unknown"),
    "HTML": ([Status(200, "<html>", "text/html")], UNREACHABLE, "unknown"),
    "another id": ([Json({"jsonrpc": "2.0", "id": 2**40, "result": {}})], FAULT, "unknown"),
    "an id of null": ([Json({"jsonrpc": "2.0", "id": None, "result": {}})], FAULT, "unknown"),
    "result and error": (
        [Json('{"jsonrpc":"2.0","id":$ID,"result":{},"error":{"code":1,"message":""}}')],
        FAULT,
        "unknown",
    ),
    "nested without end": ([Json("[" * 200_000)], FAULT, "unknown"),
    "a huge body": ([Status(200, b" " * (17 * MIB), "application/json")], FAULT, "unknown"),
    "a huge event": ([OpenStream(), *[Raw(b"data: " + b"x" * MIB + b"\n")] * 17, Hang()], FAULT, "unknown"),
    "a huge line": ([OpenStream(), Raw(b"data: "), *[Raw(b"x" * MIB)] * 17, Hang()], FAULT, "unknown"),
}


NAMES = len(PLAYS) + 20


@pytest.fixture(scope="module")
def numbers() -> Iterator[int]:
    """Those that no test has used."""
    return iter(range(NAMES))


@pytest.fixture
def name(numbers: Iterator[int]) -> str:
    """What the hostile server is called in this test: what it does in one opens no circuit for the next."""
    return f"bad{next(numbers)}"


@pytest.fixture
def hasty(name: str) -> str:
    """The same, where its calls have little time."""
    return f"hasty-{name}"


@pytest.fixture(scope="module")
def ports() -> tuple[int, int]:
    """Where the hostile server listens, and where nobody does."""
    return free_port(), free_port()


@pytest.fixture(scope="module")
def both(
    upstream_process: Upstream, ports: tuple[int, int], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Gateway]:
    """One gateway in front of a good server, a hostile one, and one that is not there."""
    settings = tmp_path_factory.mktemp("hostile") / "trunkline.toml"
    settings.write_text(
        f'[servers.up]\nurl = "{upstream_process.url}"\n'
        + "".join(
            f'[servers.{kind}{n}]\nurl = "http://127.0.0.1:{ports[0]}/mcp"\nrequest_timeout = {seconds}\n'
            for kind, seconds in (("bad", 30), ("hasty-bad", 1))
            for n in range(NAMES)
        )
        + f'[servers.away]\nurl = "http://127.0.0.1:{ports[1]}/mcp"\n'
    )
    with running_gateway(toml=settings) as process:
        yield process


@pytest.fixture
async def bad(ports: tuple[int, int]) -> AsyncIterator[ScriptedUpstream]:
    """The hostile server, until a script says otherwise a good one."""
    async with ScriptedUpstream({}, port=ports[0]) as upstream:
        yield upstream


@pytest.mark.parametrize("play", PLAYS)
async def test_g9_costs_its_own_call_a_clear_error_and_nobody_else_anything(
    both: Gateway, bad: ScriptedUpstream, name: str, hasty: str, play: str
) -> None:
    steps, code, executed = PLAYS[play]
    bad.script = {"tools/call": [steps, GOOD]}
    async with Wire(both.url(hasty if code == TIMED_OUT else name)) as hostile, Wire(both.url()) as good:
        await hostile.open()
        await good.open()
        pending = await hostile.call("anything", id=b'"mine"')
        assert text_of(await (await good.call("counter")).response()) == "1"
        answer = await pending.response()
        assert answer["id"] == "mine"
        assert answer["error"]["code"] == code, answer
        assert answer["error"]["data"]["executed"] == executed
        assert "127.0.0.1" not in answer["error"]["message"]
        # The session goes on, and so does everybody else's.
        assert text_of(await (await hostile.call("anything")).response()) == "good"
        assert text_of(await (await good.call("counter")).response()) == "2"
    assert len(bad.of("tools/call")) == 2, "nothing was sent twice"


async def test_g9_calls_beside_it_in_the_same_session_are_answered(
    both: Gateway, bad: ScriptedUpstream, hasty: str
) -> None:
    bad.script = {"tools/call": [[Hang()], [Status(500)], [OpenStream(), Cut()], GOOD]}
    async with Wire(both.url(hasty)) as wire:
        await wire.open()
        pending = []
        for n in range(3):
            pending.append(await wire.call("anything", id=b"%d" % n))
            await bad.saw("tools/call", n + 1)
        assert text_of(await (await wire.call("anything")).response()) == "good"
        answers = [await one.response() for one in pending]
    assert [answer["error"]["code"] for answer in answers] == [TIMED_OUT, UNREACHABLE, LOST]


async def test_g9_a_session_that_the_server_forgot_is_unknown_from_then_on(
    both: Gateway, bad: ScriptedUpstream, name: str
) -> None:
    bad.script = {"tools/call": [[Status(404)]]}
    async with Wire(both.url(name)) as wire:
        await wire.open()
        answer = await (await wire.call("anything")).response()
        assert answer["error"]["code"] == LOST
        assert answer["error"]["data"] == {"executed": "no"}
        assert (await wire.call("anything")).status == 404
        del wire.headers["Mcp-Session-Id"]
        await wire.open()


@pytest.mark.parametrize(
    "steps",
    [
        [Status(500)],
        [Status(200, "<html>", "text/html")],
        [Json('{"jsonrpc":"2.0","id":$ID,"result":{"protocolVersion":"1999-01-01","capabilities":{}}}')],
        [Json('{"jsonrpc":"2.0","id":$ID,"result":7}')],
        [Json('{"jsonrpc":"2.0","id":$ID,"result":{}}', headers={"mcp-session-id": "x" * 2000})],
        [Cut()],
    ],
    ids=["500", "HTML", "a revision of its own", "no object", "a session id that is none", "cut"],
)
async def test_g9_a_handshake_that_fails_leaves_nothing(
    both: Gateway, bad: ScriptedUpstream, hasty: str, steps: list[Step]
) -> None:
    bad.script = {"initialize": [steps]}
    before = both.metric("trunkline_workflows", server=hasty)
    async with Wire(both.url(hasty)) as wire:
        answer = await wire.post(initialize())
        assert (await answer.response())["error"]["code"] in (UNREACHABLE, LOST, FAULT)
        assert "Mcp-Session-Id" not in answer.headers
        bad.script = {"tools/call": [GOOD]}
        await wire.open()
        assert text_of(await (await wire.call("anything")).response()) == "good"
        await wire.delete()
    assert both.metric("trunkline_workflows", server=hasty) == before


async def test_g9_a_server_that_is_not_there_is_told_at_once(both: Gateway) -> None:
    async with Wire(both.url("away")) as wire, Wire(both.url()) as good:
        answer = await wire.post(initialize())
        assert (await answer.response())["error"]["code"] == UNREACHABLE
        await good.open()
        assert text_of(await (await good.call("counter")).response()) == "1"


async def test_g9_a_flood_before_the_answer_arrives_whole_and_in_order(
    both: Gateway, bad: ScriptedUpstream, name: str
) -> None:
    log = [
        Send({"jsonrpc": "2.0", "method": "notifications/message", "params": {"level": "info", "data": n}})
        for n in range(500)
    ]
    bad.script = {"tools/call": [[OpenStream(), *log, *GOOD]]}
    async with Wire(both.url(name)) as wire:
        await wire.open()
        answer = await wire.call("anything")
        told = [message["params"]["data"] async for message in answer.messages() if "method" in message]
    assert told == list(range(500))


@pytest.mark.parametrize(("is_late", "is_response"), [(False, True), (True, True), (False, False)])
async def test_g10_what_carries_a_call_ends_with_its_answer_whatever_way_that_comes(
    both: Gateway, bad: ScriptedUpstream, hasty: str, is_late: bool, is_response: bool
) -> None:
    result = '{"content":[{"type":"text","text":"good"}]}' if is_response else "null"
    answer = f'{{"jsonrpc":"2.0","id":2,"result":{result}}}'
    awaited = AwaitMessage("notifications/cancelled" if is_late else "tools/call")
    bad.script = {"GET": [[OpenStream(), awaited, Send(answer), Hang()]], "tools/call": [[Hang()]]}
    async with Wire(both.url(hasty)) as wire:
        await wire.open()
        answered = await (await wire.call("anything")).response()
        if is_late:
            assert answered["error"]["code"] == TIMED_OUT
        elif is_response:
            assert text_of(answered) == "good"
        else:
            assert answered["error"]["code"] == FAULT
        await bad.until(lambda: bad.disconnects == 1)
