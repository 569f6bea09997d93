"""What a server may answer to a call over Streamable HTTP: an answer, an error, neither, a session forgotten."""

import gc
from collections.abc import Callable, Iterator

import pytest
from contract.session import INITIALIZED, told
from harness.http_bench import http_bench
from harness.upstream_scripted import (
    Cut,
    Forever,
    Hang,
    Json,
    OpenStream,
    Play,
    Raw,
    Reply,
    ScriptedUpstream,
    Send,
    Status,
    Step,
)
from trunkline.mux.errors import SessionLost, TrunklineError, UpstreamFault, UpstreamUnreachable
from trunkline.mux.limits import MAX_EVENT_BYTES
from trunkline.transports.upstream.http_call import HTTPCall

pytestmark = pytest.mark.anyio

GOOD: Play = [Reply({"content": []})]

JSON_BEGINS = OpenStream({"Content-Type": "application/json"})


# What a server may answer to a call that is no answer.


def answering(code: int) -> Callable[[TrunklineError], bool]:
    return lambda error: type(error) is UpstreamUnreachable and error.data.get("status") == code


def is_fault(error: TrunklineError) -> bool:
    return type(error) is UpstreamFault


def is_lost(error: TrunklineError) -> bool:
    return type(error) is SessionLost


NO_ANSWER: dict[str, tuple[Play, Callable[[TrunklineError], bool], str | None]] = {
    "accepted": ([Status(202)], is_fault, None),
    "a page": ([Status(200, "<html>", "text/html")], answering(200), "unknown"),
    "no type": ([Status(200, "{}", "")], answering(200), "unknown"),
    "no content": ([Status(204)], answering(204), "unknown"),
    "bad request": ([Status(400)], answering(400), "no"),
    "bad request, JSON that is no error": ([Status(400, "{}", "application/json")], answering(400), "no"),
    "bad request, broken JSON": ([Status(400, "{", "application/json")], answering(400), "no"),
    "unauthorized": ([Status(401)], answering(401), "no"),
    "an error that calls itself a stream": ([Status(409, ": no\n\n", "text/event-stream")], answering(409), "no"),
    "server error": ([Status(500)], answering(500), "unknown"),
    "bad gateway, JSON": ([Status(502, '{"error":"down"}', "application/json")], answering(502), "unknown"),
    "a body of nothing": ([Json("")], is_fault, None),
    "a body without end": ([JSON_BEGINS, Forever(b" " * 65536)], is_fault, None),
    "a body that breaks": ([JSON_BEGINS, Raw(b"{"), Cut()], is_lost, "unknown"),
    "an event without end": ([OpenStream(), Raw(b"data: "), Forever(b"x" * 65536)], is_fault, None),
    "an event of lines without end": ([OpenStream(), Forever(b"data: " + b"x" * 65536 + b"\n")], is_fault, None),
    "a stream without ids that ends": ([OpenStream(), Send(told(1))], is_lost, "unknown"),
    "a stream without ids that breaks": ([OpenStream(), Send(told(1)), Cut()], is_lost, "unknown"),
}


@pytest.mark.parametrize("name", NO_ANSWER)
async def test_what_is_no_answer_fails_its_own_call_and_says_whether_it_may_have_run(name: str) -> None:
    play, is_expected, executed = NO_ANSWER[name]
    async with http_bench(call=[play, GOOD]) as bench, bench.session() as session:
        error = await session.failure(session.request())
        assert is_expected(error), repr(error)
        assert error.data.get("executed") == executed
        assert "127.0.0.1" not in error.message
        await session.answered(session.request())
        assert len(bench.upstream.of("tools/call")) == 2, "nothing is sent twice"
        assert not session.receiver.of("lost")


async def test_an_event_and_a_body_of_the_largest_size_arrive() -> None:
    def padded(request_id: int, size: int) -> str:
        head = f'{{"jsonrpc":"2.0","id":{request_id},"result":{{"x":"'
        return head + "x" * (size - len(head) - 3) + '"}}'

    event = padded(3, MAX_EVENT_BYTES - len("data: \n\n"))
    plays = [[Json(padded(2, MAX_EVENT_BYTES))], [OpenStream(), Send(event)]]
    async with http_bench(call=plays) as bench, bench.session() as session:
        assert len((await session.answered(session.request())).text) == MAX_EVENT_BYTES
        assert (await session.answered(session.request())).text == event.encode()


@pytest.mark.parametrize("status", [400, 401, 403, 422, 500, 503])
async def test_a_jsonrpc_error_in_an_http_error_reaches_the_caller(status: int) -> None:
    body = '{"jsonrpc":"2.0","id":2,"error":{"code":-32001,"message":"no","data":{"x":1e400}}}'
    play = [Status(status, body, "application/json; charset=utf-8")]
    async with http_bench(call=[play]) as bench, bench.session() as session:
        assert (await session.answered(session.request())).text == body.encode()
        assert not session.receiver.of("failed")


