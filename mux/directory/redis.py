"""The directory in a redis (6.2 or newer, or Valkey) that several workers and hosts share.

What belongs to one workflow lies in one slot, `{its event token}`: the record and its event log, or that it has ended.
What a key names lies in a slot of its own, as a pointer to a token: a record is stored before a pointer names it, and a
pointer outlives its record, so that a pointer to nothing means an ended workflow, whoever failed between the two steps.
One claim moves a pointer; the loser removes the record that it had stored.
"""

from collections.abc import AsyncIterator, Awaitable, Callable, Collection, Iterator, Sequence
from contextlib import asynccontextmanager
from itertools import islice
from typing import Any, Final, TypeVar

import anyio
import msgspec
import redis
from redis.exceptions import NoScriptError

from ..errors import DirectoryUnavailable
from ..limits import EventLogLimits
from ..principal import Principal
from ..record import WorkflowRecord
from . import (
    ID_BLOCK,
    KEY_MEMORY_SECONDS,
    LEASE_SECONDS,
    MAILBOX_FRAMES,
    SHARED,
    SHARED_SECONDS,
    WATCH_BUFFER,
    Claimed,
    Entry,
    Worker,
    redis_scripts,
)
from .background import beside
from .feed import Feed
from .names import key_digest, key_digest_of, name_digest, token_of
from .redis_listener import Listener
from .redis_scripts import Script
from .redis_server import Server, parse_address, reaching, takes_no_writes

PREFIX: Final = "trunkline1:"
"""How all keys begin; the number is that of their layout."""

CHANGES: Final = f"{PREFIX}changes"
"""The channel of changed and removed records: their session ids."""

WORKERS: Final = f"{PREFIX}{{workers}}:"
OPERATION_SECONDS: Final = 2.5
"""For how long one operation is tried, with its wait for a connection."""

MAX_CONCURRENCY: Final = 32
BATCH: Final = 500
"""Records that are touched at once: to write and to read what that says takes the loop some 25 ms."""

SETTLED_SECONDS: Final = 30 * 86400
"""For how long a name that nobody settles keeps its home."""

Result = TypeVar("Result")

_encode = msgspec.msgpack.Encoder().encode
_record_decoder = msgspec.msgpack.Decoder(WorkflowRecord)
_entry_decoder = msgspec.msgpack.Decoder(Entry)
_worker_decoder = msgspec.msgpack.Decoder(Worker)


@asynccontextmanager
async def open_redis(url: str) -> AsyncIterator["RedisDirectory"]:
    """The directory at a URL; see `redis_server` for its forms.

    Raises:
        ValueError: the URL is not one of them.
        DirectoryUnavailable: no redis answers there.
    """
    server = Server(parse_address(url))
    directory = RedisDirectory(server)
    try:
        await directory.ping()
        async with beside(directory.listener.run):
            yield directory
    finally:
        with anyio.move_on_after(OPERATION_SECONDS, shield=True):
            await server.aclose()


