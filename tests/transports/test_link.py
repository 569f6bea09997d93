"""A connection that carries everything: which workflow it belongs to, what it is due, and what outlives it."""

import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import anyio
import pytest
from harness.memory_wire import echo, message
from harness.muxing import ALICE, BOB, Bench, bench, settle
from trunkline.mux.account import Transport
from trunkline.mux.errors import Overloaded, TrunklineError, UnknownSession
from trunkline.mux.event_log import Trimmed
from trunkline.mux.fairness import Turnstile
from trunkline.mux.limits import MAX_BODY_BYTES, EventLogLimits
from trunkline.mux.principal import ANONYMOUS, Principal
from trunkline.mux.routing import LEGACY
from trunkline.transports import link as module
from trunkline.transports.admission import Admission
from trunkline.transports.endpoint import EndpointConfig
from trunkline.transports.guard import Guard
from trunkline.transports.headers import Asked
from trunkline.transports.link import MAX_EARLY, Link
from trunkline.transports.outgoing import Due
from trunkline.transports.status import HTTPRefusal

pytestmark = pytest.mark.anyio

PATIENCE = 10.0
NOBODY = Asked(None, None, None)


def initialize(id: int | str = 0, capabilities: Any = None, revision: str = "2025-11-25") -> dict[str, Any]:
    params = {"protocolVersion": revision, "capabilities": capabilities or {}, "clientInfo": {"name": "t"}}
    return {"jsonrpc": "2.0", "id": id, "method": "initialize", "params": params}


class Line:
    """One connection of a client, without the bytes."""

    def __init__(self, link: Link) -> None:
        self.link = link
        self.due: list[Due] = []
        """All that has come."""

    async def say(self, message: dict[str, Any] | bytes, **headers: str) -> None:
        """Send one message."""
        text = message if isinstance(message, bytes) else json.dumps(message).encode()
        with anyio.fail_after(PATIENCE):
            await self.link.take(text, headers)

    async def call(self, id: int | str, tool: str = "t", **arguments: Any) -> None:
        """Call a tool."""
        params = {"name": tool, "arguments": arguments}
        await self.say({"jsonrpc": "2.0", "id": id, "method": "tools/call", "params": params})

    async def hear(self, count: int = 1) -> list[dict[str, Any]]:
        """So many messages."""
        got: list[Due] = []
        with anyio.fail_after(PATIENCE):
            while len(got) < count:
                due = await self.link.next(PATIENCE)
                assert due, (due, got)
                got += [one for one in due if one.message]
        self.due += got
        assert len(got) == count, got
        return [json.loads(one.message) for one in got]

    async def ids(self, count: int = 1) -> list[object]:
        """The ids of so many answers."""
        return [one.get("id") for one in await self.hear(count)]

    async def silent(self) -> bool:
        """True where nothing is due at this moment."""
        await settle()
        return await self.link.next(0) == []

    async def over(self) -> str:
        """Wait for the end of the connection; why."""
        with anyio.fail_after(PATIENCE):
            while await self.link.next(PATIENCE) is not None:
                pass
        return self.link.end_reason

    async def begin(self, **options: Any) -> dict[str, Any]:
        """Do the handshake; the answer to `initialize`."""
        await self.say(initialize(**options))
        [answer] = await self.hear()
        assert "result" in answer, answer
        return answer


class Lines:
    """Connections of clients of the server `x`."""

    def __init__(self, at: Bench) -> None:
        self.at = at
        self._open: list[Link] = []

    async def open(
        self,
        transport: Transport = "websocket",
        asked: Asked = NOBODY,
        principal: Principal = ANONYMOUS,
        *,
        pings: bool = True,
        **options: Any,
    ) -> Line:
        """A connection that asks for a workflow."""
        config = EndpointConfig("x", self.at.pool, Guard(loopback=True), lambda _: principal, **options)
        link = Link(config, principal, transport, pings=pings)
        await link.open(asked)
        self._open.append(link)
        return Line(link)

    async def back(self, line: Line, count: int | None = None, **options: Any) -> Line:
        """Another WebSocket for the workflow of one that was cut."""
        last = None if count is None else str(count)
        return await self.open("websocket", Asked(line.link.session_id, None, last), **options)

    def close(self) -> None:
        """All connections go."""
        for link in self._open:
            link.close()


