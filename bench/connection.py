"""A connection for what is no load: handshakes, requests of any kind, and clients that come anew with each call."""

import asyncio
import re
import socket
from collections.abc import AsyncIterator, Callable, Generator
from typing import Final

from bench.wires import INITIALIZE, INITIALIZED, REVISION, Answered, Target

RIGHT: Final = b"HTTP/1.1 200 ", b"HTTP/1.1 202 "
SESSION: Final = re.compile(rb"\n(?i:mcp-session-id): ([^\r]+)\r\n")
LENGTH: Final = re.compile(rb"\n(?i:content-length): (\d+)\r\n")
MAX_READ: Final = 65_536


class Connection:
    """One keep-alive connection on plain streams, for what is no load: handshakes, and requests of any kind."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, target: Target) -> None:
        self._reader = reader
        self._writer = writer
        self._target = target
        self.session = ""

    @classmethod
    async def open(cls, port: int, path: str, *, token: str = "", key: str = "") -> "Connection":
        """Connect to a port of this machine, as the principal of the token."""
        return await cls.to(Target(port, path, token=token, key=key))

    @classmethod
    async def to(cls, target: Target) -> "Connection":
        """Connect to a target."""
        reader, writer = await asyncio.open_connection("127.0.0.1", target.port)
        return cls(reader, writer, target)

    async def post(self, body: bytes) -> bytes:
        """Send one message; the body of the answer.

        Raises:
            RuntimeError: it was answered with another status than 200 or 202.
        """
        own = f"Mcp-Session-Id: {self.session}\r\nMCP-Protocol-Version: {REVISION}\r\n" if self.session else ""
        self._writer.write(_request(self._target.head() + own, body))
        told = (await self._reader.readuntil(b"\r\n\r\n")).decode("latin-1")
        headers = {name.lower(): value for name, _, value in (line.partition(": ") for line in told.split("\r\n")[1:])}
        self.session = headers.get("mcp-session-id", self.session)
        if headers.get("transfer-encoding") == "chunked":
            answer = b"".join([chunk async for chunk in self._chunks()])
        else:
            answer = await self._reader.readexactly(int(headers.get("content-length", 0)))
        if not told.startswith(("HTTP/1.1 200", "HTTP/1.1 202")):
            raise RuntimeError(f"{told.splitlines()[0]}: {answer[:200]!r}")
        return answer

    async def _chunks(self) -> AsyncIterator[bytes]:
        while size := int(await self._reader.readline(), 16):
            yield await self._reader.readexactly(size)
            await self._reader.readline()
        await self._reader.readline()

    async def open_session(self) -> str:
        """Begin a session; what follows belongs to it. Its id."""
        self.session = ""
        answer = await self.post(INITIALIZE)
        if not self.session:
            raise RuntimeError(f"no session: {answer[:200]!r}")
        await self.post(INITIALIZED)
        return self.session

    def close(self) -> None:
        """Close it."""
        self._writer.close()


class AnewSlot:
    """A client that comes anew with each call: it connects, begins its session, calls, ends the session, and leaves.

    It takes as little of its core as it can: what it sends is made once for as long as its session has the same id, and
    of an answer it reads what it needs. Its socket is a blocking one that waits for nobody: the kernel accepts for who
    listens on this machine, takes a small request at once, and tells when there is something to read.
    """

    def __init__(self, target: Target) -> None:
        self._target = target
        self._initialize = _request(target.head(), INITIALIZE)
        self._session = b""
        self._initialized = self._head = self._delete = b""
        self._socket: socket.socket | None = None
        self._received = b""
        self._answered: Answered
        self.since = 0.0

    def call(self, number: int, arguments: bytes, answered: Answered) -> None:
        """See `Slot.call`."""
        self._answered, self._received = answered, b""
        self._steps = self._cycle(number, arguments)
        try:
            self._socket = socket.socket()
            self._socket.connect(("127.0.0.1", self._target.port))
            self._socket.sendall(next(self._steps))
        except OSError:
            asyncio.get_running_loop().call_soon(self._leave, False)
        else:
            asyncio.get_running_loop().add_reader(self._socket.fileno(), self._read, self._socket)

    def close(self) -> None:
        """Leave."""
        if self._socket is not None:
            asyncio.get_running_loop().remove_reader(self._socket.fileno())
            self._socket.close()
            self._socket = None

    def _cycle(self, number: int, arguments: bytes) -> Generator[bytes, bytes, bool]:
        """Each request, to be sent the answer to it; whether the call had its own."""
        opened = SESSION.search((yield self._initialize))
        if opened is None:
            return False
        if opened[1] != self._session:
            self._name(opened[1])
        yield self._initialized
        body = self._target.call(1, number, arguments)
        answer = yield self._head % len(body) + body
        yield self._delete
        return b"%d;" % number in answer

    def _name(self, session: bytes) -> None:
        """What is sent names this session from now on."""
        self._session = session
        own = f"Mcp-Session-Id: {session.decode()}\r\nMCP-Protocol-Version: {REVISION}\r\n"
        self._initialized = _request(self._target.head() + own, INITIALIZED)
        self._head = f"{self._target.head()}{own}Content-Length: ".encode() + b"%d\r\n\r\n"
        self._delete = _request(self._target.head("DELETE") + own, b"")

    def _read(self, connected: socket.socket) -> None:
        is_right = False
        try:
            data = connected.recv(MAX_READ)
            self._received += data
            if data and not _is_whole(self._received):
                return
            answer, self._received = self._received, b""
            if data and answer.startswith(RIGHT):
                connected.sendall(self._steps.send(answer))
                return
        except StopIteration as over:
            is_right = over.value
        except OSError:
            pass
        self._leave(is_right)

    def _leave(self, is_right: bool) -> None:
        self.close()
        self._answered(self, is_right)


def _request(head: str, body: bytes) -> bytes:
    return f"{head}Content-Length: {len(body)}\r\n\r\n".encode() + body


def _is_whole(answer: bytes) -> bool:
    """Whether an answer has come to its end; those are of declared length."""
    end = answer.find(b"\r\n\r\n") + 4
    length = LENGTH.search(answer, 0, end) if end >= 4 else None
    return length is not None and len(answer) >= end + int(length[1])


async def open_session(port: int, path: str, *, token: str = "") -> str:
    """A session of the token's principal with an endpoint; its id."""
    return await open_session_at(Target(port, path, token=token))


async def open_session_at(target: Target) -> str:
    """A session with a target; its id."""
    connection = await Connection.to(target)
    session = await connection.open_session()
    connection.close()
    return session


async def open_many(
    target: Target, count: int, note: Callable[[], object] = lambda: None, *, body: bytes = b"", at_once: int = 16
) -> list[str]:
    """So many sessions, each left without a connection, after a message where one is given; their ids."""
    numbers = iter(range(count))
    opened: list[str] = []

    async def work() -> None:
        connection = await Connection.to(target)
        for _ in numbers:
            opened.append(await connection.open_session())
            if body:
                await connection.post(body)
            note()
        connection.close()

    await asyncio.gather(*(work() for _ in range(at_once)))
    return opened
