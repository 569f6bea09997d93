"""Who is asked for what a worker gave a name to: a stream, a question, a wire; wherever the workflow is by then."""

import json
from typing import Literal

import anyio
import pytest
from harness.changing import until
from harness.clustering import QUESTION, Member, Workers, carried, journal, notice, resume, started, streamed
from harness.memory_wire import message
from harness.muxing import ALICE, events, initialize, request, response, settle, some
from trunkline.mux.directory import LEASE_SECONDS, Entry
from trunkline.mux.envelope import Envelope, parse
from trunkline.mux.errors import Elsewhere
from trunkline.mux.event_log import Position
from trunkline.mux.placement import NAMES, Concern, concern_of
from trunkline.mux.principal import ANONYMOUS
from trunkline.mux.workflow import Workflow

pytestmark = pytest.mark.anyio


async def paused(at: Workers, member: Member, other: Member, session_id: str) -> Workflow:
    """A worker stands still for so long that another one takes a workflow over, and goes on then."""
    await journal(member)
    await other.beat(after=LEASE_SECONDS)
    taken = (await other.find(session_id, principal=ALICE)).workflow
    await member.beat()
    return taken


async def test_g5_g6_a_call_of_a_session_that_went_with_another_one_is_told_as_lost_where_that_is() -> None:
    async with started(3, reuse="user") as (at, a, b, c):
        taken, other = await a.client(ALICE), await a.client(ALICE)
        _, reader = await streamed(a, other, b'"mine"')
        event_id = reader.event_id((await reader.next(1) or [])[0])
        reader.close()
        await paused(at, a, b, taken.workflow.record.session_id)
        await until(lambda: other.workflow.ended)
        await settle()
        (await at.server.got("tools/call")).answer({"n": 1})
        for first in (c, a, b):
            member, again = await resume(at, first, event_id, ALICE)
            assert member is b
            [told] = [json.loads(text) async for _, text in events(again)]
            assert (told["id"], told["error"]["data"]) == ("mine", {"executed": "unknown"})
            again.close()
        assert len(at.server.of("tools/call")) == 1


async def test_g5_what_a_paused_worker_wrote_late_is_told_where_its_session_is() -> None:
    """As one that was cut from the directory: it served a call meanwhile, and nobody could read of it."""
    async with started(2, reuse="user") as (at, a, b):
        client = await a.client(ALICE)
        a.view.is_cut = True
        _, reader = await streamed(a, client, b'"mine"')
        event_id = reader.event_id((await reader.next(1) or [])[0])
        reader.close()
        (await at.server.got("tools/call")).answer({"n": 1})
        await b.beat(after=LEASE_SECONDS)
        await b.find(client.workflow.record.session_id, principal=ALICE)
        a.view.is_cut = False
        await journal(a)
        await a.beat()
        await until(lambda: client.workflow.ended)
        await at.pass_time(LEASE_SECONDS)
        await b.members.numbers()
        member, again = await resume(at, a, event_id, ALICE)
        assert member is b
        assert [json.loads(text)["result"] async for _, text in events(again)] == [{"n": 1}]