@asynccontextmanager
async def lines(**options: Any) -> AsyncIterator[Lines]:
    async with bench(**options) as at:
        at.server.on_request = echo
        made = Lines(at)
        yield made
        made.close()


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
        for revision, told in (("2026-07-28", "2026-07-28"), ("2027-01-01", "2027-01-01"), (5, "")):
            meta = {"io.modelcontextprotocol/protocolVersion": revision}
            await line.say({"jsonrpc": "2.0", "id": 1, "method": "tools/list", "params": {"_meta": meta}})
            [refused] = await line.hear()
            assert refused["error"]["code"] == -32022
            assert refused["error"]["data"] == {"supported": list(LEGACY), "requested": told}
        assert not at.at.pool.workflows
        await line.begin()


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
        for _ in range(MAX_EARLY + 1):
            await line.say(b"{")
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


async def test_a_server_may_take_longer_to_open_than_a_client_to_ask(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "HANDSHAKE_SECONDS", 0.05)
    async with lines() as at, anyio.create_task_group() as tasks:
        at.at.server.pause("initialize")
        line = await at.open()
        tasks.start_soon(line.say, initialize())
        await at.at.server.reached("initialize")
        assert await line.link.next(0.2) == []
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
        hers = await at.open(principal=ALICE, asked=Asked(None, "k", None))
        await hers.begin()
        session_id, event_id = hers.link.session_id, hers.due[0].event_id
        texts = set()
        for asked in (Asked(session_id, None, None), Asked("made-up", None, None), Asked(None, None, event_id)):
            with pytest.raises(UnknownSession) as unknown:
                await at.open(principal=BOB, asked=asked)
            texts.add(unknown.value.message)
        assert len(texts) == 1
        his = await at.open(principal=BOB, asked=Asked(None, "k", None))
        await his.begin()
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
        line = await at.open("sse")
        await line.begin()
        with pytest.raises(UnknownSession):
            await at.open("sse", Asked(None, None, "nonsense"))
        with pytest.raises(HTTPRefusal) as refused:
            await at.open("sse", Asked(line.link.session_id, None, "1"))
        assert refused.value.status == 400


async def test_g8_a_gateway_that_drains_takes_no_new_client() -> None:
    async with lines() as at:
        line = await at.open()
        await line.begin()
        at.at.pool.draining = True
        with pytest.raises(Overloaded):
            await at.open()
        assert await (await at.back(line, 1)).silent()


# Coming back.


async def cut_after(at: Lines, calls: int) -> Line:
    """A client whose connection is gone after so many answers."""
    line = await at.open()
    await line.begin()
    for n in range(1, calls + 1):
        await line.call(n)
        assert await line.ids() == [n]
    line.link.close()
    return line


async def test_g5_a_count_says_where_to_go_on() -> None:
    async with lines() as at:
        line = await cut_after(at, 3)
        again = await at.back(line, 2)
        again.link.meet()
        assert await again.ids(2) == [2, 3]
        again.link.close()
        third = await at.back(line, 2)
        third.link.meet()
        await third.call(4)
        assert await third.ids() == [4]
        assert at.at.counts["resumes", "websocket", "resumed"] == 2


async def test_g5_nothing_is_sent_to_a_client_that_counts_before_it_has_shown_itself() -> None:
    async with lines() as at:
        line = await cut_after(at, 3)
        # The answer to its upgrade is lost each time: the client does not know of these.
        for _ in range(3):
            unknown = await at.back(line, 2)
            assert not unknown.link.is_met
            assert await unknown.silent()
            unknown.link.close()
        again = await at.back(line, 2)
        assert await again.silent()
        again.link.meet()
        assert await again.ids(2) == [2, 3]


