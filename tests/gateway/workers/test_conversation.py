"""Frames between two workers over a socket."""

import asyncio
import socket
import sys
from contextlib import ExitStack, suppress
from pathlib import Path

import anyio
import pytest
import uvloop
from trunkline.gateway.workers.conversation import (
    MAX_FRAME_BYTES,
    Broken,
    Frame,
    Gone,
    SocketConversation,
    Unreachable,
    decode,
    encode,
)

pytestmark = pytest.mark.anyio


class Ends:
    """Both ends of a conversation."""

    near: SocketConversation
    far: SocketConversation
    writer: asyncio.StreamWriter


@pytest.fixture
async def ends(tmp_path: Path):
    both = Ends()
    came = anyio.Event()

    def begin(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        both.far, both.writer = SocketConversation(reader, writer), writer
        came.set()

    address = str(tmp_path / "s")
    async with await asyncio.start_unix_server(begin, address):
        both.near = await SocketConversation.open(address)
        with anyio.fail_after(10):
            await came.wait()
        yield both
        both.near.close()
        both.far.close()


async def test_frames_come_in_order_and_byte_for_byte(ends: Ends) -> None:
    said = [Frame("event", {"body": bytes(range(256)) * n, "more_body": True, "code": n}) for n in range(50)]
    for frame in said:
        await ends.near.send(frame)
    assert [await ends.far.receive() for _ in said] == said
    await ends.far.send(Frame("end"))
    assert await ends.near.receive() == Frame("end")


async def test_the_end_of_one_side_breaks_the_other(ends: Ends) -> None:
    ends.far.close()
    with pytest.raises(Broken):
        await ends.near.receive()


async def test_what_was_sent_before_the_end_arrives_although_it_still_waited(ends: Ends) -> None:
    frame, sent = Frame("event", b"x" * 8_192), 0
    while not ends.writer.transport.get_write_buffer_size():
        await ends.far.send(frame)
        sent += 1
    ends.far.close()
    with anyio.fail_after(10):
        assert [await ends.near.receive() for _ in range(sent)] == [frame] * sent


async def test_a_frame_that_is_cut_is_none(ends: Ends) -> None:
    ends.writer.write((100).to_bytes(4, "big") + b"half")
    ends.far.close()
    with pytest.raises(Broken):
        await ends.near.receive()


async def test_a_frame_that_is_too_long_is_refused_before_it_is_read(ends: Ends) -> None:
    ends.writer.write((MAX_FRAME_BYTES + 1).to_bytes(4, "big"))
    with pytest.raises(Broken):
        await ends.near.receive()


async def test_nobody_there_is_told_apart_from_somebody_who_went(tmp_path: Path) -> None:
    with pytest.raises(Unreachable) as never:
        await SocketConversation.open(str(tmp_path / "nobody"))
    assert never.type is Unreachable


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere a full backlog refuses as well")
def test_g7_one_who_has_ended_is_told_apart_from_one_who_is_busy(tmp_path: Path) -> None:
    address = str(tmp_path / "s")
    with ExitStack() as stack:
        runner = stack.enter_context(asyncio.Runner(loop_factory=uvloop.new_event_loop))
        listener = stack.enter_context(socket.socket(socket.AF_UNIX))
        listener.bind(address)
        listener.listen(1)
        with suppress(BlockingIOError):
            while True:
                waiting = stack.enter_context(socket.socket(socket.AF_UNIX))
                waiting.setblocking(False)
                waiting.connect(address)
        with pytest.raises(Unreachable) as busy:
            runner.run(SocketConversation.open(address))
        assert busy.type is Unreachable
        listener.close()
        with pytest.raises(Gone):
            runner.run(SocketConversation.open(address))


@pytest.mark.parametrize("text", [b"", b"\xc1", b"\x91\x01", b"\x92\xa1a", b"\x91" * 10_000])
def test_what_is_no_frame_is_refused(text: bytes) -> None:
    with pytest.raises(Broken):
        decode(text)


def test_a_frame_comes_back() -> None:
    frame = Frame("open", {"headers": [[b"a", b"\xff"]], "identity": None})
    assert decode(encode(frame)) == frame