class RedisDirectory:
    """Implements `SharedDirectory`."""

    def __init__(self, server: Server) -> None:
        self.listener = Listener(server)
        self._server = server
        self._client: Any = server.client
        self._room = anyio.Semaphore(MAX_CONCURRENCY)
        self._heartbeats = anyio.Semaphore(1)
        """A lane of their own: they wait for no other operation."""

    async def ping(self) -> None:
        """Return if the server answers.

        Raises:
            DirectoryUnavailable: it does not.
        """
        await self._again(lambda: self._client.get(f"{WORKERS}number"))

    # Records

    async def claim(self, record: WorkflowRecord) -> Claimed:
        """See `Directory.claim`."""
        if not await self._create(record):
            raise ValueError("a session id is drawn once")
        return await self._point(record)

    async def publish(self, record: WorkflowRecord) -> WorkflowRecord | None:
        """See `SharedDirectory.publish`."""
        while True:
            created = await self._create(record, stood_before=True)
            if created == 1:
                return (await self._point(record)).record
            if created == -1:
                return None
            standing = await self.get(record.session_id)
            if standing is not None and standing.is_behind(record):
                if await self._put(record, standing.epoch):
                    return record
            elif standing is not None:
                return standing

    async def _create(self, record: WorkflowRecord, *, stood_before: bool = False) -> int:
        token, digest = record.event_token, key_digest_of(record)
        pointer = _pointer(digest) if digest else ""
        lifetime = _milliseconds(record.lifetime)
        stored = [_encode(record), record.epoch, lifetime, pointer, int(stood_before), record.first_id]
        return int(await self._run(redis_scripts.CREATE, [_record(token), _end(token)], stored))

    async def _point(self, record: WorkflowRecord) -> Claimed:
        """Let a record's key name it; where it names another one that stands, the record is removed again."""
        token, digest = record.event_token, key_digest_of(record)
        if not digest:
            return Claimed(record, "created")
        gone, lifetime = "", _milliseconds(record.lifetime) + _milliseconds(KEY_MEMORY_SECONDS)
        while True:
            outcome = (await self._run(redis_scripts.POINT, [_pointer(digest)], [token, gone, lifetime])).decode()
            if outcome in ("created", "reset"):
                return Claimed(record, outcome)
            gone = outcome
            standing = await self.at(gone)
            if standing is not None:
                await self._again(lambda: self._client.delete(_record(token)))
                return Claimed(standing, "resumed")

    async def get(self, session_id: str) -> WorkflowRecord | None:
        """See `Directory.get`."""
        return await self.at(token_of(session_id))

    async def at(self, event_token: str) -> WorkflowRecord | None:
        """See `SharedDirectory.at`."""
        stored = await self._again(lambda: self._client.hget(_record(event_token), "record"))
        return None if stored is None else _read(_record_decoder, stored)

    async def find(self, principal: Principal, server: str, key: str) -> WorkflowRecord | None:
        """See `Directory.find`."""
        token = await self._named(principal, server, key)
        return None if token in (None, b"ended") else await self.at(token.decode())

    async def has_ended(self, principal: Principal, server: str, key: str) -> bool:
        """See `Directory.has_ended`."""
        token = await self._named(principal, server, key)
        return token is not None and (token == b"ended" or await self.at(token.decode()) is None)

    async def _named(self, principal: Principal, server: str, key: str) -> bytes | None:
        """What a pointer names: the token of a record, which may be gone; or that it has ended."""
        token: bytes | None = await self._again(lambda: self._client.get(_pointer(key_digest(principal, server, key))))
        return token

    async def replace(self, record: WorkflowRecord) -> WorkflowRecord | None:
        """See `Directory.replace`."""
        changed = msgspec.structs.replace(record, epoch=record.epoch + 1)
        return changed if await self._put(changed, record.epoch) else None

    async def _put(self, record: WorkflowRecord, epoch: int) -> bool:
        """Store a record in the place of the one that has this epoch; False where there is none."""
        token, lifetime = record.event_token, _milliseconds(record.lifetime)
        if record.key is not None:  # a pointer outlives its record, however long that is to live now
            await self._extend({_pointer(key_digest_of(record)): lifetime})
        arguments = [epoch, _encode(record), record.epoch, lifetime, CHANGES, record.session_id]
        return bool(await self._run(redis_scripts.REPLACE, [_record(token), _log(token)], arguments))

    async def remove(self, record: WorkflowRecord) -> bool:
        """See `Directory.remove`."""
        token = record.event_token
        arguments = [record.epoch, CHANGES, record.session_id]
        if not await self._run(redis_scripts.REMOVE, [_record(token), _log(token), _end(token)], arguments):
            return False
        if record.key is not None:
            ended = [token, _milliseconds(KEY_MEMORY_SECONDS)]
            await self._run(redis_scripts.END, [_pointer(key_digest_of(record))], ended, again=True)
        return True

    async def touch(self, session_ids: Collection[str]) -> None:
        """See `SharedDirectory.touch`."""
        tokens = map(token_of, session_ids)
        while batch := list(islice(tokens, BATCH)):
            await self._touch(batch)

    async def _touch(self, tokens: list[str]) -> None:
        pointers: dict[str, int] = {}
        for known in await self._run_all(redis_scripts.TOUCH, [[_record(token), _log(token)] for token in tokens]):
            if known is not None and known[1]:
                pointers[known[1].decode()] = int(known[0])
        await self._extend(pointers)

    async def _extend(self, pointers: dict[str, int]) -> None:
        """Let pointers outlive records that live on for so many milliseconds."""
        if not pointers:
            return
        memory = _milliseconds(KEY_MEMORY_SECONDS)

        async def extend() -> None:
            pipeline = self._client.pipeline(transaction=False)
            for pointer, lifetime in pointers.items():
                pipeline.pexpire(pointer, lifetime + memory)
            await pipeline.execute()

        await self._again(extend)

    async def untouched(self, session_id: str) -> float | None:
        """See `SharedDirectory.untouched`."""
        passed = await self._run(redis_scripts.UNTOUCHED, [_record(token_of(session_id))], [], again=True)
        return None if passed is None else max(0, passed) / 1000

    async def draw_ids(self, name: str, above: int = 0) -> range:
        """See `Directory.draw_ids`."""
        if name.startswith(SHARED):
            counter = f"{PREFIX}{{{name_digest(name)}}}:ids"
            arguments = [ID_BLOCK, _milliseconds(SHARED_SECONDS), above]
            last = await self._run(redis_scripts.DRAW_SHARED, [counter], arguments, again=True)
            return range(last - ID_BLOCK + 1, last + 1)
        following = await self._run(redis_scripts.DRAW, [_record(token_of(name))], [ID_BLOCK, above], again=True)
        if following is None:
            raise KeyError("no such session")
        return range(following - ID_BLOCK, following)

    @asynccontextmanager
    async def watch(self) -> AsyncIterator[AsyncIterator[str]]:
        """See `SharedDirectory.watch`."""
        feed = Feed(WATCH_BUFFER, "")
        async with self.listener.hearing(
            CHANGES.encode(), lambda told: feed.tell((told or b"").decode(errors="replace"))
        ):
            yield feed

    # Logs

    async def append(self, session_id: str, entries: Sequence[Entry], keep: EventLogLimits) -> None:
        """See `Logs.append`."""
        if not entries:
            return
        arguments: list[Any] = [keep.events, keep.bytes]
        for entry in entries:
            arguments += len(entry.message), _encode(entry)
        token = token_of(session_id)
        await self._run(redis_scripts.APPEND, [_record(token), _log(token)], arguments)

    async def read(self, session_id: str) -> list[Entry]:
        """See `Logs.read`."""
        kept = await self._again(lambda: self._client.execute_command("XRANGE", _log(token_of(session_id)), "-", "+"))
        return [_read(_entry_decoder, packed) for _, fields in kept for packed in _values(fields)]

    # Workers

    async def enroll(self, worker: Worker) -> Worker:
        """See `Workers.enroll`."""
        number = await self._run(redis_scripts.ENROLL, [f"{WORKERS}number"], [], again=True)
        enrolled = msgspec.structs.replace(worker, number=number)
        await self.beat(enrolled)
        return enrolled

    async def beat(self, worker: Worker) -> bool:
        """See `Workers.beat`.

        Never tried again by itself: a second try would find the worker alive by the first.
        """
        keys = [_worker(worker.id), f"{WORKERS}ids", f"{WORKERS}number"]
        arguments = [_encode(worker), _milliseconds(LEASE_SECONDS), worker.id, worker.number]
        return bool(await self._run(redis_scripts.BEAT, keys, arguments, room=self._heartbeats))

    async def retire(self, worker: Worker) -> None:
        """See `Workers.retire`."""
        await self._run(redis_scripts.RETIRE, [_worker(worker.id), f"{WORKERS}ids"], [worker.id], again=True)

    async def worker(self, id: str) -> Worker | None:
        """See `Workers.worker`."""
        packed = await self._again(lambda: self._client.get(_worker(id)))
        return None if packed is None else _read(_worker_decoder, packed)

    async def workers(self) -> list[Worker]:
        """See `Workers.workers`."""
        living = await self._run(redis_scripts.WORKERS, [f"{WORKERS}ids"], [_worker("")], again=True)
        return sorted((_read(_worker_decoder, packed) for packed in living), key=lambda worker: worker.number)

    async def settle(self, name: str, worker: Worker) -> str:
        """See `Workers.settle`."""
        key, left = f"{PREFIX}{{{name_digest(name)}}}:home", ""
        while True:
            arguments = [worker.id, left, _milliseconds(SETTLED_SECONDS)]
            home = (await self._run(redis_scripts.SETTLE, [key], arguments, again=True)).decode()
            living = None if home == worker.id else await self.worker(home)
            if home == worker.id or (living is not None and not living.drains):
                return str(home)
            left = home

    async def send(self, worker: str, frame: bytes) -> bool:
        """See `Workers.send`."""
        hearers = await self._bounded(lambda: self._client.publish(_mailbox(worker), frame))
        if hearers or not self._server.is_cluster:
            return bool(hearers)
        return await self.worker(worker) is not None  # a node of a cluster counts only its own hearers

    @asynccontextmanager
    async def mailbox(self, worker: Worker) -> AsyncIterator[AsyncIterator[bytes]]:
        """See `Workers.mailbox`."""
        feed = Feed(MAILBOX_FRAMES, b"")
        async with self.listener.hearing(_mailbox(worker.id).encode(), lambda told: feed.tell(told or b"")):
            yield feed

    # Commands

    async def _run(
        self,
        script: Script,
        keys: list[str],
        arguments: list[Any],
        *,
        again: bool = False,
        room: anyio.Semaphore | None = None,
    ) -> Any:
        """Run a script; once more after a broken connection where that changes nothing (`again`)."""

        async def evaluate() -> Any:
            try:
                return await self._client.execute_command("EVALSHA", script.sha, len(keys), *keys, *arguments)
            except NoScriptError:
                return await self._client.execute_command("EVAL", script.text, len(keys), *keys, *arguments)

        return await (self._again(evaluate) if again else self._bounded(evaluate, room))

    async def _run_all(self, script: Script, keys: Sequence[list[str]]) -> list[Any]:
        """Run a script, which may be run twice, once for each of these keys."""
        if not keys:
            return []

        async def evaluate() -> list[Any]:
            pipeline = self._client.pipeline(transaction=False)
            for each in keys:
                pipeline.execute_command("EVALSHA", script.sha, len(each), *each)
            return list(await pipeline.execute(raise_on_error=False))

        outcomes = await self._again(evaluate)
        for n, outcome in enumerate(outcomes):
            if isinstance(outcome, NoScriptError):
                outcomes[n] = await self._run(script, keys[n], [], again=True)
            elif isinstance(outcome, Exception):
                with reaching():
                    raise outcome
        return list(outcomes)

    async def _again(self, work: Callable[[], Awaitable[Result]]) -> Result:
        """Do what may be done twice, a second time if the first one failed by its connection."""
        try:
            return await self._bounded(work)
        except DirectoryUnavailable as failed:
            if not isinstance(failed.__cause__, (redis.ConnectionError, OSError)):
                raise
        return await self._bounded(work)

    async def _bounded(self, work: Callable[[], Awaitable[Result]], room: anyio.Semaphore | None = None) -> Result:
        departures = self._server.departures
        try:
            with reaching(), anyio.fail_after(OPERATION_SECONDS):
                async with room or self._room:
                    return await work()
        except DirectoryUnavailable as failed:
            if takes_no_writes(failed.__cause__):
                await self._server.leave_replica(departures)
            raise


def _read(decoder: msgspec.msgpack.Decoder[Result], packed: bytes) -> Result:
    with reaching():
        return decoder.decode(packed)


def _milliseconds(seconds: float) -> int:
    return max(1, round(seconds * 1000))


def _record(token: str) -> str:
    return f"{PREFIX}{{{token}}}:record"


def _log(token: str) -> str:
    return f"{PREFIX}{{{token}}}:log"


def _end(token: str) -> str:
    return f"{PREFIX}{{{token}}}:end"


def _pointer(digest: str) -> str:
    return f"{PREFIX}{{{digest}}}:key"


def _worker(id: str) -> str:
    return f"{WORKERS}worker:{id}"


def _mailbox(id: str) -> str:
    return f"{PREFIX}mailbox:{id}"


def _values(fields: Any) -> Iterator[bytes]:
    """The values of a stream's entry, whose one field is named for its size."""
    return iter(fields.values() if isinstance(fields, dict) else fields[1::2])