async def test_g5_a_client_that_knows_of_a_connection_on_which_nothing_came_says_0() -> None:
    async with lines() as at:
        line = await cut_after(at, 3)
        (await at.back(line, 2)).link.close()
        again = await at.back(line, 0)
        again.link.meet()
        assert await again.ids(2) == [2, 3]


async def test_a_client_shows_itself_by_a_message() -> None:
    async with lines() as at:
        line = await cut_after(at, 1)
        again = await at.back(line, 1)
        await again.call(2)
        assert await again.ids(2) == [1, 2]


@pytest.mark.parametrize("said", [b"{", b'{"jsonrpc":"2.0","method":"notifications/x"}'])
async def test_a_client_shows_itself_by_what_has_no_answer_or_no_sense(said: bytes) -> None:
    async with lines() as at:
        line = await cut_after(at, 1)
        again = await at.back(line, 1)
        await again.say(said)
        assert again.link.is_met


async def test_where_no_pings_are_lent_a_client_has_a_moment_to_show_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "HOLD_SECONDS", 0.05)
    async with lines() as at:
        line = await cut_after(at, 2)
        lost = await at.back(line, 2, pings=False)
        lost.link.close()
        again = await at.back(line, 2, pings=False)
        assert await again.ids() == [2]
        assert again.link.is_met
        assert not lost.link.is_met, "the time of one that is gone means nothing"


async def test_a_count_is_of_all_that_came_on_the_connection() -> None:
    async with lines() as at:
        line = await at.open()
        await line.say({"jsonrpc": "2.0", "id": "early", "method": "ping"})
        await line.say(b"{")
        await line.hear(2)
        await line.begin()
        for n in (1, 2):
            await line.call(n)
            await line.ids()
        line.link.close()
        again = await at.back(line, 4)
        again.link.meet()
        assert await again.ids() == [2], "a ping, a refusal, the handshake and a call were received"


async def test_a_count_of_what_was_never_sent_ends_the_workflow() -> None:
    async with lines() as at:
        line = await cut_after(at, 1)
        with pytest.raises(Trimmed):
            await at.back(line, 9)
        await at.at.ended("event_log_trimmed")
        assert at.at.counts["resumes", "websocket", "trimmed"] == 1
        with pytest.raises(UnknownSession):
            await at.back(line, 1)


async def test_g5_without_a_count_it_goes_on_after_what_was_acknowledged() -> None:
    async with lines() as at:
        line = await at.open()
        await line.begin()
        for n in (1, 2, 3):
            await line.call(n)
            await line.ids()
        line.link.acknowledge(line.due[2].position)
        line.link.close()
        again = await at.back(line)
        again.link.meet()
        await again.call(4)
        assert await again.ids(2) == [3, 4]


async def test_g5_where_what_was_not_acknowledged_is_gone_the_workflow_ends() -> None:
    async with lines(event_log=EventLogLimits(events=3)) as at:
        line = await at.open()
        await line.begin()
        line.link.acknowledge(1)
        for n in range(1, 9):
            await line.call(n)
            await line.ids()
        line.link.close()
        with pytest.raises(Trimmed):
            await at.back(line)
        await at.at.ended("event_log_trimmed")


async def test_what_is_due_is_held_until_the_first_message_tells_who_came_back() -> None:
    async with lines() as at:
        line = await cut_after(at, 1)
        anew = await at.back(line)
        anew.link.meet()
        assert await anew.silent()
        await anew.say(initialize(1))
        [answer] = await anew.hear()
        assert "protocolVersion" in answer["result"], "it does not meet the old answer to its id"
        await anew.call(2)
        assert await anew.ids() == [2]


