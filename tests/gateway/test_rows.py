"""What `/api/*` tells: pages of workflows that can be searched, and the account of one."""

import asyncio
from collections import Counter
from dataclasses import replace
from itertools import count
from typing import Any, Literal

import pytest
from harness.clustering import two
from harness.memory_wire import echo
from harness.muxing import ALICE, BOB, Bench, Client, bench, initialize
from trunkline.gateway.metrics import gauges
from trunkline.gateway.rows import MAX_CANDIDATES, MAX_PAGE, NotTold, explanation, page, server_rows, workflow_row
from trunkline.mux.account import MAX_ENDED, MAX_EVENTS
from trunkline.mux.breaker import Circuit
from trunkline.mux.envelope import parse
from trunkline.mux.errors import SessionLost, UpstreamUnreachable
from trunkline.mux.limits import MAX_BODY_BYTES
from trunkline.mux.pool import Pool
from trunkline.mux.workflow import Workflow

pytestmark = pytest.mark.anyio


def handles(told: dict[str, Any]) -> list[str]:
    return [row["workflow"] for row in told["sessions"]]


def differing(told: dict[str, Any]) -> list[tuple[str, tuple[str, ...]]]:
    return [(difference["part"], difference["names"]) for difference in told["differs"]]


async def opened(at: Bench, **options: Any) -> Client:
    """A client whose workflow has had one call."""
    client = await at.client(ALICE, **options)
    await client.answer(client.call())
    return client


def told_of(at: Bench, workflow: Workflow) -> dict[str, Any]:
    return explanation(at.pool, workflow.handle)


# Rows.


async def test_rows_of_a_server_and_of_a_workflow() -> None:
    async with bench() as at:
        at.server.pause("connect")
        opening = asyncio.create_task(at.client(ALICE))
        await at.server.reached("connect")
        [workflow] = at.pool.workflows
        assert workflow_row(workflow)["channel"] == "opening"
        told = told_of(at, workflow)
        assert (told["initialize"], told["pool"], told["channel"]) == (None, None, None)
        at.server.let("connect")
        await opening
        assert workflow_row(workflow)["channel"] == "open"
        one, other = server_rows(at.pool, beside=lambda: Counter(y=7))
        assert (one["workflows"], one["attached"], one["channel_states"]["active"]) == (1, 0, 0)
        assert (other["workflows"], other["inflight"], other["state"]) == (0, 7, "unused")


async def test_calls_in_flight_are_told_where_they_are_served() -> None:
    async with two() as (_, a, b, session_id):
        client = await b.beside(session_id)
        exchange = client.call()
        told = {
            worker: (server_rows(worker.pool)[0]["inflight"], gauges(worker.pool, Counter)["inflight", "x"])
            for worker in (a, b)
        }
        assert told == {a: (0, 0), b: (1, 1)}
        await client.answer(exchange)


