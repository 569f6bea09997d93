"""The events of one session are its own."""

from typing import NamedTuple

import pytest
from trunkline.compat.contextforge.event_store import SessionEventStore

pytestmark = pytest.mark.anyio


class Event(NamedTuple):
    message: str
    event_id: str


async def replayed(store: SessionEventStore, after: str) -> tuple[str | None, list[str]]:
    seen: list[str] = []

    async def send(event: Event) -> None:
        seen.append(event.message)

    return await store.replay_events_after(after, send), seen


async def test_what_followed_on_the_same_stream_comes_again_in_order() -> None:
    store = SessionEventStore(Event)
    first = await store.store_event("1", "a")
    await store.store_event("2", "other stream")
    second = await store.store_event("1", "b")
    await store.store_event("1", None)
    await store.store_event("1", "c")
    assert await replayed(store, first) == ("1", ["b", "c"])
    assert await replayed(store, second) == ("1", ["c"])


async def test_the_event_of_another_session_is_unknown_though_the_stream_has_the_same_name() -> None:
    mine, theirs = SessionEventStore(Event), SessionEventStore(Event)
    event_id = await theirs.store_event("1", "secret")
    await theirs.store_event("1", "more")
    await mine.store_event("1", "mine")
    assert await replayed(mine, event_id) == (None, [])


async def test_the_oldest_give_way() -> None:
    store = SessionEventStore(Event, max_events=2)
    ids = [await store.store_event("1", str(n)) for n in range(3)]
    assert await replayed(store, ids[0]) == (None, [])
    assert await replayed(store, ids[1]) == ("1", ["2"])
