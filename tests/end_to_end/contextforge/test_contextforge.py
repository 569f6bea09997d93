"""trunkline inside ContextForge 0.9.0 and 1.0.7: real gateways, real servers, the SDK's clients."""

import asyncio
import json
import signal
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from harness.contextforge import ADMIN, Forge, Version, contextforge, token
from harness.contextforge_clients import INITIALIZE, PATIENCE, WAYS, Place, Raw, Refused, Way, listening, raw
from harness.upstreams import upstream
from websockets.asyncio.client import connect
from websockets.exceptions import InvalidStatus

pytestmark = [pytest.mark.anyio, pytest.mark.contextforge, pytest.mark.timeout(300)]

BOB = "bob@example.com"


@pytest.fixture(scope="module")
def built(version: Version) -> Iterator[Place]:
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        servers = {name: stack.enter_context(upstream("sdk2")) for name in ("plain", "shared", "old")}
        names = {"TRUNKLINE_REUSE_USER": "shared", "TRUNKLINE_REUSE_NONE": "old", "ENABLE_METRICS": "true"}
        forge = stack.enter_context(contextforge(version, folder, env=names))
        forge.add_user(BOB)
        for name, server in servers.items():
            forge.register(name, server.url)
        yield Place(forge, servers)


@pytest.fixture
def place(built: Place) -> Place:
    built.reset()
    return built


@pytest.mark.parametrize("way", WAYS)
async def test_the_calls_of_a_client_are_carried_by_one_upstream_session(place: Place, way: Way) -> None:
    assert await place.calls(way, "plain", "counter", times=20) == [str(n) for n in range(1, 21)]
    assert await place.calls(way, "plain", "counter", times=2) == ["1", "2"]
    await place.servers["plain"].saw("delete", 2)
    counts = place.servers["plain"].counts()
    assert counts["initialize"] == counts["initialized"] == counts["delete"] == 2
    assert counts["method:tools/call"] == 22
    assert counts.get("method:tools/list", 0) <= 1


@pytest.mark.parametrize("way", WAYS)
async def test_calls_of_one_session_are_inside_the_server_at_once(place: Place, way: Way) -> None:
    arguments = {"gate": f"meet-{way}"}
    calls = asyncio.create_task(place.calls(way, "plain", "hold", times=8, arguments=arguments, concurrent=True))
    await place.servers["plain"].saw("mark:holding", 8)
    place.servers["plain"].open(f"meet-{way}")
    assert await calls == [f"meet-{way} is open"] * 8
    assert place.servers["plain"].counts()["initialize"] == 1


@pytest.mark.parametrize("way", WAYS)
async def test_by_user_the_sessions_of_one_share_and_those_of_two_do_not(place: Place, way: Way) -> None:
    seen = [int((await place.calls(way, "shared", "counter", user=user))[0]) for user in (ADMIN, ADMIN, BOB, ADMIN)]
    assert [seen[1] - seen[0], seen[3] - seen[1]] == [1, 1]
    assert seen[2] not in (seen[1] + 1, seen[3])


async def test_by_user_every_transport_leads_to_the_same_session(place: Place) -> None:
    seen = [int((await place.calls(way, "shared", "counter", user=BOB))[0]) for way in WAYS]
    assert seen == list(range(seen[0], seen[0] + 3))


@pytest.mark.parametrize("way", WAYS)
async def test_a_server_that_is_named_keeps_the_old_path(place: Place, way: Way) -> None:
    before = bypassed(place.forge)
    counted = await place.calls(way, "old", "counter", times=3)
    assert bypassed(place.forge) == before + 3
    counts = place.servers["old"].counts()
    if way == "http" and place.forge.version != "0.9.0":  # ContextForge 1.0 keeps that session itself
        assert counted == ["1", "2", "3"]
    else:
        assert counted == ["1", "1", "1"]
        assert counts["initialize"] == counts["method:tools/list"] == 3


def bypassed(forge: Forge) -> float:
    """Calls that went the gateway's own way."""
    lines = [line for line in forge.metrics().splitlines() if line.startswith("trunkline_pool_requests_total")]
    return sum(float(line.split()[-1]) for line in lines if 'result="bypass"' in line)


async def test_what_the_pool_did_is_at_the_prometheus_end_point(place: Place) -> None:
    await place.calls("http", "plain", "counter", times=3)
    shown = [line for line in place.forge.metrics().splitlines() if line.startswith("trunkline_")]
    names = {line.partition("{")[0] for line in shown}
    assert {"trunkline_pool_requests_total", "trunkline_channels", "trunkline_channels_closed_total"} <= names
    for word in ('result="hit"', 'result="miss"', 'state="active"', 'state="idle"', 'reason="client_left"'):
        assert any(word in line for line in shown), word
    assert token("0.9.0")[:20] not in "".join(shown)