async def test_what_is_due_is_held_for_a_moment_only(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "HOLD_SECONDS", 0.05)
    async with lines() as at:
        line = await cut_after(at, 1)
        again = await at.back(line, pings=False)
        assert await again.ids(2) == [0, 1]


async def test_a_client_that_said_goodbye_begins_on_a_wire_of_its_own() -> None:
    async with lines() as at:
        line = await at.open()
        await line.begin()
        line.link.close(goodbye=True)
        again = await at.back(line)
        await again.call(1)
        assert await again.ids() == [1]


async def test_a_newer_connection_takes_over_where_the_client_says_so() -> None:
    async with lines() as at:
        line = await at.open()
        await line.begin()
        again = await at.back(line, 1)
        assert await line.over() == "taken_over"
        await again.call(1)
        assert await again.ids() == [1]


async def test_g1_a_count_means_the_socket_that_was_cut_and_not_the_one_beside_it() -> None:
    async with lines() as at:
        keyed = Asked(None, "k", None)
        one, two = await at.open(asked=keyed), await at.open(asked=keyed)
        for line in (one, two):
            await line.begin()
        await one.call("of one")
        one.link.close()
        again = await at.open(asked=Asked(None, "k", "1"))
        again.link.meet()
        assert await again.ids() == ["of one"]
        await two.call("of two")
        assert await two.ids() == ["of two"], "it was not taken over"


async def test_a_count_that_could_mean_two_sockets_is_refused_and_ends_nothing() -> None:
    async with lines() as at:
        keyed = Asked(None, "k", None)
        one, two = await at.open(asked=keyed), await at.open(asked=keyed)
        for line in (one, two):
            await line.begin()
        at.at.clock.advance(1)
        one.link.close()
        two.link.close()
        with pytest.raises(HTTPRefusal) as refused:
            await at.open(asked=Asked(None, "k", "1"))
        assert refused.value.status == 400
        again = await at.open(asked=keyed)
        await again.call(1)
        assert await again.ids() == [1]


async def test_a_count_is_none_of_a_session_that_had_no_socket() -> None:
    async with lines() as at:
        client = await at.at.client()
        with pytest.raises(HTTPRefusal) as refused:
            await at.open(asked=Asked(client.workflow.record.session_id, None, "0"))
        assert refused.value.status == 400


async def test_a_connection_that_is_cut_again_while_it_is_held_leaves_what_is_due() -> None:
    async with lines() as at:
        line = await cut_after(at, 1)
        held = await at.back(line)
        held.link.meet()
        held.link.close()
        again = await at.back(line)
        await again.call(2)
        assert await again.ids(3) == [0, 1, 2]


async def test_a_connection_that_took_an_http_call_up_may_be_cut_and_the_call_be_taken_up_again() -> None:
    async with lines() as at:
        client = await at.at.client()
        at.at.server.on_request = None
        exchange = client.call(id=b'"http"')
        upstream = await at.at.server.got("tools/call")
        primed = client.workflow.streams.event_id(exchange.turn_into_stream(), 1)
        client.leave()
        asked = Asked(None, None, primed)
        (await at.open("sse", asked)).link.close()
        assert not client.workflow.is_attached
        upstream.answer({})
        again = await at.open("sse", asked)
        assert await again.ids() == ["http"]


async def test_sse_goes_on_by_event_id_on_either_transport() -> None:
    async with lines() as at:
        line = await at.open("sse")
        await line.begin()
        for n in (1, 2, 3):
            await line.call(n)
            await line.ids()
        line.link.close()
        on_sse = await at.open("sse", Asked(None, None, line.due[1].event_id))
        assert await on_sse.ids(2) == [2, 3]
        on_sse.link.close()
        socket = await at.open("websocket", Asked(line.link.session_id, None, on_sse.due[0].event_id))
        socket.link.meet()
        assert await socket.ids() == [3]
        socket.link.close()
        [workflow] = at.at.pool.workflows
        assert (workflow.transport, len(at.at.server.sessions)) == ("websocket", 1)


