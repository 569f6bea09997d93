"""A feed keeps what was told, in order, and says when that was too much."""

import anyio
import pytest
from trunkline.mux.directory.feed import Feed

pytestmark = pytest.mark.anyio


async def heard(feed: Feed[str], times: int) -> list[str]:
    with anyio.fail_after(5):
        return [await anext(feed) for _ in range(times)]


async def test_it_is_heard_in_order_by_one_who_waits_and_by_one_who_comes_late() -> None:
    feed = Feed(3, "")
    feed.tell("a")
    feed.tell("b")
    assert await heard(feed, 2) == ["a", "b"]
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(heard, feed, 1)
        await anyio.lowlevel.checkpoint()
        feed.tell("c")


async def test_what_exceeds_its_bound_gives_way_to_one_word() -> None:
    feed = Feed(3, "")
    for item in "abcd":
        feed.tell(item)
    feed.tell("e")
    assert await heard(feed, 2) == ["", "e"]


async def test_a_loss_is_told() -> None:
    feed = Feed(3, "")
    feed.lose()
    assert await heard(feed, 1) == [""]