LIFE_SECONDS = 4
"""Of a token that is to expire: the gateways count whole seconds."""


@pytest.mark.parametrize("way", WAYS)
async def test_more_calls_than_the_database_has_connections_may_wait_for_a_server(place: Place, way: Way) -> None:
    """ContextForge 0.9.0 holds one for each, and where there is none left it stands still for half a minute."""
    async with raw(place, way) as client:
        for n in range(40):
            await client.send("tools/call", {"name": "plain-hold", "arguments": {"gate": f"many-{way}"}}, id=n + 5)
        await place.servers["plain"].saw("mark:holding", 40)
        place.servers["plain"].open(f"many-{way}")
        answers = [await client.next() for _ in range(40)]
    assert {answer["id"] for answer in answers} == set(range(5, 45))
    assert [answer["result"]["content"][0]["text"] for answer in answers] == [f"many-{way} is open"] * 40


@pytest.mark.parametrize("way", WAYS)
async def test_a_cancelled_call_is_cancelled_at_the_server(place: Place, way: Way) -> None:
    async with raw(place, way) as client:
        await client.send("tools/call", {"name": "plain-hold", "arguments": {"gate": f"c-{way}"}}, id=5)
        await place.servers["plain"].saw("mark:holding")
        await client.send("notifications/cancelled", {"requestId": 5})
        await place.servers["plain"].saw("mark:cancelled")
        assert place.servers["plain"].counts()["method:notifications/cancelled"] == 1
        await client.send("tools/call", {"name": "plain-counter", "arguments": {}}, id=6)
        assert (await client.answer(6))["result"]["content"][0]["text"] == "1"


@pytest.mark.parametrize("way", ["sse", "ws"])
async def test_a_client_that_is_cut_leaves_nothing_behind_at_the_server(place: Place, way: Way) -> None:
    async with raw(place, way) as client:
        await client.send("tools/call", {"name": "plain-counter", "arguments": {}}, id=5)
        await client.answer(5)
        await client.send("tools/call", {"name": "plain-hold", "arguments": {"gate": f"cut-{way}"}}, id=6)
        await place.servers["plain"].saw("mark:holding")
    await place.servers["plain"].saw("mark:cancelled")
    await place.servers["plain"].saw("delete")


@pytest.mark.parametrize("way", ["sse", "ws"])
async def test_errors_come_through_and_notifications_have_no_answer(place: Place, way: Way) -> None:
    async with raw(place, way) as client:
        await client.send("tools/call", {"name": "no-such-tool", "arguments": {}}, id=5)
        refused = await client.answer(5)
        assert "error" in refused or refused["result"].get("isError")
        await client.send("notifications/roots/list_changed")
        await client.send("ping", id=6)
        assert (await client.next())["id"] == 6
        assert client.received.empty()


async def test_a_token_in_the_url_of_a_socket_counts_where_the_gateway_itself_takes_it(place: Place) -> None:
    url = f"{place.forge.url('plain', 'ws')}?token={token(place.forge.version)}"
    if place.forge.version == "0.9.0":
        async with connect(url, proxy=None) as socket:
            await socket.send(json.dumps({"jsonrpc": "2.0", "id": 1, "method": "ping"}))
            assert json.loads(await socket.recv())["id"] == 1
    else:
        with pytest.raises(InvalidStatus):
            await connect(url, proxy=None)


async def test_the_cookie_of_a_browser_opens_no_socket(place: Place) -> None:
    """It comes with what a page of any port of the host asks for, and what a socket says any page may read."""
    headers = {"Cookie": f"jwt_token={token(place.forge.version)}", "Origin": "http://127.0.0.1:1"}
    with pytest.raises(InvalidStatus):
        await connect(place.forge.url("plain", "ws"), additional_headers=headers, proxy=None)


async def test_who_would_be_led_to_the_login_page_gets_no_socket(place: Place) -> None:
    with pytest.raises(InvalidStatus):
        await connect(place.forge.url("plain", "ws"), additional_headers={"HX-Request": "true"}, proxy=None)


async def test_many_fast_calls_over_sse_are_no_fault(place: Place) -> None:
    async with raw(place, "sse") as client:
        for n in range(1, 201):
            await client.send("ping", id=n)
            assert (await client.answer(n))["result"] == {}


