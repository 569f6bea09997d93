"""Which workflow is meant, and which place in it; test_link_returns has what becomes of the connection."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest
from harness.clustering import streamed, two
from harness.muxing import ALICE, BOB, Bench, bench
from trunkline.mux.duplex import Duplex
from trunkline.mux.errors import Elsewhere, UnknownSession
from trunkline.mux.principal import ANONYMOUS
from trunkline.mux.streams import Reader
from trunkline.mux.workflow import Workflow
from trunkline.transports.endpoint import EndpointConfig
from trunkline.transports.guard import Guard
from trunkline.transports.headers import Asked
from trunkline.transports.resumption import Place, find, place_after, place_left
from trunkline.transports.status import HTTPRefusal

pytestmark = pytest.mark.anyio

NOBODY = Asked(None, None, None)


@asynccontextmanager
async def left() -> AsyncIterator[tuple[Bench, Workflow, Duplex]]:
    """A keyed workflow of Alice, and a wire of it that has lost its connection with two messages on it."""
    async with bench() as at:
        workflow = (await at.client(ALICE, key="k")).workflow
        duplex = workflow.duplexes.new()
        reader = duplex.attach()
        for text in (b"one", b"two"):
            duplex.add(text)
        assert reader.due()
        duplex.meet(duplex.tally)
        duplex.detach(reader)
        yield at, workflow, duplex


def messages(place: Place | Reader | None) -> list[bytes]:
    """What follows a place."""
    assert isinstance(place, Place)
    due = place.reader.due()
    assert due is not None
    place.reader.close()
    return [event.message for event in due]


async def test_a_workflow_is_found_by_whatever_names_it() -> None:
    async with left() as (at, workflow, duplex):
        config = EndpointConfig("x", at.pool, Guard(loopback=True), lambda _: ALICE)
        session = workflow.record.session_id
        reader = duplex.attach()
        event_id = reader.event_id(duplex.stream.events[0])
        reader.close()
        for asked in (Asked(session, None, None), Asked(None, "k", None), Asked(None, None, event_id)):
            assert await find(config, ALICE, asked) is workflow
        assert await find(config, ALICE, Asked(None, "k", "1")) is workflow, "a count names no workflow: the key does"
        assert await find(config, ALICE, NOBODY) is None
        assert await find(config, BOB, Asked(None, "k", None)) is None
        for asked in (Asked(session, None, None), Asked(None, None, event_id), Asked(None, None, "nonsense")):
            with pytest.raises(UnknownSession):
                await find(config, BOB, asked)
        assert messages(place_after(workflow, event_id, "sse")) == [b"two"]


async def test_g5_who_names_session_and_event_goes_on_at_the_worker_that_has_the_stream() -> None:
    async with two() as (at, a, b, session_id):
        at.server.on_request = None
        _, reader = await streamed(b, await b.beside(session_id))
        event_id = reader.event_id((await reader.next(1) or [])[0])
        reader.close()
        asked = Asked(session_id, None, event_id)
        configs = [EndpointConfig("x", one.pool, Guard(loopback=True), lambda _: ANONYMOUS) for one in (a, b)]
        with pytest.raises(Elsewhere) as elsewhere:
            await find(configs[0], ANONYMOUS, asked)
        assert elsewhere.value.worker == b.members.worker.id
        found = await find(configs[1], ANONYMOUS, asked)
        assert found is not None
        assert isinstance(place_after(found, event_id, "sse"), Reader)
        (await at.server.got("tools/call")).answer({})


async def test_a_session_and_an_event_of_another_one_disagree() -> None:
    async with left() as (at, _, duplex):
        config = EndpointConfig("x", at.pool, Guard(loopback=True), lambda _: ALICE)
        other = (await at.client(ALICE)).workflow.record.session_id
        reader = duplex.attach()
        event_id = reader.event_id(duplex.stream.events[0])
        reader.close()
        for session in (other, "unknown"):
            with pytest.raises(HTTPRefusal, match="disagree") as refused:
                await find(config, ALICE, Asked(session, None, event_id))
            assert refused.value.status == 400


async def test_a_count_is_a_place_on_the_socket_that_was_cut() -> None:
    async with left() as (_, workflow, duplex):
        place = place_after(workflow, "1", "websocket")
        assert isinstance(place, Place)
        assert place.duplex is duplex
        assert messages(place) == [b"two"]


@pytest.mark.parametrize("named", ["²", "-1", "1e3", ""])
async def test_what_is_neither_a_count_nor_an_event_id_is_unknown(named: str) -> None:
    async with left() as (_, workflow, _duplex):
        with pytest.raises(UnknownSession):
            place_after(workflow, named, "websocket")


async def test_a_count_is_none_of_sse() -> None:
    async with left() as (_, workflow, _duplex):
        with pytest.raises(HTTPRefusal) as refused:
            place_after(workflow, "1", "sse")
        assert (refused.value.status, refused.value.word) == (400, "last_event_id")


async def test_who_comes_back_with_a_count_too_late_is_not_told_that_there_was_no_socket() -> None:
    async with left() as (_, workflow, duplex):
        workflow.expire(duplex.left + workflow.pooling.resume_window + 1)
        with pytest.raises(HTTPRefusal, match="this session keeps none") as refused:
            place_after(workflow, "2", "websocket")
        assert refused.value.status == 400


async def test_who_says_nothing_goes_on_after_what_was_acknowledged() -> None:
    async with left() as (_, workflow, duplex):
        session = Asked(workflow.record.session_id, None, None)
        assert place_left(workflow, NOBODY, "sse") is None, "a stream that names no session begins one of its own"
        duplex.acknowledge(1)
        assert messages(place_left(workflow, session, "sse")) == [b"two"]
        assert messages(place_left(workflow, NOBODY, "websocket")) == [b"two"]


async def test_where_every_wire_has_its_connection_there_is_none_to_go_on_with() -> None:
    async with left() as (_, workflow, duplex):
        reader = duplex.attach()
        assert place_left(workflow, NOBODY, "websocket") is None
        reader.close()
