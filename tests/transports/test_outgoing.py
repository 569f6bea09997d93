"""What is due on a connection: in order, counted as its client counts, and told of when it comes."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import anyio
import pytest
from harness.muxing import bench
from trunkline.mux.event_log import Stream
from trunkline.mux.tally import Tally
from trunkline.mux.workflow import Workflow
from trunkline.transports.outgoing import Outgoing

pytestmark = pytest.mark.anyio

PATIENCE = 10.0


@asynccontextmanager
async def connection() -> AsyncIterator[tuple[Outgoing, Workflow, Stream]]:
    """What is due on a connection, and a stream of a workflow that it reads."""
    async with bench() as at:
        outgoing, workflow = Outgoing(), (await at.client()).workflow
        stream = workflow.streams.open()
        outgoing.read(workflow.streams.attach(stream, 0))
        yield outgoing, workflow, stream
        for reader in outgoing.readers:
            reader.close()


def texts(outgoing: Outgoing, own: Stream | None = None, *, is_held: bool = False) -> list[bytes] | None:
    due = outgoing.due(own, is_held=is_held)
    return None if due is None else [one.message for one in due]


async def test_what_was_said_comes_before_what_readers_bring() -> None:
    async with connection() as (outgoing, workflow, stream):
        workflow.streams.append(stream, b"one")
        outgoing.say(b"said")
        assert texts(outgoing) == [b"said", b"one"]
        assert texts(outgoing) == [], "what is returned counts as sent"


async def test_while_it_is_held_only_what_was_said_is_due() -> None:
    async with connection() as (outgoing, workflow, stream):
        workflow.streams.append(stream, b"one")
        outgoing.say(b"said")
        assert texts(outgoing, is_held=True) == [b"said"]
        assert texts(outgoing) == [b"one"]


async def test_places_are_those_of_its_own_wire_and_others_are_counted_between_them() -> None:
    async with connection() as (outgoing, workflow, stream):
        outgoing.say(b"said")
        assert texts(outgoing) == [b"said"]
        tally = Tally(0)
        outgoing.count_by(tally)
        outgoing.say(b"said, too")
        workflow.streams.append(stream, b"own")
        due = outgoing.due(stream, is_held=False)
        assert due is not None
        assert [(one.message, one.position, bool(one.event_id)) for one in due] == [
            (b"said, too", 0, False),
            (b"own", 1, True),
        ]
        assert [tally.position(count) for count in range(4)] == [0, 0, 0, 1]


async def test_the_end_of_the_last_reader_is_the_end_after_what_is_left() -> None:
    async with connection() as (outgoing, workflow, first):
        last = workflow.streams.open()
        outgoing.read(workflow.streams.attach(last, 0))
        workflow.streams.append(first, b"rest", last=True)
        workflow.streams.append(last, b"end", last=True)
        assert texts(outgoing) == [b"rest", b"end"]
        outgoing.say(b"said")
        assert texts(outgoing) == [b"said"]
        assert [reader.stream for reader in outgoing.readers] == [last]
        assert texts(outgoing) is None


async def test_who_waits_is_told_of_what_comes() -> None:
    async with connection() as (outgoing, workflow, stream):
        loop, changes = asyncio.get_running_loop(), []
        outgoing.on_change = lambda: changes.append(1)
        loop.call_soon(workflow.streams.append, stream, b"one")
        with anyio.fail_after(PATIENCE):
            await outgoing.changed(loop.time() + 1000)
            await outgoing.changed(loop.time() + 0.01)
        assert len(changes) == 2
        assert texts(outgoing) == [b"one"]
