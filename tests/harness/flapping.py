"""A lean MCP server that can be told to die again and again, and a record that outlives it.

Run: `python -m harness.flapping --port PORT --record FILE --seed N`. This process only starts the server, as a fork of
itself, since an interpreter takes longer to start than the server may live. On SIGUSR1 the server is killed (SIGKILL)
about every 200 ms and started again, on SIGUSR2 it is left alone.

`FILE` has a line of JSON for each start of the server (`born`), each handshake (`initialize`, with how many of its key
are under way) and each execution of a call (`call`, with its number), written before anything can go wrong with it.

`tools/call` takes its number `n` as an argument and gives it back. Sessions live as long as the server does.
"""

import argparse
import asyncio
import json
import os
import random
import signal
import time
from collections import Counter
from types import FrameType
from typing import Any

import uvicorn

LIFE = 0.2
"""Seconds from one death to the next, give or take half."""

HANDSHAKE = 0.01
CALL = 0.03
"""Seconds that they take at least and at most, so that deaths come in the middle."""


class Server:
    """The server, as an ASGI application."""

    def __init__(self, record: int, dice: random.Random) -> None:
        self._record = record
        self._dice = dice
        self._sessions: set[str] = set()
        self._opening: Counter[str] = Counter()

    def note(self, what: str, **data: Any) -> None:
        """Write a line that outlives this process."""
        os.write(self._record, json.dumps({"what": what, "at": time.time(), **data}).encode() + b"\n")

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] != "http":
            return
        body, more = b"", True
        while more:
            part = await receive()
            body += part.get("body", b"")
            more = part.get("more_body", False)
        headers = {name.decode(): value.decode() for name, value in scope["headers"]}
        status, answer, more_headers = await self._answer(scope["method"], headers, body)
        text = b"" if answer is None else json.dumps(answer).encode()
        head = [("content-type", "application/json"), ("content-length", str(len(text))), *more_headers]
        encoded = [(name.encode(), value.encode()) for name, value in head]
        await send({"type": "http.response.start", "status": status, "headers": encoded})
        await send({"type": "http.response.body", "body": text})

    async def _answer(
        self, http: str, headers: dict[str, str], body: bytes
    ) -> tuple[int, dict[str, Any] | None, list[tuple[str, str]]]:
        if http != "POST":
            return (200 if http == "DELETE" else 405), None, []
        message = json.loads(body)
        if message.get("method") == "initialize":
            session = await self._open(headers["x-key"])
            result = {
                "protocolVersion": "2025-06-18",
                "capabilities": {"tools": {}},
                "serverInfo": {"name": "flapping", "version": "1"},
            }
            return 200, {"jsonrpc": "2.0", "id": message["id"], "result": result}, [("mcp-session-id", session)]
        if headers.get("mcp-session-id") not in self._sessions:
            return 404, None, []
        if message.get("method") != "tools/call":
            return 202, None, []
        n = message["params"]["arguments"]["n"]
        await asyncio.sleep(self._dice.uniform(0, CALL / 2))
        self.note("call", n=n)
        await asyncio.sleep(self._dice.uniform(0, CALL / 2))
        result = {"content": [{"type": "text", "text": str(n)}]}
        return 200, {"jsonrpc": "2.0", "id": message["id"], "result": result}, []

    async def _open(self, key: str) -> str:
        self._opening[key] += 1
        self.note("initialize", key=key, inside=self._opening[key])
        try:
            await asyncio.sleep(HANDSHAKE)
        finally:
            self._opening[key] -= 1
        session = f"{os.getpid()}-{len(self._sessions)}"
        self._sessions.add(session)
        return session


def serve(port: int, record: int, seed: int) -> None:
    """Be the server until killed."""
    server = Server(record, random.Random(seed))
    server.note("born", seed=seed)
    uvicorn.run(server, port=port, log_level="error", lifespan="off", ws="none")


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--record", required=True)
    parser.add_argument("--seed", type=int, required=True)
    given = parser.parse_args()
    record = os.open(given.record, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
    dice = random.Random(given.seed)
    wanted = {signal.SIGUSR1, signal.SIGUSR2}
    signal.pthread_sigmask(signal.SIG_BLOCK, wanted)
    signal.signal(signal.SIGTERM, _leave)
    flapping = False
    while True:
        child = os.fork()
        if not child:
            signal.pthread_sigmask(signal.SIG_UNBLOCK, wanted)
            serve(given.port, record, dice.randrange(2**32))
            os._exit(0)
        dice.random()  # the child has drawn from its own copy
        while True:
            told = (
                signal.sigtimedwait(wanted, dice.uniform(LIFE / 2, LIFE * 1.5))
                if flapping
                else signal.sigwaitinfo(wanted)
            )
            if told is None:
                break
            flapping = told.si_signo == signal.SIGUSR1
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)


def _leave(number: int, frame: FrameType | None) -> None:
    os._exit(0)


if __name__ == "__main__":
    main()
