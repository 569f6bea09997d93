"""Headers, bounded bodies and answers, as an ASGI server hands them over."""

import tracemalloc
from collections.abc import Iterable, Sequence
from typing import Any

import anyio
import pytest
from trunkline.mux.limits import MAX_BODY_BYTES
from trunkline.transports import asgi
from trunkline.transports.asgi import (
    BodyTooLarge,
    BodyTooSlow,
    ClientLeft,
    Grant,
    Message,
    Receive,
    RequestHeaders,
    headers_of,
    read_body,
    respond,
    until_disconnect,
)

pytestmark = pytest.mark.anyio

LEFT: Message = {"type": "http.disconnect"}


def noted(size: int) -> None:
    """Nobody minds how much has come."""


def part(body: bytes, *, more: bool = False) -> Message:
    return {"type": "http.request", "body": body, "more_body": more}


def giving(*messages: Message) -> Receive:
    """What a server hands over; asking for more than there is fails the test."""
    waiting = iter(messages)

    async def receive() -> Message:
        await anyio.lowlevel.checkpoint()
        message = next(waiting, None)
        assert message is not None, "nothing more was needed"
        return message

    return receive


def test_headers_are_read_by_lower_case_name_and_joined_where_they_come_twice() -> None:
    raw = [(b"accept", b"text/html"), (b"x-one", b"caf\xe9"), (b"accept", b"text/event-stream")]
    assert headers_of({"headers": raw}) == {"accept": "text/html, text/event-stream", "x-one": "caf\xe9"}
    assert headers_of({"headers": []}) == {}


@pytest.mark.parametrize(
    ("messages", "body"),
    [
        ([part(b"hello")], b"hello"),
        ([{"type": "http.request"}], b""),
        ([part(b"hel", more=True), part(b"", more=True), part(b"lo")], b"hello"),
        ([part(b"hello", more=True), {"type": "http.request"}], b"hello"),
    ],
)
@pytest.mark.parametrize("declared", [None, "5", "0"])
async def test_a_body_is_read_to_its_end(messages: Sequence[Message], body: bytes, declared: str | None) -> None:
    assert await read_body(giving(*messages), declared, noted) == body


@pytest.mark.parametrize("sizes", [[MAX_BODY_BYTES], [MAX_BODY_BYTES - 1, 1], [1, MAX_BODY_BYTES - 1, 0]])
async def test_a_body_at_the_limit_is_read(sizes: list[int]) -> None:
    messages = [part(bytes(size), more=n + 1 < len(sizes)) for n, size in enumerate(sizes)]
    assert len(await read_body(giving(*messages), str(MAX_BODY_BYTES), noted)) == MAX_BODY_BYTES


@pytest.mark.parametrize("sizes", [[MAX_BODY_BYTES + 1], [MAX_BODY_BYTES, 1], [1, MAX_BODY_BYTES]])
async def test_a_body_over_the_limit_is_refused_as_soon_as_that_is_seen(sizes: list[int]) -> None:
    """Its end does not have to come: there may be none."""
    messages = [part(bytes(size), more=len(sizes) > 1) for size in sizes]
    with pytest.raises(BodyTooLarge):
        await read_body(giving(*messages), None, noted)


@pytest.mark.parametrize("declared", [str(MAX_BODY_BYTES + 1), "9" * 5000, "", "-1", "1e3", "0x10", "1, 1"])
async def test_a_body_that_is_declared_too_large_or_badly_is_not_read_at_all(declared: str) -> None:
    with pytest.raises(BodyTooLarge):
        await read_body(giving(), declared, noted)


@pytest.mark.parametrize("messages", [[LEFT], [part(b"hel", more=True), LEFT]])
async def test_a_client_that_leaves_before_the_end_is_told_apart(messages: Sequence[Message]) -> None:
    with pytest.raises(ClientLeft):
        await read_body(giving(*messages), "5", noted)


