"""Sessions with servers, kept for a program of one's own; against real servers of the SDK."""

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from contextvars import ContextVar
from pathlib import Path
from typing import Any

import anyio
import pytest
from harness.certificates import reads_of_the_systems
from harness.muxing import patience
from harness.ports import free_port
from harness.stream_peers import stdio_command
from harness.upstream_scripted import Pause, Refuse, Reply, ScriptedUpstream, Status, initialize_result, scripted
from harness.upstreams import Upstream
from trunkline.mux import Pooling, Principal
from trunkline.mux.errors import (
    InvalidParams,
    InvalidRequest,
    ServerError,
    SessionLost,
    UnknownServer,
    UpstreamUnreachable,
)
from trunkline.transports import Server, Servers

pytestmark = pytest.mark.anyio

TENANT = {"X-Tenant": "acme"}
USER: ContextVar[str] = ContextVar("user")
ALICE, BOB = Principal("app", "acme", "alice"), Principal("app", "acme", "bob")


@pytest.fixture
def server(upstream: Upstream) -> Upstream:
    return upstream


@asynccontextmanager
async def keeping(server: Upstream | ScriptedUpstream, **pooling: Any) -> AsyncIterator[Servers]:
    """Sessions with one server, `up`; the test fails where it takes too long."""
    async with patience(30), Servers({"up": server.url}, pooling=Pooling(**pooling)) as servers:
        yield servers


async def count(servers: Servers, **lease: Any) -> str:
    async with servers.lease("up", **lease) as up:
        return (await up.call("counter")).text


async def test_a_lease_without_a_key_is_a_session_of_its_own_and_ends_with_it(server: Upstream) -> None:
    async with keeping(server) as servers:
        async with servers.lease("up") as up:
            assert [(await up.call("counter")).text for _ in range(3)] == ["1", "2", "3"]
        await server.saw("delete")
        assert await count(servers) == "1"
    assert server.counts()["initialize"] == server.counts()["delete"] == 2


async def test_a_key_comes_back_to_its_session_and_names_nothing_of_anothers(server: Upstream) -> None:
    async with keeping(server) as servers:
        asked = [("a", ALICE), ("a", ALICE), ("b", ALICE), ("a", BOB), ("a", ALICE)]
        assert [await count(servers, key=key, principal=who) for key, who in asked] == ["1", "2", "1", "1", "3"]
        async with servers.lease("up", key="a", principal=ALICE) as up:
            assert (up.state, up.pool_result) == ("resumed", "hit")
    assert server.counts()["initialize"] == server.counts()["delete"] == 3


async def test_under_user_all_leases_of_a_principal_share_one_session(server: Upstream) -> None:
    async with keeping(server, reuse="user") as servers:
        asked = [{"principal": ALICE}, {"principal": ALICE, "key": "a"}, {"principal": BOB}, {"principal": ALICE}]
        assert [await count(servers, **one) for one in asked] == ["1", "2", "1", "3"]
    assert server.counts()["initialize"] == 2


async def test_a_key_that_was_ended_begins_anew(server: Upstream) -> None:
    async with keeping(server) as servers:
        assert [await count(servers, key="a"), await count(servers, key="a")] == ["1", "2"]
        await servers.end("up", "a")
        await servers.end("up", "a")
        assert await count(servers, key="a") == "1"


async def test_fifty_calls_are_inside_the_server_at_once_on_one_session(server: Upstream) -> None:
    async with keeping(server) as servers, servers.lease("up") as up:
        calls = (up.call("barrier", {"name": "m", "parties": 50, "tag": str(n)}) for n in range(50))
        results = await asyncio.gather(*calls)
    assert [result.structured for result in results] == [{"tag": str(n), "peak": 50} for n in range(50)]
    assert server.counts()["initialize"] == 1


async def test_a_call_whose_task_is_cancelled_is_cancelled_at_the_server(server: Upstream) -> None:
    async with keeping(server) as servers, servers.lease("up") as up:
        calling = asyncio.create_task(up.call("forever"))
        await server.saw("mark:started")
        calling.cancel()
        with pytest.raises(asyncio.CancelledError):
            await calling
        await server.saw("mark:cancelled")
        assert (await up.call("counter")).text == "1"