@pytest.mark.parametrize("reuse", ["user", "workflow"])
async def test_g10_names_that_a_client_makes_up_of_who_was_paused_send_it_in_no_circle(
    reuse: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where a session can be served by its holder alone: one that is shared, or one on stdio that may begin anew."""
    async with started(2, reuse=reuse, movable=reuse == "user", stateless=True) as (at, a, b):
        session_id = (await a.client(ALICE)).workflow.record.session_id
        token = (await paused(at, a, b, session_id)).record.event_token
        await settle()
        await b.members.numbers()
        reads, read = list[str](), at.directory.read

        async def counted(session_id: str) -> list[Entry]:
            reads.append(session_id)
            return await read(session_id)

        monkeypatch.setattr(at.directory, "read", counted)
        for n in range(1000, 1040):
            for first in (a, b):
                made_up = Position(token, a.number * NAMES + n, 1, 1).spell()
                member, again = await resume(at, first, made_up, ALICE)
                assert member is b
                assert [text async for _, text in events(again)] == []
                again.close()
        assert len(reads) <= 1, "not for each of them"


async def test_g10_nor_do_they_while_who_took_over_opens_another_session() -> None:
    async with started(2, movable=False, stateless=True) as (at, a, b):
        record = (await a.client()).workflow.record
        await journal(a)
        await b.beat(after=LEASE_SECONDS)
        at.server.pause("initialize")
        opening = await b.pool.lookup.find(ANONYMOUS, "x", record.session_id)
        assert not opening.opened.done()
        await a.beat()
        await settle()
        made_up = Position(record.event_token, a.number * NAMES + 1000, 1, 1)
        assert await b.pool.lookup.find_position(ANONYMOUS, "x", made_up) is opening
        at.server.let("initialize")


async def wired(member: Member) -> str:
    """The session id of a workflow with a wire, of which its client was sent three messages."""
    workflow = (await member.client()).workflow
    duplex = workflow.duplexes.new()
    reader = duplex.attach()
    duplex.meet(duplex.tally)
    for n in (1, 2, 3):
        duplex.add(notice(n))
    reader.due()
    duplex.detach(reader)
    return workflow.record.session_id


async def test_g5_g8_who_was_drained_leaves_its_wires_though_it_lives() -> None:
    async with started(3) as (at, a, b, c):
        session_id = await wired(a)
        for before, after in ((a, b), (b, c)):
            await at.drain(before)
            assert await carried(after, session_id, 1) == [2, 3]


async def test_a_wire_that_was_left_does_not_come_back_with_a_stream_of_who_has_gone_since() -> None:
    async with started(2, resume_window=1) as (at, a, b):
        session_id = await wired(a)
        await at.drain(a)
        assert await carried(b, session_id, 1) == [2, 3]
        await at.pass_time(2)
        held = (await b.find(session_id)).workflow
        assert held.duplexes.newest is None
        await at.lose(a)
        member, _ = await resume(at, b, Position(held.record.event_token, a.number * NAMES + 1000, 1, 1).spell())
        assert member is b
        assert held.duplexes.newest is None


On = Literal["call", "wire", "stream"]
ALONE: tuple[On, ...] = ("call", "wire", "stream")


async def asked(at: Workers, member: Member, on: On) -> tuple[str, Envelope]:
    """The session id of a workflow whose client was asked something on what its holder alone has; and its answer."""
    workflow = (await member.client(message=initialize(capabilities={"sampling": {}}))).workflow
    if on == "stream":
        reader = workflow.streams.attach_standalone()
        at.server.session.tell(QUESTION)
    else:
        duplex = workflow.duplexes.new()
        reader = duplex.attach()
        duplex.meet(duplex.tally)
        if on == "wire":
            at.server.session.tell(QUESTION)
        else:
            workflow.calls.take(request(), duplex, {})
            (await at.server.got("tools/call")).say(QUESTION)
    [(_, text)] = await some(reader)
    reader.close()
    return workflow.record.session_id, response(json.loads(text)["id"], {"n": 1})


@pytest.mark.parametrize("on", ALONE)
async def test_g8_what_a_drained_worker_asked_on_a_wire_is_answered_where_that_is_while_it_lives(on: On) -> None:
    async with started(3) as (at, a, b, c):
        session_id, answer = await asked(at, a, on)
        for before, after in ((a, b), (b, c)):
            await before.pool.drain(0)
            await settle()
            held = (await after.find(session_id)).workflow
        held.respond(answer)
        assert (await at.server.got("response")).json == {"jsonrpc": "2.0", "id": "q1", "result": {"n": 1}}
        assert c.pool.statistics.total("unknown_answers") == 0


@pytest.mark.parametrize("on", ALONE)
async def test_g8_so_it_is_where_the_answer_is_the_first_that_its_client_sends_to_another_worker(on: On) -> None:
    async with started(2) as (at, a, b):
        session_id, answer = await asked(at, a, on)
        await a.pool.drain(0)
        await settle()
        member, held = await at.serve(session_id, b, concern_of([answer]))
        assert member is b
        held.respond(answer)
        assert (await at.server.got("response")).json["id"] == "q1"


@pytest.mark.parametrize("on", ALONE)
async def test_r4_so_it_is_refused_there_where_nobody_answers(on: On) -> None:
    async with started(2, request_timeout=1) as (at, a, b):
        session_id, _ = await asked(at, a, on)
        await a.pool.drain(0)
        await settle()
        (await b.find(session_id)).workflow.streams.attach_standalone()
        await at.pass_time(13)
        refused = (await at.server.got("response")).json
        assert (refused["id"], refused["error"]["code"]) == ("q1", -31004)


async def asked_beside(at: Workers, holder: Member, beside: Member) -> tuple[str, Envelope]:
    """The session id of a workflow whose client was asked something in a call beside its holder; and its answer."""
    client = await holder.client(message=initialize(capabilities={"sampling": {}}))
    session_id = client.workflow.record.session_id
    _, reader = await streamed(beside, await beside.beside(session_id))
    (await at.server.got("tools/call")).say(QUESTION)
    [(_, text)] = await some(reader)
    await journal(beside)
    return session_id, response(json.loads(text)["id"])


async def test_what_was_asked_beside_a_holder_that_was_drained_stays_with_its_stream() -> None:
    async with started(3) as (at, a, b, c):
        session_id, answer = await asked_beside(at, a, c)
        await a.pool.drain(0)
        await settle()
        assert not (await b.find(session_id)).workflow.knows(concern_of([answer]).name)
        member, workflow = await at.serve(session_id, b, concern_of([answer]))
        assert member is c
        workflow.respond(answer)
        assert (await at.server.got("response")).json["id"] == "q1"


async def test_g8_the_answer_to_what_was_asked_beside_reaches_it_where_all_workers_drain() -> None:
    async with started(3) as (at, a, b, c):
        session_id, answer = await asked_beside(at, a, c)
        await a.pool.drain(0)
        await b.pool.drain(0)
        async with anyio.create_task_group() as draining:
            draining.start_soon(c.pool.drain, 60)
            await until(lambda: c.pool.draining)
            member, workflow = await at.serve(session_id, b, concern_of([answer]))
            assert member is c
            workflow.respond(answer)
            assert (await at.server.got("response")).json["id"] == "q1"
            draining.cancel_scope.cancel()


async def test_g3_an_answer_of_who_names_a_key_goes_to_the_worker_that_asked() -> None:
    async with started(2) as (at, a, b):
        client = await a.client(message=initialize(capabilities={"sampling": {}}), key="k")
        _, reader = await streamed(b, await b.beside(client.workflow.record.session_id))
        sampling = {"messages": [], "maxTokens": 1}
        (await at.server.got("tools/call")).say(message("sampling/createMessage", sampling, id="q1"))
        [(_, text)] = await some(reader)
        answer = parse(b'{"jsonrpc":"2.0","id":%d,"result":{}}' % json.loads(text)["id"], limit=1000)
        concern = concern_of([answer])
        with pytest.raises(Elsewhere) as elsewhere:
            await a.pool.lookup.find_key(ANONYMOUS, "x", "k", concern)
        assert elsewhere.value.worker == b.members.worker.id
        found = await b.pool.lookup.find_key(ANONYMOUS, "x", "k", concern)
        assert found is not None
        found.respond(answer)
        assert (await at.server.got("response")).json["id"] == "q1"
        assert await a.pool.lookup.find_key(ALICE, "x", "k", Concern(name=1)) is None
