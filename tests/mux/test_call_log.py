"""One line for a call's end: how loud, and what it holds."""

import logging

import pytest
from harness.muxing import ALICE, bench
from trunkline.mux import call_log
from trunkline.mux.errors import UpstreamUnreachable

pytestmark = pytest.mark.anyio


@pytest.mark.parametrize(
    "outcome",
    ["credential", "handshake_timed_out", "session_lost", "timed_out", "upstream_fault", "upstream_unreachable"],
)
def test_what_a_server_brings_about_is_a_warning(caplog: pytest.LogCaptureFixture, outcome: str) -> None:
    caplog.set_level(logging.WARNING)
    assert call_log.is_told(outcome)


@pytest.mark.parametrize("outcome", ["ok", "error", "cancelled", "circuit_open", "overloaded", "invalid_params"])
def test_what_a_client_brings_about_is_told_to_who_debugs(caplog: pytest.LogCaptureFixture, outcome: str) -> None:
    caplog.set_level(logging.INFO)
    assert not call_log.is_told(outcome)
    caplog.set_level(logging.DEBUG)
    assert call_log.is_told(outcome)


@pytest.mark.parametrize(
    ("id", "text"),
    [
        (b"1", "1"),
        (b'"1"', '"1"'),
        ('"naïve"'.encode(), '"naïve"'),
        (b'"\x1b[31m\x7f"', '"?[31m?"'),
        ('"\u2028\u202e"'.encode(), '"??"'),
        (b'"%s"' % (b"x" * 62), '"' + "x" * 62 + '"'),
        (b'"%s"' % (b"x" * 1000), '"' + "x" * 62 + "…"),
    ],
)
def test_an_id_is_shown_as_it_was_spelled_and_bounded(id: bytes, text: str) -> None:
    assert call_log.shown(id) == text
    assert len(text) <= call_log.MAX_SHOWN_ID


async def test_a_calls_end_is_one_line_that_names_all_it_concerns(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG, call_log.logger.name)
    async with bench() as at:
        client = await at.client(ALICE)
        exchange = client.call(id=b'"mine"')
        [upstream] = at.server.of("tools/call")
        at.clock.advance(0.25)
        upstream.answer()
        await client.answer(exchange)
    [line] = [record for record in caplog.records if record.name == call_log.logger.name]
    assert (line.levelname, line.getMessage()) == ("DEBUG", "call ended: ok")
    fields = {name: getattr(line, name) for name in ("server", "handle", "principal", "method", "id", "upstream_id")}
    assert fields == {
        "server": "x",
        "handle": client.workflow.record.handle,
        "principal": ALICE.digest(),
        "method": "tools/call",
        "id": '"mine"',
        "upstream_id": int(upstream.id),
    }
    assert vars(line)["seconds"] == 0.25


async def test_a_warning_says_what_went_wrong_and_an_unsent_call_has_no_upstream_id(
    caplog: pytest.LogCaptureFixture,
) -> None:
    async with bench() as at:
        client = await at.client()
        exchange = client.call()
        at.server.of("tools/call")[0].cut(UpstreamUnreachable("the server answered HTTP 503", executed="unknown"))
        await client.answer(exchange)
        late = client.call()
        at.clock.advance(client.workflow.pooling.request_timeout)
        client.workflow.expire(at.clock.now)
        await client.answer(late)
        await at.pool.end(client.workflow, "deleted")
        await client.answer(client.call())
    lines = [record for record in caplog.records if record.name == call_log.logger.name]
    assert [line.levelname for line in lines] == ["WARNING"] * 3
    said = [line.getMessage() for line in lines]
    assert said[0] == f"call ended: {UpstreamUnreachable.reason} (the server answered HTTP 503)"
    assert "timed_out (the server gave neither answer nor progress in time" in said[1]
    assert said[2] == "call ended: session_lost (the session ended: deleted)"
    assert [hasattr(line, "upstream_id") for line in lines] == [True, True, False]
