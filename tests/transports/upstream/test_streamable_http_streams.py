"""Streamable HTTP to a server on a real socket: streams that end, break, and are taken up again."""

import asyncio

import pytest
from contract.session import answer, told
from harness.http_bench import Heard, HTTPBench, http_bench
from harness.upstream_scripted import Cut, Hang, OpenStream, Pause, Play, Raw, Reply, Send, Status, Step
from trunkline.mux.errors import SessionLost, UpstreamFault
from trunkline.mux.request import Request
from trunkline.transports.upstream import answers
from trunkline.transports.upstream.http_resumption import RESUME_ATTEMPTS

pytestmark = pytest.mark.anyio

NEVER = 3600.0
"""Seconds that no test waits: who waits for them fails."""

SOON = 1
"""Milliseconds: a `retry` for tests that are not about it."""

GOOD: Play = [Reply({"content": []})]
ENDS = pytest.mark.parametrize("end", [[], [Cut()]], ids=["ends", "breaks"])


@pytest.fixture(autouse=True)
def no_default_pause(monkeypatch: pytest.MonkeyPatch) -> None:
    """The pause is what the server asks for, or there is none that a test would live to see."""
    monkeypatch.setattr(answers, "FIRST_RETRY_SECONDS", NEVER)


def resumed(bench: HTTPBench) -> list[str]:
    """The event ids that the wire came back with."""
    return [came.headers["last-event-id"] for came in bench.upstream.of("resume")]


async def is_lost(session: Heard, request: Request) -> bool:
    """True once the request has failed because its stream is gone and it may have run."""
    error = await session.failure(request)
    return type(error) is SessionLost and error.data == {"executed": "unknown"}


# The stream of a call.


@ENDS
async def test_a_stream_that_ends_early_is_taken_up_where_it_was_without_a_gap(end: list[Step]) -> None:
    beginning: Play = [OpenStream(), Send("", event_id="0", retry=SOON), Send(told(1), event_id="1"), *end]
    first: Play = [OpenStream(), Send(told(2), event_id="2", retry=SOON), Send(told(3), event_id="3"), *end]
    second: Play = [OpenStream(), Pause("answer"), Send('{"jsonrpc":"2.0","id":2,"result":{}}', event_id="4"), Hang()]
    async with http_bench(call=[beginning, GOOD], resume=[first, second]) as bench, bench.session() as session:
        request = session.request()
        await bench.upstream.reached("answer")
        await session.answered(session.request())
        bench.upstream.open("answer")
        assert await session.heard(request, 4) == [told(1), told(2), told(3), answer(request)]
        assert resumed(bench) == ["1", "3"]
        assert len(bench.upstream.of("tools/call")) == 2, "it is never posted again"
        assert not session.receiver.of("failed")


async def test_half_an_event_is_asked_for_again_and_does_not_count_as_heard() -> None:
    """A server goes on after the event that it is told: by the id of the half, the rest would never come."""
    reply = '{"jsonrpc":"2.0","id":2,"result":{}}'
    plays = [[OpenStream(), Send("", event_id="0", retry=SOON), Raw(b"id: 1\ndata: " + reply[:9].encode()), Cut()]]
    again = [[OpenStream(), Send(reply, event_id="1")]]
    async with http_bench(call=plays, resume=again) as bench, bench.session() as session:
        await session.answered(session.request())
        assert resumed(bench) == ["0"]


async def test_what_takes_a_stream_up_belongs_to_the_session() -> None:
    plays = [[OpenStream(), Send("", event_id="é", retry=SOON)]]
    again = [[OpenStream(), Send('{"jsonrpc":"2.0","id":2,"result":{}}')]]
    async with http_bench(call=plays, resume=again) as bench, bench.session() as session:
        await session.answered(session.request())
        (came,) = bench.upstream.of("resume")
        assert came.headers["mcp-session-id"] == "upstream-session"
        assert came.headers["mcp-protocol-version"] == "2025-11-25"
        assert came.headers["accept"] == "text/event-stream"
        assert came.headers["last-event-id"].encode("latin-1") == "é".encode(), "the bytes that the server gave"


async def test_the_stream_is_let_go_once_a_resumed_answer_has_come() -> None:
    plays = [[OpenStream(), Send("", event_id="0", retry=SOON)]]
    again = [[OpenStream(), Send('{"jsonrpc":"2.0","id":2,"result":{}}'), Hang()]]
    async with http_bench(call=plays, resume=again) as bench, bench.session() as session:
        await session.answered(session.request())
        await bench.upstream.until(lambda: bench.upstream.disconnects == 1)


