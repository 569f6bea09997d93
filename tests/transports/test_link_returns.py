"""What a client is due that comes back to its workflow, and what outlives its connection."""

import anyio
import pytest
from harness.clustering import started
from harness.duplex_clients import initialize
from harness.links import Line, Lines, lines
from harness.memory_wire import echo, message
from harness.muxing import settle
from trunkline.mux import cluster
from trunkline.mux.account import Transport
from trunkline.mux.directory import LEASE_SECONDS
from trunkline.mux.errors import UnknownSession
from trunkline.mux.event_log import Trimmed
from trunkline.mux.limits import EventLogLimits
from trunkline.mux.principal import ANONYMOUS
from trunkline.transports import link as module
from trunkline.transports.endpoint import EndpointConfig
from trunkline.transports.guard import Guard
from trunkline.transports.headers import Asked
from trunkline.transports.link import Link
from trunkline.transports.status import HTTPRefusal

pytestmark = pytest.mark.anyio


async def cut_after(at: Lines, calls: int) -> Line:
    """A client whose connection is gone after so many answers."""
    line = await at.begun()
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
    monkeypatch.setattr(module, "HOLD_SECONDS", 0.5)
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


async def test_g5_a_count_means_the_same_to_the_worker_that_comes_after_however_soon() -> None:
    async with started(2, on_request=echo) as (_, a, b):
        there = Lines(a)
        line = await cut_after(there, 1)
        await settle()
        again = await there.back(line, 2)
        a.kill()
        await b.beat(after=LEASE_SECONDS)
        last = await Lines(b).back(again, 0)
        last.link.meet()
        assert await last.silent(), "all of it had come on the connection before"


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
        line = await at.begun()
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
        line = await at.begun()
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


async def test_what_is_due_is_held_from_when_the_client_has_its_connection(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "HOLD_SECONDS", 0.5)
    monkeypatch.setattr(cluster, "FLUSH_SECONDS", 0.75)
    async with started(1, on_request=echo) as (_, a):
        at = Lines(a)
        line = await cut_after(at, 1)
        a.view.is_cut = True
        anew = await at.back(line)  # which waits for the directory, and longer than it holds
        anew.link.meet()
        await anew.say(initialize(1))
        [answer] = await anew.hear()
        assert "protocolVersion" in answer["result"], "it does not meet the old answer to its id"


async def test_a_client_that_said_goodbye_begins_on_a_wire_of_its_own() -> None:
    async with lines() as at:
        line = await at.begun()
        line.link.close(goodbye=True)
        again = await at.back(line)
        await again.call(1)
        assert await again.ids() == [1]


async def test_a_newer_connection_takes_over_where_the_client_says_so() -> None:
    async with lines() as at:
        line = await at.begun()
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
        line = await at.begun("sse")
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


async def test_old_answers_are_held_back_from_a_client_that_probes_before_it_begins() -> None:
    async with lines() as at:
        keyed = Asked(None, "k", None)
        line = await at.begun(asked=keyed)
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
        stream = await at.begun("sse", Asked(None, "k", None))
        socket = await at.begun(asked=Asked(None, "k", None))
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


# What outlives a connection.


async def test_a_call_goes_on_without_its_connection() -> None:
    async with lines() as at:
        at.at.server.on_request = None
        line = await at.begun()
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
        line = await at.begun("sse")
        line.link.close()
        [workflow] = at.at.pool.workflows
        meanwhile = Line(Link.of(line.link._config, workflow, "sse", line.link.name))
        await meanwhile.call(1)
        again = await at.open("sse", Asked(None, None, line.due[0].event_id))
        assert await again.ids() == [1]


async def test_a_handshake_that_begins_anew_while_its_stream_is_cut_keeps_nothing_attached() -> None:
    async with lines() as at:
        line = await at.begun("sse")
        line.link.close()
        [workflow] = at.at.pool.workflows
        await Line(Link.of(line.link._config, workflow, "sse", line.link.name)).say(
            initialize("anew", capabilities={"roots": {}})
        )
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