@pytest.mark.parametrize("id", ['"server-error"', "99"])
async def test_e8_an_http_error_is_of_its_own_request_whatever_id_it_names(id: str) -> None:
    """Servers of the Python SDK 1.x name it `server-error`."""
    body = '{"jsonrpc":"2.0","id":%s,"error":{"code":-32602,"message":"no"}}'
    async with http_bench(call=[[Status(400, body % id, "application/json")]]) as bench, bench.session() as session:
        assert (await session.answered(session.request())).text == (body % 2).encode()
        assert not session.receiver.of("failed")


async def test_a_redirect_is_not_followed() -> None:
    async with ScriptedUpstream() as elsewhere, http_bench() as bench:
        codes = (301, 302, 303, 307, 308)
        bench.upstream.script["tools/call"] = [[Status(code, headers={"Location": elsewhere.url})] for code in codes]
        async with bench.session() as session:
            for code in codes:
                assert answering(code)(await session.failure(session.request()))
        assert not elsewhere.received


@pytest.mark.parametrize("bad", [b"{nope", b"\xff\xfe", b"[" * 10_000, b"7"], ids=lambda bad: repr(bad[:4]))
@pytest.mark.parametrize("streamed", [True, False])
async def test_what_is_no_message_comes_with_the_request_on_whose_exchange_it_came(bad: bytes, streamed: bool) -> None:
    """The wire does not judge it; the channel does, and has to know whose it is."""
    steps: list[Step] = [OpenStream(), Raw(b"data: %b\n\n" % bad), Hang()] if streamed else [Json(bad)]
    async with http_bench(call=[steps]) as bench, bench.session() as session:
        request = session.request()
        assert await session.heard(request) == [bad]


# Servers that answer 400 where the specification has 404.

NO_SESSION = '{"jsonrpc":"2.0","id":null,"error":{"code":-32000,"message":"Bad Request: No valid session ID provided"}}'


@pytest.mark.parametrize(
    "refusal",
    [Status(400, NO_SESSION, "application/json"), Status(400, "Invalid or missing session ID"), Status(404)],
    ids=["JSON-RPC", "text", "404"],
)
async def test_a_session_that_is_forgotten_is_known_by_what_the_server_says(refusal: Status) -> None:
    async with http_bench(call=[GOOD, [refusal]]) as bench, bench.session() as session:
        await session.answered(session.request())
        refused = session.request()
        assert await session.lost() == {refused}
        assert not session.receiver.of("failed")
        assert len(bench.upstream.of("tools/call")) == 2


@pytest.mark.parametrize(
    ("body", "kind"),
    [
        ('{"jsonrpc":"2.0","id":2,"error":{"code":-32602,"message":"Invalid session id"}}', "application/json"),
        ("no such tool", "text/plain"),
        ("session not found" + " " * 100_000, "text/plain"),
    ],
    ids=["of a handler", "of something else", "without end"],
)
async def test_a_400_that_does_not_say_so_fails_one_call(body: str, kind: str) -> None:
    async with http_bench(call=[[Status(400, body, kind)], GOOD]) as bench, bench.session() as session:
        request = session.request()
        if kind == "application/json":
            assert (await session.answered(request)).text == body.encode()
        else:
            assert answering(400)(await session.failure(request))
        await session.answered(session.request())
        assert not session.receiver.of("lost")


@pytest.mark.parametrize("session_id", ["", "upstream-session"])
async def test_a_400_is_looked_into_only_where_there_is_a_session(session_id: str) -> None:
    refusal = Status(400, "Invalid or missing session ID")
    async with http_bench(session_id, initialize=[[refusal]]) as bench, bench.wire() as session:
        assert answering(400)(await session.failure(session.request("initialize")))
    async with http_bench("", call=[[refusal], GOOD]) as bench, bench.session() as session:
        assert answering(400)(await session.failure(session.request()))
        await session.answered(session.request())


# What is left of a call.


@pytest.fixture
def uncollected() -> Iterator[Callable[[], int]]:
    """How many answers to calls are held in memory, while nothing collects what refers to itself."""
    gc.collect()
    gc.disable()
    yield lambda: sum(isinstance(one, HTTPCall) for one in gc.get_objects())
    gc.enable()


STREAMED: Play = [OpenStream(), Send('{"jsonrpc":"2.0","id":$ID,"result":{}}')]


@pytest.mark.parametrize("play", [GOOD, STREAMED])
async def test_nothing_of_a_call_is_left_to_the_garbage_collector(play: Play, uncollected: Callable[[], int]) -> None:
    async with http_bench(call=[play]) as bench, bench.session() as session:
        await session.answered(session.request())
        await session.wire.establish("2025-11-25", INITIALIZED)  # the end of the stream has come by then
        assert uncollected() == 0
