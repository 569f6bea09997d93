"""What every HTTP endpoint does around its own part: guard, identity, refusals, bodies, streams."""

import json
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from typing import Any

import anyio
import pytest
from harness.asgi_client import ASGIClient, asgi_client
from harness.changing import until
from harness.endpoint_bench import authenticate
from harness.muxing import Bench, bench, settle
from trunkline.mux.errors import Overloaded, UnknownSession
from trunkline.mux.limits import MAX_BODY_BYTES
from trunkline.mux.statistics import Statistics
from trunkline.transports import http_endpoint
from trunkline.transports.asgi import EVENT_STREAM, HOPS, MEANT, Grant, RequestHeaders
from trunkline.transports.endpoint import EndpointConfig
from trunkline.transports.guard import Guard
from trunkline.transports.http_endpoint import HTTPEndpoint, HTTPRequest, check_json, send_events

pytestmark = pytest.mark.anyio

ORIGIN = "https://app.example"


class Reading(HTTPEndpoint):
    """Answers a body with itself."""

    def __init__(self, config: EndpointConfig) -> None:
        super().__init__(config, {"POST": self._post})

    async def _post(self, request: HTTPRequest) -> None:
        check_json(request.headers)
        await request.respond(200, [], await self.body(request))


@asynccontextmanager
async def served(make: Callable[[EndpointConfig], HTTPEndpoint]) -> AsyncIterator[tuple[ASGIClient, Bench]]:
    """A client of such an endpoint."""
    async with bench() as at:
        guard = Guard(loopback=True, allowed_origins=[ORIGIN])
        async with asgi_client(make(EndpointConfig("x", at.pool, guard, authenticate))) as client:
            yield client, at


def endpoint(
    handle: Callable[[HTTPRequest], Awaitable[None]],
) -> AbstractAsyncContextManager[tuple[ASGIClient, Bench]]:
    """A client of an endpoint that answers POST."""
    return served(lambda config: HTTPEndpoint(config, {"POST": handle}))


async def greet(request: HTTPRequest) -> None:
    await request.respond(200, [], b"hello " + request.principal.subject.encode())


async def never(*_: object) -> Any:
    raise AssertionError("nothing is read or written")


def failing(error: Exception) -> Callable[[HTTPRequest], Awaitable[None]]:
    async def fail(_: HTTPRequest) -> None:
        raise error

    return fail


async def test_a_request_is_answered_by_the_part_of_its_method_under_its_identity() -> None:
    async with endpoint(greet) as (client, _):
        answer = await client.post(b"", {"authorization": "alice"})
        assert (answer.status, await answer.body()) == (200, b"hello alice")


async def test_who_may_not_speak_is_refused_before_anything_else() -> None:
    async with endpoint(failing(AssertionError())) as (client, at):
        for headers, status in (
            ({"host": "evil.example"}, 421),
            ({"origin": "https://evil.example"}, 403),
            ({"authorization": "wrong"}, 401),
        ):
            assert (await client.post(b"", headers)).status == status
        assert [at.counts["refused", word] for word in ("host", "origin", "unauthorized")] == [1, 1, 1]


