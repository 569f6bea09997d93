"""Upstream sessions kept for calls, against a real server of the SDK."""

import asyncio
import ssl
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from harness.certificates import certificate
from harness.delay import Delay
from harness.upstreams import Upstream, upstream
from trunkline.compat.contextforge import reuse
from trunkline.compat.contextforge.asked import KEY, Asked, principal_of
from trunkline.compat.contextforge.gateways import GatewayRecord
from trunkline.compat.contextforge.reuse import Lease, OldPath, Reuse, Told
from trunkline.compat.contextforge.settings import ContextForgeSettings
from trunkline.mux.errors import SessionLost, UpstreamUnreachable, WorkflowEnded

pytestmark = pytest.mark.anyio

HANDSHAKE = {"protocolVersion": "2025-06-18", "capabilities": {}, "clientInfo": {"name": "mcp", "version": "0"}}


@pytest.fixture
def server(upstream: Upstream) -> Upstream:
    return upstream


class Kept:
    """A `Reuse` before one server, and its record."""

    def __init__(self, server: Upstream, **settings: Any) -> None:
        self.url = server.url
        self.fields: dict[str, Any] = {"url": server.url, "enabled": True}
        self.told: list[Told] = []
        self.trusted = ssl.create_default_context
        self.reuse = Reuse(
            ContextForgeSettings(**settings),
            self._read,
            verifies_tls=True,
            trusted=lambda: self.trusted(),
            hear=self.told.append,
        )

    def _read(self, gateway_id: str) -> GatewayRecord | None:
        return GatewayRecord("gateway1", "up", "STREAMABLEHTTP", dict(self.fields))

    async def lease(self, user: str, session: str, headers: dict[str, str] | None = None) -> Lease:
        asked = Asked(principal_of(user, [], None), session)
        return await self.reuse.lease(asked, "gateway1", self.url, headers or {}, HANDSHAKE)

    async def count(self, user: str, session: str) -> str:
        return await called(await self.lease(user, session), "counter")


async def called(lease: Lease, tool: str, **arguments: Any) -> str:
    response = await lease.request("tools/call", {"name": tool, "arguments": arguments})
    text: str = response["result"]["content"][0]["text"]
    return text


@asynccontextmanager
async def running(server: Upstream, **settings: Any) -> AsyncIterator[Kept]:
    kept = Kept(server, **settings)
    await kept.reuse.start()
    try:
        yield kept
    finally:
        await kept.reuse.stop()
    assert kept.reuse.pool.channels == []


async def test_calls_of_one_session_share_one_and_those_of_another_do_not(server: Upstream) -> None:
    async with running(server) as kept:
        seen = [await kept.count("alice@x", session) for session in ("a", "b", "a", "b", "a")]
    assert seen == ["1", "1", "2", "2", "3"]
    assert server.counts()["initialize"] == server.counts()["delete"] == 2


async def test_a_session_id_that_another_user_names_leads_to_a_session_of_his_own(server: Upstream) -> None:
    async with running(server) as kept:
        assert [await kept.count(user, "same") for user in ("alice@x", "bob@x", "alice@x")] == ["1", "1", "2"]


async def test_calls_that_meet_at_the_beginning_open_one_session(server: Upstream) -> None:
    async with running(server) as kept:
        leases = await asyncio.gather(*(kept.lease("alice@x", "a") for _ in range(8)))
        calls = [called(lease, "barrier", name="m", parties=8, tag=str(n)) for n, lease in enumerate(leases)]
        await asyncio.gather(*calls)
    assert server.counts()["initialize"] == 1


async def test_under_user_all_sessions_of_one_share_and_two_users_do_not(server: Upstream) -> None:
    async with running(server, reuse="user") as kept:
        asked = [("alice@x", "a"), ("alice@x", "b"), ("bob@x", "a"), ("alice@x", "")]
        assert [await kept.count(*one) for one in asked] == ["1", "2", "1", "3"]
    assert server.counts()["initialize"] == 2


@pytest.mark.parametrize(
    ("settings", "user", "session"),
    [
        ({"reuse": "none"}, "alice@x", "a"),
        ({}, "alice@x", ""),
        ({"reuse": "user"}, "anonymous", ""),
        ({"reuse": "user"}, "anonymous", "a"),
        ({}, "anonymous", KEY + "chat"),
        ({"max_workflows": 1}, "bob@x", "a"),
    ],
)
async def test_what_may_not_be_kept_is_left_to_the_old_path(
    server: Upstream, settings: dict[str, Any], user: str, session: str
) -> None:
    async with running(server, **settings) as kept:
        if "max_workflows" in settings:
            await kept.count("alice@x", "a")
        with pytest.raises(OldPath):
            await kept.lease(user, session)
        assert kept.reuse.statistics.total("pool_requests") >= 1


