"""Frames between two workers over a socket."""

import asyncio
from pathlib import Path

import anyio
import pytest
from trunkline.gateway.workers.conversation import (
    MAX_FRAME_BYTES,
    Broken,
    Frame,
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
    with pytest.raises(Unreachable):
        await SocketConversation.open(str(tmp_path / "nobody"))


@pytest.mark.parametrize("text", [b"", b"\xc1", b"\x91\x01", b"\x92\xa1a", b"\x91" * 10_000])
def test_what_is_no_frame_is_refused(text: bytes) -> None:
    with pytest.raises(Broken):
        decode(text)


def test_a_frame_comes_back() -> None:
    frame = Frame("open", {"headers": [[b"a", b"\xff"]], "identity": None})
    assert decode(encode(frame)) == frame
