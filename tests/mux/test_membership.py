"""One worker among others: when it holds its lease, and when it must look again at all that it holds."""

import anyio
import pytest
from harness.membering import At, handed_to
from harness.shared_memory import SharedMemoryDirectory
from trunkline.mux import membership as membership_module
from trunkline.mux.directory import LEASE_SECONDS, Worker
from trunkline.mux.errors import DirectoryUnavailable
from trunkline.mux.membership import BEAT_SECONDS, Membership

pytestmark = pytest.mark.anyio


@pytest.fixture
def at(monkeypatch: pytest.MonkeyPatch) -> At:
    return At(monkeypatch)


async def test_g7_a_lease_ends_by_its_own_clock_and_before_others_see_it(at: At) -> None:
    assert not at.member.holds_lease
    async with at.member.running():
        assert at.member.holds_lease
        at.clock.advance(LEASE_SECONDS * 0.9)
        assert at.member.holds_lease
        at.clock.advance(LEASE_SECONDS * 0.1)
        assert not at.member.holds_lease
        assert await at.directory.worker("a") is None


async def test_each_worker_has_a_number_of_its_own(at: At) -> None:
    other = at.made("b")
    async with at.member.running(), other.running():
        assert {at.member.worker.number, other.worker.number} == {1, 2}
        assert await at.directory.workers() == [at.member.worker, other.worker]


async def test_a_heartbeat_extends_the_lease_and_doubts_nothing(at: At) -> None:
    async with at.member.running():
        at.clock.advance(LEASE_SECONDS / 2)
        await at.member.beat()
        at.clock.advance(LEASE_SECONDS * 0.9)
        assert at.member.holds_lease
        assert at.lapses == 0


async def test_g7_after_a_pause_all_that_it_holds_is_doubted(at: At) -> None:
    async with at.member.running():
        at.clock.advance(1)
        await at.member.beat()
        last = at.clock()
        at.clock.advance(10)
        assert not at.member.holds_lease
        await at.member.beat()
        assert (at.lapses, at.member.holds_lease) == (1, True)
        assert at.since == last, "since the last heartbeat that was taken"


async def test_g7_who_is_late_catches_up_at_once_unless_the_directory_is_away(at: At) -> None:
    async with at.member.running():
        assert not at.member.is_late
        at.clock.advance(LEASE_SECONDS)
        assert at.member.is_late
        await at.member.catch_up()
        assert (at.lapses, at.member.holds_lease, at.member.is_late) == (1, True, False)
        at.directory.is_away = True
        at.clock.advance(LEASE_SECONDS)
        await at.member.catch_up()
        assert (at.member.holds_lease, at.member.is_away, at.member.is_late) == (False, True, False)
    at.member.is_away = False
    assert not at.member.is_late, "it is no member any longer"


async def test_a_directory_that_is_away_leaves_the_lease_as_it_was(at: At) -> None:
    async with at.member.running():
        at.directory.is_away = True
        await at.member.beat()
        assert at.member.is_away
        assert at.member.holds_lease
        at.clock.advance(LEASE_SECONDS)
        await at.member.beat()
        assert not at.member.holds_lease
        at.directory.is_away = False
        await at.member.beat()
        assert (at.lapses, at.member.holds_lease, at.member.is_away) == (1, True, False)


async def test_a_slow_heartbeat_counts_from_when_it_was_sent(at: At) -> None:
    async with at.member.running():
        at.clock.advance(1)
        taken = at.directory.beat

        async def slow(worker: Worker) -> bool:
            alive = await taken(worker)
            at.clock.advance(1)
            return alive

        at.directory.beat = slow  # type: ignore[method-assign]
        await at.member.beat()
        at.clock.advance(LEASE_SECONDS - 1)
        assert not at.member.holds_lease


async def test_one_that_ends_in_order_is_dead_at_once(at: At) -> None:
    async with at.member.running():
        pass
    assert await at.directory.worker("a") is None


async def test_g7_one_whose_process_has_ended_is_dead_at_once_for_all(at: At) -> None:
    other, third = at.made("b"), at.made("c")
    async with at.member.running(), third.running(), other.running():
        assert await at.member.find("b") == other.worker
        at.member.bury(other.worker)
        assert await at.member.find("b") is None
        assert await handed_to(at.member) == "c"
        assert await at.member.others() == [third.worker]
        assert await at.member.numbers() == {1, 2}
        await anyio.wait_all_tasks_blocked()
        assert await at.directory.worker("b") is None
        assert await third.others() == [at.member.worker]


async def test_g7_one_whose_process_has_ended_is_dead_while_the_directory_is_away(at: At) -> None:
    other = at.made("b")
    async with at.member.running(), other.running():
        assert await at.member.find("b") == other.worker
        at.directory.is_away = True
        await at.member.beat()
        at.member.bury(other.worker)
        assert await at.member.find("b") is None
        await anyio.wait_all_tasks_blocked()
        at.directory.is_away = False
        await at.member.beat()
        assert await at.member.others() == [], "the directory still lists it"
        assert await at.member.find("b") is None
        at.clock.advance(LEASE_SECONDS)
        await at.member.beat()
        assert await at.member.others() == []
        assert await at.member.find("b") is None