async def test_the_end_of_a_clients_session_is_the_end_of_its_upstream_session(server: Upstream) -> None:
    async with running(server) as kept:
        await kept.count("alice@x", "a")
        await kept.count("alice@x", "b")
        await kept.reuse.end("a")
        await server.saw("delete")
        assert await kept.count("alice@x", "b") == "2"
        assert await kept.count("alice@x", "a") == "1"


async def test_a_key_is_not_ended_as_a_session_of_that_name(server: Upstream) -> None:
    async with running(server) as kept:
        await kept.count("alice@x", KEY + "chat")
        await kept.reuse.end("chat")
        assert await kept.count("alice@x", KEY + "chat") == "2"


async def test_once_stopped_it_stays_so_and_all_is_left_to_the_old_path(server: Upstream) -> None:
    async with running(server) as kept:
        await kept.reuse.stop()
        async with asyncio.timeout(10):
            await kept.reuse.start()
        with pytest.raises(OldPath):
            await kept.lease("alice@x", "a")


@asynccontextmanager
async def _opening(server: Upstream) -> AsyncIterator[tuple[Kept, "asyncio.Task[str]"]]:
    """A call for which a session is being opened: the server was asked, and its answer is under way."""
    async with Delay(server.port, down=1.0) as far, running(server) as kept:
        kept.url = kept.fields["url"] = f"http://127.0.0.1:{far.port}/mcp"
        call = asyncio.create_task(kept.count("alice@x", "a"))
        await server.saw("initialize")
        yield kept, call


@pytest.mark.parametrize("is_cancelled", [True, False])
async def test_nothing_is_left_of_a_session_whose_client_left_while_it_was_opened(
    server: Upstream, is_cancelled: bool
) -> None:
    async with _opening(server) as (kept, call):
        if is_cancelled:
            call.cancel()
        await kept.reuse.end("a")
        await server.saw("delete")
        [outcome] = await asyncio.gather(call, return_exceptions=True)
        assert isinstance(outcome, asyncio.CancelledError if is_cancelled else WorkflowEnded)
        assert "call" not in server.counts()


async def test_a_caller_that_leaves_while_a_session_is_opened_leaves_it_to_the_next(server: Upstream) -> None:
    async with _opening(server) as (kept, call):
        call.cancel()
        assert [await kept.count("alice@x", "a") for _ in range(2)] == ["1", "2"]
        await kept.reuse.end("a")
        await server.saw("delete")
    assert server.counts()["initialize"] == 1


async def test_an_end_does_not_wait_for_sessions_that_are_being_opened(server: Upstream) -> None:
    async with _opening(server) as (kept, call):
        await kept.reuse.stop()
        assert call.done()
        await asyncio.gather(call, return_exceptions=True)
    assert "call" not in server.counts()


async def test_headers_are_those_of_each_call(server: Upstream) -> None:
    async with running(server) as kept:
        for value in ("first", "second"):
            headers = {"Authorization": value, "Mcp-Session-Id": "ours", "Accept-Encoding": "gzip"}
            await called(await kept.lease("alice@x", "a", headers), "counter")
    sent = {entry["kind"]: dict(entry["headers"]) for entry in server.report()["requests"]}
    assert [sent[kind]["authorization"] for kind in ("initialize", "initialized")] == ["first", "first"]
    calls = [dict(entry["headers"]) for entry in server.report()["requests"] if entry["kind"] == "call"]
    assert [headers["authorization"] for headers in calls] == ["first", "second"]
    assert "ours" not in str(server.report()["requests"])
    assert not any("accept-encoding" in headers for headers in calls), "what is encoded could not be read"


async def test_a_call_goes_without_the_headers_of_others_though_the_session_was_opened_under_them(
    server: Upstream,
) -> None:
    async with running(server, reuse="user") as kept:
        await called(await kept.lease("alice@x", "a", {"Authorization": "Bearer a", "X-Tenant": "a"}), "counter")
        await called(await kept.lease("alice@x", "b", {"X-TENANT": "b"}), "counter")
        await called(await kept.lease("alice@x", "b"), "counter")
    requests = [(entry["kind"], dict(entry["headers"])) for entry in server.report()["requests"]]
    seen = [(kind, headers.get("authorization"), headers.get("x-tenant")) for kind, headers in requests]
    assert [one for one in seen if one[0] == "call"] == [
        ("call", "Bearer a", "a"),
        ("call", None, "b"),
        ("call", None, None),
    ]
    assert ("delete", "Bearer a", "a") in seen