@pytest.mark.parametrize("body", [b"", b"hello"])
async def test_an_answer_is_complete_and_has_its_length(body: bytes) -> None:
    sent: list[Any] = []

    async def send(message: Message) -> None:
        sent.append(message)

    async def answer(headers: Iterable[tuple[bytes, bytes]]) -> None:
        await (respond(send, 200, headers, body) if body else respond(send, 200, headers))

    await answer([(b"x-one", b"1")])
    start, rest = sent
    assert (start["type"], start["status"]) == ("http.response.start", 200)
    assert start["headers"] == [(b"x-one", b"1"), (b"content-length", b"%d" % len(body))]
    assert (rest["type"], rest["body"], rest.get("more_body", False)) == ("http.response.body", body, False)


async def test_a_body_that_comes_byte_by_byte_takes_no_more_memory_than_its_bytes() -> None:
    left = 200_000
    most = 0

    async def receive() -> Message:
        nonlocal left, most
        left -= 1
        if left % 10_000 == 0:
            most = max(most, tracemalloc.get_traced_memory()[0])
        return part(bytes([left % 256]), more=left > 0)

    tracemalloc.start()
    try:
        assert len(await read_body(receive, None, noted)) == 200_000
    finally:
        tracemalloc.stop()
    assert most < 600_000


async def test_a_disconnect_is_waited_for_whatever_else_comes() -> None:
    with anyio.fail_after(10):
        receive = giving(part(b"", more=True), part(b"late"), LEFT, part(b"behind"))
        await until_disconnect(receive)
        assert await receive() == part(b"behind"), "nothing after it is taken"


async def test_white_space_around_a_header_is_no_part_of_it() -> None:
    headers = headers_of({"headers": [(b"content-length", b" 5 "), (b"mcp-session-id", b"x\t")]})
    assert headers == {"content-length": "5", "mcp-session-id": "x"}
    assert await read_body(giving(part(b"hello")), headers["content-length"], noted) == b"hello"


async def test_a_length_in_foreign_digits_is_none() -> None:
    with pytest.raises(BodyTooLarge):
        await read_body(giving(part(b"hello")), "²", noted)


def test_g4_only_white_space_of_http_is_stripped() -> None:
    for last in (b"\xc3\xa0", b"\xc3\x85", b"\x1c"):
        raw = b"ann" + last
        assert (
            headers_of({"headers": [(b"x-auth-subject", b" " + raw + b"\t")]})["x-auth-subject"].encode("latin-1")
            == raw
        )


async def test_g10_a_body_that_does_not_end_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(asgi, "BODY_SECONDS", 0.01)
    first = [part(b"hel", more=True)]

    async def receive() -> Message:
        if first:
            return first.pop()
        await anyio.sleep_forever()
        raise AssertionError

    with pytest.raises(BodyTooSlow):
        await read_body(receive, "5", noted)


async def test_what_is_held_by_a_grant_ends_with_it_and_nothing_else_does() -> None:
    grant, ended = Grant(), []
    held, other = headers_of({"headers": []}), headers_of({"headers": []})
    held.grant = grant

    async def hold(headers: RequestHeaders, name: str) -> None:
        with headers.held():
            await anyio.sleep_forever()
        ended.append(name)

    async with anyio.create_task_group() as tasks:
        for name in ("one", "two"):
            tasks.start_soon(hold, held, name)
        tasks.start_soon(hold, other, "other")
        await anyio.wait_all_tasks_blocked()
        grant.withdraw()
        grant.withdraw()
        await anyio.wait_all_tasks_blocked()
        assert sorted(ended) == ["one", "two"]
        await hold(held, "late")
        assert ended[-1] == "late"
        tasks.cancel_scope.cancel()


async def test_what_is_held_ends_with_the_identity() -> None:
    headers = headers_of({"headers": []})
    headers.expires = 0
    with anyio.fail_after(5), headers.held():
        await anyio.sleep_forever()
