"""What a client asks: each answer to the call that asked, whatever ids clients use; and what ends a call."""

import asyncio
import json
import random
from collections.abc import Callable
from typing import Any

import pytest
from harness.memory_wire import Exchange, MemoryServer, echo, message
from harness.muxing import ALICE, BOB, Client, begin, bench, members, notification
from trunkline.mux.burden import LARGE_BYTES
from trunkline.mux.demux import TOMBSTONE_SECONDS
from trunkline.mux.directory.memory import MemoryDirectory
from trunkline.mux.envelope import Envelope
from trunkline.mux.errors import SessionLost
from trunkline.mux.limits import MAX_BODY_BYTES, Pooling
from trunkline.mux.pool import Pool
from trunkline.mux.ports import NONE
from trunkline.mux.principal import Principal
from trunkline.mux.request import EXTENSIONS
from trunkline.mux.upstream import Upstream

pytestmark = pytest.mark.anyio

IDS = (b"1", b'"1"', b"0", b"-1", b"%d" % 2**60, b"123456789012345678901234567890")


def cancel(id: bytes, **params: object) -> Envelope:
    return notification("notifications/cancelled", {"requestId": json.loads(id), **params})


def argument(exchange: Exchange) -> int:
    read: int = exchange.json["params"]["arguments"]["n"]
    return read


async def test_g1_64_calls_in_flight_under_the_same_ids_get_their_own_answers_in_any_order() -> None:
    async with bench() as at:
        clients = [await at.client(ALICE), await at.client(BOB)]
        calls = []
        for n in range(64):
            client, spelled = clients[n % 2], IDS[n % len(IDS)]
            calls.append((client, spelled, n, client.call({"arguments": {"n": n}}, id=spelled)))
        await at.server.got("tools/call", 64)
        waiting = at.server.of("tools/call")
        for session in at.server.sessions:
            minted = [exchange.id for exchange in session.of("tools/call")]
            assert len(set(minted)) == 32
            assert all(0 < int(number) < 2**31 for number in minted)
        random.Random(7).shuffle(waiting)
        for exchange in waiting:
            exchange.answer({"for": argument(exchange)})
        for client, spelled, n, exchange in calls:
            [answer] = await client.raw_answers(exchange)
            assert members(answer)["id"] == spelled, "byte for byte"
            assert json.loads(members(answer)["result"]) == {"for": n}
        assert [client.workflow.inflight for client in clients] == [0, 0]
        assert at.counts["calls", "x", "tools/call", "ok"] == 64


async def test_g2_what_is_not_understood_goes_through_unchanged_in_both_directions() -> None:
    async with bench() as at:
        client = await at.client()
        params = {"name": "t", "arguments": {"n": 10**29, "é": [1.50]}, "_meta": {"x.example/y": None}, "odd": [[]]}
        exchange = client.call(params, method="vendor/odd", headers={"X-Request-Class": "batch"})
        upstream = await at.server.got("vendor/odd")
        sent = members(upstream.text)["params"]
        assert json.loads(sent, parse_float=str) == json.loads(json.dumps(params), parse_float=str)
        assert members(sent)["arguments"] == json.dumps(params["arguments"]).encode()
        assert upstream.headers == {"x-request-class": "batch"}
        odd = b'{ "jsonrpc" : "2.0", "id":%s, "result": {"n": 123456789012345678901234567890 }, "vendor":[1,2] }'
        upstream.finish(odd % upstream.id)
        [answer] = await client.raw_answers(exchange)
        assert members(answer)["result"] == b'{"n": 123456789012345678901234567890 }'
        assert members(answer)["vendor"] == b"[1,2]"
        assert at.counts["calls", "x", "other", "ok"] == 1


async def test_an_error_of_the_server_reaches_the_caller_as_it_is() -> None:
    async with bench() as at:
        client = await at.client()
        exchange = client.call(id=b'"q"')
        (await at.server.got("tools/call")).refuse(-32055, "not today")
        answer = await client.answer(exchange)
        assert answer == {"jsonrpc": "2.0", "id": "q", "error": {"code": -32055, "message": "not today"}}
        assert at.counts["calls", "x", "tools/call", "error"] == 1


async def test_a_ping_is_answered_without_the_server() -> None:
    async with bench() as at:
        client = await at.client()
        assert await client.answer(client.call(method="ping", id=b'"p"')) == {"jsonrpc": "2.0", "id": "p", "result": {}}
        assert at.server.of("ping") == []