@pytest.mark.parametrize("status", [400, 404, 405, 500])
async def test_a_server_that_does_not_take_a_stream_up_has_lost_the_call(status: int) -> None:
    plays = [[OpenStream(), Send(told(1), event_id="1", retry=SOON), Cut()], GOOD]
    async with http_bench(call=plays, resume=[[Status(status)]]) as bench, bench.session() as session:
        assert await is_lost(session, session.request())
        assert resumed(bench) == ["1"]
        await session.answered(session.request())
        assert not session.receiver.of("lost"), "the session lives on"


@pytest.mark.parametrize(("end", "revision"), [([], "2025-06-18"), ([Cut()], "2025-11-25")], ids=["ends", "breaks"])
async def test_a_stream_that_brings_nothing_new_is_given_up_after_some_attempts(end: list[Step], revision: str) -> None:
    plays = [[OpenStream(), Send(told(1), event_id="1", retry=SOON), *end]]
    again = [[OpenStream(), Raw(b"retry: 1\n\n"), *end]]
    async with http_bench(call=plays, resume=again) as bench, bench.session(revision) as session:
        assert await is_lost(session, session.request())
        assert resumed(bench) == ["1"] * RESUME_ATTEMPTS


@pytest.mark.parametrize("says", [b"retry: 1\n\n", b": nothing\n\n"], ids=["each time", "once"])
async def test_t7_a_server_that_has_itself_asked_again_and_again_is(says: bytes) -> None:
    """From 2025-11-25 on a server may end a stream at any time, to be asked for the rest when it said."""
    count = RESUME_ATTEMPTS * 3
    plays = [[OpenStream(), Send("", event_id="0", retry=SOON)]]
    again: list[Play] = [[OpenStream(), Raw(says)]] * count
    last: Play = [OpenStream(), Send('{"jsonrpc":"2.0","id":2,"result":{}}')]
    async with http_bench(call=plays, resume=[*again, last]) as bench, bench.session() as session:
        await session.answered(session.request())
        assert resumed(bench) == ["0"] * (count + 1)


@pytest.mark.parametrize("status", [409, 429, 502, 503, 504])
async def test_a_server_that_does_not_take_a_stream_up_now_is_asked_again(status: int) -> None:
    """It may not have noticed yet that the stream broke, or what stands before it has none at this moment."""
    plays = [[OpenStream(), Send("", event_id="0", retry=SOON), Cut()]]
    again = [[Status(status)], [Status(status)], [OpenStream(), Send('{"jsonrpc":"2.0","id":2,"result":{}}')]]
    async with http_bench(call=plays, resume=again) as bench, bench.session() as session:
        await session.answered(session.request())
        assert resumed(bench) == ["0"] * 3


async def test_a_server_that_takes_a_stream_up_at_no_time_is_asked_so_often() -> None:
    plays = [[OpenStream(), Send("", event_id="0", retry=SOON), Cut()]]
    async with http_bench(call=plays, resume=[[Status(409)]]) as bench, bench.session() as session:
        assert await is_lost(session, session.request())
        assert resumed(bench) == ["0"] * RESUME_ATTEMPTS


async def test_attempts_that_bring_something_are_not_counted() -> None:
    count = RESUME_ATTEMPTS + 3
    plays = [[OpenStream(), Send(told(0), event_id="0", retry=SOON), Cut()]]
    again = [[OpenStream(), Send(told(n), event_id=str(n), retry=SOON), Cut()] for n in range(1, count)]
    last = [OpenStream(), Send('{"jsonrpc":"2.0","id":2,"result":{}}')]
    async with http_bench(call=plays, resume=[*again, last]) as bench, bench.session() as session:
        request = session.request()
        assert await session.heard(request, count + 1) == [*map(told, range(count)), answer(request)]
        assert resumed(bench) == [str(n) for n in range(count)]


async def test_a_fault_on_a_stream_that_was_taken_up_fails_its_call() -> None:
    huge = [OpenStream(), Raw(b"data: "), *[Raw(b"x" * (1 << 20))] * 17, Hang()]
    plays = [[OpenStream(), Send("", event_id="0", retry=SOON)], GOOD]
    async with http_bench(call=plays, resume=[huge]) as bench, bench.session() as session:
        assert type(await session.failure(session.request())) is UpstreamFault
        await session.answered(session.request())
        assert len(resumed(bench)) == 1


async def test_an_event_id_that_cannot_be_sent_back_fails_its_call() -> None:
    plays = [[OpenStream(), Send("", event_id="a\x01b", retry=SOON)], GOOD]
    async with http_bench(call=plays) as bench, bench.session() as session:
        assert type(await session.failure(session.request())) is UpstreamFault
        await session.answered(session.request())
        assert not resumed(bench)


