"""The contract of `trunkline.mux.directory.Directory`: run it on any implementation.

    async def test_my_directory() -> None:
        await check_directory(my_maker)

A maker returns an async context manager with an empty directory. Single checks can be run by themselves: `CHECKS`.
"""

from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import AbstractAsyncContextManager
from itertools import pairwise
from typing import Final

import anyio
import msgspec
from trunkline.mux.directory import SHARED, Claimed, Directory, SharedDirectory
from trunkline.mux.principal import ANONYMOUS, Principal
from trunkline.mux.record import Handshake, WorkflowRecord, new_session_id

Maker = Callable[[], AbstractAsyncContextManager[Directory]]
Check = Callable[[Directory], Awaitable[None]]
PATIENCE: Final = 10.0
"""Seconds within which a directory answers, and a watcher hears."""
LATENESS: Final = 3000
"""Changes that a watcher lets pass before it listens again: more than any directory is asked to keep for it."""
ALICE: Final = Principal("issuer", "acme", "alice")
BOB: Final = Principal("issuer", "acme", "bob")
HANDSHAKE: Final = Handshake("2025-11-25", b'{"protocolVersion":"2025-11-25"}', b"{}", (("x-tenant", "a"),))


def record(key: str | None = None, *, principal: Principal = ALICE, server: str = "x") -> WorkflowRecord:
    """A new record, under a session id of its own."""
    return WorkflowRecord(new_session_id(), principal, server, key, HANDSHAKE)


def changed(stored: WorkflowRecord, result: bytes = b"{}") -> WorkflowRecord:
    """A change to a record: what opening a session does."""
    return msgspec.structs.replace(stored, revision="2025-11-25", result=result)


async def claim_stores_what_it_was_given(directory: Directory) -> None:
    for key in (None, "chat"):
        mine = record(key)
        assert await directory.claim(mine) == Claimed(mine, "created")
        assert await directory.get(mine.session_id) == mine


async def a_record_comes_back_in_every_field(directory: Directory) -> None:
    principal = Principal("https://issuer/ü", "", "a:b|c\x00d")
    mine = WorkflowRecord(
        new_session_id(), principal, "server/1", "k", Handshake("2025-03-26", b'{"\xc3\xa4":1}', b"{}")
    )
    await directory.claim(mine)
    stored = await directory.replace(changed(mine, b'{"big":123456789012345678901234567890}'))
    assert stored == msgspec.structs.replace(
        mine, epoch=1, revision="2025-11-25", result=b'{"big":123456789012345678901234567890}'
    )
    assert await directory.get(mine.session_id) == stored
    assert await directory.find(principal, "server/1", "k") == stored


async def a_key_that_names_a_record_resumes_it(directory: Directory) -> None:
    first, second = record("chat"), record("chat")
    await directory.claim(first)
    assert await directory.claim(second) == Claimed(first, "resumed")
    assert await directory.get(second.session_id) is None, "the loser left a record behind"
    stored = await directory.replace(changed(first))
    assert await directory.claim(record("chat")) == Claimed(stored, "resumed"), "the record as it stands, not as it was"


async def a_key_that_named_a_record_is_reset(directory: Directory) -> None:
    first = record("chat")
    assert not await directory.has_ended(ALICE, "x", "chat")
    await directory.claim(first)
    assert not await directory.has_ended(ALICE, "x", "chat")
    assert await directory.remove(first)
    assert await directory.has_ended(ALICE, "x", "chat")
    assert not await directory.has_ended(BOB, "x", "chat")
    assert not await directory.has_ended(ALICE, "y", "chat")
    second = record("chat")
    assert await directory.claim(second) == Claimed(second, "reset")
    assert not await directory.has_ended(ALICE, "x", "chat"), "it names another one"
    assert await directory.remove(second)
    third = record("chat")
    assert await directory.claim(third) == Claimed(third, "reset"), "each time anew"


