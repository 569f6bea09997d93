"""Entries of event logs on their way to the directory: in order, in batches, bounded."""

from collections.abc import AsyncIterator, ItemsView, Iterator, Sequence

import anyio
import pytest
from harness.changing import until
from harness.shared_memory import SharedMemoryDirectory
from trunkline.mux import journal as journal_module
from trunkline.mux.directory import Entry
from trunkline.mux.journal import ENTRY_BYTES, HEAVIEST, Journal, KeptLog
from trunkline.mux.limits import EventLogLimits
from trunkline.mux.principal import ANONYMOUS
from trunkline.mux.record import Handshake, WorkflowRecord, new_session_id
from trunkline.mux.statistics import Statistics

pytestmark = pytest.mark.anyio

KEEP = EventLogLimits()


class Logs(SharedMemoryDirectory):
    """Counts appends, and lets them wait while it is closed."""

    def __init__(self) -> None:
        super().__init__()
        self.batches: list[int] = []
        self.gate = anyio.Event()
        self.gate.set()

    async def append(self, session_id: str, entries: Sequence[Entry], keep: EventLogLimits) -> None:
        self.batches.append(len(entries))
        await self.gate.wait()
        await super().append(session_id, entries, keep)

    async def begin(self) -> str:
        record = WorkflowRecord(new_session_id(), ANONYMOUS, "x", None, Handshake("2025-11-25", b"{}", b"{}"))
        await self.claim(record)
        return record.session_id


class At:
    logs: Logs
    journal: Journal
    statistics: Statistics


