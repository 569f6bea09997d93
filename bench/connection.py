"""A connection for what is no load: handshakes, requests of any kind, and clients that come anew with each call."""

import asyncio
from collections.abc import AsyncIterator, Callable

from bench.wires import INITIALIZE, INITIALIZED, REVISION, Answered, Target


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
        return await self._send(self._target.head(), body)

    async def delete(self) -> None:
        """End the session."""
        await self._send(self._target.head("DELETE"), b"")

    async def _send(self, head: str, body: bytes) -> bytes:
        own = f"Mcp-Session-Id: {self.session}\r\nMCP-Protocol-Version: {REVISION}\r\n" if self.session else ""
        self._writer.write(f"{head}{own}Content-Length: {len(body)}\r\n\r\n".encode() + body)
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
    """A client that comes anew with each call: it connects, begins its session, calls, ends the session, and leaves."""

    def __init__(self, target: Target) -> None:
        self._target = target
        self._task: asyncio.Task[None] | None = None
        self.since = 0.0

    def call(self, number: int, arguments: bytes, answered: Answered) -> None:
        """See `Slot.call`."""
        self._task = asyncio.get_running_loop().create_task(self._call(number, arguments, answered))

    def close(self) -> None:
        """Leave."""
        if self._task is not None:
            self._task.cancel()

    async def _call(self, number: int, arguments: bytes, answered: Answered) -> None:
        try:
            connection = await Connection.to(self._target)
            await connection.open_session()
            answer = await connection.post(self._target.call(1, number, arguments))
            await connection.delete()
            connection.close()
        except (OSError, EOFError, RuntimeError):
            answered(self, False)
        else:
            answered(self, b"%d;" % number in answer)


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
