"""The contract of `trunkline.mux.directory.Logs`, for directories that several workers share."""

from collections.abc import Awaitable, Callable, Sequence
from typing import Final

import anyio
import msgspec
from trunkline.mux.directory import Entry, SharedDirectory
from trunkline.mux.limits import EventLogLimits

from contract.directory import at_once, changed, record

KEEP: Final = EventLogLimits(events=5, bytes=100)
WIDE: Final = EventLogLimits()


def event(n: int, message: bytes = b"{}") -> Entry:
    return Entry("event", 1, n, message)


async def a_log_is_read_in_order_and_in_every_field(directory: SharedDirectory) -> None:
    mine, other = record("chat"), record()
    await directory.claim(mine)
    await directory.claim(other)
    entries = [
        Entry("opened", 7 << 24, 0, b'[1,"a"]'),
        Entry("event", 7 << 24, 1, '{"text":"ü\x00{}"}'.encode()),
        Entry("asked", (1 << 40) + 3, (1 << 40) + 3, b'"server"'),
        Entry("settled", 0, (1 << 40) + 3),
        Entry("event", 7 << 24, 2, bytes(range(256)), last=True),
    ]
    await directory.append(mine.session_id, entries[:2], WIDE)
    await directory.append(mine.session_id, [], WIDE)
    await directory.append(mine.session_id, entries[2:], WIDE)
    assert await directory.read(mine.session_id) == entries
    assert await directory.read(other.session_id) == []
    await directory.replace(changed(mine))
    assert await directory.read(mine.session_id) == entries, "a change of the record leaves its log alone"


async def the_oldest_entries_give_way(directory: SharedDirectory) -> None:
    mine = record()
    await directory.claim(mine)
    for n in range(1, 9):
        await directory.append(mine.session_id, [event(n)], KEEP)
    assert [entry.n for entry in await directory.read(mine.session_id)] == [4, 5, 6, 7, 8], "by their number"
    await directory.append(mine.session_id, [event(9, b"x" * 95)], KEEP)
    assert [entry.n for entry in await directory.read(mine.session_id)] == [7, 8, 9], "by their size"
    await directory.append(mine.session_id, [event(n) for n in range(10, 30)], KEEP)
    assert [entry.n for entry in await directory.read(mine.session_id)] == [25, 26, 27, 28, 29], "within one batch"
    await directory.append(mine.session_id, [event(30, b"x" * 101)], KEEP)
    assert await directory.read(mine.session_id) == [], "one alone is too large"
    await directory.append(mine.session_id, [event(31)], KEEP)
    assert [entry.n for entry in await directory.read(mine.session_id)] == [31]


async def without_a_record_nothing_is_kept(directory: SharedDirectory) -> None:
    mine = record("chat")
    await directory.append(mine.session_id, [event(1)], WIDE)
    assert await directory.read(mine.session_id) == []
    await directory.claim(mine)
    assert await directory.read(mine.session_id) == []
    await directory.append(mine.session_id, [event(2)], WIDE)
    assert await directory.remove(mine)
    assert await directory.read(mine.session_id) == [], "the log goes with its record"
    await directory.append(mine.session_id, [event(3)], WIDE)
    assert await directory.read(mine.session_id) == []


async def a_log_lives_as_long_as_its_record(directory: SharedDirectory) -> None:
    mine, witness = (msgspec.structs.replace(record(), lifetime=2.0) for _ in range(2))
    await directory.claim(mine)
    await directory.append(mine.session_id, [event(1)], WIDE)
    changed_one = await directory.replace(msgspec.structs.replace(mine, lifetime=600.0))
    assert changed_one is not None
    await directory.append(mine.session_id, [event(2)], WIDE)
    await directory.touch([mine.session_id])
    await directory.claim(witness)
    while await directory.get(witness.session_id) is not None:  # noqa: ASYNC110 - nobody tells of it
        await anyio.sleep(0.02)
    assert [entry.n for entry in await directory.read(mine.session_id)] == [1, 2]


async def large_events_are_kept(directory: SharedDirectory) -> None:
    mine = record()
    await directory.claim(mine)
    large = event(1, bytes(range(256)) * 4096 * 3)
    await directory.append(mine.session_id, [large, event(2)], WIDE)
    assert await directory.read(mine.session_id) == [large, event(2)]


async def appends_at_once_are_not_mixed(directory: SharedDirectory) -> None:
    mine = record()
    await directory.claim(mine)

    async def append(n: int) -> None:
        await directory.append(mine.session_id, [event(n * 10 + i) for i in range(4)], WIDE)

    await at_once([lambda n=n: append(n) for n in range(12)])
    order = [entry.n for entry in await directory.read(mine.session_id)]
    assert sorted(order) == [n * 10 + i for n in range(12) for i in range(4)]
    assert all(order[i] + 1 == order[i + 1] for i in range(len(order) - 1) if order[i] % 10 < 3)


LOG_CHECKS: Final[Sequence[object]] = (
    a_log_is_read_in_order_and_in_every_field,
    the_oldest_entries_give_way,
    without_a_record_nothing_is_kept,
    large_events_are_kept,
    appends_at_once_are_not_mixed,
)

LOG_EXPIRY_CHECKS: Final[Sequence[Callable[[SharedDirectory], Awaitable[None]]]] = (a_log_lives_as_long_as_its_record,)
"""For directories that forget."""
