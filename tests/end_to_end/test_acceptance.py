"""What was asked for, letter by letter, through a gateway process and seen from the servers' side.

| letter | what holds |
| --- | --- |
| a | Streamable HTTP reuses one session over several calls |
| b | SSE and WebSocket with `reuse = "user"` reuse it for the same user and server over separate connections |
| c | a server's own `reuse` wins over the default, both ways |
| d | nothing is ever shared over users or tenants |
| e | identity is checked on reuse |
| f | hits, misses, spares, active and idle sessions and what is cleaned up are in /metrics |
| g | `reuse = "none"` is the old path, request by request |
"""

import asyncio
import hashlib
import signal
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import pairwise
from pathlib import Path
from typing import Any

import anyio
import pytest
from harness.duplex_clients import SocketClient, SSEClient, initialize
from harness.gateways import Gateway, bearer, token_settings, until
from harness.gateways import gateway as running_gateway
from harness.muxing import Client, begin
from harness.muxing import initialize as handshake
from harness.upstreams import Upstream
from harness.upstreams import upstream as running_upstream
from harness.visitors import TRANSPORTS, Speaker, Transport, Visit, duplex, play
from harness.wire import Wire, text_of
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from trunkline.compat.per_request import PerRequestLine
from trunkline.mux.directory.memory import MemoryDirectory
from trunkline.mux.limits import Pooling
from trunkline.mux.pool import Pool
from trunkline.mux.statistics import Statistics
from trunkline.mux.upstream import Upstream as PoolUpstream
from trunkline.transports.upstream.streamable_http import StreamableHTTPConnector
from websockets.exceptions import InvalidStatus

pytestmark = pytest.mark.anyio

PATIENCE = 30.0
SHARED = '\n[pooling]\nreuse = "user"\n'


def base(gateway: Gateway, server: str = "up") -> str:
    return gateway.url(server).removesuffix("/mcp")


async def visit(
    transport: Transport, gateway: Gateway, name: str, server: str = "up", capabilities: Mapping[str, Any] | None = None
) -> str:
    """A client that connects, opens a session, counts once and goes; what the counter says."""
    if transport == "http":
        async with Wire(gateway.url(server), bearer(name)) as wire:
            await wire.open(capabilities=capabilities)
            said = text_of(await (await wire.call("counter")).response())
            await wire.delete()
        return said
    async with duplex(transport, base(gateway, server), bearer(name)) as client:
        await client.connect()
        await client.begin(capabilities=capabilities)
        await client.call("counter")
        return text_of(await client.answer())


# a


async def test_a_streamable_http_reuses_one_session_over_several_calls(gateway: Gateway, upstream: Upstream) -> None:
    async with Wire(gateway.url()) as first:
        await first.open()
        for n in range(1, 6):  # each on a connection of its own
            async with Wire(gateway.url(), first.headers) as wire:
                assert text_of(await (await wire.call("counter")).response()) == str(n)
        meeting = [first.call("barrier", {"name": "a", "parties": 5, "tag": str(n)}) for n in range(5)]
        answers = await asyncio.gather(*meeting)
        assert [(await answer.response())["result"]["structuredContent"]["tag"] for answer in answers] == list("01234")
    report = upstream.report()
    assert report["counts"]["initialize"] == 1
    calls = [request for request in report["requests"] if request.get("method") == "tools/call"]
    assert len(calls) == 10
    assert {request["session"] for request in calls} == set(report["sessions"])
    assert len(report["sessions"]) == 1


# b


async def test_b_separate_connections_of_one_user_share_a_session_over_every_transport(
    upstream: Upstream, settings_file: Callable[[str], Path]
) -> None:
    with running_gateway(toml=settings_file(token_settings(up=upstream.url) + SHARED)) as gateway:
        order: Sequence[Transport] = ("http", "websocket", "sse", "websocket", "sse", "http")
        said = [await visit(transport, gateway, "alice") for transport in order]
        assert said == ["1", "2", "3", "4", "5", "6"]
        assert upstream.report()["counts"]["initialize"] == 1
        assert await visit("websocket", gateway, "bob") == "1"
        assert upstream.report()["counts"]["initialize"] == 2
        gateway.process.send_signal(signal.SIGTERM)
        assert await asyncio.to_thread(gateway.process.wait, 15) == 0
    assert (await upstream.saw("delete", 2))["counts"]["delete"] == 2