async def test_headers_of_a_server_of_a_session_and_of_a_call(server: Upstream) -> None:
    given = Server(url=server.url, headers={"Authorization": "Bearer ours"})
    async with patience(30), Servers({"up": given}) as servers, servers.lease("up", session_headers=TENANT) as up:
        await up.call("counter", headers={"X-Request": "7"})
    sent = {entry["kind"]: dict(entry["headers"]) for entry in server.report()["requests"]}
    assert {headers["authorization"] for headers in sent.values()} == {"Bearer ours"}
    assert (sent["initialize"].get("x-tenant"), sent["call"].get("x-tenant")) == ("acme", "acme")
    assert ("x-request" in sent["initialize"], sent["call"].get("x-request")) == (False, "7")


async def test_a_server_that_asks_is_answered_by_the_program(server: Upstream) -> None:
    async def answer(method: str, params: dict[str, Any]) -> dict[str, Any]:
        return {"action": "accept", "content": {"colour": "blue"}}

    async with keeping(server) as servers:
        async with servers.lease("up", capabilities={"elicitation": {}}, answer=answer) as up:
            assert (await up.call("ask")).text == "accept blue"
        async with servers.lease("up", key="a"):
            with pytest.raises(InvalidParams, match="another capabilities"):
                await count(servers, key="a", capabilities={"elicitation": {}})


async def test_g4_what_is_called_for_a_lease_has_the_context_variables_of_who_leased(server: Upstream) -> None:
    """Not those of who came first, and opened the session or the connection that it came by."""
    seen: list[tuple[str, str]] = []

    def hear(method: str, params: dict[str, Any]) -> None:
        seen.append((method, USER.get()))

    def progress(params: dict[str, Any]) -> None:
        seen.append(("progress", USER.get()))

    async def answer(method: str, params: dict[str, Any]) -> dict[str, Any]:
        seen.append((method, USER.get()))
        return {"action": "accept", "content": {"colour": "blue"}}

    async with keeping(server) as servers:
        for who in (ALICE, BOB, ALICE):
            for turn in ("first", "next"):
                USER.set(f"{who.subject}, {turn}")
                leasing = servers.lease(
                    "up", key="a", principal=who, capabilities={"elicitation": {}}, hear=hear, answer=answer
                )
                async with leasing as up:
                    await up.call("ask")
                    await up.call("log", {"text": "x"})
                    USER.set(f"{who.subject}, {turn}, calling")
                    await up.call("slow", {"steps": 1}, progress=progress)
                own = f"{who.subject}, {turn}"
                assert ("elicitation/create", own) in seen
                assert ("notifications/message", own) in seen
                assert ("progress", f"{own}, calling") in seen
                assert {user.split(", c")[0] for _, user in seen} == {own}
                seen.clear()


async def test_a_server_on_its_standard_input_and_output() -> None:
    command, env = stdio_command("sdk2")
    given = Server(command=command, env=env)
    async with patience(30), Servers({"up": given}) as servers, servers.lease("up") as up:
        assert "add" in [tool["name"] for tool in await up.tools()]
        assert len({(await up.call("pid")).text for _ in range(2)}) == 1


async def test_a_server_that_cannot_be_reached_is_told_by_its_name() -> None:
    async with patience(), Servers({"up": f"http://127.0.0.1:{free_port()}/mcp"}) as servers:
        with pytest.raises(UpstreamUnreachable):
            await count(servers)
        with pytest.raises(UnknownServer, match="there is no server other"):
            async with servers.lease("other"):
                pass


async def test_a_server_that_refuses_the_handshake_is_told_in_its_own_words() -> None:
    async with scripted({"initialize": [[Refuse(-32000)]]}) as server, keeping(server) as servers:
        with pytest.raises(ServerError) as raised:
            await count(servers)
        assert raised.value.code == -32000