async def test_an_abandoned_call_is_not_taken_up_any_longer() -> None:
    plays = [[OpenStream(), Send("", event_id="0", retry=SOON)]]
    async with http_bench(call=plays, resume=[[OpenStream(), Hang()]]) as bench, bench.session() as session:
        request = session.request()
        await bench.upstream.saw("resume")
        session.wire.abandon(request)
        await bench.upstream.until(lambda: bench.upstream.disconnects == 1)
        assert not session.texts(request)
        assert not session.receiver.of("failed")


async def test_the_server_says_when_to_come_back() -> None:
    loop = asyncio.get_running_loop()
    plays = [[OpenStream(), Send("", event_id="0", retry=200)]]
    async with http_bench(call=plays) as bench, bench.session() as session:
        request = session.request()
        posted = loop.time()
        await bench.upstream.saw("resume")
        assert loop.time() - posted >= 0.2, (
            "a default of an hour would not have come in time, and none at all too early"
        )
        assert await is_lost(session, request)


async def test_a_server_cannot_send_the_wire_away_for_long(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(answers, "LAST_RETRY_SECONDS", 0.01)
    plays = [[OpenStream(), Send("", event_id="0", retry=999_999_999)]]
    async with http_bench(call=plays) as bench, bench.session() as session:
        assert await is_lost(session, session.request())
        assert resumed(bench) == ["0"]


async def test_a_stream_that_stays_open_after_its_answer_is_let_go(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(answers, "LINGER_SECONDS", 0.01)
    async with http_bench(call=[[OpenStream(), *GOOD, Hang()]]) as bench, bench.session() as session:
        await session.answered(session.request())
        await bench.upstream.until(lambda: bench.upstream.disconnects == 1)
        assert not session.receiver.of("failed")


# The stream of what belongs to no call.


async def test_the_get_stream_is_taken_up_by_its_last_event_id() -> None:
    first: Play = [OpenStream(), Send(told(1), event_id="g1", retry=SOON), Cut()]
    again: list[Play] = [
        [OpenStream(), Send(told(2), event_id="g2")],
        [OpenStream(), Send(told(3), event_id="g3", retry=SOON), Hang()],
    ]
    async with http_bench(GET=[first], resume=again) as bench, bench.session() as session:
        assert await session.heard(None, 3) == [told(1), told(2), told(3)]
        assert resumed(bench) == ["g1", "g2"]
        assert len(bench.upstream.of("GET")) == 1
        assert bench.sent("get") == 3


async def test_half_an_event_of_the_get_stream_is_asked_for_again() -> None:
    first: Play = [OpenStream(), Send(told(1), event_id="g1", retry=SOON), Raw(b"id: g2\ndata: " + told(2)), Cut()]
    again: Play = [OpenStream(), Send(told(2), event_id="g2"), Hang()]
    async with http_bench(GET=[first], resume=[again]) as bench, bench.session() as session:
        assert await session.heard(None, 2) == [told(1), told(2)]
        assert resumed(bench) == ["g1"]


@ENDS
async def test_a_get_stream_without_ids_is_opened_anew(end: list[Step], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(answers, "FIRST_RETRY_SECONDS", 0.001)
    plays = [[OpenStream(), Send(told(1)), *end], [OpenStream(), Send(told(2)), Hang()]]
    async with http_bench(GET=plays) as bench, bench.session() as session:
        assert await session.heard(None, 2) == [told(1), told(2)]
        assert not bench.upstream.of("resume")


async def test_who_has_rested_goes_on_after_the_last_event() -> None:
    first: Play = [OpenStream(), Send(told(1), event_id="g1"), Hang()]
    again: Play = [OpenStream(), Send(told(2), event_id="g2"), Hang()]
    async with http_bench(GET=[first], resume=[again]) as bench, bench.session() as session:
        assert await session.heard(None) == [told(1)]
        session.wire.rest()
        await bench.upstream.until(lambda: bench.upstream.disconnects == 1)
        session.wire.listen()
        session.wire.listen()
        assert await session.heard(None, 2) == [told(1), told(2)]
        assert resumed(bench) == ["g1"]


# What wants progress, which many servers send on the GET stream.

COMING: Play = [Pause("get"), OpenStream(), Hang()]


@pytest.fixture
def no_hurry(monkeypatch: pytest.MonkeyPatch) -> None:
    """For the stream is waited as long as the test likes."""
    monkeypatch.setattr(answers, "LISTEN_SECONDS", NEVER)


@pytest.mark.usefixtures("no_hurry")
@pytest.mark.parametrize("come", [COMING, [Pause("get"), Status(405)], [Pause("get"), Cut()]])
async def test_what_wants_progress_is_sent_once_it_is_known_whether_the_stream_is_heard(come: Play) -> None:
    async with http_bench(GET=[come]) as bench, bench.session() as session:
        waiting = session.request(token=b"7")
        await session.answered(session.request())
        await bench.upstream.reached("get")
        assert len(bench.upstream.of("tools/call")) == bench.sent("call") == 1
        bench.upstream.open("get")
        await session.answered(waiting)
        await session.answered(session.request(token=b"8"))
        assert bench.sent("call") == 3


@pytest.mark.usefixtures("no_hurry")
async def test_what_wants_progress_after_a_rest_waits_until_the_stream_is_heard_again() -> None:
    first: Play = [OpenStream(), Send(told(1)), Hang()]
    async with http_bench(GET=[first, COMING]) as bench, bench.session() as session:
        await session.heard(None)
        session.wire.rest()
        session.wire.listen()
        waiting = session.request(token=b"7")
        await bench.upstream.reached("get")
        assert not bench.upstream.of("tools/call")
        bench.upstream.open("get")
        await session.answered(waiting)


async def test_a_stream_that_shows_nothing_before_its_first_event_is_waited_for_once(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(answers, "LISTEN_SECONDS", 0.001)
    async with http_bench(GET=[COMING]) as bench, bench.session() as session:
        await session.answered(session.request(token=b"7"))
        monkeypatch.setattr(answers, "LISTEN_SECONDS", NEVER)
        await session.answered(session.request(token=b"8"))


@pytest.mark.usefixtures("no_hurry")
async def test_what_is_withdrawn_while_it_waits_is_never_sent() -> None:
    async with http_bench(GET=[COMING]) as bench, bench.session() as session:
        cancelled, cut = session.request(token=b"7"), session.request(token=b"8")
        cancelled.state = "abandoned"
        session.wire.abandon(cut)
        bench.upstream.open("get")
        error = await session.failure(cancelled)
        assert (type(error), error.data) == (SessionLost, {"executed": "no"})
        await session.answered(session.request())
        assert len(bench.upstream.of("tools/call")) == 1
        assert len(session.receiver.of("failed")) == 1


@pytest.mark.usefixtures("no_hurry")
async def test_what_waits_as_the_session_ends_is_never_sent() -> None:
    async with http_bench(GET=[COMING]) as bench:
        async with bench.session() as session:
            session.request(token=b"7")
        assert not bench.upstream.of("tools/call")
        assert bench.sent("delete") == 1


@pytest.mark.usefixtures("no_hurry")
async def test_what_waits_as_the_session_is_forgotten_did_not_run() -> None:
    async with http_bench(GET=[COMING], call=[[Status(404)]]) as bench, bench.session() as session:
        waiting, refused = session.request(token=b"7"), session.request()
        assert await session.lost() == {waiting, refused}


@pytest.mark.parametrize("status", [405, 404, 400])
async def test_a_server_need_not_offer_a_get_stream(status: int) -> None:
    async with http_bench(GET=[[Status(status)]]) as bench, bench.session() as session:
        await bench.upstream.saw("GET")
        for _ in range(3):
            await session.answered(session.request())
        session.wire.rest()
        session.wire.listen()
        await session.answered(session.request(token=b"7"))  # which would wait for what a GET is answered
        assert len(bench.upstream.of("GET")) == 1
        assert {report.what for report in session.receiver.reports} == {"received"}


@pytest.mark.parametrize("status", [503, 408, 409, 425, 429])
async def test_a_get_stream_that_is_refused_for_now_is_asked_for_again(
    monkeypatch: pytest.MonkeyPatch, status: int
) -> None:
    monkeypatch.setattr(answers, "FIRST_RETRY_SECONDS", 0.001)
    plays = [[Status(status)], [OpenStream(), Send(told(1)), Hang()]]
    async with http_bench(GET=plays) as bench, bench.session() as session:
        assert await session.heard(None, 1) == [told(1)]


async def test_an_event_id_that_was_taken_back_is_not_sent() -> None:
    plays = [[OpenStream(), Send("", event_id="1", retry=1), Raw(b"id:\n\n"), Cut()]]
    async with http_bench(call=plays) as bench, bench.session() as session:
        await session.failure(session.request())
        assert not [came for came in bench.upstream.received if came.headers.get("last-event-id") == ""]


async def test_a_get_stream_that_is_none_is_not_read() -> None:
    async with http_bench(GET=[[Status(200, "data: no\n\n", "text/plain")]]) as bench, bench.session() as session:
        await bench.upstream.saw("GET")
        await session.answered(session.request())
        assert session.texts(None) == []


async def test_a_fault_on_the_get_stream_is_counted_and_it_is_opened_anew(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(answers, "FIRST_RETRY_SECONDS", 0.001)
    huge = [OpenStream(), Raw(b"data: "), *[Raw(b"x" * (1 << 20))] * 17, Hang()]
    async with http_bench(GET=[huge, [OpenStream(), Send(told(1)), Hang()]]) as bench, bench.session() as session:
        assert await session.heard(None) == [told(1)]
        assert bench.statistics.total("upstream_faults", "x") == 1
        await session.answered(session.request())