async def a_key_names_nothing_outside_its_principal_and_server(directory: Directory) -> None:
    for n, (principal, server) in enumerate([(BOB, "x"), (ALICE, "y"), (ANONYMOUS, "x")]):
        key = f"chat-{n}"
        mine, other = record(key), record(key, principal=principal, server=server)
        await directory.claim(mine)
        assert await directory.find(principal, server, key) is None
        assert await directory.claim(other) == Claimed(other, "created")
        assert await directory.find(principal, server, key) == other
        assert await directory.remove(mine)
        assert await directory.find(principal, server, key) == other
    # Principals whose parts run together when they are joined.
    await directory.claim(record("chat", principal=Principal("a", "b|c", "d")))
    for similar in (Principal("a|b", "c", "d"), Principal("a", "b", "c|d"), Principal("a", "b|c", "D")):
        assert (await directory.claim(record("chat", principal=similar))).state == "created"


async def without_a_key_nothing_is_joined(directory: Directory) -> None:
    first, second = record(), record()
    assert (await directory.claim(first)).state == "created"
    assert (await directory.claim(second)).state == "created"
    assert await directory.get(first.session_id) == first
    assert await directory.get(second.session_id) == second


async def of_many_claims_at_once_one_wins(directory: Directory) -> None:
    outcomes: list[Claimed] = []

    async def claim() -> None:
        outcomes.append(await directory.claim(record("chat")))

    await at_once([claim] * 20)
    assert sorted(outcome.state for outcome in outcomes) == ["created", *["resumed"] * 19]
    assert len({outcome.record.session_id for outcome in outcomes}) == 1


async def unknown_names_find_nothing(directory: Directory) -> None:
    await directory.claim(record("chat"))
    assert await directory.get("unknown") is None
    assert await directory.find(ALICE, "x", "unknown") is None
    assert await directory.replace(changed(record("other"))) is None
    assert await directory.remove(record()) is False


async def a_change_names_the_epoch_that_it_changes(directory: Directory) -> None:
    mine = record("chat")
    await directory.claim(mine)
    second = await directory.replace(changed(mine, b'{"n":1}'))
    assert second is not None
    assert second.epoch == mine.epoch + 1
    assert await directory.replace(changed(mine, b'{"n":2}')) is None, "it was overtaken"
    assert await directory.get(mine.session_id) == second
    third = await directory.replace(changed(second, b'{"n":3}'))
    assert third is not None
    assert third.epoch == second.epoch + 1
    assert await directory.find(ALICE, "x", "chat") == third


async def of_many_changes_at_once_one_wins(directory: Directory) -> None:
    mine = record()
    await directory.claim(mine)
    outcomes: list[WorkflowRecord | None] = []

    async def change(n: int) -> None:
        outcomes.append(await directory.replace(changed(mine, b'{"n":%d}' % n)))

    await at_once([lambda n=n: change(n) for n in range(20)])
    won = [outcome for outcome in outcomes if outcome is not None]
    assert len(won) == 1
    assert await directory.get(mine.session_id) == won[0]


async def no_change_is_lost_among_those_that_try_again(directory: Directory) -> None:
    mine = record()
    await directory.claim(changed(mine, b"0"))

    async def add_one() -> None:
        while True:
            stored = await directory.get(mine.session_id)
            assert stored is not None
            if await directory.replace(msgspec.structs.replace(stored, result=b"%d" % (int(stored.result) + 1))):
                return

    await at_once([add_one] * 12)
    stored = await directory.get(mine.session_id)
    assert stored is not None
    assert (stored.result, stored.epoch) == (b"12", 12)


async def remove_names_the_epoch_that_it_removes(directory: Directory) -> None:
    mine = record("chat")
    await directory.claim(mine)
    stored = await directory.replace(changed(mine))
    assert stored is not None
    assert await directory.remove(mine) is False, "it was overtaken"
    assert await directory.get(mine.session_id) == stored
    assert await directory.remove(stored) is True
    assert await directory.get(mine.session_id) is None
    assert await directory.find(ALICE, "x", "chat") is None
    assert await directory.remove(stored) is False, "it is gone"
    assert await directory.replace(stored) is None, "a change must not bring it back"
    assert await directory.get(mine.session_id) is None


