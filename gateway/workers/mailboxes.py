"""Conversations with workers whose socket cannot be reached from here: in frames that the directory carries.

A frame longer than a mailbox takes goes in parts. Each side may have `WINDOW` parts under way that the other one has
not taken, so that nothing is queued without bound; parts are numbered, so that a lost one is noticed.
"""

import itertools
import logging
from collections import deque
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from typing import Final, Literal

import anyio
import msgspec
from anyio.abc import TaskGroup

from ...mux.directory import Worker, Workers
from ...mux.errors import DirectoryUnavailable
from ...mux.membership import BEAT_SECONDS, Membership
from .conversation import MAX_FRAME_BYTES, Broken, Conversation, Frame, Unreachable, decode, encode

logger = logging.getLogger(__name__)

PART_BYTES: Final = 60 * 1024
"""Of a frame, in one part: with its head it stays below the 64 KiB of a mailbox."""

WINDOW: Final = 16
"""Parts that one side has sent and the other one has not taken."""

Name = tuple[str, int]
"""A conversation: the id of the worker that opened it, and its number there."""


class _Part(msgspec.Struct, array_like=True):
    """What goes through a mailbox.

    `part`: a piece of a frame; `number` counts them. `taken`: `number` parts were taken. `closed`: the sender is done.
    `away`: of all conversations with the sender: what it was sent may be lost.
    """

    sender: str
    name: Name
    kind: Literal["part", "taken", "closed", "away"]
    number: int = 0
    text: bytes = b""
    is_last: bool = False


class MailboxConversation:
    """Implements `Conversation`: the first `send` of the side that opened it may also find the other `Unreachable`."""

    def __init__(self, mailboxes: "Mailboxes", name: Name, peer: str) -> None:
        self.name = name
        self.peer = peer
        """The id of the worker on the other side."""
        self._mailboxes = mailboxes
        self._sending = anyio.Lock()
        self._sent = 0
        self._taken = 0
        """Of the parts that were sent, by the other side."""
        self._received = 0
        self._told = 0
        """Of the parts that came, those that the other side knows to be taken."""
        self._parts: deque[_Part] = deque()
        self._begun: list[bytes] = []
        """The parts of a frame that has not come to its end."""
        self._broken = ""
        self._is_known_there = False
        """True where the other side knows, or will, that it does not go on."""
        self._is_closed = False
        self._changed = anyio.Event()

    async def send(self, frame: Frame) -> None:
        """See `Conversation.send`.

        Raises:
            Broken: the other side is gone.
            Unreachable: this was the first frame, and surely nobody heard it.
        """
        text = encode(frame)
        async with self._sending:
            try:
                for start in range(0, len(text), PART_BYTES):
                    await self._send_part(text[start : start + PART_BYTES], is_last=start + PART_BYTES >= len(text))
            except anyio.get_cancelled_exc_class():
                self.break_off("a frame was cut")
                raise

    async def receive(self) -> Frame:
        """See `Conversation.receive`."""
        while True:
            while self._parts:
                if (text := await self._take(self._parts.popleft())) is not None:
                    return decode(text)
            if self._broken:
                raise Broken(self._broken)
            await self._changed.wait()

    def close(self) -> None:
        """See `Conversation.close`."""
        if not self._is_closed:
            self._is_closed = True
            self._mailboxes.leave(self, tell=not self._is_known_there)
            self.break_off("the conversation was closed here")

    def cut(self) -> None:
        """See `Conversation.cut`."""
        self.close()

    def hear(self, part: _Part) -> None:
        """What the other side has sent."""
        if part.kind == "taken":
            self._taken = part.number
        elif part.kind == "closed":
            self.break_off("the other worker has closed the conversation", is_known_there=True)
        elif part.number != self._received + 1 or len(self._parts) >= WINDOW:
            self.break_off("a part of the conversation was lost")
        else:
            self._received += 1
            self._parts.append(part)
        self._wake()

    def break_off(self, reason: str, *, is_known_there: bool = False) -> None:
        """It does not go on: whoever waits for it is told. The first reason counts."""
        self._broken = self._broken or reason
        self._is_known_there = self._is_known_there or is_known_there
        self._wake()

    async def _send_part(self, piece: bytes, *, is_last: bool) -> None:
        while self._sent - self._taken >= WINDOW and not self._broken:
            await self._changed.wait()
        if self._broken:
            raise Broken(self._broken)
        self._sent += 1
        if not await self._post(_Part(self._mailboxes.me, self.name, "part", self._sent, piece, is_last)):
            self.break_off("the worker has no mailbox", is_known_there=True)
            raise Unreachable(self._broken) if self._sent == 1 else Broken(self._broken)

    async def _take(self, part: _Part) -> bytes | None:
        """Add a part to its frame; the frame, if this was its end."""
        self._begun.append(part.text)
        text = None
        if part.is_last:
            text = b"".join(self._begun)
            self._begun.clear()
        elif sum(map(len, self._begun)) > MAX_FRAME_BYTES:
            raise Broken("a frame is too long")
        if part.number - self._told >= WINDOW // 2:
            self._told = part.number
            with suppress(Broken):  # it is found where something is waited for
                await self._post(_Part(self._mailboxes.me, self.name, "taken", part.number))
        return text

    async def _post(self, part: _Part) -> bool:
        try:
            return await self._mailboxes.post(self.peer, part)
        except DirectoryUnavailable as error:
            self.break_off(str(error))
            raise Broken(self._broken) from error

    def _wake(self) -> None:
        self._changed.set()
        self._changed = anyio.Event()