async def test_the_stream_of_another_user_takes_no_message(place: Place) -> None:
    async with raw(place, "sse") as client, aiohttp.ClientSession() as http:
        headers = {"Authorization": f"Bearer {token(place.forge.version, BOB)}"}
        message = {"jsonrpc": "2.0", "id": 9, "method": "ping"}
        async with http.post(client.endpoint, json=message, headers=headers) as refused:  # type: ignore[attr-defined]
            status = refused.status
        assert status in (403, 404) or place.forge.version != "0.9.0"  # 1.0 lets admins in, and here all are
        await client.send("ping", id=10)
        assert (await client.answer(10))["id"] == 10


async def test_the_session_of_another_user_looks_unknown_and_one_without_a_token_is_refused(place: Place) -> None:
    async with aiohttp.ClientSession() as http:
        url = place.forge.url("plain", "http")
        mine = {
            "Authorization": f"Bearer {token(place.forge.version)}",
            "Accept": "application/json, text/event-stream",
        }
        body = {"jsonrpc": "2.0", "id": 0, "method": "initialize", "params": INITIALIZE}
        async with http.post(url, json=body, headers=mine) as begun:
            session = {"Mcp-Session-Id": begun.headers["Mcp-Session-Id"]}
            await begun.read()
        call = {"jsonrpc": "2.0", "id": 1, "method": "ping"}
        theirs = {**mine, "Authorization": f"Bearer {token(place.forge.version, BOB)}"}
        expired = {**mine, "Authorization": f"Bearer {token(place.forge.version, seconds=-60)}"}
        async with http.post(url, json=call, headers={**theirs, **session}) as other:
            assert other.status in (403, 404)
        async with http.post(url, json=call, headers={**expired, **session}) as late:
            assert late.status == 401
        async with http.delete(url, headers={**mine, **session}) as ended:
            assert ended.status in (200, 204)


@pytest.mark.parametrize("way", WAYS)
async def test_a_kept_session_serves_nobody_whose_token_has_expired(place: Place, way: Way) -> None:
    """The session with the server outlives the token: each call is let in, or not, by the one that it comes with."""

    async def is_served(client: Raw, id: int) -> bool:
        try:
            await client.send("tools/call", {"name": "plain-counter", "arguments": {}}, id=id)
            return "result" in await client.answer(id)
        except Refused:
            return False

    async with raw(place, way, seconds=LIFE_SECONDS) as client, asyncio.timeout(PATIENCE + LIFE_SECONDS):
        served = 0
        while await is_served(client, served + 5):
            served += 1
        assert served > 0
        counts = place.servers["plain"].counts()
        assert (counts["method:tools/call"], counts["initialize"]) == (served, 1)


async def test_a_call_under_way_in_a_session_that_its_client_deletes_is_told_what_became_of_it(place: Place) -> None:
    async with raw(place, "http") as client:
        await client.send("tools/call", {"name": "plain-hold", "arguments": {"gate": "deleted"}}, id=5)
        await place.servers["plain"].saw("mark:holding")
        assert await client.leave() in (200, 204)
        result = (await client.answer(5))["result"]
        assert result["isError"]
        assert "client_left" in result["content"][0]["text"]
        await place.servers["plain"].saw("delete")


async def test_what_a_server_says_beside_its_answers_comes_on_the_stream_of_its_client(place: Place) -> None:
    if place.forge.version == "0.9.0":
        pytest.skip("ContextForge 0.9.0 hands nothing on")
    async with raw(place, "http") as client, listening(place, client.session) as heard, asyncio.timeout(PATIENCE):
        for n, tool, arguments in (
            (5, "log", {"text": "said"}),
            (6, "log", {"text": "unasked", "attributed": False}),
            (7, "notify", {"what": "prompts"}),
        ):
            await client.send("tools/call", {"name": f"plain-{tool}", "arguments": arguments}, id=n)
            await client.answer(n)
        said = [await heard.get() for _ in range(3)]
    assert [message["params"]["data"] for message in said[:2]] == ["said 1", "unasked 1"]
    assert said[2]["method"] == "notifications/prompts/list_changed"


async def test_a_call_that_fails_over_http_is_answered_as_one_that_did(place: Place) -> None:
    async with raw(place, "http") as client:
        await client.send("tools/call", {"name": "no-such-tool", "arguments": {}}, id=5)
        result = (await client.answer(5))["result"]
        assert result["isError"]
        assert "no-such-tool" in result["content"][0]["text"]


