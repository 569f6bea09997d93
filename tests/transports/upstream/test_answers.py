"""What is made of an answer as it comes."""

import pytest
from trunkline.mux.errors import UpstreamFault
from trunkline.transports.upstream.answers import (
    LAST_RETRY_SECONDS,
    SOONEST_RETRY_SECONDS,
    Body,
    Events,
    content_type,
    forgets_session,
    nothing,
)

pytestmark = pytest.mark.anyio

STREAM = {"content-type": "text/event-stream; charset=utf-8"}


def test_the_media_type_is_read_without_its_parameters() -> None:
    assert content_type({"content-type": "Application/JSON; charset=utf-8"}) == "application/json"
    assert content_type({}) == ""
    nothing()


def test_a_body_is_bounded() -> None:
    body = Body(5)
    body.add(b"hel")
    body.add(b"lo")
    assert body.joined() == b"hello"
    with pytest.raises(UpstreamFault, match="larger than 5 bytes"):
        body.add(b"!")


def test_a_body_of_one_part_is_not_copied() -> None:
    body, part = Body(1000), b"x" * 1000
    body.add(part)
    assert body.joined() is part


def test_events_are_messages_and_keep_where_to_go_on() -> None:
    events = Events("before")
    assert events.last_id == "before"
    text = b"id: 1\ndata: one\n\nevent: other\ndata: two\n\nid: 3\ndata:\n\nretry: 200\n\n"
    assert events.add(text) == [b"one"]
    assert events.last_id == "3"
    assert events.retry == 0.2
    events.add(b"retry: 0\n\n")
    assert events.retry == SOONEST_RETRY_SECONDS
    events.add(b"retry: 99999999\n\n")
    assert events.retry == LAST_RETRY_SECONDS


def test_an_empty_event_id_takes_the_last_one_back() -> None:
    events = Events(None)
    events.add(b"id: 1\ndata: one\n\nid:\n\n")
    assert events.last_id is None


def error(message: str, id: str = "null", code: int = -32000) -> bytes:
    return f'{{"jsonrpc":"2.0","id":{id},"error":{{"code":{code},"message":"{message}"}}}}'.encode()


FORGOTTEN = [
    error("Bad Request: No valid session ID provided"),
    error("Bad Request: Session ID not found", '"server-error"', -32600),
    error("Session not found"),
    error("Session has expired"),
    error("session abc-123 was terminated"),
    error("Session with id abc does not exist"),
    error("Bad Request: Server not initialized"),
    error("Invalid MCP session", "1"),
    b'{"jsonrpc":"2.0","error":{"code":-32000,"message":"unknown session"}}',
    b"Invalid or missing session ID",
    b"session expired\n",
]
KNOWN = [
    error("Session not found", "7"),
    error("Bad Request: Unsupported protocol version"),
    error("Bad Request"),
    error("this session has a bad cursor"),
    error("Parse error", code=-32700),
    b'{"jsonrpc":"2.0","id":null,"result":{"message":"session not found"}}',
    b'{"jsonrpc":"2.0","id":null,"error":{"code":-32000,"message":7}}',
    b'{"jsonrpc":"2.0","id":null,"error":"session not found"}',
    b'{"error":"session not found"}',
    b"<html>session not found</html>",
    b"bad request",
    b"",
    b"\xff\xfe",
    b"session not found" + b" " * 5000,
]


@pytest.mark.parametrize("text", FORGOTTEN)
def test_a_400_that_says_so_means_a_session_that_is_forgotten(text: bytes) -> None:
    assert forgets_session(text, b"7")


@pytest.mark.parametrize("text", KNOWN)
def test_a_400_that_says_anything_else_does_not(text: bytes) -> None:
    assert not forgets_session(text, b"7")
