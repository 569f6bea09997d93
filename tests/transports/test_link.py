"""A connection that carries everything: how it begins, which workflow it belongs to, what it refuses, and its end."""

from typing import Any

import anyio
import pytest
from harness.duplex_clients import initialize
from harness.links import Line, lines
from harness.memory_wire import message
from harness.muxing import ALICE, BOB, PATIENCE, settle
from trunkline.mux.account import Transport
from trunkline.mux.errors import Overloaded, TrunklineError, UnknownSession
from trunkline.mux.fairness import Turnstile
from trunkline.mux.limits import MAX_BODY_BYTES, EventLogLimits
from trunkline.mux.routing import LEGACY
from trunkline.transports import link as module
from trunkline.transports.admission import Admission
from trunkline.transports.headers import Asked
from trunkline.transports.link import MAX_EARLY
from trunkline.transports.status import HTTPRefusal

pytestmark = pytest.mark.anyio


# Beginning.


@pytest.mark.parametrize("transport", ["sse", "websocket"])
async def test_a_workflow_begins_under_the_id_that_its_client_knows_already(transport: Transport) -> None:
    async with lines() as at:
        line = await at.open(transport)
        known = line.link.session_id
        assert (await line.begin())["id"] == 0
        [workflow] = at.at.pool.workflows
        assert workflow.record.session_id == known
        assert workflow.transport == transport
        await line.call(1, n=7)
        [answer] = await line.hear()
        assert answer["result"]["structuredContent"] == {"n": 7}


@pytest.mark.parametrize(
    ("said", "code"),
    [
        (b"{", -32700),
        (b"[]", -32600),
        (b'{"jsonrpc":"2.0","id":null,"method":"ping"}', -32600),
        ({"jsonrpc": "2.0", "id": 1, "method": "tools/list"}, -32600),
        ({"jsonrpc": "2.0", "id": 1, "method": "server/discover"}, -32022),
        ({"jsonrpc": "2.0", "id": 1, "method": "initialize", "params": {}}, -32602),
    ],
)
async def test_what_cannot_begin_is_refused_and_the_connection_goes_on(said: Any, code: int) -> None:
    async with lines() as at:
        line = await at.open()
        await line.say(said)
        [refused] = await line.hear()
        assert refused["error"]["code"] == code
        await line.begin()


@pytest.mark.parametrize(("text", "word"), [(b"{", "parse_error"), (b"[]", "invalid_request")])
async def test_g12_what_is_no_message_is_counted_by_what_is_wrong_with_it(text: bytes, word: str) -> None:
    async with lines() as at:
        await (await at.open()).say(text)
        assert at.at.counts["refused", word] == 1


@pytest.mark.parametrize("key", [None, "k"])
async def test_l20_a_request_without_a_session_is_told_what_is_served_and_begins_nothing(key: str | None) -> None:
    async with lines() as at:
        line = await at.open(asked=Asked(None, key, None))
        for revision, told in (
            ("2026-07-28", "2026-07-28"),
            ("2027-01-01", "2027-01-01"),
            ("9" * 65, "9" * 64),
            (5, ""),
        ):
            meta = {"io.modelcontextprotocol/protocolVersion": revision}
            await line.say({"jsonrpc": "2.0", "id": 1, "method": "tools/list", "params": {"_meta": meta}})
            [refused] = await line.hear()
            assert refused["error"]["code"] == -32022
            assert refused["error"]["data"] == {"supported": list(LEGACY), "requested": told}
        assert not at.at.pool.workflows
        await line.begin()


async def test_a_request_of_a_session_may_name_a_revision_of_its_own_as_well() -> None:
    async with lines() as at:
        line = await at.begun()
        meta = {"io.modelcontextprotocol/protocolVersion": "2026-07-28"}
        await line.say({"jsonrpc": "2.0", "id": 1, "method": "tools/list", "params": {"_meta": meta}})
        assert "result" in (await line.hear())[0]


async def test_a_ping_needs_no_workflow_and_what_has_no_answer_gets_none() -> None:
    async with lines() as at:
        line = await at.open()
        await line.say({"jsonrpc": "2.0", "id": "p", "method": "ping"})
        assert await line.hear() == [{"jsonrpc": "2.0", "id": "p", "result": {}}]
        await line.say({"jsonrpc": "2.0", "method": "notifications/initialized"})
        await line.say({"jsonrpc": "2.0", "id": 1, "result": {}})
        assert await line.silent()


async def test_a_message_over_the_limit_is_refused() -> None:
    async with lines() as at:
        line = await at.open()
        await line.say(b'{"jsonrpc":"2.0","id":1,"method":"x","params":{"a":"' + b"a" * MAX_BODY_BYTES + b'"}}')
        [refused] = await line.hear()
        assert "error" in refused


