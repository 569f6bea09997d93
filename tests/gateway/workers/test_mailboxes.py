"""Conversations in frames that the directory carries: whole, in order, bounded, and broken at once where one ends."""

from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from typing import Any

import anyio
import pytest
from harness.changing import Changing
from harness.shared_memory import SharedMemoryDirectory
from harness.worker_house import unknown_to
from trunkline.gateway.workers import mailboxes as module
from trunkline.gateway.workers.conversation import MAX_FRAME_BYTES, Broken, Conversation, Frame, Unreachable
from trunkline.gateway.workers.mailboxes import PART_BYTES, WINDOW, MailboxConversation, Mailboxes
from trunkline.mux.directory import SharedDirectory, Worker
from trunkline.mux.directory.open import open_directory
from trunkline.mux.errors import DirectoryUnavailable
from trunkline.mux.membership import Membership

pytestmark = pytest.mark.anyio

MAILBOX_BYTES = 64 * 1024


class Watched:
    """A directory's mailboxes: it notes what goes through them, and loses the frames that a test names."""

    def __init__(self, inner: SharedDirectory) -> None:
        self.inner = inner
        self.sizes: list[int] = []
        self.lost: set[int] = set()

    def __getattr__(self, name: str) -> Any:
        return getattr(self.inner, name)

    async def send(self, worker: str, frame: bytes) -> bool:
        self.sizes.append(len(frame))
        return True if len(self.sizes) in self.lost else await self.inner.send(worker, frame)


class Post(Changing):
    """Workers `a` and `b`, which reach each other by mailboxes alone."""

    def __init__(self, directory: SharedDirectory) -> None:
        super().__init__()
        self.directory = Watched(directory)
        self.members: dict[str, Membership] = {}
        self.boxes: dict[str, Mailboxes] = {}
        self.came: list[Conversation] = []

    async def joins(self, name: str) -> AsyncExitStack:
        """A worker begins; it ends in order when what is returned is closed."""
        stack = AsyncExitStack()
        member = Membership(self.directory, Worker(name), on_lapse=lambda since: None)
        self.members[name] = await stack.enter_async_context(member.running())
        self.boxes[name] = await stack.enter_async_context(Mailboxes(self.directory, member).running(self._take))
        return stack

    def _take(self, conversation: Conversation) -> None:
        self.came.append(conversation)
        self.happened()

    def open(self) -> MailboxConversation:
        """A conversation of `a` with `b`."""
        return self.boxes["a"].open(Worker("b"))

    async def arrived(self, number: int = 1) -> Conversation:
        """The other end of the conversation that was opened as that one."""
        await self.until(lambda: len(self.came) >= number)
        return self.came[number - 1]

    async def pair(self) -> tuple[MailboxConversation, Conversation]:
        """Both ends of one that has begun."""
        near = self.open()
        await near.send(Frame("open", {}))
        far = await self.arrived(len(self.came) + 1)
        assert await far.receive() == Frame("open", {})
        return near, far


@pytest.fixture(params=["memory", "redis"])
async def directory(request: pytest.FixtureRequest) -> AsyncIterator[SharedDirectory]:
    if request.param == "memory":
        yield SharedMemoryDirectory()
        return
    async with open_directory("redis", request.getfixturevalue("redis").url) as opened:
        yield opened


@pytest.fixture
async def post(directory: SharedDirectory) -> AsyncIterator[Post]:
    made = Post(directory)
    a = await made.joins("a")
    b = await made.joins("b")
    try:
        with anyio.fail_after(20):
            yield made
    finally:
        await b.aclose()
        await a.aclose()