async def test_the_rest_of_an_http_call_comes_on_the_connection_that_takes_it_up_and_is_counted() -> None:
    async with lines() as at:
        client = await at.at.client()
        at.at.server.on_request = None
        exchange = client.call(id=b'"http"')
        upstream = await at.at.server.got("tools/call")
        stream = exchange.turn_into_stream()
        primed = client.workflow.streams.event_id(stream, 1)
        client.leave()
        line = await at.open("websocket", Asked(client.workflow.record.session_id, None, primed))
        line.link.meet()
        upstream.say(message("notifications/message", {"level": "info", "data": 1}))
        assert (await line.hear())[0]["method"] == "notifications/message"
        upstream.answer({})
        assert await line.ids() == ["http"]
        at.at.server.on_request = echo
        for n in (1, 2):
            await line.call(n)
            assert await line.ids() == [n]
        line.link.close()
        again = await at.back(line, 3)
        again.link.meet()
        assert await again.ids() == [2]


# What outlives a connection.


async def test_a_call_goes_on_without_its_connection() -> None:
    async with lines() as at:
        at.at.server.on_request = None
        line = await at.open()
        await line.begin()
        await line.call(1)
        upstream = await at.at.server.got("tools/call")
        line.link.close()
        upstream.answer({})
        again = await at.back(line, 1)
        again.link.meet()
        assert await again.ids() == [1]


@pytest.mark.parametrize("transport", ["sse", "websocket"])
async def test_a_connection_that_goes_while_it_begins_leaves_nothing_behind(transport: Transport) -> None:
    async with lines(resume_window=60) as at, anyio.create_task_group() as tasks:
        at.at.server.pause("initialize")
        line = await at.open(transport)
        tasks.start_soon(line.say, initialize())
        await at.at.server.reached("initialize")
        line.link.close()
        if transport == "websocket":
            tasks.cancel_scope.cancel()
        at.at.server.let("initialize")
        await at.at.server.reached("establish")
        await settle()
        [workflow] = at.at.pool.workflows
        assert not workflow.is_attached
        at.at.clock.advance(61)
        await at.at.ended("abandoned")


async def test_the_answer_to_a_handshake_waits_for_a_client_that_left_meanwhile() -> None:
    async with lines() as at, anyio.create_task_group() as tasks:
        at.at.server.pause("initialize")
        line = await at.open("sse")
        tasks.start_soon(line.say, initialize("mine"))
        await at.at.server.reached("initialize")
        line.link.close()
        at.at.server.let("initialize")
        await at.at.server.reached("establish")
        await settle()
        again = await at.open("sse", Asked(line.link.session_id, None, None))
        await again.say({"jsonrpc": "2.0", "method": "notifications/initialized"})
        assert await again.ids() == ["mine"]


async def test_a_message_that_comes_while_its_stream_is_cut_is_answered_on_the_next_one() -> None:
    async with lines() as at:
        line = await at.open("sse")
        await line.begin()
        line.link.close()
        [workflow] = at.at.pool.workflows
        meanwhile = Line(Link.of(line.link._config, workflow, "sse", line.link.name))
        await meanwhile.call(1)
        again = await at.open("sse", Asked(None, None, line.due[0].event_id))
        assert await again.ids() == [1]


async def test_a_handshake_that_begins_anew_while_its_stream_is_cut_keeps_nothing_attached() -> None:
    async with lines() as at:
        line = await at.open("sse")
        await line.begin()
        line.link.close()
        [workflow] = at.at.pool.workflows
        await Line(Link.of(line.link._config, workflow, "sse", line.link.name)).say(initialize("anew", {"roots": {}}))
        [anew] = at.at.pool.workflows
        assert anew is not workflow
        assert not anew.is_attached
        again = await at.open("sse", Asked(line.link.session_id, None, None))
        await again.say({"jsonrpc": "2.0", "method": "notifications/initialized"})
        assert await again.ids() == ["anew"]