@pytest.mark.parametrize(("scope", "elsewhere"), [({}, True), ({HOPS: 1}, False), ({MEANT: 1}, False)])
async def test_g8_a_worker_that_drains_hands_on_what_came_to_it_first_alone(
    scope: dict[str, int], elsewhere: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with bench() as at:
        app = HTTPEndpoint(EndpointConfig("x", at.pool, Guard(loopback=True), authenticate), {})
        handed_on: list[bool] = []

        async def hand_on() -> None:
            handed_on.append(True)

        monkeypatch.setattr(at.pool, "hand_on", hand_on)
        request = HTTPRequest(RequestHeaders(), receive=never, send=never, scope=scope)
        await app.hand_on(request)
        assert not handed_on
        at.pool._opening.draining = True
        await app.hand_on(request)
        assert bool(handed_on) is elsewhere


async def test_another_method_is_refused_with_what_there_is() -> None:
    async with endpoint(greet) as (client, at):
        answer = await client.get()
        assert (answer.status, answer.headers["allow"]) == (405, "POST, OPTIONS")
        assert at.counts["refused", "method"] == 1


@pytest.mark.parametrize(
    ("error", "status", "word"),
    [
        (UnknownSession("gone"), 404, "unknown_session"),
        (Overloaded("full", limit="max_workflows"), 503, "max_workflows"),
        (ZeroDivisionError("secret"), 500, "internal"),
    ],
)
async def test_a_failure_becomes_a_status_and_is_counted(
    error: Exception, status: int, word: str, caplog: pytest.LogCaptureFixture
) -> None:
    async with endpoint(failing(error)) as (client, at):
        answer = await client.post(b"")
        assert answer.status == status
        assert at.counts["refused", word] == 1
        assert b"secret" not in await answer.body()
        assert ("a request failed" in caplog.text) == (status == 500)


async def test_a_failure_after_the_answer_began_sends_no_second_one() -> None:
    async def half(request: HTTPRequest) -> None:
        await request.start(200, EVENT_STREAM)
        raise UnknownSession("gone")

    async with endpoint(half) as (client, at):
        answer = await client.post(b"")
        await answer.over()
        assert (answer.status, answer.is_whole) == (200, False)
        assert at.counts["refused", "unknown_session"] == 1


async def test_a_page_of_an_allowed_origin_may_read_what_it_is_told_even_a_refusal() -> None:
    async with endpoint(failing(UnknownSession("gone"))) as (client, _):
        answer = await client.post(b"", {"origin": ORIGIN})
        assert (answer.status, answer.headers["access-control-allow-origin"]) == (404, ORIGIN)
        allowed = await client.ask("OPTIONS", b"", {"origin": ORIGIN, "authorization": None})
        assert (allowed.status, allowed.headers["access-control-allow-origin"]) == (204, ORIGIN)
        assert "POST" in allowed.headers["access-control-allow-methods"]
        other = await client.ask("OPTIONS", b"", {"origin": "http://localhost:1"})
        assert other.status == 403
        assert "access-control-allow-origin" not in other.headers


@pytest.mark.parametrize(
    ("parts", "headers", "status"),
    [
        ([b"a", b"b"], {}, 200),
        ([b"a"], {"content-length": str(MAX_BODY_BYTES + 1)}, 413),
        ([b"a" * MAX_BODY_BYTES, b"a"], {}, 413),
        ([b"a"], {"content-type": "text/plain"}, 415),
        ([b"a"], {"content-type": "Application/JSON; charset=utf-8"}, 200),
    ],
)
async def test_a_body_is_whole_bounded_and_json(parts: list[bytes], headers: dict[str, str], status: int) -> None:
    async with served(Reading) as (client, _):
        answer = await client.ask("POST", b"", headers, parts=parts)
        assert answer.status == status
        assert status != 200 or await answer.body() == b"".join(parts)


async def test_a_client_that_leaves_in_the_middle_of_its_body_is_counted() -> None:
    async with served(Reading) as (client, at):
        answer = client.start("POST", b"", parts=[b"a"], endless=True)
        answer.leave()
        await answer.over()
        assert (answer.status, at.counts["refused", "client_left"]) == (0, 1)


async def test_g10_the_large_bodies_of_one_user_are_limited_as_they_come() -> None:
    largest = b"a" * MAX_BODY_BYTES
    async with served(Reading) as (client, at):
        coming = [client.start("POST", b"", parts=[largest], endless=True) for _ in range(16)]
        await settle()
        refused = await client.ask("POST", b"", parts=[b"a" * 65_536, b"a"])
        assert (refused.status, refused.headers["retry-after"]) == (429, "10")
        assert json.loads(await refused.body())["error"]["data"] == {"limit": "max_large_bytes_per_user"}
        assert at.counts["refused", "max_large_bytes_per_user"] == 1
        assert (await client.post(b"a" * 65_536)).status == 200
        assert (await client.post(largest, {"authorization": "bob"})).status == 200
        coming[0].leave()
        await coming[0].over()
        assert (await client.post(largest)).status == 200
        for answer in coming[1:]:
            answer.leave()
            await answer.over()


# Streams.


def streaming(chunks: list[bytes | None], told: list[bool]) -> Callable[[HTTPRequest], Awaitable[None]]:
    """Sends these; None is the end, and where there is none, nothing more comes."""

    async def stream(request: HTTPRequest) -> None:
        async def chunk() -> bytes | None:
            if not chunks:
                await anyio.sleep_forever()
            return chunks.pop(0)

        await request.start(200, EVENT_STREAM)
        told.append(await send_events(request, chunk, Statistics()))
        await request.finish()

    return stream


async def test_a_stream_is_sent_to_its_end_with_a_comment_where_nothing_was_due() -> None:
    told: list[bool] = []
    async with endpoint(streaming([b"data: 1\n\n", b"", None], told)) as (client, _):
        answer = await client.post(b"")
        assert await answer.body() == b"data: 1\n\n: keep-alive\n\n"
        assert told == [True]


async def test_a_stream_ends_when_its_client_leaves() -> None:
    told: list[bool] = []
    async with endpoint(streaming([b"data: 1\n\n"], told)) as (client, _):
        answer = await client.post(b"")
        await answer.came(b"data: 1")
        answer.leave()
        await answer.over()
        assert told == [True]


async def test_g12_a_stream_that_ends_with_its_identity_is_counted() -> None:
    statistics, grant = Statistics(), Grant()

    async def stream(request: HTTPRequest) -> None:
        async def chunk() -> bytes | None:
            grant.withdraw()
            await anyio.sleep_forever()
            return None

        request.headers.grant = grant
        await request.start(200, EVENT_STREAM)
        assert await send_events(request, chunk, statistics)
        await request.finish()

    async with endpoint(stream) as (client, _):
        assert await (await client.post(b"")).body() == b""
        assert dict(statistics.counts) == {("refused", "identity_ended"): 1}


async def test_a_client_that_takes_nothing_is_told_apart(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(http_endpoint, "SEND_SECONDS", 0.05)
    told: list[bool] = []
    chunks: list[bytes | None] = [b"data: 1\n\n"]
    async with endpoint(streaming(chunks, told)) as (client, _):
        answer = client.start("POST", b"")

        class Stalling(bytes):
            """Once this is asked for, nothing more is taken."""

            def __bool__(self) -> bool:
                answer.stalled = True
                return True

        chunks.append(Stalling(b"data: 2\n\n"))
        await answer.came(b"data: 1")
        await until(lambda: told)
        assert told == [False]
        answer.leave()