async def remove_leaves_the_successor_alone(directory: Directory) -> None:
    first, second = record("chat"), record("chat")
    await directory.claim(first)
    await directory.remove(first)
    await directory.claim(second)
    assert await directory.remove(first) is False
    assert await directory.find(ALICE, "x", "chat") == second


async def id_blocks_never_overlap_and_begin_small(directory: Directory) -> None:
    mine, other = record("chat"), record()
    await directory.claim(mine)
    await directory.claim(other)
    blocks: list[range] = []

    async def draw() -> None:
        blocks.append(await directory.draw_ids(mine.session_id))

    await draw()
    assert blocks[0].start == 1, "some servers parse 32 bits"
    assert blocks[0].step == 1
    await at_once([draw] * 10)
    await directory.replace(changed(mine))
    await draw()
    blocks.sort(key=lambda block: block.start)
    assert all(len(block) > 0 for block in blocks)
    assert all(left.stop <= right.start for left, right in pairwise(blocks)), "an id was given out twice"
    assert blocks[-1].stop <= 100_000, "ids are drawn densely"
    assert (await directory.draw_ids(other.session_id)).start == 1, "each session counts for itself"


async def ids_are_drawn_above_those_that_are_known(directory: Directory) -> None:
    mine = record()
    await directory.claim(mine)
    for name in (mine.session_id, f"{SHARED}a"):
        first = await directory.draw_ids(name)
        above = await directory.draw_ids(name, 100_000)
        assert (above.start, len(above)) == (100_001, len(first)), "dense, and as many as ever"
        for known in (0, 5, above.stop - 1):
            following = await directory.draw_ids(name, known)
            assert following.start == above.stop, "no id is left out that was not known"
            above = following
    high = await directory.draw_ids(mine.session_id, 2**40)
    assert high.start == 2**40 + 1
    assert (await directory.draw_ids(mine.session_id)).start == high.stop
    late = msgspec.structs.replace(record("chat"), first_id=1 << 24)
    await directory.claim(late)
    assert (await directory.draw_ids(late.session_id)).start == 1 << 24, "where the record says"


async def ids_are_drawn_for_a_session_that_is_there(directory: Directory) -> None:
    mine = record()
    for _ in range(2):
        try:
            block = await directory.draw_ids(mine.session_id)
        except KeyError:
            pass
        else:
            raise AssertionError(f"{block} was drawn for no session")
        await directory.claim(mine)
        await directory.remove(mine)


async def watch_hears_changes_from_entering_on(directory: SharedDirectory) -> None:
    before, mine, other = record(), record("chat"), record()
    for one in (before, mine, other):
        await directory.claim(one)
    await directory.replace(changed(before))
    async with directory.watch() as changes:
        stored = await directory.replace(changed(mine))
        assert stored is not None
        heard = await hear(changes)
        if heard == before.session_id:  # told late
            heard = await hear(changes)
        assert heard == mine.session_id, "a change"
        assert await directory.replace(changed(mine)) is None
        await directory.remove(other)
        assert await hear(changes) == other.session_id, "a removal; not the change that was refused"
        await directory.remove(stored)
        assert await hear(changes) == mine.session_id


async def every_watcher_hears(directory: SharedDirectory) -> None:
    mine = record()
    await directory.claim(mine)
    async with directory.watch() as one, directory.watch() as two:
        stored = await directory.replace(changed(mine))
        assert await hear(one) == mine.session_id
        async with directory.watch() as late:
            assert stored is not None
            await directory.remove(stored)
            assert await hear(late) == mine.session_id
        assert [await hear(two) for _ in range(2)] == [mine.session_id] * 2
    await directory.claim(mine)
    await directory.remove(mine)  # nobody listens any longer


