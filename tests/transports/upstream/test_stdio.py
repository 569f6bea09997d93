"""Servers as processes: what they get, what becomes of them, and when they are started again."""

import json
import os
import signal
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import anyio
import pytest
from contract.session import Receiver, Session, connected, opened, told
from harness.muxing import Client, begin
from harness.one_stream import OneStreamServer, over_stdio
from harness.stream_peers import Line, stdio_command, until_gone
from trunkline.mux.directory.memory import MemoryDirectory
from trunkline.mux.errors import UpstreamUnreachable
from trunkline.mux.limits import Pooling
from trunkline.mux.pool import Pool
from trunkline.mux.ports import NONE
from trunkline.mux.statistics import Statistics
from trunkline.mux.upstream import Upstream
from trunkline.transports.upstream import backoff, process
from trunkline.transports.upstream.one_stream import MAX_UNSENT
from trunkline.transports.upstream.stdio import INHERITED, StdioConnector

pytestmark = pytest.mark.anyio

LINES: tuple[Line, ...] = ("sdk1", "sdk2")


@pytest.fixture(autouse=True)
def short_end(monkeypatch: pytest.MonkeyPatch) -> None:
    """Who ignores its end is killed after 4 s; that it is, is shown as well with less."""
    monkeypatch.setattr(process, "END_SECONDS", 0.5)


@asynccontextmanager
async def session_with() -> AsyncIterator[tuple[Session, OneStreamServer, Statistics]]:
    statistics = Statistics()
    async with over_stdio() as server, opened(StdioConnector("x", server.address, statistics)) as session:
        yield session, server, statistics


@asynccontextmanager
async def raw(program: str, **options: str | Path | dict[str, str]) -> AsyncIterator[Session]:
    """A session with a Python program, before its handshake."""
    connector = StdioConnector("x", [sys.executable, "-c", program], Statistics(), **options)  # type: ignore[arg-type]
    async with connected(connector) as session:
        yield session


async def said(session: Session, count: int = 1) -> list[bytes]:
    """What the program said first."""
    await session.receiver.until(lambda: len(session.receiver.of("received")) >= count)
    return [report.text for report in session.receiver.of("received")]


async def result_of(session: Session, tool: str, **arguments: int) -> str:
    """The text that a tool of the SDK's server answers with."""
    call = session.request(params={"name": tool, "arguments": arguments})
    return str(json.loads((await session.answered(call)).text)["result"]["content"][0]["text"])


async def test_each_message_is_counted_by_kind() -> None:
    async with session_with() as (session, server, statistics):
        await session.call(server)
        session.send(told(1))
        session.send(b'{"jsonrpc":"2.0","id":1,"result":{}}', kind="response")
        await server.got("response")
    counts = {labels[-1]: count for labels, count in statistics.counts.items()}
    assert counts == {"initialize": 1, "initialized": 1, "call": 1, "notification": 1, "response": 1}


@pytest.mark.parametrize(
    ("command", "env"),
    [
        ([], {}),
        ([""], {}),
        (["a\0"], {}),
        (["a"], {"A": "\0"}),
        (["a"], {"A\0": ""}),
        (["a"], {"": ""}),
        (["a"], {"A=": ""}),
    ],
)
def test_what_no_process_can_have_is_refused(command: list[str], env: dict[str, str]) -> None:
    with pytest.raises(ValueError):
        StdioConnector("x", command, Statistics(), env=env)


