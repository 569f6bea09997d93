"""A cheap load client: HTTP/1.1 on plain streams, one connection for each call in flight, every answer checked."""

import asyncio
import time
from typing import NamedTuple

REVISION = "2025-06-18"
"""Answers stay plain JSON however long they take: all variants are read in the same way."""


class Sample(NamedTuple):
    """The calls of one round: seconds of each, and of all together."""

    seconds: list[float]
    elapsed: float


class Connection:
    """One keep-alive connection."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, head: str) -> None:
        self._reader = reader
        self._writer = writer
        self._head = head
        self.session = ""

    @classmethod
    async def open(cls, port: int, path: str, *, token: str = "") -> "Connection":
        """Connect to a port of this machine, as the principal of the token."""
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        return cls(reader, writer, request_head(port, path, token))

    async def post(self, body: bytes) -> bytes:
        """Send one message; the body of the answer."""
        session = f"Mcp-Session-Id: {self.session}\r\nMCP-Protocol-Version: {REVISION}\r\n" if self.session else ""
        self._writer.write(f"{self._head}{session}Content-Length: {len(body)}\r\n\r\n".encode() + body)
        head = (await self._reader.readuntil(b"\r\n\r\n")).decode("latin-1")
        length = 0
        for line in head.split("\r\n")[1:]:
            name, _, value = line.partition(": ")
            if name.lower() == "content-length":
                length = int(value)
            elif name.lower() == "mcp-session-id":
                self.session = value
        answer = await self._reader.readexactly(length)
        if not head.startswith(("HTTP/1.1 200", "HTTP/1.1 202")):
            raise RuntimeError(f"{head.splitlines()[0]}: {answer[:200]!r}")
        return answer

    async def open_session(self) -> str:
        """Begin a session; what follows belongs to it. Its id."""
        self.session = ""
        answer = await self.post(
            b'{"jsonrpc":"2.0","id":0,"method":"initialize","params":{"protocolVersion":"%b","capabilities":{},'
            b'"clientInfo":{"name":"bench","version":"1"}}}' % REVISION.encode()
        )
        if not self.session:
            raise RuntimeError(f"no session: {answer[:200]!r}")
        await self.post(b'{"jsonrpc":"2.0","method":"notifications/initialized"}')
        return self.session

    def close(self) -> None:
        """Close it."""
        self._writer.close()


def request_head(port: int, path: str, token: str = "") -> str:
    """The head of a POST, as far as it is the same for all of a principal."""
    authorization = f"Authorization: Bearer {token}\r\n" if token else ""
    return (
        f"POST {path} HTTP/1.1\r\nHost: 127.0.0.1:{port}\r\nContent-Type: application/json\r\n"
        f"Accept: application/json, text/event-stream\r\n{authorization}"
    )


async def open_session(port: int, path: str, *, token: str = "") -> str:
    """A session of the token's principal with an endpoint; its id."""
    connection = await Connection.open(port, path, token=token)
    session = await connection.open_session()
    connection.close()
    return session


async def run_calls(port: int, path: str, session: str, *, calls: int, inflight: int) -> Sample:
    """So many calls, so many at once; all with the same id, each with an argument of its own that has to come back."""
    seconds: list[float] = []
    numbers = iter(range(calls))

    async def worker() -> None:
        connection = await Connection.open(port, path)
        connection.session = session
        for number in numbers:
            started = time.perf_counter()
            answer = await connection.post(
                b'{"jsonrpc":"2.0","id":1,"method":"tools/call","params":{"name":"echo","arguments":{"n":%d,"t":"%b"}}}'
                % (number, b"y" * 300)
            )
            seconds.append(time.perf_counter() - started)
            if b'"id":1,' not in answer or b'"n":%d,' % number not in answer:
                raise RuntimeError(f"the answer to call {number} is not its own: {answer[:200]!r}")
        connection.close()

    started = time.perf_counter()
    await asyncio.gather(*(worker() for _ in range(inflight)))
    return Sample(seconds, time.perf_counter() - started)