async def test_a_key_whose_session_was_lost_begins_anew_and_says_so() -> None:
    async with (
        scripted({"tools/call": [[Status(404)], [Reply({"content": []})]]}) as server,
        keeping(server) as servers,
    ):
        async with servers.lease("up", key="a") as up:
            with pytest.raises(SessionLost) as raised:
                await up.call("counter")
            assert raised.value.data == {"executed": "no"}
        async with servers.lease("up", key="a") as up:
            assert up.state == "reset"
            await up.call("counter")


async def test_who_gives_up_while_a_session_opens_leaves_none_behind() -> None:
    plays = [[Pause("handshake"), Reply(initialize_result())]]
    async with scripted({"initialize": plays}) as server, keeping(server) as servers:
        opening = asyncio.create_task(count(servers))
        await server.reached("handshake")
        opening.cancel()
        await asyncio.wait([opening])
        server.open("handshake")
        await server.saw("DELETE")
        assert opening.cancelled()


async def test_leaving_ends_every_session_though_the_program_failed(server: Upstream) -> None:
    async def fail() -> None:
        async with keeping(server) as servers:
            await count(servers, key="a")
            raise RuntimeError("of the program")

    with pytest.raises(RuntimeError, match="of the program"):
        await fail()
    assert server.counts()["delete"] == 1


@pytest.mark.parametrize(
    ("given", "fault"),
    [
        (Server(), "up: give either a url or a command"),
        ("gopher://x", "up: "),
        (Server(url="http://x/mcp", pooling=Pooling(reuse="none")), 'up: reuse = "none" keeps no session'),
        ("stdio:python server.py", "up: a URL begins with .*; a command is a list"),
        (Server(command="python server.py"), "up: a command is a list"),
        (Server(url="https://x/mcp", ca="/none.pem"), "up: no certificates can be read from /none.pem: No such file"),
        (Server(url="https://x/mcp", ca=__file__), "up: no certificates can be read from .*test_servers.py"),
    ],
)
def test_what_cannot_be_used_is_named_at_once(given: Server | str, fault: str) -> None:
    with pytest.raises(ValueError, match=fault):
        Servers({"up": given})