async def test_a_server_gets_its_own_environment_and_no_secret_of_ours(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("ADMIN_TOKEN", "s3cret")
    monkeypatch.setenv("TMPDIR", "/somewhere")
    monkeypatch.delenv("LC_ALL", raising=False)
    program = "import json, os; print(json.dumps([dict(os.environ), os.getcwd()]), flush=True); input()"
    async with raw(program, env={"TOKEN": "its own", "TERM": "dumb"}, cwd=tmp_path) as session:
        environment, cwd = json.loads((await said(session))[0])
    environment.pop("LC_CTYPE", None)  # the interpreter's own
    expected = {name: os.environ[name] for name in INHERITED if name in os.environ}
    assert environment == {**expected, "TOKEN": "its own", "TERM": "dumb"}
    assert environment["TMPDIR"] == "/somewhere"
    assert cwd == str(tmp_path)


async def test_a_message_is_one_line_whatever_it_holds() -> None:
    async with session_with() as (session, server, _):
        session.send(b'{"jsonrpc":"2.0",\r\n"method":"notifications/x"}\n')
        session.send(told(1))
        await server.got("notifications/message")
        assert json.loads((await server.got("notifications/x")).text)["method"] == "notifications/x"
        assert len(server.messages) == 4


async def test_what_is_no_json_is_left_to_the_channel() -> None:
    async with session_with() as (session, server, _):
        server.session.raw(b"Listening!\n\n")
        await session.receiver.until(lambda: session.receiver.reports[-1].text == b"Listening!")


async def test_a_command_that_cannot_be_run() -> None:
    for command, words in (
        (["/nowhere/program"], "No such file or directory"),
        ([str(Path.cwd())], "Permission denied"),
    ):
        with pytest.raises(UpstreamUnreachable, match=words) as raised:
            async with StdioConnector("x", command, Statistics()).connect(Receiver(), NONE, listen=True):
                raise AssertionError("it opened")
        assert raised.value.data == {"executed": "no"}
        assert "nowhere" not in raised.value.message


async def test_a_server_that_does_not_read_is_lost_and_what_was_not_sent_did_not_run() -> None:
    async with raw("import time; time.sleep(600)") as session:
        requests = []
        while not session.receiver.of("lost"):
            requests.append(session.request(params={"x": "x" * 1_000_000}))
            assert len(requests) <= 18, "what may wait is bounded"
            await anyio.lowlevel.checkpoint()
        assert (await session.lost()).message == "the server does not read what is sent to it"
        (report,) = session.receiver.of("lost")
        assert set(report.refused) < set(requests)
        assert requests[-1] in report.refused


async def test_small_messages_are_bounded_by_number() -> None:
    async with raw("import time; time.sleep(600)") as session:
        sent = 0
        while not session.receiver.of("lost"):
            session.send(b'{"jsonrpc":"2.0","method":"notifications/x","params":{"n":%d}}' % sent)
            sent += 1
            assert sent <= 2 * MAX_UNSENT + 2000, "the pipe takes some"
            await anyio.lowlevel.checkpoint()
        assert (await session.lost()).message == "the server does not read what is sent to it"


WAITING = """
import json, os, sys, time
while not os.path.exists('{gate}'): time.sleep(0.01)
for line in sys.stdin:
    print(json.dumps(dict(jsonrpc='2.0', method='m', id=json.loads(line).get('id'))), flush=True)
"""
"""Reads nothing until the gate is there; then tells the id of each message."""


async def test_g7_what_waits_when_the_fence_closes_is_not_written(tmp_path: Path) -> None:
    gate = tmp_path / "gate"
    async with raw(WAITING.format(gate=gate)) as session:
        may = True
        session.receiver.fence = lambda: may
        begun, held = (session.request(params={"x": "x" * 1_000_000}) for _ in range(2))
        session.send(b'{"jsonrpc":"2.0","method":"notifications/x"}')
        may = False
        gate.touch()
        await session.receiver.until(lambda: len(session.receiver.of("withheld")) == 2)
        assert [report.request for report in session.receiver.of("withheld")] == [held, None]
        may = True
        last = session.request()
        assert [json.loads(text)["id"] for text in await said(session, 2)] == [begun.id, last.id]


async def test_g6_a_call_that_failed_while_it_waited_is_not_begun(tmp_path: Path) -> None:
    gate = tmp_path / "gate"
    async with raw(WAITING.format(gate=gate)) as session:
        begun, failed, abandoned = (session.request(params={"x": "x" * 1_000_000}) for _ in range(3))
        begun.state = failed.state = "done"
        abandoned.state = "abandoned"  # its cancellation follows, and names it
        gate.touch()
        last = session.request()
        assert [json.loads(text)["id"] for text in await said(session, 3)] == [begun.id, abandoned.id, last.id]


async def test_a_line_that_is_too_long_loses_the_session() -> None:
    program = "print('x' * (16 * 1024 * 1024 + 1), flush=True); input()"
    async with raw(program) as session:
        assert "longer than" in (await session.lost()).message


async def test_a_server_that_exits_by_itself_is_not_started_again_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(backoff, "FIRST_SECONDS", 20.0)
    connector = StdioConnector("x", [sys.executable, "-c", ""], Statistics())

    async def open_once() -> str:
        async with connected(connector) as session:
            return (await session.lost()).message

    assert await open_once() == "the server exited (status 0)"
    assert await open_once() == "the server exited (status 0)", "after the first time, at once"
    with pytest.raises(
        UpstreamUnreachable,
        match=r"exited 2 times in a row before it had a session; it may be tried again in 1\d\.\d s",
    ) as raised:
        await open_once()
    assert raised.value.data["executed"] == "no"
    wait = raised.value.data["retry_after"]
    assert isinstance(wait, float)
    assert 10 <= wait <= 20
    await connector.close()


async def test_sessions_that_exit_keep_nobody_from_another_one() -> None:
    async with over_stdio() as server:
        connector = StdioConnector("x", server.address, Statistics())
        for _ in range(4):
            async with opened(connector) as session:
                server.session.close()
                await session.lost()


async def test_exits_before_there_was_a_session_are_counted_from_the_last_session_on(tmp_path: Path) -> None:
    fails = tmp_path / "fails"
    script = 'if [ -e "$0" ]; then exit; fi; exec "$@"'
    async with over_stdio() as server:
        connector = StdioConnector("x", ["/bin/sh", "-c", script, str(fails), *server.address], Statistics())
        for _ in range(2):
            fails.touch()
            async with connected(connector) as session:
                await session.lost()
            fails.unlink()
            async with opened(connector) as session:
                server.session.close()
                await session.lost()


async def test_a_server_that_was_ended_may_be_started_again_at_once() -> None:
    async with over_stdio() as server:
        connector = StdioConnector("x", server.address, Statistics())
        for _ in range(3):
            async with opened(connector) as session:
                await session.call(server, len(server.sessions))


@pytest.mark.parametrize("line", LINES)
async def test_a_server_of_the_sdk(line: Line) -> None:
    command, env = stdio_command(line)
    async with opened(StdioConnector("x", command, Statistics(), env=env)) as session:
        calls = [session.request(params={"name": "add", "arguments": {"a": n, "b": 1}}) for n in range(20)]
        for n, call in enumerate(calls):
            result = json.loads((await session.answered(call)).text)["result"]
            assert result["content"][0]["text"] == str(n + 1)
        report = session.request(params={"name": "report", "arguments": {}, "_meta": {"progressToken": 7}})
        await session.answered(report)
        assert any(b"notifications/progress" in one.text for one in session.receiver.reports)
        assert not session.receiver.of("lost")
        pid = int(await result_of(session, "pid"))
        child = int(await result_of(session, "spawn"))
        assert os.getpgid(child) == os.getpgid(pid) == pid
    with pytest.raises(ProcessLookupError):
        os.kill(pid, 0)
    await until_gone(child)


@pytest.mark.parametrize("line", LINES)
async def test_a_kill_in_mid_call_fails_the_call_and_leaves_nothing(line: Line) -> None:
    command, env = stdio_command(line)
    async with opened(StdioConnector("x", command, Statistics(), env=env)) as session:
        child = int(await result_of(session, "spawn"))
        pid = int(await result_of(session, "pid"))
        waiting = session.request(params={"name": "forever", "arguments": {}})
        os.kill(pid, signal.SIGKILL)
        assert (await session.lost()).message == "the server exited (SIGKILL)"
        assert waiting.state == "pending", "it may have run: the channel tells its caller"
    with pytest.raises(ProcessLookupError):
        os.kill(pid, 0)
    await until_gone(child)


async def test_a_client_of_a_killed_server_hears_that_its_call_may_have_run() -> None:
    command, env = stdio_command("sdk2")
    statistics = Statistics()
    connector = StdioConnector("x", command, statistics, env=env)
    upstreams = {"x": Upstream("x", connector)}
    async with Pool(upstreams, MemoryDirectory(), pooling=Pooling(), statistics=statistics).running() as pool:
        client = Client((await begin(pool)).workflow)
        exchange = client.call({"name": "pid", "arguments": {}})
        pid = int((await client.answer(exchange))["result"]["content"][0]["text"])
        waiting = client.call({"name": "forever", "arguments": {}})
        os.kill(pid, signal.SIGKILL)
        error = (await client.answer(waiting))["error"]
        assert error["code"] == -31002
        assert error["data"]["executed"] == "unknown"
        again = Client((await begin(pool)).workflow)
        exchange = again.call({"name": "add", "arguments": {"a": 1, "b": 2}})
        assert (await again.answer(exchange))["result"]["content"][0]["text"] == "3"


async def test_a_cancelled_session_leaves_nothing() -> None:
    command, env = stdio_command("sdk2")
    pids: list[int] = []
    async with anyio.create_task_group() as tasks:

        async def own() -> None:
            async with opened(StdioConnector("x", command, Statistics(), env=env)) as session:
                pids.append(int(await result_of(session, "spawn")))
                pids.append(int(await result_of(session, "pid")))
                tasks.cancel_scope.cancel()
                await anyio.sleep_forever()

        tasks.start_soon(own)
    child, pid = pids
    with pytest.raises(ProcessLookupError):
        os.kill(pid, 0)
    await until_gone(child)