async def test_g3_progress_reaches_the_call_that_asked_under_its_own_token() -> None:
    async with bench() as at:
        client = await at.client()
        tokens = ["t", 1, "1", 10**29]
        exchanges = [client.call({"_meta": {"progressToken": token}}, id=b"1") for token in tokens]
        await at.server.got("tools/call", 4)
        for n, upstream in reversed(list(enumerate(at.server.of("tools/call")))):
            token = upstream.json["params"]["_meta"]["progressToken"]
            upstream.say(message("notifications/progress", {"progressToken": token, "progress": n}))
        for upstream in at.server.of("tools/call"):
            upstream.answer()
        for n, (token, exchange) in enumerate(zip(tokens, exchanges, strict=True)):
            progress, answer = await client.answers(exchange)
            assert progress["params"] == {"progressToken": token, "progress": n}
            assert answer["id"] == 1


async def test_the_calls_of_one_workflow_are_limited() -> None:
    async with bench(max_inflight_per_workflow=2) as at:
        client = await at.client()
        exchanges = [client.call(id=b"%d" % n) for n in range(2)]
        refused = await client.answer(client.call(id=b"9"))
        assert refused["error"]["code"] == -31003
        assert refused["error"]["data"] == {"limit": "max_inflight_per_workflow"}
        met = client.workflow.account.call
        assert met is not None
        assert (met.result, met.detail) == ("refused", "max_inflight_per_workflow")
        at.server.on_request = echo
        for upstream in at.server.of("tools/call"):
            upstream.answer()
        for exchange in exchanges:
            assert "result" in await client.answer(exchange)
        assert "result" in await client.answer(client.call(id=b"9"))
        met = client.workflow.account.call
        assert met is not None
        assert met.result == "hit", "what its last call met"


async def test_g10_the_large_calls_of_one_user_are_limited_by_their_bytes_until_they_end() -> None:
    async with bench() as at:
        client, other = await at.client(ALICE), await at.client(BOB)
        largest = {"arguments": {"pad": "x" * (MAX_BODY_BYTES - 200)}}
        exchanges = [client.call(largest, id=b"%d" % n) for n in range(16)]
        refused = await client.answer(client.call(largest, id=b"16"))
        assert refused["error"]["code"] == -31003
        assert refused["error"]["data"] == {"limit": "max_large_bytes_per_user"}
        small, theirs = client.call(id=b"17"), other.call(largest)
        at.server.of("tools/call")[0].answer()
        assert "result" in await client.answer(exchanges[0])
        again = client.call(largest, id=b"18")
        await at.server.got("tools/call", 19)
        for upstream in at.server.of("tools/call")[1:]:
            upstream.answer()
        for exchange in [*exchanges[1:], small, again]:
            assert "result" in await client.answer(exchange)
        assert "result" in await other.answer(theirs)
        assert at.pool.burden.held == 0