# c


@pytest.mark.parametrize(("default", "own", "shared"), [("user", "workflow", "plain"), ("workflow", "user", "own")])
async def test_c_a_servers_own_reuse_wins_over_the_default(
    upstream: Upstream, settings_file: Callable[[str], Path], default: str, own: str, shared: str
) -> None:
    text = token_settings(plain=upstream.url, own=upstream.url) + f'\nreuse = "{own}"\n[pooling]\nreuse = "{default}"\n'
    with running_gateway(toml=settings_file(text)) as gateway:
        for server in ("plain", "own"):
            said = [await visit("http", gateway, "alice", server) for _ in range(3)]
            assert said == (["1", "2", "3"] if server == shared else ["1", "1", "1"])
    assert upstream.counts()["initialize"] == 4


# d

PRINCIPALS = (("acme", "alice"), ("acme", "bob"), ("other", "alice"))
"""Tenant and subject; each differs from the first in one part alone."""

SERVERS = ("none", "workflow", "user")
"""Named for their reuse; all of them are one upstream."""

clients = st.fixed_dictionaries(
    {
        "principal": st.sampled_from(PRINCIPALS),
        "server": st.sampled_from(SERVERS),
        "transport": st.sampled_from(TRANSPORTS),
        "key": st.sampled_from([None, "chat", "other"]),
        "capabilities": st.sampled_from([{}, {"sampling": {}}, {"experimental": {"x": {}}}]),
        "tenant_header": st.sampled_from([None, "a", "b"]),
        "calls": st.integers(1, 3),
        "ends": st.booleans(),
    }
)
turns = st.lists(st.tuples(st.integers(0, 4), st.booleans()), max_size=20)
"""Who may do its next step, and whether the next turn waits until that is done."""


def secret_of(principal: tuple[str, str]) -> str:
    return "-".join(("token", *principal))


@contextmanager
def many_principals(
    path: Path, url: str, identity: Callable[[tuple[str, str]], tuple[str, str]] = lambda principal: principal
) -> Iterator[Gateway]:
    """A gateway that knows `PRINCIPALS` by their tokens, as whom `identity` says."""
    entries = []
    for principal in PRINCIPALS:
        tenant, subject = identity(principal)
        digest = hashlib.sha256(secret_of(principal).encode()).hexdigest()
        entries.append(f'{{ sha256 = "{digest}", tenant = "{tenant}", subject = "{subject}" }}')
    text = f'[auth]\nmode = "tokens"\ntokens = [{", ".join(entries)}]\n'
    text += "[pooling]\nmax_workflows_per_user = 10000\nmax_channels_per_user = 1000\nmax_inflight_per_channel = 2\n"
    for server in SERVERS:
        text += f'[servers.{server}]\nurl = "{url}"\nreuse = "{server}"\neras = ["legacy"]\n'
        text += 'forward_headers = ["X-Whose"]\nsession_headers = ["X-Tenant"]\n'
    path.write_text(text)
    with running_gateway(toml=path) as gateway:
        yield gateway


def visit_of(gateway: Gateway, traits: Mapping[str, Any]) -> Visit:
    """What a client with these traits does."""
    whose = "/".join(traits["principal"])
    headers = {"Authorization": f"Bearer {secret_of(traits['principal'])}", "X-Whose": whose}
    headers |= {"Trunkline-Workflow": traits["key"]} if traits["key"] else {}
    headers |= {"X-Tenant": traits["tenant_header"]} if traits["tenant_header"] else {}
    where = base(gateway, traits["server"])
    return Visit(traits["transport"], where, whose, headers, traits["capabilities"], traits["calls"], traits["ends"])


def seen(upstream: Upstream) -> dict[str, list[str]]:
    """Whose calls each upstream session saw, in their order."""
    found = defaultdict(list)
    for request in upstream.report()["requests"]:
        if request.get("method") == "tools/call":
            found[request["session"]].append(dict(request["headers"])["x-whose"])
    return found