@pytest.fixture
async def at(monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[At]:
    monkeypatch.setattr(journal_module, "RETRY_SECONDS", 0.001)
    made = At()
    made.logs, made.statistics = Logs(), Statistics()
    made.journal = Journal(made.logs, made.statistics)
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(made.journal.run)
        yield made
        tasks.cancel_scope.cancel()


def event(n: int, size: int = 1) -> Entry:
    return Entry("event", 0, n, b"m" * size)


async def flushed(at: At, session_id: str) -> list[int]:
    with anyio.fail_after(10):
        await at.journal.flush(session_id)
    return [entry.n for entry in await at.logs.read(session_id)]


async def test_entries_arrive_in_order_and_many_at_once(at: At) -> None:
    first, second = await at.logs.begin(), await at.logs.begin()
    for n in range(100):
        at.journal.write(first, event(n), KEEP)
        at.journal.write(second, event(n), KEEP)
    assert await flushed(at, first) == await flushed(at, second) == list(range(100))
    assert len(at.logs.batches) < 10


async def test_what_comes_while_a_batch_is_under_way_follows_it(at: At) -> None:
    session_id = await at.logs.begin()
    at.logs.gate = anyio.Event()
    at.journal.write(session_id, event(0), KEEP)
    await until(lambda: at.logs.batches)
    at.journal.write(session_id, event(1), KEEP)
    at.logs.gate.set()
    assert await flushed(at, session_id) == [0, 1]


async def test_g10_no_batch_is_longer_than_the_directory_takes_in_time(at: At, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(journal_module, "BATCH_BYTES", 4 * (ENTRY_BYTES + 1))
    session_id = await at.logs.begin()
    for n in range(10):
        at.journal.write(session_id, event(n), KEEP)
    assert await flushed(at, session_id) == list(range(10))
    assert at.logs.batches == [4, 4, 2]


async def test_a_directory_that_comes_back_gets_it_all(at: At) -> None:
    session_id = await at.logs.begin()
    at.logs.is_away = True
    for n in range(3):
        at.journal.write(session_id, event(n), KEEP)
    await until(lambda: at.statistics.counts["journal", "failed"])
    at.logs.is_away = False
    assert await flushed(at, session_id) == [0, 1, 2]


async def test_g10_what_waits_is_bounded_and_the_oldest_gives_way(at: At, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(journal_module, "MAX_WAITING_BYTES", 10 * (ENTRY_BYTES + 1))
    session_id = await at.logs.begin()
    at.logs.is_away = True
    for n in range(25):
        at.journal.write(session_id, event(n), KEEP)
    at.logs.is_away = False
    assert await flushed(at, session_id) == list(range(15, 25))
    assert at.statistics.counts["journal", "dropped"] == 15


async def test_g10_who_writes_most_pays_for_it_however_few_entries_that_are(
    at: At, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(journal_module, "MAX_WAITING_BYTES", 10 * (ENTRY_BYTES + 1))
    greedy, other = await at.logs.begin(), await at.logs.begin()
    at.logs.is_away = True
    for n in range(4):
        at.journal.write(other, event(n), KEEP)
    for n in range(2):
        at.journal.write(greedy, event(n, 500), KEEP)
    at.logs.is_away = False
    assert await flushed(at, other) == [0, 1, 2, 3]
    assert await flushed(at, greedy) == [1]


class Looked(dict[str, object]):
    """Counts how often all that waits is looked at."""

    looks = 0

    def __iter__(self) -> Iterator[str]:
        self.looks += 1
        return super().__iter__()

    def items(self) -> ItemsView[str, object]:
        self.looks += 1
        return super().items()


async def test_who_has_most_waiting_is_not_looked_for_with_each_event(at: At, monkeypatch: pytest.MonkeyPatch) -> None:
    """A directory that is away is no reason to be slow, however many workflows wait for it."""
    monkeypatch.setattr(journal_module, "MAX_WAITING_BYTES", 200 * (ENTRY_BYTES + 1))
    waiting = Looked()
    at.logs.is_away, at.journal._waiting = True, waiting  # type: ignore[assignment]
    names = [await at.logs.begin() for _ in range(200)]
    for session_id in names:
        at.journal.write(session_id, event(0), KEEP)
    assert waiting.looks == 0
    for n in range(1, HEAVIEST + 1):
        at.journal.write(names[n], event(n), KEEP)
    assert waiting.looks == 1
    for session_id in names:  # among them all of which most waited
        if session_id != names[-1]:
            at.journal.forget(session_id)
    for n in range(1, 202):
        at.journal.write(names[-1], event(n), KEEP)
    at.logs.is_away = False
    assert await flushed(at, names[-1]) == list(range(2, 202))


async def test_one_entry_that_is_larger_than_all_that_may_wait_is_dropped(
    at: At, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(journal_module, "MAX_WAITING_BYTES", 1000)
    session_id = await at.logs.begin()
    at.journal.write(session_id, event(0, 2000), KEEP)
    assert await flushed(at, session_id) == []
    at.journal.write(session_id, event(1), KEEP)
    assert await flushed(at, session_id) == [1]


async def test_what_waits_of_an_ended_workflow_is_forgotten(at: At) -> None:
    session_id, other = await at.logs.begin(), await at.logs.begin()
    at.logs.is_away = True
    at.journal.write(session_id, event(0), KEEP)
    at.journal.forget(session_id)
    assert await at.journal.flush(session_id) is None
    at.logs.is_away = False
    at.journal.write(other, event(1), KEEP)
    assert await flushed(at, other) == [1]
    assert session_id not in at.logs.logs
    at.journal.forget(session_id)


async def test_nothing_waits_for_a_workflow_without_entries(at: At) -> None:
    assert await at.journal.flush("nobody's") is None


class Busy(Logs):
    """A directory during whose every append one workflow has something new to say."""

    def __init__(self) -> None:
        super().__init__()
        self.say = lambda: None

    async def append(self, session_id: str, entries: Sequence[Entry], keep: EventLogLimits) -> None:
        await super().append(session_id, entries, keep)
        await anyio.lowlevel.checkpoint()
        self.say()


async def test_a_workflow_that_never_stops_holds_nobody_else_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(journal_module, "WRITERS", 1)
    logs = Busy()
    journal = Journal(logs, Statistics())
    busy, other = await logs.begin(), await logs.begin()
    logs.say = lambda: journal.write(busy, event(0), KEEP)
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(journal.run)
        journal.write(busy, event(0), KEEP)
        with anyio.fail_after(10):
            await until(lambda: len(logs.batches) >= 2)
            journal.write(other, event(7), KEEP)
            await journal.flush(other)
        tasks.cancel_scope.cancel()
    assert [entry.n for entry in await logs.read(other)] == [7]


@pytest.mark.parametrize("limits", [EventLogLimits(events=6), EventLogLimits(bytes=6)])
async def test_what_holds_is_written_once_more_before_it_would_be_trimmed(at: At, limits: EventLogLimits) -> None:
    session_id = await at.logs.begin()
    question = Entry("asked", 0, 7, b"")

    def repeat() -> None:
        for _ in range(4):  # more than would make it due once more
            log.write(question)

    log = KeptLog(at.journal, session_id, limits, repeat)
    for n in range(1, 6):
        log.write(event(n))
    await at.journal.flush(session_id)
    kept = await at.logs.read(session_id)
    assert question in kept
    assert [entry.n for entry in kept if entry.kind == "event"][-2:] == [4, 5]
    log.write(event(6))
    await at.journal.flush(session_id)
    assert (await at.logs.read(session_id))[-5:] == [event(6), *[question] * 4]