async def test_g7_nobody_is_called_dead_while_a_heartbeat_hangs(at: At, monkeypatch: pytest.MonkeyPatch) -> None:
    """As where somebody else locks the file of a database: who lives can be read, and nobody's heartbeat is taken."""
    other, go_on, taken = at.made("b"), anyio.Event(), at.directory.beat

    async def hang(worker: Worker) -> bool:
        await go_on.wait()
        return await taken(worker)

    async with at.member.running(), other.running(), anyio.create_task_group() as tasks:
        assert await at.member.find("b") == other.worker
        at.clock.advance(BEAT_SECONDS)
        monkeypatch.setattr(at.directory, "beat", hang)
        tasks.start_soon(at.member.beat)
        await anyio.wait_all_tasks_blocked()
        at.clock.advance(LEASE_SECONDS - BEAT_SECONDS)
        assert await at.directory.worker("b") is None
        with pytest.raises(DirectoryUnavailable):
            await at.member.find("b")
        go_on.set()
        await anyio.wait_all_tasks_blocked()
        assert await at.member.find("b") is None


async def test_without_a_directory_it_does_not_begin(at: At) -> None:
    at.directory.is_away = True
    with pytest.raises(DirectoryUnavailable):
        async with at.member.running():
            pytest.fail("it began")


async def test_after_the_directory_was_away_nobody_is_dead_before_a_lease_has_passed(at: At) -> None:
    """All heartbeats have failed alike: who is the first to be heard must not bury the others."""
    async with at.member.running(), (other := at.made("b")).running():
        at.directory.is_away = True
        await at.member.beat()
        at.clock.advance(10)
        at.directory.is_away = False
        with pytest.raises(DirectoryUnavailable):
            await at.member.find("b")
        await at.member.beat()
        with pytest.raises(DirectoryUnavailable):
            await at.member.find("b")
        with pytest.raises(DirectoryUnavailable):
            await at.member.numbered(other.worker.number)
        with pytest.raises(DirectoryUnavailable):
            await at.member.numbers()
        await at.directory.beat(other.worker)
        assert await at.member.find("b") == other.worker
        at.clock.advance(LEASE_SECONDS * 0.9)
        await at.member.beat()
        at.clock.advance(LEASE_SECONDS * 0.1)
        assert await at.member.find("b") is None


async def test_g7_nobody_is_dead_right_after_the_directorys_word_was_interrupted(at: At) -> None:
    async with at.member.running():
        at.member.interrupted()
        with pytest.raises(DirectoryUnavailable):
            await at.member.find("b")
        at.clock.advance(LEASE_SECONDS)
        await at.member.beat()
        assert await at.member.find("b") is None


async def test_g7_nobody_is_dead_where_the_directory_does_not_know_who_asks(at: At) -> None:
    """Its clock went forth, or all was deleted: nobody is known there whose last heartbeat was before."""
    lapses: list[float] = []
    one = Membership(at.directory, Worker("one"), on_lapse=lapses.append, clock=at.clock)
    async with one.running(), (other := at.made("b")).running():
        for worker in (one.worker, other.worker):
            await at.directory.retire(worker)
        with pytest.raises(DirectoryUnavailable):
            await one.find("b")
        at.clock.advance(LEASE_SECONDS * 0.9)
        for worker in (one.worker, other.worker):
            await at.directory.retire(worker)
        await one.beat()
        assert len(lapses) == 1
        with pytest.raises(DirectoryUnavailable):
            await one.numbers()
        await at.directory.beat(other.worker)
        assert await one.find("b") == other.worker
        at.clock.advance(LEASE_SECONDS * 0.9)
        await one.beat()
        at.clock.advance(LEASE_SECONDS * 0.1)
        assert await one.find("b") is None, "it had a lease to be heard again"


async def test_who_was_late_itself_calls_dead_who_is_not_heard(at: At) -> None:
    """Where its own lease has ended, the directory is right not to know of it."""
    async with at.member.running(), at.made("b").running():
        at.clock.advance(LEASE_SECONDS)
        assert await at.member.find("b") is None
        await at.member.beat()
        assert await at.member.find("b") is None


async def test_it_beats_by_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(membership_module, "BEAT_SECONDS", 0.001)
    directory = SharedMemoryDirectory()
    beats = anyio.Event()
    taken = directory.beat

    async def beat(worker: Worker) -> bool:
        beats.set()
        return await taken(worker)

    directory.beat = beat  # type: ignore[method-assign]
    async with Membership(directory, Worker("a"), on_lapse=pytest.fail).running():
        with anyio.fail_after(10):
            await beats.wait()


def test_several_heartbeats_fit_in_a_lease() -> None:
    assert BEAT_SECONDS * 2 < LEASE_SECONDS


async def test_g8_nothing_is_handed_to_a_worker_that_drains(at: At) -> None:
    b, c = at.made("b"), at.made("c")
    async with at.member.running(), b.running(), c.running():
        b.drain()
        await anyio.wait_all_tasks_blocked()
        assert b.drains
        assert [await handed_to(at.member) for _ in range(8)] == ["c"] * 8
        assert at.member.going_on == [c.worker]
        assert await at.member.find("b") == b.worker, "it lives"
        assert len(await at.member.others()) == 2
        c.drain()
        await anyio.wait_all_tasks_blocked()
        assert await handed_to(at.member) is None
        assert at.member.going_on == []
        at.clock.advance(LEASE_SECONDS / 2)
        await b.beat()
        assert (await at.directory.worker("b")).drains, "each heartbeat says it"