async def a_watcher_that_falls_behind_is_told(directory: SharedDirectory) -> None:
    """It may miss single changes, but then it hears an empty string, without another change to push that out."""
    async with directory.watch() as changes:
        missed = set()
        for _ in range(LATENESS):
            one = record()
            await directory.claim(one)
            await directory.remove(one)
            missed.add(one.session_id)
        while missed and (heard := await hear(changes)):
            missed.discard(heard)
        # Told of everything, or that everything may have changed, it goes on as if it had just entered.
        last = record()
        await directory.claim(last)
        await directory.remove(last)
        while await hear(changes) != last.session_id:
            pass


async def event_ids_lead_to_their_record(directory: SharedDirectory) -> None:
    mine = record("chat")
    assert await directory.at(mine.event_token) is None
    await directory.claim(mine)
    assert await directory.at(mine.event_token) == mine
    stored = await directory.replace(changed(mine))
    assert stored is not None
    assert await directory.at(mine.event_token) == stored
    for other in (mine.session_id, mine.handle, "", "{}", "}\x00{", "ü" * 1000):
        assert await directory.at(other) is None
    assert await directory.remove(stored)
    assert await directory.at(mine.event_token) is None


async def use_is_told_by_its_age(directory: SharedDirectory) -> None:
    mine, other = record("chat"), record()
    assert await directory.untouched(mine.session_id) is None
    await directory.claim(mine)
    await directory.claim(other)

    async def grows_old() -> None:
        while True:
            age = await directory.untouched(mine.session_id)
            assert age is not None
            if age >= 0.3:
                return
            await anyio.sleep(0.01)

    async def is_young() -> None:
        age, old = await directory.untouched(mine.session_id), await directory.untouched(other.session_id)
        assert age is not None
        assert old is not None
        assert 0 <= age < old, "one was used, not the other"

    await grows_old()
    await directory.touch([mine.session_id, "unknown", "", "{}"])
    await is_young()
    await grows_old()
    stored = await directory.replace(changed(mine))
    await is_young()
    await directory.touch([])
    assert stored is not None
    assert await directory.find(ALICE, "x", "chat") == stored, "use changes nothing else"
    assert await directory.remove(stored)
    assert await directory.untouched(mine.session_id) is None


async def shared_sessions_draw_ids_of_their_own(directory: Directory) -> None:
    blocks: list[range] = []

    async def draw() -> None:
        blocks.append(await directory.draw_ids(f"{SHARED}a{{b}}\x00ü"))

    await at_once([draw] * 8)
    blocks.sort(key=lambda block: block.start)
    assert blocks[0].start == 1
    assert all(left.stop <= right.start for left, right in pairwise(blocks))
    assert (await directory.draw_ids(f"{SHARED}other")).start == 1


async def hostile_names_are_names(directory: Directory) -> None:
    hostile = ("{}", "}{", "a\x00b", "a\r\nb", "*", "'; --", "\u202e", "%s", "trunkline1:{x}:key", "k" * 5000, "")
    for name in hostile:
        mine = record(name, principal=Principal(name, name, name), server=name)
        assert await directory.claim(mine) == Claimed(mine, "created"), name
        assert await directory.find(mine.principal, name, name) == mine
        assert await directory.find(ALICE, name, name) is None
        assert await directory.get(name) is None
    for name in hostile:
        found = await directory.find(Principal(name, name, name), name, name)
        assert found is not None
        assert await directory.remove(found)


async def large_records_are_kept(directory: Directory) -> None:
    mine = record("chat")
    await directory.claim(mine)
    stored = await directory.replace(changed(mine, bytes(range(256)) * 8192))
    assert await directory.get(mine.session_id) == stored


