"""What builds store and send to each other: during an upgrade, and after a roll-back, workers of two serve together.

The bytes here are those that the build of 2026-11-30 (c0467ec) wrote. A test that fails says that workers of two builds
do not understand each other: then redis's `PREFIX` or the database's `VERSION` has to change with it, and the changelog
has to say so.
"""

import sqlite3
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, closing
from pathlib import Path
from typing import Final

import msgspec
import pytest
from harness.redis_server import RedisServer, redis_server
from trunkline.gateway.workers.conversation import Frame, decode, encode
from trunkline.gateway.workers.openings import opening, scope_of
from trunkline.mux.directory import Entry, SharedDirectory, Worker
from trunkline.mux.directory.database import open_database
from trunkline.mux.directory.redis import open_redis
from trunkline.mux.limits import EventLogLimits
from trunkline.mux.principal import Principal
from trunkline.mux.record import Handshake, Wish, WorkflowRecord
from trunkline.mux.recovery import recover
from trunkline.transports.asgi import HOPS, IDENTITY, MEANT
from trunkline.transports.websocket import PING

pytestmark = pytest.mark.anyio

TOKEN: Final = "3052317bf6402a83e65b69a9dca8c52d"
KEY: Final = "2777c3d71b1f1994e51e2fea1f6c556166b85f42"
WORKER_KEY: Final = "6c32ad9a690322e232aab307d3aa1c34e93b8170"
RECORD: Final = (
    b"\x8e\xaasession_id\xd9$s0123456789abcdefghijklmnopqrstuvwxy\xa9principal\x83\xa6issuer\xb1https://issuer/\xc3\xbc"
    b"\xa6tenant\xa4acme\xa7subject\xa5alice\xa6server\xa5files\xa3key\xa6chat-7\xa9handshake\x84\xa8revision\xaa2025-11-25"
    b'\xa6params\xc4Z{"protocolVersion":"2025-11-25","capabilities":{},"clientInfo":{"name":"c","version":"1"}}'
    b"\xaccapabilities\xc4\x02{}\xafsession_headers\x91\x92\xa8x-tenant\xa1a\xa5epoch\x01\xa8revision\xaa2025-11-25"
    b'\xa6result\xc4 {"protocolVersion":"2025-11-25"}\xa6worker\xa2w1\xb0upstream_session\xa4up-1'
    b"\xa4wish\x82\xa5level\xa4info\xadsubscriptions\x91\xa9file:///a\xa8first_id\x05\xa5reuse\xa4user"
    b"\xa8lifetime\xcbA\xdd\xcde\x00\x00\x00\x00"
)
LOG: Final = (
    (7, b'\x95\xa6opened\xce\x00\x10\x00\x01\x00\xc4\x07[1,"a"]\xc2'),
    (30, b'\x95\xa5event\xce\x00\x10\x00\x01\x01\xc4\x1e{"jsonrpc":"2.0","method":"x"}\xc2'),
    (36, b'\x95\xa5event\xce\x00\x10\x00\x01\x02\xc4${"jsonrpc":"2.0","id":1,"result":{}}\xc3'),
    (14, b"\x95\xa5tally\xce\x00\x10\x00\x02\x01\xc4\x0e[0,1,[3],true]\xc2"),
    (1, b"\x95\xa5other\xce\x00\x10\x00\x02\x04\xc4\x011\xc2"),
    (4, b'\x95\xa5asked\x00\xce\x00\x10\x00\x03\xc4\x04"q1"\xc2'),
    (4, b'\x95\xa5asked\x00\xce\x00\x10\x00\x04\xc4\x04"q2"\xc2'),
    (0, b"\x95\xa7settled\x00\xce\x00\x10\x00\x04\xc4\x00\xc2"),
)
WORKER: Final = b"\x85\xa2id\xa2w1\xa4host\xa4host\xa7address\xac/tmp/w1.sock\xa6number\x01\xa6drains\xc2"
TABLES: Final = """
CREATE TABLE trunkline_changes (
    seq INTEGER NOT NULL PRIMARY KEY AUTOINCREMENT, session_id TEXT NOT NULL, at DOUBLE NOT NULL);
CREATE TABLE trunkline_counters (name TEXT NOT NULL, next_id INTEGER NOT NULL, expires DOUBLE, PRIMARY KEY (name));
CREATE TABLE trunkline_ended_keys ("key" TEXT NOT NULL, expires DOUBLE NOT NULL, PRIMARY KEY ("key"));
CREATE TABLE trunkline_ends (token TEXT NOT NULL, expires DOUBLE NOT NULL, PRIMARY KEY (token));
CREATE TABLE trunkline_homes (name TEXT NOT NULL, worker TEXT NOT NULL, PRIMARY KEY (name));
CREATE TABLE trunkline_log (
    seq INTEGER NOT NULL PRIMARY KEY AUTOINCREMENT, token TEXT NOT NULL, size INTEGER NOT NULL, entry BLOB NOT NULL);
CREATE TABLE trunkline_mail (seq INTEGER NOT NULL PRIMARY KEY AUTOINCREMENT, worker TEXT NOT NULL, frame BLOB NOT NULL);
CREATE TABLE trunkline_records (
    token TEXT NOT NULL, "key" TEXT, epoch INTEGER NOT NULL, record BLOB NOT NULL, lifetime DOUBLE NOT NULL,
    touched DOUBLE NOT NULL, expires DOUBLE NOT NULL, next_id INTEGER NOT NULL, log_events INTEGER NOT NULL,
    log_bytes INTEGER NOT NULL, PRIMARY KEY (token), UNIQUE ("key"));
CREATE TABLE trunkline_schema (version INTEGER NOT NULL);
INSERT INTO trunkline_schema VALUES (2);
CREATE TABLE trunkline_workers (id TEXT NOT NULL, worker BLOB NOT NULL, expires DOUBLE NOT NULL, PRIMARY KEY (id));
CREATE INDEX ix_trunkline_records_expires ON trunkline_records (expires);
CREATE INDEX ix_trunkline_log_token ON trunkline_log (token);
CREATE INDEX ix_trunkline_mail_worker ON trunkline_mail (worker);
"""
LATER: Final = 4e9

