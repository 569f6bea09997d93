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
from trunkline.mux.directory import Claimed, Directory
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
    await directory.claim(first)
    assert await directory.remove(first)
    second = record("chat")
    assert await directory.claim(second) == Claimed(second, "reset")
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

    await _at_once([claim] * 20)
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

    await _at_once([lambda n=n: change(n) for n in range(20)])
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

    await _at_once([add_one] * 12)
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
    await _at_once([draw] * 10)
    await directory.replace(changed(mine))
    await draw()
    blocks.sort(key=lambda block: block.start)
    assert all(len(block) > 0 for block in blocks)
    assert all(left.stop <= right.start for left, right in pairwise(blocks)), "an id was given out twice"
    assert blocks[-1].stop <= 100_000, "ids are drawn densely"
    assert (await directory.draw_ids(other.session_id)).start == 1, "each session counts for itself"


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


async def watch_hears_changes_from_entering_on(directory: Directory) -> None:
    before, mine, other = record(), record("chat"), record()
    for one in (before, mine, other):
        await directory.claim(one)
    await directory.replace(changed(before))
    async with directory.watch() as changes:
        stored = await directory.replace(changed(mine))
        assert stored is not None
        assert await _heard(changes) == mine.session_id, "a change"
        assert await directory.replace(changed(mine)) is None
        await directory.remove(other)
        assert await _heard(changes) == other.session_id, "a removal; not the change that was refused"
        await directory.remove(stored)
        assert await _heard(changes) == mine.session_id


async def every_watcher_hears(directory: Directory) -> None:
    mine = record()
    await directory.claim(mine)
    async with directory.watch() as one, directory.watch() as two:
        stored = await directory.replace(changed(mine))
        assert await _heard(one) == mine.session_id
        async with directory.watch() as late:
            assert stored is not None
            await directory.remove(stored)
            assert await _heard(late) == mine.session_id
        assert [await _heard(two) for _ in range(2)] == [mine.session_id] * 2
    await directory.claim(mine)
    await directory.remove(mine)  # nobody listens any longer


async def a_watcher_that_falls_behind_is_told(directory: Directory) -> None:
    """It may miss single changes, but then it hears an empty string, without another change to push that out."""
    async with directory.watch() as changes:
        missed = set()
        for _ in range(LATENESS):
            one = record()
            await directory.claim(one)
            await directory.remove(one)
            missed.add(one.session_id)
        while missed and (heard := await _heard(changes)):
            missed.discard(heard)
        # Told of everything, or that everything may have changed, it goes on as if it had just entered.
        last = record()
        await directory.claim(last)
        await directory.remove(last)
        while await _heard(changes) != last.session_id:
            pass


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
    ids_are_drawn_for_a_session_that_is_there,
    watch_hears_changes_from_entering_on,
    every_watcher_hears,
    a_watcher_that_falls_behind_is_told,
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


async def _heard(changes: AsyncIterator[str]) -> str:
    with anyio.fail_after(PATIENCE):
        return await anext(changes)


async def _at_once(works: Sequence[Callable[[], Awaitable[None]]]) -> None:
    async with anyio.create_task_group() as tasks:
        for work in works:
            tasks.start_soon(work)