@pytest.mark.parametrize("transport", ["sse", "websocket"])
async def test_messages_wait_for_their_turn_and_those_that_wait_are_bounded(transport: Transport) -> None:
    async with lines() as at:
        admission = Admission(Turnstile(per_round=1, max_waiting=2))
        line = await at.open(transport, admission=admission)
        other = await at.open(transport, principal=BOB, admission=admission)
        for one in (line, other):
            await one.begin()
            await settle()
        async with anyio.create_task_group() as tasks:
            for n in range(6):
                tasks.start_soon(line.call, n)
            tasks.start_soon(other.call, 7)
            tasks.start_soon(other.say, b"{")
        answers = await line.hear(6)
        refused = [answer for answer in answers if "error" in answer]
        assert [answer["id"] for answer in answers if "result" in answer] == [0, 1, 2]
        assert [answer["id"] for answer in refused] == [3, 4, 5]
        assert {(a["error"]["code"], a["error"]["data"]["limit"]) for a in refused} == {(-31003, "max_waiting")}
        assert [answer.get("id") for answer in await other.hear(2)] == [7, None]


async def test_what_is_no_message_waits_for_its_turn_too() -> None:
    async with lines() as at:
        admission = Admission(Turnstile(per_round=1))
        line = await at.open(admission=admission)
        async with anyio.create_task_group() as tasks:
            for _ in range(3):
                tasks.start_soon(line.say, b"{")
            await anyio.lowlevel.checkpoint()
            assert admission.waiting == 2
        assert [refused["error"]["code"] for refused in await line.hear(3)] == [-32700] * 3


@pytest.mark.parametrize("transport", ["sse", "websocket"])
async def test_g10_a_limit_that_a_connection_meets_is_counted_by_its_name(transport: Transport) -> None:
    async with lines(max_workflows_per_user=1) as at:
        await (await at.open(transport, principal=ALICE)).begin()
        line = await at.open(transport, principal=ALICE)
        await line.say(initialize())
        [refused] = await line.hear()
        assert refused["error"]["data"] == {"limit": "max_workflows_per_user"}
        assert at.at.counts["refused", "max_workflows_per_user"] == 1
        assert at.at.counts["refused", "overloaded"] == 0


async def test_a_client_that_reads_nothing_is_not_told_more_than_a_few_refusals() -> None:
    async with lines() as at:
        line = await at.open()
        for _ in range(MAX_EARLY * 10):
            await line.say(b"{")
        assert len(line.link.outgoing.early) == MAX_EARLY + 1, "nobody looks as long as it takes nothing"
        assert await line.over() == "overloaded"