ALICE: Final = Principal("https://issuer/ü", "acme", "alice")
PARAMS: Final = b'{"protocolVersion":"2025-11-25","capabilities":{},"clientInfo":{"name":"c","version":"1"}}'
STORED: Final = WorkflowRecord(
    "s0123456789abcdefghijklmnopqrstuvwxy",
    ALICE,
    "files",
    "chat-7",
    Handshake("2025-11-25", PARAMS, b"{}", (("x-tenant", "a"),)),
    epoch=1,
    revision="2025-11-25",
    result=b'{"protocolVersion":"2025-11-25"}',
    worker="w1",
    upstream_session="up-1",
    wish=Wish("info", ("file:///a",)),
    first_id=5,
    reuse="user",
    lifetime=2e9,
)
ENTRIES: Final = [
    Entry("opened", 1048577, 0, b'[1,"a"]'),
    Entry("event", 1048577, 1, b'{"jsonrpc":"2.0","method":"x"}'),
    Entry("event", 1048577, 2, b'{"jsonrpc":"2.0","id":1,"result":{}}', True),
    Entry("tally", 1048578, 1, b"[0,1,[3],true]"),
    Entry("other", 1048578, 4, b"1"),
    Entry("asked", 0, 1048579, b'"q1"'),
    Entry("asked", 0, 1048580, b'"q2"'),
    Entry("settled", 0, 1048580),
]
BEGUN: Final = Worker("w1", "host", "/tmp/w1.sock")