async def test_what_rows_have_in_common_is_looked_for_once_for_all_servers(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = Counter[str]()

    def beside() -> Counter[str]:
        asked["beside"] += 1
        return Counter(x=1)

    def circuits(pool: Pool) -> list[Circuit]:
        asked["circuits"] += 1
        return [Circuit("y", "closed", 1, 9.0), Circuit("y", "open", 3, 5.0), Circuit("y", "open", 4, 4.0)]

    async with bench() as at:
        monkeypatch.setattr(Pool, "circuits", property(circuits))
        monkeypatch.setattr(Pool, "upstreams", dict.fromkeys("xyz", at.pool.upstreams["x"]))
        rows = {row["server"]: row for row in server_rows(at.pool, beside)}
        assert asked == {"beside": 1, "circuits": 1}
        assert (rows["x"]["inflight"], rows["x"]["circuit"], rows["y"]["inflight"]) == (1, None, 0)
        assert (rows["y"]["circuit"]["state"], rows["y"]["circuit"]["failures"]) == ("open", 3)
        gauges(at.pool, beside)
        assert asked["beside"] == 2


# Pages.


async def test_pages_hold_every_workflow_once_in_the_order_in_which_they_began() -> None:
    async with bench() as at:
        began = [(await at.client(ALICE)).workflow.handle for _ in range(7)]
        seen: list[str] = []
        after: str | None = "0"
        turns = count()
        while after is not None:
            told = page(at.pool, {"limit": "3", "after": after})
            assert told["total"] == 7
            seen += handles(told)
            after = told["next"]
            next(turns)
        assert seen == began
        assert next(turns) == 3


async def test_a_page_goes_on_where_the_last_one_ended_although_that_workflow_is_gone() -> None:
    async with bench() as at:
        workflows = [(await at.client(ALICE)).workflow for _ in range(5)]
        first = page(at.pool, {"limit": "2"})
        for workflow in workflows[:2]:
            await at.pool.end(workflow, "deleted")
        newcomer = (await at.client(ALICE)).workflow
        rest = page(at.pool, {"limit": "9", "after": first["next"]})
        assert handles(first) + handles(rest) == [workflow.handle for workflow in [*workflows, newcomer]]
        assert (rest["total"], rest["next"]) == (4, None)


async def test_workflows_are_found_by_what_pages_show_of_them() -> None:
    async with bench() as at:
        one, two, three = await at.client(ALICE), await at.client(BOB), await at.client(BOB, server="y")
        two.workflow.wire_came()
        queries = [
            ({"q": one.workflow.handle[2:9]}, [one]),
            ({"q": one.workflow.handle.upper()}, [one]),
            ({"q": BOB.digest()}, [two, three]),
            ({"q": "y"}, [three]),
            ({"server": "x"}, [one, two]),
            ({"state": "attached"}, [two]),
            ({"state": "detached", "server": "x"}, [one]),
            ({"state": "detached", "server": "x", "q": "Y"}, []),
            ({"q": "nothing"}, []),
            ({"q": ""}, [one, two, three]),
        ]
        for query, found in queries:
            told = page(at.pool, query)
            assert handles(told) == [client.workflow.handle for client in found], query
            assert (told["total"], told["next"]) == (len(found), None)
        assert page(at.pool, {"server": "x", "limit": "1"})["total"] == 2
        two.leave()


@pytest.mark.parametrize(
    "query",
    [
        *({"limit": value} for value in ("0", str(MAX_PAGE + 1), "-1", "x", "²")),
        *({"after": value} for value in ("x", "9" * 30)),
        {"state": "open"},
    ],
)
async def test_a_wrong_value_is_told_by_its_name(query: dict[str, str]) -> None:
    async with bench() as at:
        with pytest.raises(NotTold) as refused:
            page(at.pool, query)
        assert refused.value.status == 400
        assert refused.value.body["error"].startswith(next(iter(query)))


# Which workflow.


async def test_enough_of_a_handle_names_a_workflow() -> None:
    async with bench() as at:
        client = await at.client(ALICE)
        handle = client.workflow.handle
        for spelled in (handle, handle[:4], handle[:7].upper(), f" {handle} "):
            assert explanation(at.pool, spelled)["workflow"]["workflow"] == handle
        for spelled, status in ((handle[:3], 400), ("", 400), ("zzzz", 404), (f"{handle}0", 404)):
            with pytest.raises(NotTold) as refused:
                explanation(at.pool, spelled)
            assert refused.value.status == status
            assert spelled == "" or spelled not in str(refused.value.body)


async def test_what_several_begin_with_names_them_and_a_whole_handle_is_one() -> None:
    async with bench() as at:
        workflows = [(await at.client(ALICE)).workflow for _ in range(MAX_CANDIDATES + 2)]
        for n, workflow in enumerate(workflows):
            workflow.handle = f"abcd{n:02}"
        workflows[0].handle = "abcd"
        await at.pool.end(workflows[-1], "deleted")
        with pytest.raises(NotTold) as refused:
            explanation(at.pool, "abcd0")
        assert refused.value.status == 409
        assert refused.value.body["candidates"] == [f"abcd{n:02}" for n in range(1, 10)]
        assert explanation(at.pool, "abcd")["workflow"]["workflow"] == "abcd"
        assert explanation(at.pool, "abcd11")["ended"]["cause"] == "deleted"


# Why.


async def test_a_workflow_that_shares_with_nobody_is_compared_with_the_nearest_before_it() -> None:
    async with bench(on_request=echo) as at:
        first = await opened(at)
        told = told_of(at, first.workflow)
        assert (told["initialize"]["result"], told["initialize"]["reason"]) == ("miss", "own")
        assert differing(told["initialize"]) == []
        assert (told["asked"], told["pool"]["result"], told["pool"]["reason"]) == ("call", "hit", "open")
        same = await at.client(ALICE)
        assert differing(told_of(at, same.workflow)["initialize"]) == [("workflow", ())]
        plain = initialize(capabilities={"roots": {}}, clientInfo={"name": "other", "size": 7})
        too_large = parse(plain.encode().replace(b"7", b"1e400"), limit=MAX_BODY_BYTES)
        other = await at.client(
            ALICE,
            message=too_large,
            session_headers={"X-Tenant": "s3cret"},
        )
        assert differing(told_of(at, other.workflow)["initialize"]) == [
            ("session_headers", ("X-Tenant",)),
            ("capabilities", ("roots",)),
            ("client_info", ()),
            ("workflow", ()),
        ]
        bobs = await at.client(BOB)
        assert differing(told_of(at, bobs.workflow)["initialize"])[0] == ("principal", ())
        assert told_of(at, first.workflow)["initialize"]["differs"] == [], "it was there before them"


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({"message": initialize("2025-06-18")}, [("revision", ())]),
        ({"message": initialize(capabilities={"experimental": {}})}, [("capabilities", ("experimental",))]),
        ({"session_headers": {"X-Tenant": "two"}}, [("session_headers", ("X-Tenant",))]),
        ({"message": initialize(capabilities={"sampling": {}, "roots": {}})}, None),
        ({"message": initialize(clientInfo={"name": "other", "version": "1"})}, None),
    ],
    ids=["revision", "capabilities", "session headers", "masked capabilities", "client info"],
)
async def test_what_keeps_two_workflows_of_a_user_apart(options: Any, expected: Any) -> None:
    async with bench(reuse="user") as at:
        one = await at.client(ALICE)
        assert told_of(at, one.workflow)["initialize"]["reason"] == "first"
        two = await at.client(ALICE, **options)
        told = told_of(at, two.workflow)
        if expected is None:
            assert (told["initialize"]["result"], told["initialize"]["reason"]) == ("hit", "open")
            assert told["channel"]["shared_with"] == 1
        else:
            assert (told["initialize"]["result"], told["initialize"]["reason"]) == ("miss", "key")
            assert differing(told["initialize"]) == expected
            assert told["channel"]["shared_with"] == 0


