"""What is made of a stream that is taken up; test_streamable_http_streams meets it on a socket."""

import pytest
from contract.session import Nobody
from trunkline.mux.errors import SessionLost, UpstreamFault
from trunkline.mux.limits import MAX_EVENT_BYTES
from trunkline.mux.request import Request
from trunkline.transports.upstream.answers import Events
from trunkline.transports.upstream.http import ExchangeBroken
from trunkline.transports.upstream.http_resumption import ResumedStream, resume

pytestmark = pytest.mark.anyio

STREAM = {"content-type": "text/event-stream; charset=utf-8"}


async def test_a_resumed_stream_hands_on_what_it_brings() -> None:
    heard: list[bytes] = []
    resumed = ResumedStream(heard.append, None)
    resumed.began(200, STREAM)
    resumed.came(b"id: 7\ndata: one\n\n")
    assert not resumed.over.done()
    resumed.ended(None)
    status, events, error = await resumed.over
    assert (status, error, heard) == (200, None, [b"one"])
    assert events is not None
    assert events.last_id == "7"


@pytest.mark.parametrize(("status", "headers"), [(405, {}), (200, {"content-type": "text/html"}), (404, STREAM)])
async def test_an_answer_that_is_no_stream_is_over_at_once(status: int, headers: dict[str, str]) -> None:
    resumed = ResumedStream(lambda text: pytest.fail("nothing is handed on"), None)
    resumed.began(status, headers)
    resumed.came(b"data: no\n\n")
    resumed.ended(None)
    heard = await resumed.over
    assert heard.status == status
    assert heard.events is None


async def test_a_resumed_stream_ends_with_what_broke_it() -> None:
    broken = ExchangeBroken("cut", sent=True)
    never, cut, huge = (ResumedStream(lambda text: None, None) for _ in range(3))
    enough = ResumedStream(lambda text: True, None)
    never.ended(broken)
    assert await never.over == (0, None, broken)
    cut.began(200, STREAM)
    cut.ended(broken)
    assert (await cut.over).error is broken
    huge.began(200, STREAM)
    huge.came(b"data: " + b"x" * MAX_EVENT_BYTES)
    huge.came(b"more")
    assert isinstance((await huge.over).error, UpstreamFault)
    enough.began(200, STREAM)
    enough.came(b"data: one\n\n")
    enough.ended(broken)
    assert (await enough.over).error is None


async def test_a_stream_without_event_ids_is_not_taken_up() -> None:
    request = Request(1, b"1", b"", Nobody(), 0.0, 60.0)
    events = Events(None)
    for may_end in (False, True):
        lost = await resume(
            request, events, lambda *_: pytest.fail("nothing is asked"), lambda text: None, may_end=may_end
        )
        assert type(lost) is SessionLost
        assert lost.data == {"executed": "unknown"}