async def check_read(directory: SharedDirectory) -> None:
    """What is there is what that build has stored, and can be gone on with."""
    assert await directory.get(STORED.session_id) == STORED
    assert await directory.at(TOKEN) == STORED
    assert await directory.find(ALICE, "files", "chat-7") == STORED
    assert await directory.worker("w1") == msgspec.structs.replace(BEGUN, number=1)
    entries = await directory.read(STORED.session_id)
    assert entries == ENTRIES
    kept = recover(entries)
    assert [n for n, _ in kept.streams[1048577].events] == [1, 2]
    assert list(kept.streams[1048577].waiting.values()) == [b'"a"']
    assert [kept.streams[1048578].connections[-1].position(count) for count in range(6)] == [0, 0, 1, 1, 1, 2]
    assert list(kept.questions) == [1048579]
    taken = await directory.replace(msgspec.structs.replace(STORED, worker="w2"))
    assert taken == msgspec.structs.replace(STORED, worker="w2", epoch=2)
    assert await directory.remove(taken)
    assert await directory.has_ended(ALICE, "files", "chat-7")


async def store(directory: SharedDirectory) -> None:
    """Have the same stored by this build."""
    await directory.enroll(BEGUN)
    await directory.claim(WorkflowRecord(STORED.session_id, ALICE, "files", "chat-7", STORED.handshake, lifetime=2e9))
    await directory.replace(msgspec.structs.replace(STORED, epoch=0))
    await directory.append(STORED.session_id, ENTRIES, EventLogLimits())


@asynccontextmanager
async def opened(path: Path) -> AsyncIterator[SharedDirectory]:
    async with open_database(f"sqlite+aiosqlite:///{path}") as directory:
        yield directory


async def test_a_database_of_theirs_is_read(tmp_path: Path) -> None:
    with closing(sqlite3.connect(tmp_path / "x.db")) as theirs:
        theirs.executescript(TABLES)
        row = (TOKEN, KEY, 1, RECORD, 2e9, 1.0, LATER, 5, len(LOG), sum(size for size, _ in LOG))
        theirs.execute("INSERT INTO trunkline_records VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?)", row)
        theirs.execute("INSERT INTO trunkline_workers VALUES (?, ?, ?)", (WORKER_KEY, WORKER, LATER))
        rows = ((TOKEN, size, entry) for size, entry in LOG)
        theirs.executemany("INSERT INTO trunkline_log (token, size, entry) VALUES (?, ?, ?)", rows)
        theirs.commit()
    async with opened(tmp_path / "x.db") as directory:
        await check_read(directory)


async def test_a_database_holds_what_they_can_read(tmp_path: Path) -> None:
    async with opened(tmp_path / "x.db") as directory:
        await store(directory)
    with closing(sqlite3.connect(tmp_path / "x.db")) as ours, closing(sqlite3.connect(":memory:")) as theirs:
        theirs.executescript(TABLES)
        for table in (
            "changes",
            "counters",
            "ended_keys",
            "ends",
            "homes",
            "log",
            "mail",
            "records",
            "schema",
            "workers",
        ):
            asked = f"PRAGMA table_info(trunkline_{table})"
            assert ours.execute(asked).fetchall() == theirs.execute(asked).fetchall(), table
        assert ours.execute("SELECT version FROM trunkline_schema").fetchall() == [(2,)]
        assert ours.execute('SELECT token, "key", record FROM trunkline_records').fetchall() == [(TOKEN, KEY, RECORD)]
        assert tuple(ours.execute("SELECT size, entry FROM trunkline_log ORDER BY seq")) == LOG
        assert ours.execute("SELECT id, worker FROM trunkline_workers").fetchall() == [(WORKER_KEY, WORKER)]


def record_of(server: RedisServer) -> dict[bytes, bytes]:
    answer = server.command("HGETALL", f"trunkline1:{{{TOKEN}}}:record")
    return answer if isinstance(answer, dict) else dict(zip(answer[::2], answer[1::2], strict=True))