CHECKS: Final[Sequence[Check]] = (
    claim_stores_what_it_was_given,
    a_record_comes_back_in_every_field,
    a_key_that_names_a_record_resumes_it,
    a_key_that_named_a_record_is_reset,
    a_key_names_nothing_outside_its_principal_and_server,
    without_a_key_nothing_is_joined,
    of_many_claims_at_once_one_wins,
    unknown_names_find_nothing,
    a_change_names_the_epoch_that_it_changes,
    of_many_changes_at_once_one_wins,
    no_change_is_lost_among_those_that_try_again,
    remove_names_the_epoch_that_it_removes,
    remove_leaves_the_successor_alone,
    id_blocks_never_overlap_and_begin_small,
    ids_are_drawn_above_those_that_are_known,
    ids_are_drawn_for_a_session_that_is_there,
    shared_sessions_draw_ids_of_their_own,
    hostile_names_are_names,
    large_records_are_kept,
)


async def records_live_for_their_lifetime(directory: SharedDirectory) -> None:
    short = msgspec.structs.replace(record("chat"), lifetime=2.0)
    used = msgspec.structs.replace(record("used"), lifetime=2.0)
    for one in (short, used):
        await directory.claim(one)
    with anyio.fail_after(PATIENCE):
        while await directory.get(short.session_id) is not None:
            await directory.touch([used.session_id])
            await anyio.sleep(0.02)
    assert await directory.at(short.event_token) is None
    assert await directory.find(ALICE, "x", "chat") is None
    assert await directory.untouched(short.session_id) is None
    assert await directory.replace(short) is None, "a change must not bring it back"
    assert await directory.remove(short) is False
    await directory.touch([short.session_id])
    assert await directory.get(short.session_id) is None
    assert await directory.find(ALICE, "x", "used") == used, "it was touched"
    try:
        await directory.draw_ids(short.session_id)
    except KeyError:
        pass
    else:
        raise AssertionError("ids were drawn for no session")
    again = record("chat")
    assert await directory.has_ended(ALICE, "x", "chat")
    assert await directory.claim(again) == Claimed(again, "reset")
    assert not await directory.has_ended(ALICE, "x", "chat")


async def a_lifetime_can_be_changed(directory: Directory) -> None:
    mine = msgspec.structs.replace(record("chat"), lifetime=5.0)
    await directory.claim(mine)
    longer = await directory.replace(msgspec.structs.replace(mine, lifetime=3600.0))
    assert longer is not None
    shorter = await directory.replace(msgspec.structs.replace(longer, lifetime=0.2))
    assert shorter is not None
    with anyio.fail_after(PATIENCE):
        while await directory.get(mine.session_id) is not None:  # noqa: ASYNC110 - nobody tells of it
            await anyio.sleep(0.02)


EXPIRY_CHECKS: Final[Sequence[Callable[[SharedDirectory], Awaitable[None]]]] = (
    records_live_for_their_lifetime,
    a_lifetime_can_be_changed,
)
"""For directories that forget."""
SHARED_CHECKS: Final[Sequence[Callable[[SharedDirectory], Awaitable[None]]]] = (
    watch_hears_changes_from_entering_on,
    every_watcher_hears,
    a_watcher_that_falls_behind_is_told,
    event_ids_lead_to_their_record,
    use_is_told_by_its_age,
)


async def check_directory(maker: Maker) -> None:
    """Run every check, each on a directory of its own.

    Raises:
        AssertionError: a promise was broken; the name of the check says which.
        TimeoutError: the directory did not answer, or its watcher did not hear.
    """
    for check in CHECKS:
        async with maker() as directory:
            try:
                with anyio.fail_after(PATIENCE):
                    await check(directory)
            except BaseException as error:
                error.add_note(f"broken: {check.__name__.replace('_', ' ')}")
                raise


async def hear(changes: AsyncIterator[str]) -> str:
    with anyio.fail_after(PATIENCE):
        return await anext(changes)


async def at_once(works: Sequence[Callable[[], Awaitable[None]]]) -> None:
    async with anyio.create_task_group() as tasks:
        for work in works:
            tasks.start_soon(work)
