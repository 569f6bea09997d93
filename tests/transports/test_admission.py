"""What all pass on their way in: turns for messages, and places for connections that stay."""

import asyncio
from contextlib import ExitStack

import pytest
from harness.duplex_clients import initialize
from harness.endpoint_bench import call, front, shake_hands
from harness.muxing import ALICE, BOB, CAROL
from trunkline.mux.errors import Overloaded
from trunkline.mux.fairness import Turnstile
from trunkline.mux.limits import Pooling
from trunkline.mux.policy import Caps
from trunkline.mux.principal import ANONYMOUS, Principal
from trunkline.transports.admission import Admission

pytestmark = pytest.mark.anyio

SESSION = "mcp-session-id"

# Turns.


async def test_who_floods_waits_for_itself_alone() -> None:
    admission = Admission(Turnstile(per_round=1))
    order: list[str] = []

    async def send(principal: Principal, name: str) -> None:
        if not admission.pass_at_once():
            await admission.wait(principal)
        order.append(name)

    async with asyncio.timeout(10), asyncio.TaskGroup() as tasks:
        for n in range(30):
            tasks.create_task(send(ALICE, f"alice {n}"))
        tasks.create_task(send(BOB, "bob"))
    assert order.index("bob") <= 2
    assert [name for name in order if name != "bob"] == [f"alice {n}" for n in range(30)]
    assert admission.waiting == 0


async def test_who_leaves_while_it_waits_takes_no_turn() -> None:
    admission = Admission(Turnstile(per_round=1))
    assert admission.pass_at_once()
    assert not admission.pass_at_once()
    tasks = [asyncio.create_task(admission.wait(principal)) for principal in (ALICE, BOB)]
    await asyncio.sleep(0)
    tasks[0].cancel()
    await asyncio.wait(tasks, timeout=10)
    assert tasks[0].cancelled()
    assert tasks[1].done()
    assert admission.waiting == 0


async def test_a_message_that_cannot_be_taken_holds_up_no_other() -> None:
    admission = Admission(Turnstile(per_round=2))
    gone: list[str] = []
    come = asyncio.Event()

    def fail() -> None:
        gone.append("fail")
        raise RuntimeError

    def go_on() -> None:
        gone.append("go on")
        come.set()

    while admission.pass_at_once():
        pass
    admission.queue(ALICE, fail)
    admission.queue(ALICE, go_on)
    async with asyncio.timeout(10):
        await come.wait()
        await admission.wait(BOB)
    assert gone == ["fail", "go on"]


async def test_a_call_of_another_principal_overtakes_a_flood() -> None:
    options = {"admission": Admission(Turnstile(per_round=1))}
    async with front(revision="2025-06-18", options=options) as here:
        sessions = {}
        for name in ("alice", "bob"):
            here.client.headers["authorization"] = name
            await shake_hands(here.client, "2025-06-18")
            sessions[name] = here.client.headers[SESSION]
        flood = [
            here.client.start("POST", call(n, who="alice"), {"authorization": "alice", SESSION: sessions["alice"]})
            for n in range(40)
        ]
        late = here.client.start("POST", call(1, who="bob"), {"authorization": "bob", SESSION: sessions["bob"]})
        await here.server.got("tools/call", 4)
        who = [request.json["params"]["arguments"]["who"] for request in here.server.of("tools/call")]
        assert "bob" in who
        assert len(who) < 20, "the flood waits"
        await here.server.got("tools/call", 41)
        for request in here.server.of("tools/call"):
            request.answer({})
        for answer in (*flood, late):
            assert (await answer.json())["result"] == {}


async def test_g10_messages_that_wait_are_bounded_and_refused_inside_the_session() -> None:
    options = {"admission": Admission(Turnstile(per_round=1, max_waiting=2))}
    async with front(revision="2025-06-18", options=options) as here:
        await shake_hands(here.client, "2025-06-18")
        answers = [here.client.start("POST", call(f"c{n}")) for n in range(6)]
        await here.server.got("tools/call", 3)
        for request in here.server.of("tools/call"):
            request.answer({})
        texts = [await answer.json() for answer in answers]
        refused = [text for text in texts if "error" in text]
        assert [answer.status for answer in answers] == [200] * 6
        assert [text["id"] for text in refused] == ["c3", "c4", "c5"]
        assert {(t["error"]["code"], t["error"]["data"]["limit"]) for t in refused} == {(-31003, "max_waiting")}
        assert here.counts["refused", "max_waiting"] == 3


# Places.


@pytest.mark.parametrize(
    ("limit", "residents", "newcomer"),
    [
        ("max_workflows_per_user", ALICE, ALICE),
        ("max_workflows_per_tenant", BOB, ALICE),
        ("max_workflows", CAROL, ALICE),
        ("max_workflows", ANONYMOUS, ANONYMOUS),
    ],
)
def test_g10_connections_are_bounded_by_user_by_tenant_and_in_all(
    limit: str, residents: Principal, newcomer: Principal
) -> None:
    admission, where = Admission(), ("x", Caps(Pooling(**{limit: 1})))
    with admission.place(residents, *where):
        with admission.place(residents, *where), pytest.raises(Overloaded) as refused:
            admission.place(newcomer, *where).__enter__()
        assert refused.value.limit == limit
        with admission.place(newcomer, *where):
            assert admission.connections == 2
    assert admission.connections == 0


def test_anonymous_has_no_share_of_its_own() -> None:
    admission, caps = Admission(), Caps(Pooling(max_workflows_per_user=1, max_workflows_per_tenant=1))
    places = [admission.place(ANONYMOUS, "x", caps) for _ in range(5)]
    for place in places:
        place.__enter__()
    assert admission.connections == 5


def test_g10_where_a_server_has_a_cap_of_its_own_connections_to_others_take_no_place_of_it() -> None:
    admission, caps = Admission(), Caps(Pooling(), {"y": Pooling(max_workflows=1)})
    with ExitStack() as held:
        for _ in range(4):
            held.enter_context(admission.place(ALICE, "x", caps))
        for _ in range(2):
            held.enter_context(admission.place(ALICE, "y", caps))
        with pytest.raises(Overloaded):
            held.enter_context(admission.place(ALICE, "y", caps))
    assert admission.connections == 0


async def test_g10_get_streams_count_as_connections() -> None:
    async with front(max_workflows_per_user=1) as here:
        here.client.headers["authorization"] = "alice"
        await shake_hands(here.client)
        streams = [await here.client.get() for _ in range(2)]
        refused = await here.client.get()
        assert refused.status == 429
        assert int(refused.headers["retry-after"]) > 0
        assert (await refused.json())["error"]["data"] == {"limit": "max_workflows_per_user"}
        assert here.counts["refused", "max_workflows_per_user"] == 1
        bob = await here.client.post(initialize(), {"authorization": "bob", SESSION: None})
        other = await here.client.get(headers={"authorization": "bob", SESSION: bob.headers[SESSION]})
        assert other.status == 200
        for stream in (*streams, other):
            stream.leave()
            await stream.over()
        again = await here.client.get()
        assert again.status == 200
        again.leave()
        await again.over()
