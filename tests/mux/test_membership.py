"""One worker among others: when it holds its lease, and when it must look again at all that it holds."""

import anyio
import pytest
from harness.muxing import Clock
from harness.shared_memory import SharedMemoryDirectory
from trunkline.mux import membership as membership_module
from trunkline.mux.directory import LEASE_SECONDS, Worker
from trunkline.mux.errors import DirectoryUnavailable, Elsewhere
from trunkline.mux.membership import BEAT_SECONDS, DOUBT_SECONDS, KNOWN_SECONDS, Membership

pytestmark = pytest.mark.anyio


class At:
    """A worker on a clock that the test turns; it beats only when it is told to."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(membership_module, "BEAT_SECONDS", 3600)
        self.clock = Clock()
        self.directory = SharedMemoryDirectory(self.clock)
        self.lapses = 0
        self.since = 0.0
        self.member = self.made("a")

    def made(self, id: str) -> Membership:
        return Membership(self.directory, Worker(id, "host"), on_lapse=self._lapse, clock=self.clock)

    def _lapse(self, since: float) -> None:
        self.since = since
        assert not self.member.holds_lease, "what it holds must be doubted before it is used again"
        self.lapses += 1


async def handed_to(member: Membership) -> str | None:
    """Who gets what a worker hands on."""
    try:
        await member.hand_on()
    except Elsewhere as elsewhere:
        return elsewhere.worker
    return None


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


async def test_who_lives_is_known_for_a_moment(at: At) -> None:
    other = at.made("b")
    async with at.member.running():
        async with other.running():
            assert await at.member.find("b") == other.worker
        assert await at.member.find("b") == other.worker, "it is believed to live"
        at.member.doubt("a stranger")
        at.clock.advance(DOUBT_SECONDS)
        assert await at.member.find("b") == other.worker
        at.member.doubt("b")
        assert await at.member.find("b") is None, "who does not answer is asked for sooner"
        async with other.running():
            at.clock.advance(KNOWN_SECONDS)
            assert await at.member.find("b") == other.worker, "who comes back is there again"
        at.clock.advance(KNOWN_SECONDS)
        assert await at.member.find("b") is None


async def test_one_that_has_just_begun_is_not_taken_for_dead(at: At) -> None:
    async with at.member.running():
        assert await at.member.others() == []
        async with (other := at.made("b")).running():
            assert await at.member.others() == [other.worker]
            assert await at.member.find("b") == other.worker
        assert await at.member.others() == []
        async with (third := at.made("c")).running():
            assert third.worker.number in await at.member.numbers()


async def test_one_that_comes_back_is_not_taken_for_dead_by_a_list_that_is_older(at: At) -> None:
    async with at.member.running(), (other := at.made("b")).running():
        at.clock.advance(LEASE_SECONDS)
        await at.directory.beat(at.member.worker)
        assert await at.member.find("b") is None
        await at.directory.beat(other.worker)
        assert await at.member.find("b") == other.worker


async def test_who_lives_is_read_once_for_all_and_not_for_each(at: At) -> None:
    reads, alone = 0, 0
    workers, worker = at.directory.workers, at.directory.worker

    async def counted() -> list[Worker]:
        nonlocal reads
        reads += 1
        await anyio.lowlevel.checkpoint()
        return await workers()

    async def one(id: str) -> Worker | None:
        nonlocal alone
        alone += 1
        return await worker(id)

    at.directory.workers, at.directory.worker = counted, one  # type: ignore[method-assign]
    async with at.member.running(), at.made("b").running():
        for _ in range(3):
            at.clock.advance(KNOWN_SECONDS)
            async with anyio.create_task_group() as tasks:
                for name in ("a", "b", "dead") * 10:
                    tasks.start_soon(at.member.find, name)
            await at.directory.beat(at.member.worker)
        assert 3 <= reads <= 9, "once for those that are in the list, once more for all that miss the same"
        assert alone == 0


class Halting:
    """A list of workers that comes when the test says so, or not."""

    def __init__(self, directory: SharedMemoryDirectory) -> None:
        self._workers = directory.workers
        self.begun = 0
        self.go_on = anyio.Event()
        self.fails = False
        directory.workers = self  # type: ignore[method-assign,assignment]

    async def __call__(self) -> list[Worker]:
        self.begun += 1
        living = await self._workers()
        await self.go_on.wait()
        if self.fails:
            raise DirectoryUnavailable("gone")
        return living

    async def release(self) -> None:
        """Let what waits go on, and the next one wait again."""
        go_on, self.go_on = self.go_on, anyio.Event()
        go_on.set()
        await anyio.wait_all_tasks_blocked()


async def _unavailable(member: Membership) -> None:
    with pytest.raises(DirectoryUnavailable):
        await member.find("b")


async def _found(member: Membership) -> None:
    assert await member.find("b") is not None, "it began before this was asked"


async def test_a_reading_that_fails_is_made_for_none_of_those_who_waited(at: At) -> None:
    async with at.member.running():
        assert await at.member.find("b") is None
        halting = Halting(at.directory)
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(at.member.find, "b")
            await anyio.wait_all_tasks_blocked()
            async with at.made("b").running():
                for _ in range(2):
                    tasks.start_soon(_unavailable, at.member)
                await anyio.wait_all_tasks_blocked()
                await halting.release()
                halting.fails = True
                await halting.release()
        assert halting.begun == 2


async def test_who_gives_up_waiting_takes_nobody_elses_reading_with_it(at: At) -> None:
    async with at.member.running():
        assert await at.member.find("b") is None
        halting, gives_up = Halting(at.directory), anyio.CancelScope()

        async def first() -> None:
            with gives_up:
                await at.member.find("b")

        async with anyio.create_task_group() as tasks:
            tasks.start_soon(at.member.find, "b")
            await anyio.wait_all_tasks_blocked()
            async with at.made("b").running():
                tasks.start_soon(first)
                tasks.start_soon(_found, at.member)
                await anyio.wait_all_tasks_blocked()
                await halting.release()
                gives_up.cancel()
                await anyio.wait_all_tasks_blocked()
                await halting.release()


async def test_a_directory_that_hangs_is_waited_for_once_by_all(at: At, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(membership_module, "LEASE_SECONDS", 0.1)
    reads = 0

    async def hangs() -> list[Worker]:
        nonlocal reads
        reads += 1
        await anyio.sleep_forever()
        return []

    at.directory.workers = hangs  # type: ignore[method-assign]
    async with at.member.running():
        with anyio.fail_after(5):
            async with anyio.create_task_group() as tasks:
                for _ in range(100):
                    tasks.start_soon(_unavailable, at.member)
        assert reads <= 2


async def test_who_is_no_member_cannot_tell_who_lives(at: At) -> None:
    await _unavailable(at.member)
    async with at.member.running():
        pass
    await _unavailable(at.member)


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


async def test_it_reads_by_itself_who_lives_and_no_heartbeat_waits_for_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(membership_module, "BEAT_SECONDS", 0.001)
    directory = SharedMemoryDirectory()
    hangs, beats = anyio.Event(), 0

    async def workers() -> list[Worker]:
        hangs.set()
        await anyio.sleep_forever()
        return []

    beat = directory.beat

    async def counted(worker: Worker) -> bool:
        nonlocal beats
        beats += hangs.is_set()
        return await beat(worker)

    directory.workers, directory.beat = workers, counted  # type: ignore[method-assign]
    async with Membership(directory, Worker("a"), on_lapse=pytest.fail).running():
        with anyio.fail_after(10):
            await hangs.wait()
            while beats < 3:  # noqa: ASYNC110 - they are what is waited for
                await anyio.sleep(0.001)


def test_several_heartbeats_fit_in_a_lease() -> None:
    assert BEAT_SECONDS * 2 < LEASE_SECONDS


async def test_others_are_known_by_number_and_for_a_while(at: At) -> None:
    async with at.member.running(), (other := at.made("b")).running():
        number = other.worker.number
        assert await at.member.numbered(number) == other.worker
        assert sorted(await at.member.numbers()) == [1, 2]
        assert await at.member.others() == [other.worker]
        assert await handed_to(at.member) == "b"
        at.clock.advance(LEASE_SECONDS)
        await at.member.beat()
        assert await at.member.numbered(number) is None
        assert await handed_to(at.member) is None


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


async def test_numbers_that_nobody_has_cost_no_reading_each(at: At, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(membership_module, "DOUBT_SECONDS", 3600)  # until then, what else is read has to do
    halting = Halting(at.directory)
    halting.go_on.set()
    found: dict[int, Worker | None] = {}

    async def look_for(number: int) -> None:
        found[number] = await at.member.numbered(number)

    async with at.member.running(), anyio.create_task_group() as tasks:
        assert await at.member.numbered(99) is None
        assert halting.begun == 1, "it began later than it was asked"
        for number in range(100, 120):
            tasks.start_soon(look_for, number)
            await anyio.wait_all_tasks_blocked()
        async with (other := at.made("b")).running():
            tasks.start_soon(look_for, other.worker.number)
            await anyio.wait_all_tasks_blocked()
            assert (halting.begun, found) == (1, {})
            await at.member.numbers()
            await anyio.wait_all_tasks_blocked()
            assert halting.begun == 2
            assert found.pop(other.worker.number) == other.worker, "who has just begun is found"
            assert found == dict.fromkeys(range(100, 120))


async def test_one_that_has_just_begun_is_found_by_its_number_in_a_moment(at: At) -> None:
    async with at.member.running():
        assert await at.member.numbered(99) is None
        async with (other := at.made("b")).running():
            with anyio.fail_after(10):
                assert await at.member.numbered(other.worker.number) == other.worker
        at.clock.advance(DOUBT_SECONDS)
        async with (third := at.made("c")).running():
            with anyio.fail_after(10):
                assert await at.member.numbered(third.worker.number) == third.worker


async def test_it_is_known_who_has_lived_since_a_reading(at: At, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(membership_module, "MAX_LISTED", 2)
    async with at.member.running():
        async with at.made("b").running():
            await at.member.numbers()
            first = at.member.reading
            await at.member.numbers()
            assert at.member.has_lived(2, at.member.reading)
        await at.member.numbers()
        assert at.member.has_lived(2, first)
        assert not at.member.has_lived(2, at.member.reading)
        assert not at.member.has_lived(3, first), "nobody has this number"
        async with at.made("c").running():
            await at.member.numbers()
            assert at.member.has_lived(3, at.member.reading)
            assert not at.member.has_lived(2, first), "forgotten: others were listed later"
        at.clock.advance(LEASE_SECONDS)
        await at.member.beat()
        assert at.member.has_lived(99, at.member.reading), "it may have come and gone while this one stood still"
        await at.member.numbers()
        assert not at.member.has_lived(99, at.member.reading)
