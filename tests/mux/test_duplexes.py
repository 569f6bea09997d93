"""A client's wires that carry everything: which of them a connection goes on with, and which are forgotten."""

import pytest
from harness.muxing import bench, some
from trunkline.mux.duplexes import MAX_LEFT

pytestmark = pytest.mark.anyio


async def test_a_wire_is_found_by_its_stream_and_by_the_names_of_its_connections() -> None:
    async with bench() as at:
        duplexes = (await at.client()).workflow.duplexes
        assert duplexes.newest is None
        assert duplexes.cut is None
        one, two = duplexes.new(), duplexes.new()
        one.name("first")
        one.name("second")
        two.name("third")
        assert [duplexes.named(name) for name in ("first", "second", "third", "")] == [one, one, two, None]
        assert duplexes.find(one.stream.number) is one
        assert duplexes.newest is two


async def test_a_wire_that_nobody_came_back_to_is_forgotten() -> None:
    async with bench(resume_window=100) as at:
        workflow = (await at.client()).workflow
        duplex = workflow.duplexes.new()
        reader = duplex.attach()
        at.clock.advance(50)
        duplex.detach(reader)
        assert duplex.left == at.clock.now
        assert workflow.due() == at.clock.now + 100
        workflow.expire(at.clock.now + 99)
        assert workflow.duplexes.newest is duplex
        workflow.expire(at.clock.now + 100)
        assert workflow.duplexes.newest is None
        assert workflow.duplexes.find(duplex.stream.number) is None


async def test_what_a_forgotten_wire_was_not_sent_is_no_loss() -> None:
    async with bench() as at:
        workflow = (await at.client()).workflow
        left = workflow.duplexes.new()
        left.detach(left.attach())
        left.add(b"{}")
        for _ in range(MAX_LEFT + 1):
            other = workflow.duplexes.new()
            other.detach(other.attach())
        busy = workflow.duplexes.new()
        reader = busy.attach()
        assert workflow.duplexes.find(left.stream.number) is None
        for _ in range(workflow.pooling.event_log.events + 1):
            busy.add(b"{}")
            await some(reader)
        assert workflow.ended is None
        busy.detach(reader)


async def test_g3_where_two_wires_at_once_were_cut_none_is_guessed() -> None:
    async with bench() as at:
        duplexes = (await at.client()).workflow.duplexes
        one = duplexes.new()
        first = one.attach()
        two = duplexes.new()
        second = two.attach()
        assert duplexes.left is None
        assert duplexes.cut is None, "both may be half open"
        at.clock.advance(1)
        one.detach(first)
        assert duplexes.left is one
        assert duplexes.cut is one
        two.detach(second)
        assert duplexes.left is None
        assert duplexes.cut is None
        two.said_goodbye = True
        assert duplexes.cut is one


async def test_a_wire_that_began_after_another_was_left_takes_its_place() -> None:
    async with bench() as at:
        duplexes = (await at.client()).workflow.duplexes
        one = duplexes.new()
        one.detach(one.attach())
        at.clock.advance(1)
        two = duplexes.new()
        two.detach(two.attach())
        assert duplexes.left is two
        assert duplexes.cut is two


async def test_a_client_may_come_back_before_its_cut_was_noticed_and_after_a_good_bye() -> None:
    async with bench() as at:
        duplexes = (await at.client()).workflow.duplexes
        duplex = duplexes.new()
        reader = duplex.attach()
        assert duplexes.cut is duplex
        duplex.said_goodbye = True
        duplex.detach(reader)
        assert duplexes.cut is duplex