async def test_a_session_of_another_principal_is_the_nearest_where_there_is_no_own() -> None:
    async with bench(reuse="user") as at:
        await at.client(BOB)
        client = await at.client(ALICE)
        assert differing(told_of(at, client.workflow)["initialize"]) == [("principal", ())]
        elsewhere = await at.client(ALICE, server="y")
        assert told_of(at, elsewhere.workflow)["initialize"]["reason"] == "first"


@pytest.mark.parametrize("reuse", ["user", "workflow"])
async def test_settings_that_changed_keep_two_workflows_apart(reuse: Literal["user", "workflow"]) -> None:
    async with bench(reuse=reuse) as at:
        await at.client(ALICE)
        changed = replace(at.pool.upstreams["x"], generation=1, credential="another")
        at.pool.reconfigure({**at.pool.upstreams, "x": changed}, at.pool.pooling)
        client = await at.client(ALICE)
        parts = [part for part, _ in differing(told_of(at, client.workflow)["initialize"])]
        assert parts[:2] == ["generation", "credential"]


async def test_a_full_session_is_the_reason_for_another() -> None:
    async with bench(reuse="user", max_inflight_per_channel=1) as at:
        one, two = await at.client(ALICE), await at.client(ALICE)
        first, second = one.call(), two.call()
        told = told_of(at, two.workflow)
        assert (told["pool"]["result"], told["pool"]["reason"]) == ("miss", "full")
        assert "max_inflight_per_channel = 1" in told["pool"]["says"]
        assert told["channel"]["sessions"] == 2
        for request in (await at.server.got("tools/call"), await at.server.got("tools/call", 2)):
            request.answer()
        await one.answer(first)
        await two.answer(second)


async def test_a_limit_is_the_reason_for_a_refusal() -> None:
    async with bench(max_inflight_per_workflow=1) as at:
        client = await at.client(ALICE)
        one = client.call()
        refused = client.call(id=b"2")
        assert (await client.answer(refused))["error"]["code"] == -31003
        told = told_of(at, client.workflow)["pool"]
        assert (told["result"], told["detail"]) == ("refused", "max_inflight_per_workflow")
        (await at.server.got("tools/call")).answer()
        await client.answer(one)