async def test_frames_of_any_size_come_in_order_and_byte_for_byte(post: Post) -> None:
    near, far = await post.pair()
    sizes = (0, 1, PART_BYTES - 100, PART_BYTES, PART_BYTES + 1, 40 * PART_BYTES, 3)
    said = [Frame("event", {"body": bytes(range(256)) * (size // 256 + 1)}) for size in sizes]

    async def say(conversation: Conversation) -> None:
        for frame in said:
            await conversation.send(frame)

    for speaker, listener in ((near, far), (far, near)):
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(say, speaker)
            assert [await listener.receive() for _ in said] == said
    assert max(post.directory.sizes) <= MAILBOX_BYTES


async def test_frames_that_are_sent_at_once_do_not_mix(post: Post) -> None:
    near, far = await post.pair()
    said = [Frame("event", bytes([n]) * 3 * PART_BYTES) for n in range(4)]
    async with anyio.create_task_group() as tasks:
        for frame in said:
            tasks.start_soon(near.send, frame)
        came = [await far.receive() for _ in said]
    assert sorted(frame.payload for frame in came) == [frame.payload for frame in said]


async def test_conversations_do_not_mix(post: Post) -> None:
    pairs = [await post.pair() for _ in range(3)]
    for n, (near, far) in enumerate(pairs):
        await near.send(Frame("event", n))
        await far.send(Frame("event", -n))
    for n, (near, far) in enumerate(pairs):
        assert (await far.receive(), await near.receive()) == (Frame("event", n), Frame("event", -n))


async def test_g10_nobody_sends_more_than_the_other_side_takes(post: Post) -> None:
    near, far = await post.pair()
    sent = 0
    halted = anyio.Event()

    async def say() -> None:
        nonlocal sent
        for n in range(5 * WINDOW):
            if n == WINDOW - 1:
                halted.set()
            await near.send(Frame("event", n))
            sent += 1

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(say)
        await halted.wait()
        await anyio.wait_all_tasks_blocked()
        assert sent <= WINDOW
        assert [(await far.receive()).payload for _ in range(5 * WINDOW)] == list(range(5 * WINDOW))


async def test_a_frame_without_end_is_refused(post: Post, monkeypatch: pytest.MonkeyPatch) -> None:
    assert MAX_FRAME_BYTES > 10 * PART_BYTES
    monkeypatch.setattr(module, "MAX_FRAME_BYTES", 3 * PART_BYTES)
    near, far = await post.pair()
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(near.send, Frame("event", b"x" * 5 * PART_BYTES))
        with pytest.raises(Broken):
            await far.receive()
        tasks.cancel_scope.cancel()


async def test_what_was_sent_before_the_end_arrives(post: Post) -> None:
    near, far = await post.pair()
    await near.send(Frame("end"))
    near.close()
    near.close()
    assert await far.receive() == Frame("end")
    with pytest.raises(Broken):
        await far.receive()
    with pytest.raises(Broken):
        await far.send(Frame("end"))


async def test_a_worker_without_mailbox_surely_has_heard_nothing(post: Post) -> None:
    with pytest.raises(Unreachable):
        await post.boxes["a"].open(Worker("nobody")).send(Frame("open", {}))


@pytest.mark.parametrize("is_near", [True, False])
async def test_a_lost_part_breaks_the_conversation(post: Post, is_near: bool) -> None:
    near, far = await post.pair()
    speaker, listener = (near, far) if is_near else (far, near)
    post.directory.lost = {len(post.directory.sizes) + 1}
    await speaker.send(Frame("event", 1))
    await speaker.send(Frame("event", 2))
    with pytest.raises(Broken):
        await listener.receive()


@pytest.mark.parametrize("whose", ["a", "b"])
async def test_a_mailbox_that_was_away_breaks_what_it_carried_on_both_sides(post: Post, whose: str) -> None:
    near, far = await post.pair()
    await post.directory.send(whose, b"")
    for side in (near, far):
        with anyio.fail_after(10), pytest.raises(Broken):
            await side.receive()


@pytest.mark.parametrize("is_dead", [True, False], ids=["dead", "away"])
async def test_g9_what_befalls_one_worker_breaks_nothing_with_another(post: Post, is_dead: bool) -> None:
    near, _ = await post.pair()
    async with await post.joins("c"):
        other = post.boxes["a"].open(Worker("c"))
        await other.send(Frame("open", {}))
        there = await post.arrived(2)
        beat = post.directory.beat

        async def beat_no_longer(worker: Worker) -> bool:
            return worker.id == "b" or await beat(worker)

        if is_dead:
            post.directory.beat = beat_no_longer  # type: ignore[method-assign]
            await post.directory.retire(post.members["b"].worker)
        else:
            await post.directory.send("b", b"")
        with anyio.fail_after(10), pytest.raises(Broken):
            await near.receive()
        await there.send(Frame("event", 1))
        assert await other.receive() == Frame("event", 1)


@pytest.mark.parametrize("directory", ["memory"], indirect=True)
async def test_g9_while_nobody_can_tell_who_lives_what_waits_goes_on(
    post: Post, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "BEAT_SECONDS", 0.02)
    near, far = await post.pair()
    unknown = unknown_to(post.members["a"], monkeypatch)

    async def told_by_nobody() -> list[Worker]:
        raise DirectoryUnavailable("a test has taken the directory away")

    monkeypatch.setattr(post.directory, "workers", told_by_nobody, raising=False)
    await unknown.wait()
    await far.send(Frame("event", 1))
    assert await near.receive() == Frame("event", 1)


async def test_who_began_with_what_a_mailbox_lost_is_told(post: Post) -> None:
    near = post.open()
    post.directory.lost = {len(post.directory.sizes) + 1}
    await near.send(Frame("open", {}))
    await post.directory.send("b", b"")
    with anyio.fail_after(10), pytest.raises(Broken, match="away"):
        await near.receive()
    assert post.came == []


async def test_what_began_before_others_heard_that_a_mailbox_was_away_breaks_on_both_sides(
    post: Post, monkeypatch: pytest.MonkeyPatch
) -> None:
    others = post.members["a"].others
    is_due, goes_on = anyio.Event(), anyio.Event()

    async def others_late() -> list[Worker]:
        is_due.set()
        await goes_on.wait()
        return await others()

    monkeypatch.setattr(post.members["a"], "others", others_late)
    await post.directory.send("a", b"")
    await is_due.wait()
    near, far = await post.pair()
    goes_on.set()
    with anyio.fail_after(10), pytest.raises(Broken, match="away"):
        await far.receive()
    far.close()
    with anyio.fail_after(10), pytest.raises(Broken):
        await near.receive()


@pytest.mark.parametrize("directory", ["memory"], indirect=True)
async def test_that_a_mailbox_was_away_is_told_once_the_directory_is_back(
    post: Post, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "BEAT_SECONDS", 0.02)
    near, _ = await post.pair()
    failed = anyio.Event()
    send = post.directory.send

    async def send_in_vain(worker: str, frame: bytes) -> bool:
        post.directory.send = send  # type: ignore[method-assign]
        failed.set()
        raise DirectoryUnavailable("a test has taken the directory away")

    await send("b", b"")
    post.directory.send = send_in_vain  # type: ignore[method-assign]
    await failed.wait()
    with anyio.fail_after(10), pytest.raises(Broken):
        await near.receive()


async def test_the_death_of_a_worker_breaks_its_conversations(post: Post) -> None:
    near, _ = await post.pair()
    other, _ = await post.pair()
    beat = post.directory.beat

    async def beat_no_longer(worker: Worker) -> bool:
        return worker.id == "b" or await beat(worker)

    post.directory.beat = beat_no_longer  # type: ignore[method-assign]
    await post.directory.retire(post.members["b"].worker)
    for conversation in (near, other):
        with pytest.raises(Broken, match="died"):
            await conversation.receive()


async def test_a_worker_that_was_taken_for_dead_does_not_wait_for_who_has_given_it_up(post: Post) -> None:
    near, far = await post.pair()
    beat, is_back = post.directory.beat, anyio.Event()

    async def beat_late(worker: Worker) -> bool:
        if worker.id == "a":
            await is_back.wait()
        alive: bool = await beat(worker)
        return alive

    post.directory.beat = beat_late  # type: ignore[method-assign]
    await post.directory.retire(post.members["a"].worker)
    with pytest.raises(Broken, match="died"):
        await far.receive()
    far.close()
    is_back.set()
    with anyio.fail_after(10), pytest.raises(Broken):
        await near.receive()


async def test_who_has_not_noticed_that_a_worker_was_taken_for_dead_is_told(post: Post) -> None:
    near, far = await post.pair()
    beat = post.directory.beat

    async def beat_as_one_that_was_dead(worker: Worker) -> bool:
        return await beat(worker) and worker.id != "a"

    post.directory.beat = beat_as_one_that_was_dead  # type: ignore[method-assign]
    for side in (near, far):
        with anyio.fail_after(10), pytest.raises(Broken):
            await side.receive()


async def test_the_end_of_a_worker_in_order_breaks_its_conversations(directory: SharedDirectory) -> None:
    made = Post(directory)
    async with await made.joins("a"):
        b = await made.joins("b")
        near, far = await made.pair()
        await b.aclose()
        for conversation in (near, far):
            with anyio.fail_after(10), pytest.raises(Broken):
                await conversation.receive()


@pytest.mark.parametrize("directory", ["memory"], indirect=True)
async def test_a_directory_that_is_away_breaks_who_sends(post: Post) -> None:
    near, _ = await post.pair()
    post.directory.inner.is_away = True  # type: ignore[attr-defined]
    with pytest.raises(Broken):
        await near.send(Frame("event", 1))
    post.directory.inner.is_away = False  # type: ignore[attr-defined]


@pytest.mark.parametrize("directory", ["memory"], indirect=True)
@pytest.mark.parametrize("failures", [1, 3, 50])
async def test_who_waits_is_told_where_the_other_side_could_not_send(
    post: Post, monkeypatch: pytest.MonkeyPatch, failures: int
) -> None:
    """Nothing tells of it else: the mailbox of the one is there, and the other lives."""
    monkeypatch.setattr(module, "BEAT_SECONDS", 0.02)
    near, far = await post.pair()
    send = post.directory.send

    async def send_in_vain(worker: str, frame: bytes) -> bool:
        nonlocal failures
        failures -= 1
        if failures >= 0:
            raise DirectoryUnavailable("a test has cut the connection")
        return await send(worker, frame)

    monkeypatch.setattr(post.directory, "send", send_in_vain)
    with pytest.raises(Broken):
        await far.send(Frame("event", 1))
    far.close()
    with anyio.fail_after(10), pytest.raises(Broken):
        await near.receive()


@pytest.mark.parametrize("directory", ["memory"], indirect=True)
async def test_an_end_that_cannot_be_told_for_long_breaks_nothing_else(
    post: Post, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "BEAT_SECONDS", 0.02)
    ending, waiting = await post.pair()
    near, far = await post.pair()
    is_back, send = anyio.Event(), post.directory.send
    failures = 50

    async def send_in_vain(worker: str, frame: bytes) -> bool:
        nonlocal failures
        failures -= 1
        if failures >= 0:
            raise DirectoryUnavailable("a test has cut the connection")
        is_back.set()
        return await send(worker, frame)

    monkeypatch.setattr(post.directory, "send", send_in_vain)
    ending.close()
    await is_back.wait()
    with anyio.fail_after(10), pytest.raises(Broken):
        await waiting.receive()
    for speaker, listener in ((near, far), (far, near)):
        await speaker.send(Frame("event", 1))
        assert await listener.receive() == Frame("event", 1)


@pytest.mark.parametrize("directory", ["memory"], indirect=True)
async def test_who_waits_is_told_where_the_other_side_lost_a_part(post: Post) -> None:
    near, far = await post.pair()
    post.directory.lost.add(len(post.directory.sizes) + 1)
    for n in range(2):
        await near.send(Frame("event", n))
    with pytest.raises(Broken):
        await far.receive()
    far.close()
    with anyio.fail_after(10), pytest.raises(Broken):
        await near.receive()


async def test_who_sends_on_what_the_other_side_does_not_know_is_told(post: Post) -> None:
    near, far = await post.pair()
    post.boxes["b"].leave(far, tell=False)  # type: ignore[arg-type] # as after a mailbox that was lost
    await near.send(Frame("event", 1))
    with pytest.raises(Broken):
        await near.receive()


async def test_a_frame_that_is_cut_is_never_followed_by_another(post: Post) -> None:
    near, _ = await post.pair()
    with anyio.move_on_after(0.05):
        await near.send(Frame("event", b"x" * 3 * WINDOW * PART_BYTES))
    with pytest.raises(Broken):
        await near.send(Frame("event", 2))


async def test_what_is_no_part_is_passed_over(post: Post, caplog: pytest.LogCaptureFixture) -> None:
    await post.directory.send("b", b"\xc1")
    near, far = await post.pair()
    await near.send(Frame("event", 1))
    assert await far.receive() == Frame("event", 1)
    assert "no part of a conversation" in caplog.text