async def test_calls_with_ever_more_headers_are_left_to_the_old_path(server: Upstream) -> None:
    async with running(server) as kept:
        await kept.lease("alice@x", "a", {f"X-{n}": "1" for n in range(256)})
        await kept.lease("alice@x", "a", {"x-0": "1"})
        with pytest.raises(OldPath):
            await kept.lease("alice@x", "a", {"X-More": "1"})


async def test_what_traces_a_call_goes_with_it_and_leads_to_the_same_session(server: Upstream) -> None:
    traces = [f"00-{n:032x}-{n:016x}-01" for n in (1, 2, 3)]
    async with running(server) as kept:
        counted = []
        for trace in traces:
            headers = {"traceparent": trace, "tracestate": f"v={trace[-4]}", "X-Correlation-ID": trace}
            counted.append(await called(await kept.lease("alice@x", "a", headers), "counter"))
    assert counted == ["1", "2", "3"]
    assert server.counts()["initialize"] == 1
    calls = [dict(entry["headers"]) for entry in server.report()["requests"] if entry["kind"] == "call"]
    assert [headers["traceparent"] for headers in calls] == traces
    assert [headers["x-correlation-id"] for headers in calls] == traces


@pytest.mark.parametrize("trusting", ["the system", "the record", "ContextForge", "nobody"])
async def test_a_certificate_counts_where_it_counts_for_contextforge(
    server: Upstream, trusting: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folders = [tmp_path / name for name in ("shown", "other")]
    for folder in folders:
        folder.mkdir()
    shown, other = (certificate(folder, folder.name) for folder in folders)
    monkeypatch.setenv("SSL_CERT_FILE", str((shown if trusting == "the system" else other).cert))
    async with Delay(server.port, tls=shown.showing()) as tls, running(server) as kept:
        kept.url = kept.fields["url"] = f"https://127.0.0.1:{tls.port}/mcp"
        if trusting == "ContextForge":
            kept.trusted = shown.trusting
        else:
            kept.fields["ca_certificate"] = (shown if trusting == "the record" else other).cert.read_text()
        if trusting == "nobody":
            with pytest.raises(UpstreamUnreachable, match="its certificate is not trusted here"):
                await kept.count("alice@x", "a")
        else:
            assert await kept.count("alice@x", "a") == "1"


async def test_a_caller_that_gives_up_is_told_to_the_server(server: Upstream) -> None:
    async with running(server) as kept:
        lease = await kept.lease("alice@x", "a")
        call = asyncio.create_task(called(lease, "hold", gate="never"))
        await server.saw("mark:holding")
        call.cancel()
        await server.saw("mark:cancelled")
        assert await kept.count("alice@x", "a") == "1"


async def test_an_edited_record_lets_calls_end_and_begins_anew(server: Upstream) -> None:
    async with running(server) as kept:
        lease = await kept.lease("alice@x", "a")
        call = asyncio.create_task(called(lease, "hold", gate="edit"))
        await server.saw("mark:holding")
        kept.fields["auth_value"] = "another"
        kept.reuse.gateways.forget("gateway1")
        assert await kept.count("alice@x", "a") == "1"
        assert "delete" not in server.counts()
        server.open("edit")
        assert await call == "edit is open"
        await server.saw("delete")


async def test_a_call_whose_session_is_being_opened_while_the_record_is_edited_goes_on_in_another(
    server: Upstream,
) -> None:
    async with _opening(server) as (kept, call):
        kept.fields["auth_value"] = "another"
        kept.reuse.gateways.forget("gateway1")
        assert sorted([await kept.count("alice@x", "a"), await call]) == ["1", "2"]
        assert await kept.count("alice@x", "a") == "3"
        await kept.reuse.end("a")
    assert server.counts()["initialize"] == server.counts()["delete"] == 2


async def test_a_call_that_meets_the_end_of_all_sessions_goes_on_in_another(server: Upstream) -> None:
    async with running(server) as kept:
        calling = asyncio.create_task(kept.count("alice@x", "a"))
        await asyncio.sleep(0)  # the server is found, and nothing is opened yet
        kept.reuse.gateways.renew()
        assert await calling == "1"


async def test_a_call_whose_session_is_superseded_twice_while_it_is_opened_is_left_to_the_old_path(
    server: Upstream,
) -> None:
    async with _opening(server) as (kept, call):
        for n in (1, 2):
            await server.saw("initialize", n)
            kept.fields["auth_value"] = f"edited {n}"
            kept.reuse.gateways.forget("gateway1")
            await kept.reuse.gateways.refresh()
        with pytest.raises(OldPath):
            await call
        assert await kept.count("alice@x", "a") == "1"


async def test_what_a_server_refuses_one_user_costs_no_other_of_the_same_teams_anything(server: Upstream) -> None:
    """Headers and credentials are each user's own, and so may be a limit that the server has."""

    async def refuse(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if b"x-quota: spent" in (await reader.readuntil(b"\r\n\r\n")).lower():
            writer.write(b"HTTP/1.1 503 Service Unavailable\r\nContent-Length: 0\r\nConnection: close\r\n\r\n")
        else:
            writer.write(b"HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\nConnection: close\r\n\r\n")
        await writer.drain()
        writer.close()

    async with await asyncio.start_server(refuse, "127.0.0.1", 0) as limited, running(server) as kept:
        kept.url = kept.fields["url"] = f"http://127.0.0.1:{limited.sockets[0].getsockname()[1]}/mcp"
        failures = [await _failure(kept, "alice@x", {"X-Quota": "spent"}) for _ in range(4)]
        assert [failure.data.get("status") for failure in failures] == [503, 503, 503, None]
        assert "circuit" in failures[3].message
        assert (await _failure(kept, "bob@x", {})).data["status"] == 404


async def _failure(kept: Kept, user: str, headers: dict[str, str]) -> UpstreamUnreachable:
    with pytest.raises(UpstreamUnreachable) as caught:
        await kept.lease(user, "a", headers)
    return caught.value


async def test_a_call_that_meets_a_restarted_server_runs_once_in_a_new_session() -> None:
    async with _restarted() as (kept, restart):
        assert [await kept.count("alice@x", "a") for _ in range(2)] == ["1", "2"]
        with restart() as again:
            lease = await kept.lease("alice@x", "a")
            executed = "yes"
            try:
                await lease.request("tools/call", {"name": "counter", "arguments": {}})
            except SessionLost as lost:  # it went out on a connection that was cut: nobody can tell whether it ran
                executed = lost.data["executed"]
            assert await kept.count("alice@x", "a") == {"yes": "2", "unknown": "1"}[executed]
            assert again.counts()["initialize"] == 1


@asynccontextmanager
async def _restarted() -> AsyncIterator[tuple[Kept, Any]]:
    with upstream("sdk2") as first:
        port = first.port
        async with running(first) as kept:

            def restart() -> Any:
                first.process.kill()
                return upstream("sdk2", port=port)

            yield kept, restart


async def test_what_a_server_says_beside_its_answers_is_heard(server: Upstream) -> None:
    async with running(server) as kept:
        lease = await kept.lease("alice@x", "a")
        await called(lease, "log", text="hello")
        assert [told.session for told in kept.told if b"hello" in told.message] == ["a"]


async def test_what_a_server_says_in_the_session_of_a_stream_is_kept_for_nobody(server: Upstream) -> None:
    """ContextForge keeps for good what it has for a session, for whoever listens by a GET: none of a stream does."""
    async with running(server) as kept:
        asked = Asked(principal_of("alice@x", [], None), "stream", is_carried=True)
        await called(await kept.reuse.lease(asked, "gateway1", kept.url, {}, HANDSHAKE), "log", text="hello")
        assert [told.session for told in kept.told if b"hello" in told.message] == [""]


async def test_where_there_is_no_room_the_longest_unused_gives_way(
    server: Upstream, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(reuse, "UNUSED_SECONDS", 0.0)
    async with running(server, max_workflows_per_user=2) as kept:
        assert [await kept.count("alice@x", session) for session in ("a", "b", "c")] == ["1", "1", "1"]
        assert await kept.count("alice@x", "b") == "2"
        await server.saw("delete")
        assert await kept.count("alice@x", "a") == "1"


async def test_an_idle_session_is_ended(server: Upstream) -> None:
    async with running(server, idle_timeout=0.5) as kept:
        await kept.count("alice@x", "a")
        await server.saw("delete")