async def test_a_workflow_without_such_a_connection_has_none_to_go_on_with() -> None:
    async with lines() as at:
        client = await at.at.client()
        config = EndpointConfig("x", at.at.pool, Guard(loopback=True), lambda _: ANONYMOUS)
        for name in ("", "never given"):
            with pytest.raises(UnknownSession):
                Link.of(config, client.workflow, "sse", name)


# Handshakes on a workflow that lives.


async def test_the_same_handshake_again_changes_nothing() -> None:
    async with lines() as at:
        line = await at.open()
        await line.begin()
        await line.begin(id=1)
        await line.call(2)
        assert await line.ids() == [2]
        assert len(at.at.server.sessions) == 1


async def test_another_handshake_begins_anew_where_nobody_else_is_there() -> None:
    async with lines() as at:
        line = await at.open()
        await line.begin()
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
        line = await at.open(asked=Asked(None, "k", None))
        await line.begin()
        other = await at.open(asked=Asked(None, "k", None))
        await other.say(initialize(1, {"roots": {}}))
        [refused] = await other.hear()
        assert refused["error"]["code"] == -32602
        assert "capabilities" in refused["error"]["message"]
        await line.call(2)
        assert await line.ids() == [2]


# The end.


async def test_the_end_of_the_workflow_is_the_end_of_the_connection_after_what_is_left() -> None:
    async with lines() as at:
        line = await at.open()
        await line.begin()
        [workflow] = at.at.pool.workflows
        await line.call(1)
        await at.at.pool.end(workflow, "deleted")
        assert await line.ids() == [1]
        assert await line.over() == "deleted"


async def test_what_is_said_after_the_end_is_kept_nowhere() -> None:
    async with lines() as at:
        line = await at.open("sse")
        await line.begin()
        [workflow] = at.at.pool.workflows
        line.link.close()
        await at.at.pool.end(workflow, "deleted")
        # Its body took so long to come that the stream that it was found by is gone.
        await line.call(1)
        assert at.at.held == 0


async def test_what_a_client_that_said_goodbye_did_not_wait_for_is_no_loss() -> None:
    async with lines(event_log=EventLogLimits(events=4)) as at:
        line = await at.open(asked=Asked(None, "k", None))
        await line.begin()
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
        line = await at.open()
        await line.begin()
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


async def test_old_answers_are_held_back_from_a_client_that_probes_before_it_begins() -> None:
    async with lines() as at:
        keyed = Asked(None, "k", None)
        line = await at.open(asked=keyed)
        await line.begin()
        await line.call("of an older program")
        line.link.close()
        again = await at.open(asked=keyed)
        await again.say({"jsonrpc": "2.0", "id": "probe", "method": "server/discover"})
        (probed,) = await again.hear()
        assert (probed["id"], probed["error"]["code"]) == ("probe", -32022)
        await again.say(initialize(1))
        assert [answer["id"] for answer in await again.hear()] == [1]


async def test_g1_what_comes_for_a_stream_that_was_cut_is_not_answered_on_another() -> None:
    async with lines() as at:
        stream = await at.open("sse", Asked(None, "k", None))
        await stream.begin()
        socket = await at.open(asked=Asked(None, "k", None))
        await socket.begin()
        at.at.server.on_request = None
        await socket.call(1)
        stream.link.close()
        [workflow] = at.at.pool.workflows
        meanwhile = Line(Link.of(stream.link._config, workflow, "sse", stream.link.name))
        await meanwhile.call(1)
        for n in (1, 2):
            (await at.at.server.got("tools/call", n)).answer({"n": n})
        assert [answer["result"] for answer in await socket.hear()] == [{"n": 1}]
        again = await at.open("sse", Asked(None, None, stream.due[0].event_id))
        assert [answer["result"] for answer in await again.hear()] == [{"n": 2}]