async def test_a_session_that_was_lost_is_opened_anew_and_both_are_told() -> None:
    async with bench(reuse="user", on_request=echo) as at:
        client = await opened(at)
        at.server.sessions[0].receiver.lost(SessionLost("s3cret", executed="unknown"))
        assert told_of(at, client.workflow)["timeline"][-1]["what"] == "lost"
        await client.answer(client.call())
        told = told_of(at, client.workflow)
        assert (told["pool"]["result"], told["pool"]["reason"]) == ("miss", "lost")
        assert [event["what"] for event in told["timeline"]] == ["created", "lost", "reopened"]


async def test_a_workflow_that_came_back_tells_by_what() -> None:
    async with bench() as at:
        client = await at.client(ALICE, key="s3cret-key")
        await at.client(ALICE, key="s3cret-key")
        told = told_of(at, client.workflow)
        assert (told["initialize"]["reason"], told["initialize"]["detail"]) == ("returned", "key")
        await at.client(ALICE, session_id=client.workflow.record.session_id)
        told = told_of(at, client.workflow)
        assert (told["initialize"]["reason"], told["initialize"]["detail"]) == ("returned", "session_id")
        assert [event["what"] for event in told["timeline"]] == ["created", "resumed"]


async def test_a_workflow_that_began_anew_tells_what_became_of_the_one_before() -> None:
    async with bench() as at:
        first = (await at.client(ALICE, key="s3cret-key")).workflow
        second = (await at.client(ALICE, key="s3cret-key", message=initialize("2025-06-18"))).workflow
        told = told_of(at, second)
        assert (told["origin"]["cause"], told["origin"]["before"]) == ("reset", first.handle)
        assert differing(told["origin"]) == [("revision", ())]
        assert told["timeline"][0]["what"] == "reset"
        await at.pool.end(second, "idle")
        await at.ended("idle")
        third = (await at.client(ALICE, key="s3cret-key")).workflow
        told = told_of(at, third)
        assert (told["origin"]["cause"], told["origin"]["before"]) == ("idle", second.handle)
        at.pool.ended.clear()
        await at.pool.end(third, "deleted")
        at.pool.ended.clear()
        fourth = (await at.client(ALICE, key="s3cret-key")).workflow
        assert told_of(at, fourth)["origin"]["cause"] == ""


# The ended.


async def test_a_workflow_that_ended_tells_why_and_what_it_met() -> None:
    async with bench(on_request=echo) as at:
        client = await opened(at)
        await at.pool.end(client.workflow, "evicted")
        told = told_of(at, client.workflow)
        assert told["ended"]["cause"] == "evicted"
        assert "max_workflows" in told["ended"]["says"]
        assert (told["workflow"]["state"], told["channel"]) == ("ended", None)
        assert told["timeline"][-1]["what"] == "ended"
        assert told["pool"]["result"] == "hit"


async def test_a_server_that_refused_is_told_of_a_workflow_that_never_opened() -> None:
    async with bench() as at:
        at.server.unreachable = UpstreamUnreachable("s3cret refused", executed="no")
        with pytest.raises(UpstreamUnreachable):
            await at.client(ALICE)
        [ended] = at.pool.ended
        told = explanation(at.pool, ended.handle)
        assert told["ended"]["cause"] == "not_opened"
        assert (told["pool"]["result"], told["pool"]["detail"]) == ("refused", "upstream_unreachable")
        assert "s3cret" not in str(told)


async def test_g10_only_so_many_of_the_ended_are_remembered() -> None:
    async with bench() as at:
        first = (await at.client(ALICE)).workflow
        await at.pool.end(first, "deleted")
        for _ in range(MAX_ENDED):
            await at.pool.end((await at.client(ALICE)).workflow, "deleted")
        assert len(at.pool.ended) == MAX_ENDED
        with pytest.raises(NotTold):
            told_of(at, first)


async def test_g10_a_timeline_is_bounded_whatever_the_client_does() -> None:
    async with bench() as at:
        client = await at.client(ALICE)
        for turn in range(50):
            client.workflow.come_by("sse" if turn % 2 else "websocket")
            client.workflow.streams.attach_standalone().close()
        timeline = told_of(at, client.workflow)["timeline"]
        assert len(timeline) == MAX_EVENTS
        assert {event["what"] for event in timeline} == {"created", "moved", "attached", "cut"}
