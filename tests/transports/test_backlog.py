"""What waits for who takes it: in order, up to a number and a size, to its end."""

import anyio
import pytest
from trunkline.transports.backlog import Backlog

pytestmark = pytest.mark.anyio


async def test_what_waits_is_taken_in_order_to_the_end() -> None:
    backlog = Backlog[bytes](9, 9)
    assert [backlog.put(text) for text in (b"a", b"b")] == [True, True]
    backlog.end()
    with anyio.fail_after(10):
        assert [await backlog.take() for _ in range(3)] == [b"a", b"b", None]


async def test_who_takes_waits_for_the_next() -> None:
    backlog, taken = Backlog[str](9, 9), list[str | None]()

    async def take() -> None:
        taken.append(await backlog.take())

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(take)
        await anyio.wait_all_tasks_blocked()
        assert taken == []
        assert backlog.put("a")
    assert taken == ["a"]


@pytest.mark.parametrize(("most", "most_size"), [(2, 100), (100, 6)])
async def test_g10_no_more_waits_than_may_and_what_is_taken_makes_room(most: int, most_size: int) -> None:
    backlog = Backlog[str](most, most_size)
    assert [backlog.put("abc") for _ in range(3)] == [True, True, False]
    assert await backlog.take() == "abc"
    assert [backlog.put("abc") for _ in range(2)] == [True, False]


async def test_one_by_itself_may_be_of_any_size() -> None:
    backlog = Backlog[str](9, 6)
    assert [backlog.put("x" * 100), backlog.put("y")] == [True, False]
    assert await backlog.take() == "x" * 100
    assert backlog.put("y" * 100)
