"""Lines that wait here, and not in a buffer that nobody could hold back."""

import os
import socket
from contextlib import suppress

import anyio
import pytest
from harness.changing import until
from trunkline.transports.upstream.pipe import InputPipe, when_writable

pytestmark = pytest.mark.anyio

LINE = b"x" * 100_000 + b"\n"


class Pipe:
    """A pipe whose reader reads when the test does."""

    def __init__(self) -> None:
        self.reading, writing = os.pipe()
        os.set_blocking(self.reading, False)
        self.is_gone = anyio.Event()
        self.told = 0
        self.input = InputPipe(writing, self._tell)

    def _tell(self) -> None:
        self.told += 1
        self.is_gone.set()

    async def read(self, size: int) -> bytes:
        """So many bytes, or what there was at the end."""
        found = b""
        with anyio.fail_after(10):
            while len(found) < size:
                try:
                    chunk = os.read(self.reading, size - len(found))
                except BlockingIOError:
                    await anyio.lowlevel.checkpoint()
                    continue
                if not chunk:
                    break
                found += chunk
        return found


@pytest.fixture
async def pipe() -> Pipe:
    return Pipe()


async def test_lines_arrive_in_order_however_much_waits(pipe: Pipe) -> None:
    pipe.input.write(b"first\n")
    assert pipe.input.unsent == 0
    for _ in range(3):
        pipe.input.write(LINE)
    pipe.input.write(b"last\n")
    assert 200_000 < pipe.input.unsent < 300_009
    assert pipe.input.waiting == 4
    pipe.input.close()
    pipe.input.write(b"after the end\n")
    assert await pipe.read(10**6) == b"first\n" + LINE * 3 + b"last\n"
    assert pipe.input.unsent == 0
    pipe.input.close()


async def test_g7_what_waits_begins_only_where_it_may_when_its_turn_comes(pipe: Pipe) -> None:
    may = True
    asked: list[str] = []

    def ask(name: str) -> bool:
        asked.append(name)
        return may

    pipe.input.write(LINE, lambda: ask("begun"))
    pipe.input.write(LINE, lambda: ask("waits"))
    assert asked == ["begun"], "asked when its turn comes, and not before"
    may = False
    assert await pipe.read(len(LINE)) == LINE, "what had begun is completed: half a line would be none"
    await until(lambda: not pipe.input.unsent)
    assert asked == ["begun", "waits"]
    may = True
    pipe.input.write(b"later\n", lambda: ask("later"))
    pipe.input.close()
    assert await pipe.read(100) == b"later\n"


async def test_a_reader_that_closes_is_told_once(pipe: Pipe) -> None:
    os.close(pipe.reading)
    with anyio.fail_after(10):
        await pipe.is_gone.wait()
    pipe.input.write(b"into the void\n")
    pipe.input.close()
    pipe.input.abort()
    await anyio.wait_all_tasks_blocked()
    assert pipe.told == 1


async def test_it_is_told_once_whoever_finds_it_out(pipe: Pipe) -> None:
    for _ in range(3):
        pipe.input.write(LINE)
    os.close(pipe.reading)
    pipe.input.write(LINE)
    with anyio.fail_after(10):
        await pipe.is_gone.wait()
    await anyio.wait_all_tasks_blocked()
    assert pipe.told == 1
    assert (pipe.input.waiting, pipe.input.unsent) == (0, 0)


async def test_a_reader_that_closes_over_a_write_is_told(pipe: Pipe) -> None:
    pipe.input.write(LINE)
    os.close(pipe.reading)
    pipe.input.write(LINE)
    with anyio.fail_after(10):
        await pipe.is_gone.wait()
    assert pipe.input.unsent == 0


async def test_a_socket_is_writable_once_its_peer_reads() -> None:
    near, far = socket.socketpair()
    with near, far:
        near.setblocking(False)
        done = anyio.Event()
        assert when_writable(near.fileno(), done.set) is None
        with suppress(BlockingIOError):
            while True:
                near.send(LINE)
        called_off = when_writable(near.fileno(), lambda: pytest.fail("it was called off"))
        assert called_off is not None
        called_off()
        assert when_writable(near.fileno(), done.set) is not None
        await anyio.wait_all_tasks_blocked()
        assert not done.is_set()
        with anyio.fail_after(10):
            while not done.is_set():
                with anyio.move_on_after(0.01):
                    await anyio.wait_readable(far)
                    far.recv(1 << 20)
