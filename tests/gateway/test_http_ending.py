"""Connections of a server that is to end: who has asked, or is about to, is answered, and told that it was the last."""

import asyncio

import pytest
from harness.gateways import until
from harness.http_serving import GET, answering, echo, said, talking
from trunkline.gateway import http_connection, http_listening
from trunkline.gateway.http_listening import HTTPListening
from trunkline.mux.statistics import Statistics

pytestmark = pytest.mark.anyio


@pytest.mark.parametrize("before", [0, 1], ids=["new", "kept"])
async def test_g8_a_connection_on_which_nothing_is_asked_yet_has_an_answer_to_come(before: int) -> None:
    listening = HTTPListening(Statistics())
    async with talking(echo, listening) as (reader, writer):
        for _ in range(before):
            writer.write(GET % 1)
            assert await said(reader) == b"GET /1 "
        await met(listening)
        listening.end()
        ended = asyncio.create_task(listening.ended())
        writer.write(GET % 2)
        answer = await reader.read()
        assert b"connection: close" in answer
        assert answer.endswith(b"GET /2 ")
        await ended
        assert not listening.state.connections


async def test_g8_a_connection_that_comes_at_the_end_has_one_answer() -> None:
    listening = HTTPListening(Statistics())
    listening.end()
    async with talking(echo, listening) as (reader, writer):
        writer.write(GET % 1)
        answer = await reader.read()
        assert b"connection: close" in answer
        assert answer.endswith(b"GET /1 ")


async def test_g8_who_asks_nothing_holds_up_no_end(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(http_listening, "LAST_SECONDS", 0.05)
    listening = HTTPListening(Statistics())
    async with talking(echo, listening) as (reader, writer):
        writer.write(GET % 1)
        assert await said(reader) == b"GET /1 "
        listening.end()
        await listening.ended()
        assert len(listening.state.connections) == 1


@pytest.mark.parametrize("sent", [b"", b"GET /1 HT"], ids=["nothing", "half a head"])
async def test_g8_who_has_just_connected_as_the_server_ends_is_answered(sent: bytes) -> None:
    listening = HTTPListening(Statistics())
    async with talking(echo, listening) as (reader, writer):
        writer.write(sent)
        await shut_down(listening)
        writer.write((GET % 1)[len(sent) :])
        answer = await reader.read()
        assert b"connection: close" in answer
        assert answer.endswith(b"GET /1 ")


async def test_g8_one_that_has_just_connected_as_the_server_ends_and_asks_nothing_ends(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(http_connection, "LAST_SECONDS", 0.05)
    monkeypatch.setattr(http_listening, "LOOK_SECONDS", 0.02)
    statistics = Statistics()
    listening = HTTPListening(statistics)
    async with talking(echo, listening) as (reader, _):
        await shut_down(listening)
        assert await reader.read() == b""
        assert not statistics.counts


@pytest.mark.parametrize("at", ["the drain", "its end"])
async def test_g8_who_was_promised_to_be_kept_has_the_time_to_ask_and_be_told(at: str) -> None:
    may = asyncio.Event()
    listening = HTTPListening(Statistics())
    async with talking(answering(b"1", b"2", until=may), listening) as (reader, writer):
        writer.write(GET % 1)
        assert b"connection: close" not in await reader.readuntil(b"\r\n\r\n")
        listening.end()
        if at == "its end":
            await shut_down(listening)
        may.set()
        await reader.readuntil(b"0\r\n\r\n")
        writer.write(GET % 2)
        answer = await reader.read()
        assert b"connection: close" in answer
        assert answer.endswith(b"2\r\n0\r\n\r\n")


async def test_g8_who_was_promised_to_be_kept_and_asks_nothing_holds_up_no_end(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(http_connection, "LAST_SECONDS", 0.05)
    may = asyncio.Event()
    listening = HTTPListening(Statistics())
    async with talking(answering(b"1", b"2", until=may), listening) as (reader, writer):
        writer.write(GET % 1)
        await reader.readuntil(b"\r\n\r\n")
        await shut_down(listening)
        may.set()
        assert (await reader.read()).endswith(b"0\r\n\r\n")


async def test_g8_who_has_had_the_time_to_ask_has_no_more_of_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(http_connection, "LAST_SECONDS", 0.05)
    monkeypatch.setattr(http_listening, "LAST_SECONDS", 0.05)
    monkeypatch.setattr(http_listening, "LOOK_SECONDS", 60.0)
    listening = HTTPListening(Statistics())
    async with talking(echo, listening) as (reader, _):
        await met(listening)
        listening.end()
        await listening.ended()
        await shut_down(listening)
        assert await reader.read() == b""


async def met(listening: HTTPListening) -> None:
    """Wait until there is a connection."""
    await until(lambda: hasattr(listening, "state") and listening.state.connections)


async def shut_down(listening: HTTPListening) -> None:
    """As uvicorn does it, once there is a connection."""
    await met(listening)
    for connection in list(listening.state.connections):
        connection.shutdown()
