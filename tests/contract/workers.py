"""The contract of `trunkline.mux.directory.Workers`, for directories that several workers share."""

import time
from collections.abc import Awaitable, Callable, Sequence
from typing import Final
from uuid import uuid4

import anyio
import msgspec
from trunkline.mux.directory import LEASE_SECONDS, SharedDirectory, Worker

from contract.directory import PATIENCE, at_once

FRAME_BYTES: Final = 64 * 1024


def worker() -> Worker:
    return Worker(uuid4().hex, "host-a", "/run/trunkline/ü {x}.sock")


async def eventually(condition: Callable[[], Awaitable[bool]]) -> None:
    with anyio.fail_after(PATIENCE):
        while not await condition():  # noqa: ASYNC110 - another process tells of nothing
            await anyio.sleep(0.02)


async def workers_that_enroll_are_found(directory: SharedDirectory) -> None:
    assert await directory.workers() == []
    one, two = await directory.enroll(worker()), await directory.enroll(worker())
    assert 1 <= one.number < two.number < 1000
    assert await directory.worker(one.id) == one
    assert await directory.worker("unknown {}\x00") is None
    await at_once([lambda: directory.beat(one), lambda: directory.beat(two)])
    assert sorted(each.number for each in await directory.workers()) == [one.number, two.number]
    await directory.retire(one)
    assert await directory.worker(one.id) is None
    await directory.beat(two)
    assert await directory.workers() == [two]
    await directory.retire(one)


async def a_heartbeat_says_that_its_worker_drains(directory: SharedDirectory) -> None:
    one, other = await directory.enroll(worker()), await directory.enroll(worker())
    draining = msgspec.structs.replace(one, drains=True)
    assert await directory.beat(draining)
    assert await directory.worker(one.id) == draining
    assert await directory.workers() == [draining, other]


async def numbers_are_given_once(directory: SharedDirectory) -> None:
    numbers: list[int] = []

    async def enroll() -> None:
        enrolled = await directory.enroll(worker())
        numbers.append(enrolled.number)
        await directory.retire(enrolled)

    await at_once([enroll] * 12)
    await enroll()
    assert len(set(numbers)) == 13


async def a_worker_without_a_heartbeat_is_dead(directory: SharedDirectory) -> None:
    ends = time.monotonic() + LEASE_SECONDS
    silent, beating = await directory.enroll(worker()), await directory.enroll(worker())

    async def is_dead() -> bool:
        assert await directory.beat(beating) is True
        return await directory.worker(silent.id) is None

    assert await directory.settle("name", silent) == silent.id
    await eventually(is_dead)
    assert time.monotonic() > ends - 0.2, "it was dead before its lease ended"
    assert await directory.workers() == [beating]
    assert await directory.settle("name", beating) == beating.id
    assert await directory.beat(silent) is False, "it was taken for dead"
    assert await directory.beat(silent) is True
    assert await directory.worker(silent.id) == silent
    assert await directory.settle("name", silent) == beating.id, "what moved stays moved"


async def what_is_settled_stays_while_its_worker_lives(directory: SharedDirectory) -> None:
    one, two = await directory.enroll(worker()), await directory.enroll(worker())
    name = "user:{a}\x00ü" + "x" * 300
    assert await directory.settle(name, one) == one.id
    assert await directory.settle(name, two) == one.id
    assert await directory.settle("another", two) == two.id
    await directory.retire(one)
    assert await directory.settle(name, two) == two.id


async def what_is_settled_moves_on_from_a_worker_that_drains(directory: SharedDirectory) -> None:
    one, two = await directory.enroll(worker()), await directory.enroll(worker())
    assert await directory.settle("name", one) == one.id
    draining = msgspec.structs.replace(one, drains=True)
    await directory.beat(draining)
    assert await directory.settle("name", draining) == one.id
    assert await directory.settle("name", two) == two.id
    assert await directory.settle("name", draining) == two.id


async def of_many_that_settle_at_once_one_is_it(directory: SharedDirectory) -> None:
    workers = [await directory.enroll(worker()) for _ in range(8)]
    homes: list[str] = []

    async def settle(one: Worker) -> None:
        homes.append(await directory.settle("name", one))

    await at_once([lambda one=one: settle(one) for one in workers])
    [home] = set(homes)
    await directory.retire(next(one for one in workers if one.id == home))
    homes.clear()
    await at_once([lambda one=one: settle(one) for one in workers if one.id != home])
    assert len(set(homes)) == 1
    assert homes[0] != home


async def frames_arrive_in_order(directory: SharedDirectory) -> None:
    one, two = await directory.enroll(worker()), await directory.enroll(worker())
    assert await directory.send("unknown", b"frame") is False
    frames = [b"%d" % n for n in range(50)] + [bytes(range(256)) * (FRAME_BYTES // 256)]
    async with directory.mailbox(one) as first, directory.mailbox(two) as second:
        for n, frame in enumerate(frames):
            if n % 10 == 0:  # so many frames may take longer than a lease
                await at_once([lambda: directory.beat(one), lambda: directory.beat(two)])
            assert await directory.send(one.id, frame) is True
        assert await directory.send(two.id, b"other") is True
        for frame in frames:
            with anyio.fail_after(PATIENCE):
                assert await anext(first) == frame
        with anyio.fail_after(PATIENCE):
            assert await anext(second) == b"other"
    await directory.retire(one)
    assert await directory.send(one.id, b"late") is False


WORKER_CHECKS: Final[Sequence[object]] = (
    workers_that_enroll_are_found,
    a_heartbeat_says_that_its_worker_drains,
    numbers_are_given_once,
    a_worker_without_a_heartbeat_is_dead,
    what_is_settled_stays_while_its_worker_lives,
    what_is_settled_moves_on_from_a_worker_that_drains,
    of_many_that_settle_at_once_one_is_it,
    frames_arrive_in_order,
)