async def test_a_redis_of_theirs_is_read_and_holds_what_they_can_read() -> None:
    pointer, log = f"trunkline1:{{{KEY}}}:key", f"trunkline1:{{{TOKEN}}}:log"
    with redis_server() as server:
        fields = ("epoch", 1, "next_id", 5, "lifetime", 2_000_000_000_000, "bytes", 96, "pointer", pointer)
        server.command("HSET", f"trunkline1:{{{TOKEN}}}:record", "record", RECORD, *fields)
        server.command("PEXPIRE", f"trunkline1:{{{TOKEN}}}:record", 2_000_000_000_000)
        server.command("SET", pointer, TOKEN, "PX", 2_000_000_000_000)
        for size, entry in LOG:
            server.command("XADD", log, "*", size, entry)
        server.command("SADD", "trunkline1:{workers}:ids", "w1")
        server.command("SET", "trunkline1:{workers}:number", 1)
        server.command("SET", "trunkline1:{workers}:worker:w1", WORKER)
        async with open_redis(server.url) as directory:
            await check_read(directory)
        server.command("FLUSHALL")
        async with open_redis(server.url) as directory:
            await store(directory)
        stored = record_of(server)
        assert (stored[b"record"], stored[b"epoch"], stored[b"pointer"]) == (RECORD, b"1", pointer.encode())
        assert server.command("GET", pointer) == TOKEN.encode()
        entries = [next(iter(fields.items())) for _, fields in server.command("XRANGE", log, "-", "+")]
        assert tuple((int(size), entry) for size, entry in entries) == LOG
        assert server.command("GET", "trunkline1:{workers}:worker:w1") == WORKER
        assert server.command("SMEMBERS", "trunkline1:{workers}:ids") == {b"w1"}


# What goes from one worker to another.

OPEN: Final = (
    b"\x92\xa4open\x8e\xa4type\xa9websocket\xa4path\xad/servers/x/ws\xa9root_path\xa0\xacquery_string\xc4\x03a=1"
    b"\xa7headers\x91\x92\xc4\x0emcp-session-id\xc4\x02s1\xa6scheme\xa2ws\xachttp_version\xa31.1"
    b'\xa6client\x92\xa9127.0.0.1\x05\xa6server\x92\xa9127.0.0.1\xcd"\xd8\xacsubprotocols\x91\xa3mcp'
    b"\xaaextensions\x92\xb7websocket.http.response\xaetrunkline.ping\xa8identity\x92\x83\xa6issuer\xb1https://issuer/\xc3\xbc"
    b"\xa6tenant\xa4acme\xa7subject\xa5alice\xcb@)\x00\x00\x00\x00\x00\x00\xa5meant\xc0\xa4hops\x01"
)
SCOPE: Final = {
    "type": "websocket",
    "path": "/servers/x/ws",
    "root_path": "",
    "query_string": b"a=1",
    "scheme": "ws",
    "http_version": "1.1",
    "subprotocols": ["mcp"],
}


async def no_ping() -> None:
    raise AssertionError("nobody asked for it")


def test_what_begins_a_conversation_is_understood_by_both() -> None:
    begun = decode(OPEN)
    assert begun.kind == "open"
    scope = scope_of(begun.payload, no_ping)
    assert {name: scope[name] for name in SCOPE} == SCOPE
    assert [tuple(header) for header in scope["headers"]] == [(b"mcp-session-id", b"s1")]
    assert (scope[HOPS], scope[MEANT], scope[IDENTITY]) == (1, None, (ALICE, 12.5))
    assert scope["extensions"] == {"websocket.http.response": {}, PING: no_ping}
    ours = {
        **SCOPE,
        "headers": [(b"mcp-session-id", b"s1")],
        "client": ("127.0.0.1", 5),
        "server": ("127.0.0.1", 8920),
        "extensions": {"websocket.http.response": {}, PING: no_ping},
    }
    assert decode(encode(Frame("open", opening(ours, (ALICE, 12.5))))).payload == decode(OPEN).payload


def test_an_event_is_understood_by_both() -> None:
    event = {"type": "websocket.receive", "text": "hé"}
    text = b"\x92\xa5event\x82\xa4type\xb1websocket.receive\xa4text\xa3h\xc3\xa9"
    assert (encode(Frame("event", event)), decode(text).payload) == (text, event)