class Later:
    """A loop of which a test says when it is later."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self.due: list[tuple[float, Callable[[], None]]] = []

    def __getattr__(self, name: str) -> Any:
        return getattr(self._loop, name)

    def call_later(self, seconds: float, then: Callable[[], None]) -> None:
        self.due.append((seconds, then))


@pytest.mark.parametrize("how", ["cancelled", "timed out", "ended"])
async def test_g10_what_is_taken_back_counts_until_its_tombstone_is_over(how: str) -> None:
    async with bench(reuse="user" if how == "ended" else "workflow") as at:
        client = await at.client(ALICE)
        exchange = client.call({"arguments": {"pad": "x" * LARGE_BYTES}}, id=b"1")
        await at.server.got("tools/call")
        later = client.workflow.loop = Later(client.workflow.loop)  # type: ignore[assignment]
        if how == "cancelled":
            client.workflow.notify(cancel(b"1"), NONE)
        elif how == "timed out":
            at.clock.advance(300)
        else:
            await at.pool.end(client.workflow, "deleted")
        assert "error" in await client.answer(exchange)
        [(seconds, lay_down)] = later.due
        assert seconds == TOMBSTONE_SECONDS
        assert at.pool.burden.held > LARGE_BYTES
        lay_down()
        assert at.pool.burden.held == 0


async def test_g10_what_is_taken_back_before_it_was_sent_counts_no_longer() -> None:
    async with bench(stateless=True) as at:
        client = await at.client(ALICE)
        at.server.pause("initialize")
        at.server.session.receiver.lost(SessionLost("gone", executed="unknown"))
        exchange = client.call({"arguments": {"pad": "x" * LARGE_BYTES}}, id=b"1")
        await at.server.reached("initialize")
        assert at.pool.burden.held > LARGE_BYTES
        client.workflow.notify(cancel(b"1"), NONE)
        assert at.pool.burden.held == 0
        assert (await client.answer(exchange))["error"]["code"] == -32800
        at.server.let("initialize")


async def test_g9_a_server_that_does_not_answer_large_calls_leaves_room_for_those_to_others() -> None:
    users = [Principal("issuer", f"tenant {n}", "user") for n in range(4)]
    largest = {"arguments": {"pad": "x" * (MAX_BODY_BYTES - 200)}}
    async with bench(max_inflight_per_channel=300) as at:
        clients = [await at.client(user) for user in users]
        exchanges = [client.call(largest, id=b"%d" % n) for client in clients[:3] for n in range(16)]
        refused = await clients[3].answer(clients[3].call(largest))
        assert refused["error"]["data"] == {"limit": "max_large_bytes_per_server"}
        elsewhere = await at.client(users[3], server="y")
        others = [elsewhere.call(largest, id=b"%d" % n) for n in range(16)]
        await at.other.got("tools/call", 16)
        for upstream in [*at.server.of("tools/call"), *at.other.of("tools/call")]:
            upstream.answer()
        for exchange in others:
            assert "result" in await elsewhere.answer(exchange)
        for number, exchange in enumerate(exchanges):
            assert "result" in await clients[number // 16].answer(exchange)


# Cancellation.


async def test_g8_a_workflow_that_drains_takes_no_more_calls_and_those_in_flight_end() -> None:
    async with bench() as at:
        client = await at.client()
        waiting = client.call(id=b"1")
        quiet = client.workflow.calls.drain()
        refused = await client.answer(client.call(id=b"2"))
        assert (refused["error"]["code"], refused["error"]["data"]) == (-31002, {"executed": "no"})
        assert not quiet.is_set()
        (await at.server.got("tools/call")).answer({"n": 1})
        assert (await client.answer(waiting))["result"] == {"n": 1}
        assert quiet.is_set()


async def test_g6_trust_brings_nothing_back_that_was_lost_with_its_session() -> None:
    server = MemoryServer()
    server.on_request = echo
    upstream = Upstream("x", server, trust_annotations=True)
    async with server.running(), Pool({"x": upstream}, MemoryDirectory(), pooling=Pooling()).running() as pool:
        client = Client((await begin(pool)).workflow)
        server.session.forget()
        lost = await client.answer(client.call())
        assert lost["error"]["data"] == {"executed": "no"}
        assert pool.statistics.total("repeated_calls") == 0


async def test_g6_a_call_that_may_run_twice_is_sent_again_but_for_a_worker_that_drains() -> None:
    server = MemoryServer()
    upstream = Upstream("x", server, trust_annotations=True)
    tools = {"tools": [{"name": "t", "annotations": {"idempotentHint": True}}]}
    async with server.running(), Pool({"x": upstream}, MemoryDirectory(), pooling=Pooling()).running() as pool:
        client = Client((await begin(pool)).workflow)
        listed = client.call(method="tools/list")
        (await server.got("tools/list")).answer(tools)
        await client.answer(listed)
        for number in (1, 3):
            cut = client.call({"name": "t"})
            (await server.got("tools/call", number)).cut()
            (await server.got("tools/call", number + 1)).answer({"n": number})
            assert (await client.answer(cut))["result"] == {"n": number}
        late = client.call({"name": "t"})
        client.workflow.calls.drain()
        (await server.got("tools/call", 5)).cut()
        assert (await client.answer(late))["error"]["data"] == {"executed": "unknown"}
        assert pool.statistics.counts["repeated_calls", "x", "trusted"] == 2


async def test_g6_a_call_that_waited_for_a_server_which_speaks_nonsense_did_not_run() -> None:
    async with bench(stateless=True) as at:
        client = await at.client()
        at.server.answers_initialize = lambda exchange: exchange.answer({"protocolVersion": "1999-01-01"})
        at.server.session.receiver.lost(SessionLost("gone", executed="unknown"))
        error = (await client.answer(client.call()))["error"]
        assert (error["code"], error["data"]) == (-32603, {"executed": "no"})


async def test_e12_a_cancellation_reaches_the_server_under_the_id_that_it_knows() -> None:
    async with bench() as at:
        client = await at.client()
        client.call(id=b"7")
        exchange = client.call(id=b'"7"')
        upstream = await at.server.got("tools/call", 2)
        client.workflow.notify(cancel(b'"7"', reason="enough"), {})
        answer = await client.answer(exchange)
        assert (answer["id"], answer["error"]["code"]) == ("7", -32800)
        told = await at.server.got("notifications/cancelled")
        assert told.json["params"] == {"requestId": int(upstream.id), "reason": "enough"}
        assert client.workflow.inflight == 1
        assert not upstream.is_cut, "the server may still answer"
        client.leave()


async def test_e15_the_late_answer_to_a_cancelled_call_is_swallowed_and_counted() -> None:
    async with bench() as at:
        client = await at.client()
        exchange = client.call()
        upstream = await at.server.got("tools/call")
        client.workflow.notify(cancel(b"1"), {})
        [cancelled] = await client.answers(exchange)
        again = client.call()
        upstream.answer({"late": True})
        (await at.server.got("tools/call", 2)).answer({"late": False})
        assert (await client.answer(again))["result"] == {"late": False}
        assert cancelled["error"]["code"] == -32800
        assert at.counts["late_response", "x"] == 1


async def test_a_call_whose_answer_never_comes_is_given_up_after_its_tombstone() -> None:
    async with bench() as at:
        client = await at.client()
        exchange = client.call()
        upstream = await at.server.got("tools/call")
        client.workflow.notify(cancel(b"1"), {})
        await client.answer(exchange)
        at.clock.advance(TOMBSTONE_SECONDS)
        await at.server.until(lambda: upstream.is_cut)
        assert [channel.is_idle for _, channel in at.pool.channels] == [True]


@pytest.mark.parametrize(
    ("ids", "named", "reason"),
    [((b"1", b"1"), b"1", "ambiguous_cancel"), ((b"1",), b'"1"', "unknown_cancel"), ((), b"1", "unknown_cancel")],
)
async def test_a_cancellation_that_names_no_single_call_is_ignored_and_counted(
    ids: tuple[bytes, ...], named: bytes, reason: str
) -> None:
    async with bench() as at:
        client = await at.client()
        exchanges = [client.call(id=spelled) for spelled in ids]
        client.workflow.notify(cancel(named), {})
        assert at.counts[reason, "x"] == 1
        at.server.on_request = echo
        for exchange in exchanges:
            assert "result" in await client.answer(exchange)
        assert at.server.of("notifications/cancelled") == []


async def test_a_client_cannot_cancel_the_call_of_another() -> None:
    async with bench() as at:
        alice, bob = await at.client(ALICE), await at.client(BOB)
        exchange = alice.call()
        upstream = await at.server.got("tools/call")
        bob.workflow.notify(cancel(b"1"), {})
        upstream.answer()
        assert "result" in await alice.answer(exchange)


# Time.


async def test_a_call_without_answer_or_progress_times_out_and_may_have_run() -> None:
    async with bench(request_timeout=100) as at:
        client = await at.client()
        asked = client.call({"_meta": {"progressToken": "t"}}, id=b"1")
        silent = client.call(id=b"2")
        await at.server.got("tools/call", 2)
        first, second = at.server.of("tools/call")
        at.clock.advance(60)
        first.say(message("notifications/progress", {"progressToken": int(first.id), "progress": 1}))
        at.clock.advance(60)
        answer = await client.answer(silent)
        assert answer["error"]["code"] == -31004
        assert answer["error"]["data"] == {"executed": "unknown"}
        told = await at.server.got("notifications/cancelled")
        assert told.json["params"]["requestId"] == int(second.id)
        assert client.workflow.inflight == 1
        first.answer()
        assert "result" in await client.answer(asked)


async def test_progress_extends_a_call_no_further_than_its_absolute_end() -> None:
    async with bench(request_timeout=10) as at:
        client = await at.client()
        exchange = client.call({"_meta": {"progressToken": "t"}})
        upstream = await at.server.got("tools/call")
        for _ in range(EXTENSIONS * 2):
            at.clock.advance(5)
            upstream.say(message("notifications/progress", {"progressToken": int(upstream.id), "progress": 1}))
        assert (await client.answers(exchange))[-1]["error"]["code"] == -31004