async def test_an_edited_record_ends_its_sessions_and_the_next_call_has_the_new_headers(place: Place) -> None:
    async with raw(place, "ws") as client:
        await client.send("tools/call", {"name": "plain-counter", "arguments": {}}, id=5)
        assert (await client.answer(5))["result"]["content"][0]["text"] == "1"
        can_edit_auth = place.forge.version != "0.9.0"  # which stores it in a form that it cannot read
        change = {"auth_type": "bearer", "auth_token": "edited"} if can_edit_auth else {"passthrough_headers": ["X-A"]}
        await asyncio.to_thread(place.forge.api, "PUT", f"/gateways/{place.forge.gateways['plain']}", change)
        place.servers["plain"].reset()

        async def again() -> str:
            await client.send("tools/call", {"name": "plain-counter", "arguments": {}}, id=6)
            answer = await client.answer(6)
            assert "result" in answer, answer
            text: str = answer["result"]["content"][0]["text"]
            return text

        assert await again() == "1"
        call = next(r for r in place.servers["plain"].report()["requests"] if r.get("tool") == "counter")
        assert dict(call["headers"]).get("authorization") == ("Bearer edited" if can_edit_auth else None)


async def test_sighup_ends_the_sessions_so_that_renewed_certificates_count(place: Place) -> None:
    if place.forge.version == "0.9.0":
        pytest.skip("ContextForge 0.9.0 has no such signal")
    async with raw(place, "http") as client, asyncio.timeout(PATIENCE):

        async def count(n: int) -> str:
            await client.send("tools/call", {"name": "plain-counter", "arguments": {}}, id=n)
            text: str = (await client.answer(n))["result"]["content"][0]["text"]
            return text

        assert [await count(n) for n in (5, 6)] == ["1", "2"]
        place.forge.process.send_signal(signal.SIGHUP)
        await place.servers["plain"].saw("delete")
        assert [await count(n) for n in (7, 8)] == ["1", "2"]


async def test_a_server_that_was_restarted_is_met_again_by_the_next_call(version: Version, built: Place) -> None:
    with upstream("sdk2") as first:
        name = f"again-{first.port}"
        built.forge.register(name, first.url)
        async with raw(built, "ws") as client:

            async def count(id: int) -> dict[str, Any]:
                await client.send("tools/call", {"name": f"{name}-counter", "arguments": {}}, id=id)
                return await client.answer(id)

            assert (await count(5))["result"]["content"][0]["text"] == "1"
            first.process.kill()
            with upstream("sdk2", port=first.port):
                assert [(await count(n))["result"]["content"][0]["text"] for n in (6, 7)] == ["1", "2"]


async def test_a_gateway_that_is_told_to_stop_ends_its_streams_and_its_sessions_with_servers(version: Version) -> None:
    with (
        tempfile.TemporaryDirectory() as folder,
        upstream("sdk2") as server,
        contextforge(version, Path(folder)) as forge,
    ):
        forge.register("plain", server.url)
        async with raw(Place(forge, {"plain": server}), "sse") as client:
            await client.send("tools/call", {"name": "plain-counter", "arguments": {}}, id=5)
            await client.answer(5)
            server.reset()
            forge.process.send_signal(signal.SIGTERM)
            await asyncio.to_thread(forge.process.wait, PATIENCE)
        assert server.report()["earlier"]["delete"] == 1


async def test_a_session_for_which_there_is_no_room_is_kept_as_the_gateway_itself_keeps_it(version: Version) -> None:
    if version == "0.9.0":
        pytest.skip("ContextForge 0.9.0 keeps no session itself")
    with (
        tempfile.TemporaryDirectory() as folder,
        upstream("sdk2") as server,
        contextforge(version, Path(folder), env={"TRUNKLINE_MAX_WORKFLOWS_PER_USER": "1"}) as forge,
    ):
        forge.register("plain", server.url)
        server.reset()
        place = Place(forge, {"plain": server})
        async with raw(place, "http") as first, raw(place, "http") as second:

            async def count(client: Raw, n: int) -> str:
                await client.send("tools/call", {"name": "plain-counter", "arguments": {}}, id=n)
                text: str = (await client.answer(n))["result"]["content"][0]["text"]
                return text

            assert [await count(first, n) for n in (1, 2)] == ["1", "2"]
            assert [await count(second, n) for n in (1, 2)] == ["1", "2"]
            assert await first.leave() in (200, 204)
            assert await count(second, 3) == "3", "now there is room, but its session is where it was"
        assert server.counts()["initialize"] == 2