async def test_a_connection_without_a_handshake_ends_although_its_client_speaks(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(module, "HANDSHAKE_SECONDS", 0.1)
    async with lines() as at:
        line = await at.open()
        with anyio.fail_after(PATIENCE):
            await line.say({"jsonrpc": "2.0", "id": 1, "method": "ping"})
            while (due := await line.link.next(PATIENCE)) is not None:
                assert due
                await line.say({"jsonrpc": "2.0", "id": 1, "method": "ping"})
        assert line.link.end_reason == "no_handshake"
        line.link.close()
        assert at.at.counts["refused", "no_handshake"] == 1


async def test_a_server_may_take_longer_to_open_than_a_client_to_ask(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "HANDSHAKE_SECONDS", 0.5)
    async with lines() as at, anyio.create_task_group() as tasks:
        at.at.server.pause("initialize")
        line = await at.open()
        tasks.start_soon(line.say, initialize())
        await at.at.server.reached("initialize")
        assert await line.link.next(0.7) == []
        at.at.server.let("initialize")
        assert await line.ids() == [0]


async def test_two_handshakes_at_once_open_one_session() -> None:
    async with lines() as at, anyio.create_task_group() as tasks:
        at.at.server.pause("initialize")
        line = await at.open("sse")
        tasks.start_soon(line.say, initialize("first"))
        tasks.start_soon(line.say, initialize("second"))
        tasks.start_soon(line.call, "third")
        await at.at.server.reached("initialize")
        await settle()
        at.at.server.let("initialize")
        got = [await line.hear() for _ in range(3)]
        assert sorted(answer["id"] for [answer] in got) == ["first", "second", "third"]
        assert all("result" in answer for [answer] in got)
        assert len(at.at.server.sessions) == 1


@pytest.mark.parametrize("key", [None, "k"])
async def test_g10_so_many_messages_wait_for_a_session_to_begin_as_may_be_in_flight_on_it(key: str | None) -> None:
    async with lines(max_inflight_per_workflow=3) as at, anyio.create_task_group() as tasks:
        at.at.server.pause("initialize")
        line = await at.open("sse", Asked(None, key, None), principal=ALICE)
        tasks.start_soon(line.say, initialize("begins"))
        await at.at.server.reached("initialize")
        for number in range(3):
            tasks.start_soon(line.say, initialize(number))
        await settle()
        for name in ("once", "more"):
            await line.say(initialize(name))
            [refused] = await line.hear()
            assert (refused["id"], refused["error"]["code"]) == (name, -31003)
            assert refused["error"]["data"] == {"limit": "max_inflight_per_workflow"}
        await line.say({"jsonrpc": "2.0", "method": "notifications/initialized"})
        assert at.at.counts["refused", "max_inflight_per_workflow"] == 3
        at.at.server.let("initialize")
        assert [await line.ids() for _ in range(4)] == [["begins"], [0], [1], [2]]
        assert await line.begin(id="later")


async def test_a_server_that_cannot_be_reached_is_told_and_may_be_asked_again() -> None:
    async with lines() as at:
        at.at.server.unreachable = TrunklineError("away")
        line = await at.open()
        await line.say(initialize())
        assert "error" in (await line.hear())[0]
        at.at.server.unreachable = None
        await at.at.ended("not_opened")
        await line.begin()


# Keys.


async def test_a_key_needs_no_handshake_and_names_one_workflow_for_two_connections() -> None:
    async with lines() as at:
        one = await at.open(asked=Asked(None, "k", None))
        await one.call(1)
        assert await one.ids() == [1]
        two = await at.open(asked=Asked(None, "k", None))
        assert two.link.session_id == one.link.session_id
        await two.begin()
        await two.call(1)
        assert await two.ids() == [1]
        assert await one.silent()
        assert len(at.at.server.sessions) == 1


async def test_a_key_of_anonymous_is_refused_where_it_would_be_everybodys() -> None:
    async with lines() as at:
        with pytest.raises(HTTPRefusal) as refused:
            await at.open(asked=Asked(None, "k", None), anonymous_keys=False)
        assert refused.value.status == 400
        await at.open(asked=Asked(None, "k", None), principal=ALICE, anonymous_keys=False)


async def test_a_connection_waits_for_the_workflow_that_another_one_is_beginning() -> None:
    keyed = Asked(None, "k", None)
    async with lines() as at, anyio.create_task_group() as tasks:
        at.at.server.pause("initialize")
        first = await at.open(asked=keyed)
        tasks.start_soon(first.say, initialize())
        await at.at.server.reached("initialize")
        opened: list[Line] = []

        async def open_second() -> None:
            opened.append(await at.open(asked=keyed))

        tasks.start_soon(open_second)
        await settle()
        assert not opened
        at.at.server.let("initialize")
        assert await first.ids() == [0]
        await settle()
        [second] = opened
        assert second.link.session_id == first.link.session_id
        await second.call(1)
        assert await second.ids() == [1]


# Refusals.


async def test_g4_what_is_another_principals_is_unknown() -> None:
    async with lines() as at:
        hers = await at.begun(principal=ALICE, asked=Asked(None, "k", None))
        session_id, event_id = hers.link.session_id, hers.due[0].event_id
        texts = set()
        for asked in (Asked(session_id, None, None), Asked("made-up", None, None), Asked(None, None, event_id)):
            with pytest.raises(UnknownSession) as unknown:
                await at.open(principal=BOB, asked=asked)
            texts.add(unknown.value.message)
        assert len(texts) == 1
        his = await at.begun(principal=BOB, asked=Asked(None, "k", None))
        assert his.link.session_id != session_id


async def test_what_disagrees_is_refused() -> None:
    async with lines() as at:
        one, two = await at.open(asked=Asked(None, "k", None)), await at.open()
        for line in (one, two):
            await line.begin()
        mine, other = one.link.session_id, two.due[0].event_id
        for asked in (
            Asked(mine, "other", None),
            Asked(two.link.session_id, "k", None),
            Asked(mine, None, other),
            Asked(None, "k", other),
        ):
            with pytest.raises(HTTPRefusal) as refused:
                await at.open(asked=asked)
            assert (refused.value.status, refused.value.word) == (400, "disagree")
        with pytest.raises(HTTPRefusal):
            one.link.check_agreement(Asked(mine, "other", None))
        one.link.check_agreement(Asked(mine, "k", None))


async def test_an_event_id_that_cannot_be_read_is_unknown_and_a_count_is_none_of_sse() -> None:
    async with lines() as at:
        line = await at.begun("sse")
        with pytest.raises(UnknownSession):
            await at.open("sse", Asked(None, None, "nonsense"))
        with pytest.raises(HTTPRefusal) as refused:
            await at.open("sse", Asked(line.link.session_id, None, "1"))
        assert refused.value.status == 400


async def test_g8_a_gateway_that_drains_takes_no_new_client() -> None:
    async with lines() as at:
        line = await at.begun()
        at.at.pool._opening.draining = True
        with pytest.raises(Overloaded):
            await at.open()
        assert await (await at.back(line, 1)).silent()


# Handshakes on a workflow that lives.


async def test_the_same_handshake_again_changes_nothing() -> None:
    async with lines() as at:
        line = await at.begun()
        await line.begin(id=1)
        await line.call(2)
        assert await line.ids() == [2]
        assert len(at.at.server.sessions) == 1


async def test_another_handshake_begins_anew_where_nobody_else_is_there() -> None:
    async with lines() as at:
        line = await at.begun()
        await line.begin(id=1, capabilities={"roots": {}})
        await line.call(2)
        assert await line.ids() == [2]
        assert len(at.at.server.sessions) == 2
        assert at.at.counts["workflows_closed", "reset"] == 1
        line.link.close()
        again = await at.back(line, 2)
        again.link.meet()
        assert await again.ids() == [2], "the count is of the connection, whatever began on it"


async def test_another_handshake_is_refused_while_another_connection_is_there() -> None:
    async with lines() as at:
        line = await at.begun(asked=Asked(None, "k", None))
        other = await at.open(asked=Asked(None, "k", None))
        await other.say(initialize(1, capabilities={"roots": {}}))
        [refused] = await other.hear()
        assert refused["error"]["code"] == -32602
        assert "capabilities" in refused["error"]["message"]
        await line.call(2)
        assert await line.ids() == [2]


# The end.


async def test_the_end_of_the_workflow_is_the_end_of_the_connection_after_what_is_left() -> None:
    async with lines() as at:
        line = await at.begun()
        [workflow] = at.at.pool.workflows
        await line.call(1)
        await at.at.pool.end(workflow, "deleted")
        assert await line.ids() == [1]
        assert await line.over() == "deleted"


async def test_what_is_said_after_the_end_is_kept_nowhere() -> None:
    async with lines() as at:
        line = await at.begun("sse")
        [workflow] = at.at.pool.workflows
        line.link.close()
        await at.at.pool.end(workflow, "deleted")
        # Its body took so long to come that the stream that it was found by is gone.
        await line.call(1)
        assert at.at.held == 0


async def test_what_a_client_that_said_goodbye_did_not_wait_for_is_no_loss() -> None:
    async with lines(event_log=EventLogLimits(events=4)) as at:
        line = await at.begun(asked=Asked(None, "k", None))
        line.link.close(goodbye=True)
        for _ in range(9):
            at.at.server.session.tell(message("notifications/tools/list_changed"))
        again = await at.open(asked=Asked(None, "k", None))
        await again.call(1)
        assert "result" in (await again.hear())[0]
        assert len(at.at.server.sessions) == 1


async def test_g1_the_same_id_twice_in_flight_is_refused_and_the_first_goes_on() -> None:
    async with lines() as at:
        at.at.server.on_request = None
        line = await at.begun()
        await line.call(1)
        await line.call(1)
        [refused] = await line.hear()
        assert (refused["id"], refused["error"]["code"]) == (1, -32600)
        (await at.at.server.got("tools/call")).answer({"first": True})
        assert (await line.hear())[0]["result"] == {"first": True}


async def test_headers_that_are_configured_go_on_with_each_message() -> None:
    async with lines() as at:
        line = await at.open(forward_headers=("x-class",), session_headers=("x-tenant",))
        await line.say(initialize(), **{"x-tenant": "acme", "x-class": "a", "x-other": "b"})
        await line.hear()
        await line.say({"jsonrpc": "2.0", "id": 1, "method": "tools/call"}, **{"x-class": "c", "x-other": "d"})
        await line.hear()
        assert at.at.server.of("tools/call")[0].headers == {"x-tenant": "acme", "x-class": "c"}


async def test_an_answer_to_what_the_server_asks_reaches_it() -> None:
    async with lines() as at:
        line = await at.open("sse")
        await line.begin(capabilities={"roots": {}})
        at.at.server.session.tell(message("roots/list", id=77))
        [question] = await line.hear()
        await line.say({"jsonrpc": "2.0", "id": question["id"], "result": {"roots": []}})
        answer = await at.at.server.got("response")
        assert answer.json == {"jsonrpc": "2.0", "id": 77, "result": {"roots": []}}


async def test_a_client_may_try_again_while_its_failed_opening_is_being_forgotten() -> None:
    async with lines() as at:
        at.at.server.unreachable = TrunklineError("away")
        at.at.directory.pause("remove", before=True)
        line = await at.open()
        await line.say(initialize())
        assert "error" in (await line.hear())[0]
        at.at.server.unreachable = None
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(line.say, initialize(1))
            await settle()
            at.at.directory.let("remove")
            assert "result" in (await line.hear())[0]