def test_d_no_upstream_session_ever_sees_two_principals(tmp_path: Path) -> None:
    with running_upstream("sdk2") as upstream, many_principals(tmp_path / "d.toml", upstream.url) as gateway:
        answered = 0

        @settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.too_slow])
        @given(st.lists(clients, min_size=2, max_size=5), turns)
        def holds(traits: list[dict[str, Any]], order: list[tuple[int, bool]]) -> None:
            nonlocal answered
            answered += anyio.run(play, [visit_of(gateway, one) for one in traits], order)
            for calls in seen(upstream).values():
                assert len(set(calls)) == 1

        holds()
        sessions = seen(upstream)
        assert answered > 20, "else the test would prove little"
        assert sum(map(len, sessions.values())) >= answered
        assert any(len(calls) > 1 for calls in sessions.values()), "else nothing was shared"


def test_d_can_fail(tmp_path: Path) -> None:
    """Where two tokens are taken for one principal, a session sees both."""
    with (
        running_upstream("sdk2") as upstream,
        many_principals(tmp_path / "d.toml", upstream.url, lambda principal: PRINCIPALS[0]) as gateway,
    ):
        traits = {"server": "user", "transport": "http", "key": None, "capabilities": {}, "tenant_header": None}
        each = [{**traits, "principal": principal, "calls": 1, "ends": False} for principal in PRINCIPALS]
        assert anyio.run(play, [visit_of(gateway, one) for one in each], []) == 3
        assert max(len(set(calls)) for calls in seen(upstream).values()) > 1


async def test_d_two_workflows_of_one_user_never_mix_their_counts(
    upstream: Upstream, settings_file: Callable[[str], Path]
) -> None:
    """With `reuse = "workflow"`: each counts for itself, whatever comes between, and on whatever transport."""
    with running_gateway(toml=settings_file(token_settings(up=upstream.url))) as gateway:

        async def count(n: int, transport: Transport) -> list[str]:
            async with Speaker(transport, base(gateway), {**bearer("alice"), "Trunkline-Workflow": f"chat-{n}"}) as one:
                await one.connect()
                await one.ask(initialize(0))
                said = []
                for at in range(1, 26):
                    # At times nobody goes on before all have come so far: the calls lie between each other.
                    meeting = {"name": f"{n}-{at}" if at % 5 else f"all-{at}", "parties": 1 if at % 5 else 6, "tag": ""}
                    await one.call("barrier", meeting, at)
                    answer = await one.call("counter", {}, at)
                    assert answer is not None
                    said.append(text_of(answer))
                return said

        with anyio.fail_after(PATIENCE):
            counted = await asyncio.gather(*(count(n, TRANSPORTS[n % 3]) for n in range(6)))
    assert counted == [[str(n) for n in range(1, 26)]] * 6
    report = upstream.report()
    assert report["counts"]["initialize"] == 6
    order = [request["session"] for request in report["requests"] if request.get("tool") == "counter"]
    assert {order.count(session) for session in order} == {25}
    changes = sum(before != after for before, after in pairwise(order))
    assert changes > 25, "else they would not have come between each other"


# e


async def test_e_identity_is_checked_on_every_reuse_over_http(
    upstream: Upstream, settings_file: Callable[[str], Path]
) -> None:
    text = token_settings(up=upstream.url) + '\nforward_headers = ["X-Whose"]\n'
    with running_gateway(toml=settings_file(text)) as gateway:
        async with Wire(gateway.url(), {**bearer("alice"), "X-Whose": "alice"}) as wire:
            await wire.open()
            primed = await wire.call("hold", {"gate": "e"})  # a stream, since it takes long
            event = await primed.next_event()
            assert event is not None
            assert event.id is not None
            stranger: dict[str, str | None] = {**bearer("bob"), "X-Whose": "bob"}
            for headers, status in (
                (stranger, 404),
                ({"Authorization": None, "X-Whose": "nobody"}, 401),
                ({"Authorization": "Bearer wrong", "X-Whose": "nobody"}, 401),
            ):
                assert (await wire.call("counter", headers=headers)).status == status
                assert (await wire.post({"jsonrpc": "2.0", "id": 1, "method": "ping"}, headers)).status == status
                assert (await wire.post(initialize(), headers)).status == status
                assert (await wire.get(headers=headers)).status == status
                assert (await wire.get(event.id, headers)).status == status
                assert (await wire.delete(headers)).status == status
                cancelled = {"jsonrpc": "2.0", "method": "notifications/cancelled", "params": {"requestId": 1}}
                assert (await wire.post(cancelled, headers)).status == status
            upstream.open("e")
            assert text_of(await primed.response()) == "e is open"
            assert text_of(await (await wire.call("counter")).response()) == "1"
    asked = [request for request in upstream.report()["requests"] if request.get("method") == "tools/call"]
    assert [dict(request["headers"])["x-whose"] for request in asked] == ["alice", "alice"]


