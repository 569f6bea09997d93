"""What a shared directory must do with records that are told to it again."""

from collections.abc import Awaitable, Callable, Sequence
from typing import Final

import anyio
import msgspec
from trunkline.mux.directory import Claimed, SharedDirectory

from contract.directory import ALICE, PATIENCE, changed, hear, record


async def what_was_forgotten_is_published_again(directory: SharedDirectory) -> None:
    for key in (None, "chat"):
        mine = msgspec.structs.replace(record(key), epoch=7, worker="w")
        assert await directory.publish(mine) == mine
        assert await directory.get(mine.session_id) == mine
        assert await directory.at(mine.event_token) == mine
        assert await directory.publish(mine) == mine
        if key is not None:
            assert await directory.find(ALICE, "x", key) == mine
            assert await directory.claim(record(key)) == Claimed(mine, "resumed")
        stored = await directory.replace(mine)
        assert stored is not None
        assert stored.epoch == 8
        assert (await directory.draw_ids(mine.session_id)).start == 1


async def what_stands_is_not_published_over(directory: SharedDirectory) -> None:
    mine = record("chat")
    await directory.claim(mine)
    stored = await directory.replace(changed(mine))
    assert await directory.publish(mine) == stored
    other = record("chat")
    assert await directory.publish(other) == stored, "its key names another one"
    assert await directory.get(other.session_id) is None
    assert await directory.get(mine.session_id) == await directory.find(ALICE, "x", "chat") == stored


async def what_is_behind_is_published_over(directory: SharedDirectory) -> None:
    for key in (None, "chat"):
        mine = msgspec.structs.replace(record(key), worker="w")
        await directory.claim(mine)
        later = msgspec.structs.replace(changed(mine), epoch=7)
        for other in (msgspec.structs.replace(later, worker="v"), msgspec.structs.replace(later, worker="")):
            assert await directory.publish(other) == mine, "it is another worker's"
        async with directory.watch() as changes:
            assert await directory.publish(later) == later
            while await hear(changes) != mine.session_id:  # in a cluster, what was removed before is heard of late
                pass
        assert await directory.get(mine.session_id) == later
        if key is not None:
            assert await directory.find(ALICE, "x", key) == later
        assert await directory.publish(mine) == later
        assert await directory.replace(changed(mine)) is None
        stored = await directory.replace(later)
        assert stored is not None
        assert stored.epoch == 8
        assert await directory.remove(stored)
        assert await directory.publish(later) is None


async def what_has_ended_is_not_published(directory: SharedDirectory) -> None:
    for key in (None, "chat"):
        mine = record(key)
        await directory.claim(mine)
        assert await directory.remove(mine)
        assert await directory.publish(mine) is None
        assert await directory.publish(changed(mine)) is None
        assert await directory.get(mine.session_id) is None
        if key is not None:
            assert await directory.find(ALICE, "x", key) is None
            assert (await directory.claim(record(key))).state == "reset"
        assert (await directory.claim(mine)).record.session_id != mine.session_id or key is None, "it may begin anew"


async def an_end_is_remembered_for_the_life_of_the_record(directory: SharedDirectory) -> None:
    mine = msgspec.structs.replace(record(), lifetime=2.0)
    await directory.claim(mine)
    assert await directory.remove(mine)
    assert await directory.publish(mine) is None
    with anyio.fail_after(PATIENCE):
        while await directory.publish(mine) is None:  # noqa: ASYNC110 - nobody tells of it
            await anyio.sleep(0.02)
    assert await directory.get(mine.session_id) == mine
    with anyio.fail_after(PATIENCE):
        while await directory.get(mine.session_id) is not None:  # noqa: ASYNC110 - nobody tells of it
            await anyio.sleep(0.02)
    assert await directory.publish(mine) == mine, "what expired was forgotten, not ended"


PUBLISH_CHECKS: Final[Sequence[Callable[[SharedDirectory], Awaitable[None]]]] = (
    what_was_forgotten_is_published_again,
    what_stands_is_not_published_over,
    what_is_behind_is_published_over,
    what_has_ended_is_not_published,
    an_end_is_remembered_for_the_life_of_the_record,
)
"""For directories that several workers share."""