def test_the_systems_certificates_are_read_once_for_all_servers_and_where_one_needs_them(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    reads = reads_of_the_systems(monkeypatch)
    Servers({"a": ["program"]})
    assert not reads
    urls = ("https://a.example/mcp", "sse+https://a.example/sse", "wss://a.example/ws")
    Servers({url + str(n): url for url in urls for n in range(3)})
    assert len(reads) == 1


async def test_what_happens_is_counted(server: Upstream) -> None:
    async with keeping(server) as servers:
        await count(servers, key="a")
        await count(servers, key="a")
        counts = servers.statistics.counts
        assert (counts["pool_requests", "up", "miss"], counts["pool_requests", "up", "hit"]) == (1, 3)
        assert repr(servers) == "Servers(up; Pool(1 workflows, 1 channels))"


async def test_servers_that_were_not_entered_or_were_left_say_so(server: Upstream) -> None:
    servers = Servers({"up": server.url})
    with pytest.raises(RuntimeError, match="are not entered"):
        await count(servers)
    async with servers:
        assert await count(servers, key="a") == "1"
        with pytest.raises(RuntimeError, match="entered before"):
            async with servers:
                pass
        assert await count(servers, key="a") == "2"
    for use in (count(servers), servers.end("up", "a")):
        with pytest.raises(RuntimeError, match="were left"):
            await use
    with pytest.raises(RuntimeError, match="entered before"):
        async with servers:
            pass


async def test_a_lease_that_was_given_back_is_used_no_more(server: Upstream) -> None:
    async with keeping(server) as servers:
        for key in ("a", None):
            async with servers.lease("up", key=key) as up:
                await up.call("counter")
            with pytest.raises(RuntimeError, match="given back"):
                await up.call("counter")
            with pytest.raises(RuntimeError, match="given back"):
                up.notify("notifications/roots/list_changed")
        assert await count(servers, key="a") == "2"


async def test_what_would_have_to_be_awaited_is_refused(server: Upstream) -> None:
    async def hears(*_: object) -> None:
        raise AssertionError("nobody awaits it")

    async with keeping(server) as servers:
        with pytest.raises(TypeError, match="progress is called, and not awaited"):
            async with servers.lease("up") as up:
                await up.call("slow", progress=hears)
        with pytest.raises(TypeError, match="hear is called, and not awaited"):
            await count(servers, hear=hears)


@pytest.mark.parametrize("headers", [{"X-Number": 5}, {5: "x"}, {"X-Line": "a\r\nb"}])
async def test_a_header_that_cannot_be_sent_fails_its_call_alone(server: Upstream, headers: Any) -> None:
    async with keeping(server, max_inflight_per_workflow=1) as servers, servers.lease("up") as up:
        for _ in range(2):
            with pytest.raises(InvalidRequest, match="cannot be sent"):
                await up.call("counter", headers=headers)
        assert (await up.call("counter")).text == "1"
        with pytest.raises(InvalidRequest, match="cannot be sent"):
            await count(servers, session_headers=headers)


async def test_g12_a_principal_or_key_that_is_none_is_refused_without_what_it_holds(server: Upstream) -> None:
    async with keeping(server) as servers:
        with pytest.raises(TypeError, match=r"not a str$"):
            await count(servers, principal="s3cret")
        with pytest.raises(TypeError, match=r"a key is a text, not a bytes$"):
            await count(servers, key=b"s3cret")


async def test_a_method_that_is_no_text_is_refused(server: Upstream) -> None:
    method: Any = 5
    async with keeping(server) as servers, servers.lease("up") as up:
        with pytest.raises(TypeError, match="a method is a text, not 5"):
            await up.request(method)


WRONG: Any = object()


@pytest.mark.parametrize(
    "make",
    [
        lambda: Servers(WRONG),
        lambda: Servers({5: "http://127.0.0.1/mcp"}),  # type: ignore[dict-item]
        lambda: Servers({"up": {"command": "python", "args": ["server.py"]}}),  # type: ignore[dict-item]
        lambda: Servers({"up": ["sleep", 5]}),  # type: ignore[list-item]
        lambda: Servers({}, pooling={"reuse": "user"}),  # type: ignore[arg-type]
        lambda: Servers({}, client_info={"name": "without a version"}),
        lambda: Server(url=5),  # type: ignore[arg-type]
        lambda: Server(command=["x"], env={"A": 5}),  # type: ignore[dict-item]
        lambda: Server(command=["x"], cwd=5),  # type: ignore[arg-type]
        lambda: Server(url="http://127.0.0.1/mcp", headers=["A: b"]),  # type: ignore[arg-type]
        lambda: Server(url="http://127.0.0.1/mcp", pooling=WRONG),
    ],
)
def test_what_is_of_another_kind_is_refused_at_once(make: Callable[[], object]) -> None:
    with pytest.raises(TypeError, match=r"\b(is|are|has)\b"):
        make()


async def test_what_is_of_another_kind_fails_its_call_alone(server: Upstream) -> None:
    async with keeping(server) as servers:
        for lease in ({"key": 5}, {"capabilities": ["roots"]}, {"session_headers": "A: b"}, {"hear": 5}, {"answer": 5}):
            with pytest.raises(TypeError, match="is a "):
                await count(servers, **lease)
        async with servers.lease("up") as up:
            for call in (
                up.call("echo", WRONG),
                up.call(WRONG),
                up.call("echo", {"text": WRONG}),
                up.call("counter", headers=[WRONG]),
                up.call("counter", progress=WRONG),
                up.request("ping", WRONG),
            ):
                with pytest.raises(TypeError):
                    await call
            with pytest.raises(TypeError):
                up.notify("notifications/x", WRONG)
            assert (await up.call("counter")).text == "1"


async def test_a_program_may_be_given_by_its_path() -> None:
    (program, *arguments), env = stdio_command("sdk2")
    given = Server(command=[Path(program), *arguments], env=env)
    async with patience(30), Servers({"up": given}) as servers, servers.lease("up") as up:
        assert (await up.call("pid")).text


async def test_whoever_enters_and_leaves_the_sessions_end_in_order(server: Upstream) -> None:
    """As fixtures of tests do, and applications that begin and end by calls: in tasks that are not one another's."""
    async with patience(30):
        servers = Servers({"up": server.url})
        await asyncio.create_task(servers.__aenter__())
        assert await count(servers, key="a") == "1"
        await asyncio.create_task(servers.__aexit__(None, None, None))
        await servers.__aexit__(None, None, None)
    assert server.counts()["initialize"] == server.counts()["delete"] == 1


@pytest.mark.parametrize("leaves", [SystemExit("bye"), KeyboardInterrupt()])
def test_what_ends_the_program_is_told_as_it_is_and_the_sessions_end_in_order(
    server: Upstream, leaves: BaseException
) -> None:
    async def live() -> None:
        async with Servers({"up": server.url}) as servers:
            await count(servers, key="a")
            raise leaves

    with pytest.raises(type(leaves)):
        asyncio.run(live())
    assert server.counts()["initialize"] == server.counts()["delete"] == 1


def test_a_program_that_forgets_to_leave_is_told_nothing_and_its_sessions_end_in_order(
    server: Upstream, caplog: pytest.LogCaptureFixture
) -> None:
    async def live() -> None:
        servers = await Servers({"up": server.url}).__aenter__()
        await count(servers, key="a")

    asyncio.run(live())
    assert not [record for record in caplog.records if record.levelname == "ERROR"]
    assert server.counts()["initialize"] == server.counts()["delete"] == 1


async def test_another_event_loop_is_refused(server: Upstream) -> None:
    async with keeping(server) as servers, servers.lease("up") as up:
        for elsewhere in (up.call("counter"), count(servers)):
            with pytest.raises(RuntimeError, match="another event loop"):
                await asyncio.to_thread(asyncio.run, elsewhere)
        assert (await up.call("counter")).text == "1"


async def test_who_is_cancelled_while_it_leaves_has_its_sessions_ended_first(server: Upstream) -> None:
    async with patience(30):
        with anyio.CancelScope() as scope:
            async with Servers({"up": server.url}) as servers:
                await count(servers, key="a")
                scope.cancel()
    assert server.counts()["initialize"] == server.counts()["delete"] == 1


@pytest.mark.parametrize(
    ("server", "shown"),
    [
        (
            Server(url="https://me:s3cret@h/mcp?key=s3cret", headers={"Authorization": "s3cret"}),
            "Server(https://h)",
        ),
        (Server(url="https://h/@acme/s3cret/mcp"), "Server(https://h)"),
        (Server(url="https://me:s3?cret@h/mcp"), "Server(https://me)"),
        (Server(url="https://me:s3/cret@h/mcp"), "Server(https://me)"),
        (Server(url="http://[s3cret"), "Server(no URL)"),
        (Server(url="s3cret"), "Server(no URL)"),
        (Server(command=["/bin/x", "--token=s3cret"], env={"TOKEN": "s3cret"}), "Server(/bin/x)"),
    ],
)
def test_g12_what_is_shown_of_a_server_holds_no_secret(server: Server, shown: str) -> None:
    assert repr(server) == str(server) == shown


def test_without_asyncio_it_is_said_what_is_missing() -> None:
    with pytest.raises(RuntimeError, match="asyncio's event loop"):
        Servers({}).__aenter__().send(None)


def test_a_program_that_cancels_all_of_its_other_tasks_leaves_in_order(server: Upstream) -> None:
    async def live() -> None:
        async with patience(30), Servers({"up": server.url}) as servers:
            await count(servers, key="a")
            others = [task for task in asyncio.all_tasks() if task is not asyncio.current_task()]
            for task in others:
                task.cancel()
            await asyncio.wait(others)
            with pytest.raises(RuntimeError, match="were left"):
                await count(servers, key="a")

    asyncio.run(live())
    assert server.counts()["initialize"] == 1