@pytest.mark.parametrize("transport", ["sse", "websocket"])
async def test_e_identity_is_checked_on_every_reuse_over_wires_that_carry_everything(
    upstream: Upstream, settings_file: Callable[[str], Path], transport: Transport
) -> None:
    with running_gateway(toml=settings_file(token_settings(up=upstream.url))) as gateway:
        async with duplex(transport, base(gateway), bearer("alice")) as hers:
            await hers.open()
            await hers.call("counter")
            assert text_of(await hers.answer()) == "1"
            refusals: list[tuple[dict[str, str], int]] = [(bearer("bob"), 404), ({}, 401)]
            for headers, status in refusals:
                if isinstance(hers, SSEClient):
                    call = {"jsonrpc": "2.0", "id": 9, "method": "tools/call", "params": {"name": "counter"}}
                    async with SSEClient(base(gateway), headers) as other:
                        assert (await other.post(call, endpoint=hers.endpoint)).status == status
                        for name in ({"Mcp-Session-Id": hers.session_id}, {"Last-Event-ID": hers.last_event_id}):
                            assert (await other.get(headers=name)).status == status
                        assert (await other.get(f"?session_id={hers.session_id}")).status == status
                else:
                    for query, name in (
                        ("", {"Mcp-Session-Id": hers.session_id}),
                        (f"?session_id={hers.session_id}", {}),
                    ):
                        async with SocketClient(base(gateway), headers) as socket:
                            with pytest.raises(InvalidStatus) as refused:
                                await socket.connect(query, name)
                        assert refused.value.response.status_code == status
            await hers.call("counter", id=2)
            assert text_of(await hers.answer(2)) == "2"
    assert upstream.counts()["method:tools/call"] == 2
    assert upstream.counts()["initialize"] == 1


# f


async def test_f_hits_misses_active_and_idle_sessions_and_clean_ups_are_in_the_metrics(
    upstream: Upstream, settings_file: Callable[[str], Path]
) -> None:
    text = token_settings(up=upstream.url) + SHARED + "max_channels_per_user = 1\nidle_timeout = 5\n"
    with running_gateway(toml=settings_file(text)) as gateway:

        def pooled(result: str) -> float:
            return gateway.metric("trunkline_pool_requests_total", server="up", result=result)

        def held(state: str) -> float:
            return gateway.metric("trunkline_channels", server="up", state=state)

        def closed(reason: str) -> float:
            return gateway.metric("trunkline_channels_closed_total", server="up", reason=reason)

        assert [pooled("hit"), pooled("miss"), held("idle"), held("active")] == [0, 0, 0, 0]
        async with Wire(gateway.url(), bearer("alice")) as wire:
            await wire.open()
            assert [pooled("hit"), pooled("miss"), held("idle"), held("active")] == [0, 1, 1, 0]
            waiting = await wire.call("hold", {"gate": "f"})
            await upstream.saw("mark:holding")
            assert [pooled("hit"), pooled("miss"), held("idle"), held("active")] == [1, 1, 0, 1]
            upstream.open("f")
            await waiting.response()
            await until(lambda: [held("idle"), held("active")] == [1, 0])
            await wire.delete()
        assert gateway.metric("trunkline_workflows_closed_total", reason="deleted") == 1

        # The same user with other capabilities: there may be one session only, and nobody uses the first.
        assert await visit("http", gateway, "alice", capabilities={"experimental": {"x": {}}}) == "1"
        await until(lambda: closed("evicted") == 1)
        assert [pooled("hit"), pooled("miss"), held("idle")] == [2, 2, 1]

        async with Wire(gateway.url(), bearer("alice")) as left:
            await left.open(capabilities={"experimental": {"x": {}}})
        await until(lambda: closed("idle") == 1, timeout=30)
        assert gateway.metric("trunkline_workflows_closed_total", reason="idle") == 1
        assert [held("idle"), held("active"), held("opening"), held("draining")] == [0, 0, 0, 0]
        assert [pooled("hit"), pooled("miss")] == [3, 2]
    counts = (await upstream.saw("delete", 2))["counts"]
    assert counts["initialize"] == counts["delete"] == 2, "what the metrics say of the server's sessions is so"


