"""One worker among others: how it knows who lives, and what that costs."""

import anyio
import pytest
from harness.membering import At, handed_to
from harness.shared_memory import SharedMemoryDirectory
from trunkline.mux import membership as membership_module
from trunkline.mux.directory import LEASE_SECONDS, Worker
from trunkline.mux.errors import DirectoryUnavailable
from trunkline.mux.membership import DOUBT_SECONDS, KNOWN_SECONDS, Membership

pytestmark = pytest.mark.anyio


@pytest.fixture
def at(monkeypatch: pytest.MonkeyPatch) -> At:
    return At(monkeypatch)


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