class Mailboxes:
    """The conversations of one worker that the directory carries. It counts between entering and leaving `running`."""

    def __init__(self, workers: Workers, membership: Membership) -> None:
        self._workers = workers
        self._membership = membership
        self._numbers = itertools.count(1)
        self._conversations: dict[tuple[Name, str], MailboxConversation] = {}
        self._was_away = anyio.Event()
        """Set when others have to know that they may have sent in vain."""
        self._tasks: TaskGroup

    @property
    def me(self) -> str:
        """The id of this worker."""
        return self._membership.worker.id

    @asynccontextmanager
    async def running(self, begin: Callable[[Conversation], None]) -> AsyncIterator["Mailboxes"]:
        """Carry conversations, for the length of the context; `begin` is called with each that another worker opens.

        Raises:
            DirectoryUnavailable: it cannot be reached at the start.
        """
        async with self._workers.mailbox(self._membership.worker) as parts, anyio.create_task_group() as tasks:
            self._tasks = tasks
            tasks.start_soon(self._hear, parts, begin)
            tasks.start_soon(self._look)
            tasks.start_soon(self._tell_away)
            try:
                yield self
            finally:
                self._break_all("this worker ends")
                tasks.cancel_scope.cancel()

    def open(self, worker: Worker) -> MailboxConversation:
        """A conversation with this worker. Nothing is sent yet."""
        return self._enter((self.me, next(self._numbers)), worker.id)

    async def post(self, worker: str, part: _Part) -> bool:
        """Put a part into the mailbox of a worker; False where it surely has none.

        Raises:
            DirectoryUnavailable: it may have arrived or not.
        """
        return await self._workers.send(worker, _ENCODER.encode(part))

    def leave(self, conversation: MailboxConversation, *, tell: bool) -> None:
        """Know a conversation no longer that was closed here; with `tell`, the other side is told."""
        self._conversations.pop((conversation.name, conversation.peer), None)
        if tell:
            self._tasks.start_soon(self._tell_closed, conversation.name, conversation.peer)

    def _enter(self, name: Name, peer: str) -> MailboxConversation:
        conversation = MailboxConversation(self, name, peer)
        self._conversations[name, peer] = conversation
        return conversation

    async def _hear(self, parts: AsyncIterator[bytes], begin: Callable[[Conversation], None]) -> None:
        async for text in parts:
            if not text:
                self._break_all("the mailbox of this worker was away")
                self._was_away.set()
                continue
            try:
                part = _DECODER.decode(text)
            except (msgspec.DecodeError, RecursionError):
                logger.warning("what came by the mailbox is no part of a conversation")
                continue
            conversation = self._conversations.get((part.name, part.sender))
            if part.kind == "away":
                # What it began since then it does not know to be broken.
                self._break_all("the mailbox of the other worker was away", part.sender, is_known_there=False)
            elif conversation is not None:
                conversation.hear(part)
            elif part.kind == "part" and part.number == 1 and part.name[0] == part.sender:
                conversation = self._enter(part.name, part.sender)
                conversation.hear(part)
                begin(conversation)
            elif part.kind == "part":
                self._tasks.start_soon(self._tell_closed, part.name, part.sender)

    async def _tell_away(self) -> None:
        """Tell all others when frames to this worker may be lost: who began with one of them would wait for ever."""
        while True:
            await self._was_away.wait()
            self._was_away = anyio.Event()
            try:
                for other in await self._membership.others():
                    await self.post(other.id, _Part(self.me, (self.me, 0), "away"))
            except DirectoryUnavailable:
                self._was_away.set()
                await anyio.sleep(BEAT_SECONDS)

    async def _look(self) -> None:
        """Break the conversations with workers that have died, and all once others may have taken this one for dead."""
        lapses = self._membership.lapses
        while True:
            await anyio.sleep(BEAT_SECONDS)
            if lapses != self._membership.lapses:
                lapses = self._membership.lapses
                self._break_all("others may have taken this worker for dead")
                self._was_away.set()
            for peer in {conversation.peer for conversation in self._conversations.values()}:
                with suppress(DirectoryUnavailable):  # whoever sends is told
                    if await self._membership.find(peer) is None:
                        self._break_all("the other worker has died", peer)

    def _break_all(self, reason: str, peer: str | None = None, *, is_known_there: bool = True) -> None:
        for conversation in list(self._conversations.values()):
            if peer is None or conversation.peer == peer:
                conversation.break_off(reason, is_known_there=is_known_there)

    async def _tell_closed(self, name: Name, peer: str) -> None:
        """Tell another worker, once that can be said, that a conversation is closed: it may wait for it."""
        while True:
            with suppress(DirectoryUnavailable):
                await self.post(peer, _Part(self.me, name, "closed"))
                return
            await anyio.sleep(BEAT_SECONDS)


_ENCODER: Final = msgspec.msgpack.Encoder()
_DECODER: Final = msgspec.msgpack.Decoder(_Part)