async def test_f_spares_are_in_the_metrics_and_are_nobody_elses(
    upstream: Upstream, settings_file: Callable[[str], Path]
) -> None:
    with running_gateway(toml=settings_file(token_settings(up=upstream.url) + "\n[pooling]\nspares = 1\n")) as gateway:

        def idle() -> float:
            return gateway.metric("trunkline_channels", server="up", state="idle")

        async with (
            Wire(gateway.url(), bearer("alice")) as first,
            Wire(gateway.url(), bearer("alice")) as second,
            Wire(gateway.url(), bearer("bob")) as his,
        ):
            assert (await first.open()).headers["Trunkline-Pool"] == "miss"
            await until(lambda: idle() == 2)  # hers, and one that nobody has used
            assert (await his.open()).headers["Trunkline-Pool"] == "miss"
            await until(lambda: idle() == 4)
            assert (await second.open()).headers["Trunkline-Pool"] == "spare"
            for wire in (first, second, his):
                assert text_of(await (await wire.call("counter")).response()) == "1"
        assert gateway.metric("trunkline_pool_requests_total", server="up", result="spare") == 1
        assert gateway.metric("trunkline_pool_requests_total", server="up", result="miss") == 2


# g


@pytest.mark.parametrize("habits", [False, True])
async def test_g_reuse_none_is_the_old_path_request_by_request(
    upstream: Upstream, settings_file: Callable[[str], Path], habits: bool
) -> None:
    text = f'[servers.up]\nurl = "{upstream.url}"\neras = ["legacy"]\nreuse = "none"\n'
    text += f"[compat]\nsdk_habits = {str(habits).lower()}\n"
    with running_gateway(toml=settings_file(text)) as gateway:
        async with Wire(gateway.url()) as wire:
            await wire.open(name="test")
            for n in (1, 2):
                assert text_of(await (await wire.call("counter", id=b"%d" % n)).response()) == "1"
                await upstream.saw("delete", n + 1)
            await wire.delete()
    through_the_gateway = trace(upstream)

    upstream.reset()
    statistics = Statistics()
    connector = StreamableHTTPConnector("up", upstream.url, statistics)
    alone = PoolUpstream("up", connector, Pooling(), make_line=lambda make: PerRequestLine(make, habits=habits))
    pool = Pool({"up": alone}, MemoryDirectory(), pooling=Pooling(), statistics=statistics)
    async with pool.running():
        client = Client((await begin(pool, server="up", message=handshake())).workflow)
        for n in (1, 2):
            answer = await client.answer(client.call({"name": "counter", "arguments": {}}, id=b"%d" % n))
            assert text_of(answer) == "1"
            await upstream.saw("delete", n + 1)
    await connector.close()

    assert through_the_gateway == trace(upstream)
    kinds = [request["kind"] for request in through_the_gateway]
    usual = ["initialize", "initialized", "call", "delete"]
    assert kinds[:3] == ["initialize", "initialized", "delete"], "to learn what the server is"
    assert [sorted(kinds[3:]), kinds.count("get")] == (
        [sorted([*usual, "get", "call"] * 2), 2] if habits else [sorted(usual * 2), 0]
    )


def trace(upstream: Upstream) -> list[dict[str, Any]]:
    """Every request as the server saw it; sessions by the order in which they began.

    That of the habits which comes first, the GET stream or the question for tools, is not fixed.
    """
    report = upstream.report()
    numbers = {session: str(n) for n, session in enumerate(report["sessions"])}

    def named(value: str | None) -> str | None:
        return numbers.get(value, value) if value is not None else None

    requests = [
        {
            **request,
            "session": named(request["session"]),
            "headers": sorted([name.lower(), named(value)] for name, value in request["headers"]),
        }
        for request in report["requests"]
    ]
    for at, request in enumerate(requests[1:], 1):
        if request["kind"] == "get" and requests[at - 1].get("method") == "tools/list":
            requests[at - 1 : at + 1] = [request, requests[at - 1]]
    return requests
