"""Frames are read as the library reads them, however they are cut, and written so that it reads them."""

import random
from itertools import pairwise

import pytest
from harness.framing import frames_of
from hypothesis import given
from hypothesis import strategies as some
from trunkline.transports.frames import Frames, text_frame
from websockets.client import ClientProtocol
from websockets.frames import BINARY, CLOSE, CONT, PING, PONG, TEXT, Close, Frame
from websockets.protocol import CLIENT, CLOSING, OPEN, SERVER, Protocol
from websockets.uri import parse_uri

LIMIT = 100_000
KEY = b"\x01\x80\xff\x00"
SIZES = (0, 1, 125, 126, 65_535, 65_536, LIMIT)


def reading(*, is_masked: bool) -> tuple[Protocol, Frames]:
    """What reads frames that are masked, or not, beside the library's protocol of that side."""
    protocol = Protocol(SERVER if is_masked else CLIENT, max_size=LIMIT)
    return protocol, Frames(protocol, LIMIT, is_masked=is_masked)


def told(came: list[bytes | Frame]) -> list[object]:
    """Messages, and the other frames by what they are."""
    return [one if isinstance(one, bytes) else (one.opcode, bytes(one.data)) for one in came]


@pytest.mark.parametrize("is_masked", [False, True])
@pytest.mark.parametrize("size", SIZES)
def test_a_message_is_framed_as_the_library_reads_it_and_read_whole(size: int, is_masked: bool) -> None:
    message = b"x" * size
    written = text_frame(message, KEY if is_masked else b"")
    library = Protocol(SERVER if is_masked else CLIENT, max_size=LIMIT)
    library.receive_data(written)
    [frame] = library.events_received()
    assert isinstance(frame, Frame)
    assert (frame.opcode, frame.fin, bytes(frame.data)) == (TEXT, True, message)
    _, frames = reading(is_masked=is_masked)
    assert frames_of(written * 2, frames) == [message, message]


FRAMES = some.one_of(
    some.text(max_size=200).map(lambda text: [Frame(TEXT, text.encode())]),
    some.lists(some.text(max_size=5), min_size=2, max_size=4).map(
        lambda parts: [
            Frame(CONT if n else TEXT, part.encode(), fin=n == len(parts) - 1) for n, part in enumerate(parts)
        ]
    ),
    some.sampled_from([[Frame(PING, b"p")], [Frame(PONG, b"")], [Frame(TEXT, b"a", fin=False), Frame(PING, b"i")]]),
)


@pytest.mark.parametrize("is_masked", [False, True])
@given(some.data())
def test_however_they_are_cut_frames_are_what_the_library_says(is_masked: bool, data: some.DataObject) -> None:
    sent = [frame for group in data.draw(some.lists(FRAMES, max_size=6)) for frame in group]
    text = b"".join(frame.serialize(mask=is_masked) for frame in sent)
    cuts = sorted(data.draw(some.lists(some.integers(0, len(text)), max_size=8)))
    protocol, frames = reading(is_masked=is_masked)
    came = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("trunkline.transports.frames.PORTION_ITEMS", data.draw(some.integers(1, 10)))
        for at, stop in zip([0, *cuts], [*cuts, len(text)], strict=True):
            came += frames_of(text[at:stop], frames)
    library = Protocol(SERVER if is_masked else CLIENT, max_size=LIMIT)
    library.receive_data(text)
    expected: list[object] = []
    parts = b""
    for event in library.events_received():
        assert isinstance(event, Frame)
        if event.opcode in (TEXT, CONT):
            parts = bytes(event.data) if event.opcode is TEXT else parts + bytes(event.data)
            expected += [parts] if event.fin else []
        else:
            expected.append((event.opcode, bytes(event.data)))
    assert told(came) == expected
    assert protocol.state is library.state
    assert protocol.close_sent == library.close_sent
    assert len(protocol.data_to_send()) == len(library.data_to_send()), "pongs, and what a fault is answered"


@pytest.mark.parametrize(
    ("text", "code"),
    [
        (text_frame(b"x" * (LIMIT + 1)), 1009),
        (Frame(TEXT, b"x" * LIMIT, fin=False).serialize(mask=False) + Frame(CONT, b"x").serialize(mask=False), 1009),
        (text_frame(b"x", KEY), 1002),
        (b"\x83\x00", 1002),
        (b"\xc1\x00", 1002),
        (Frame(CONT, b"x").serialize(mask=False), 1002),
        (Frame(TEXT, b"x", fin=False).serialize(mask=False) + text_frame(b"x"), 1002),
        (text_frame(b"\xff"), 1007),
        (Frame(TEXT, b"\xe2", fin=False).serialize(mask=False) + Frame(CONT, b"x").serialize(mask=False), 1007),
    ],
)
def test_what_is_not_legal_fails_the_connection_and_nothing_follows(text: bytes, code: int) -> None:
    protocol, frames = reading(is_masked=False)
    assert frames_of(text + text_frame(b"y"), frames) == []
    assert frames_of(text_frame(b"z"), frames) == []
    assert protocol.state is CLOSING
    assert protocol.close_sent is not None
    assert protocol.close_sent.code == code


def test_text_in_fragments_may_be_cut_within_a_character() -> None:
    _, frames = reading(is_masked=False)
    first, second = "ä".encode()[:1], "ä".encode()[1:]
    frames_of(Frame(TEXT, first, fin=False).serialize(mask=False), frames)
    assert frames_of(Frame(CONT, second).serialize(mask=False), frames) == ["ä".encode()]


def test_binary_frames_and_a_close_are_told_and_their_fragments_are_no_text() -> None:
    protocol, frames = reading(is_masked=False)
    binary = Frame(BINARY, b"b", fin=False).serialize(mask=False) + Frame(CONT, b"c").serialize(mask=False)
    assert told(frames_of(binary + text_frame(b"x"), frames)) == [(BINARY, b"b"), b"x"]
    assert protocol.state is OPEN
    close = Frame(CLOSE, Close(1000, "").serialize()).serialize(mask=False)
    assert told(frames_of(close + text_frame(b"x"), frames)) == [(CLOSE, b"\x03\xe8")]


def test_after_our_own_close_the_library_reads_on() -> None:
    protocol = ClientProtocol(parse_uri("ws://x/"), state=OPEN, max_size=LIMIT)
    frames = Frames(protocol, LIMIT, is_masked=False)
    protocol.send_close(1000)
    assert frames_of(text_frame(b"late"), frames) == [b"late"]


SHAPES = [b"\x81", b"\x81", b"\x01", b"\x00", b"\x80", b"\x82", b"\x02", b"\x88", b"\x89", b"\x8a"]
ODD = [b"\x08", b"\x09", b"\x83", b"\x8b", b"\xc1", b"\xa1", b"\x91", b"\xf1"]
CODES = [1000, 1001, 1004, 1005, 1006, 1007, 1015, 1016, 2999, 3000, 4404, 5000, 999, 0]
SMALL = 300


def a_frame(draw: random.Random, *, is_masked: bool) -> bytes:
    """One frame, mostly legal by itself."""
    shape = draw.choice([*SHAPES, draw.choice(ODD)])
    size = draw.choice([0, 1, 2, 3, 125] if shape[0] & 8 and draw.random() < 0.8 else [0, 3, 125, 126, 300, 301])
    payload = bytes(draw.choice(b'{}"\xc3\xa4' if draw.random() < 0.05 else b"abc") for _ in range(size))
    if shape == b"\x88" and size > 1:
        payload = draw.choice(CODES).to_bytes(2) + payload[2:]
    flag = 0x80 if is_masked is not (draw.random() < 0.04) else 0
    width = draw.choice([0, 0, 0, 2, 8]) or (2 if size > 125 else 0)
    head = shape + bytes([flag | {0: size, 2: 126, 8: 127}[width]]) + (size.to_bytes(width) if width else b"")
    if not flag:
        return head + payload
    key = draw.randbytes(4)
    return head + key + bytes(byte ^ key[at % 4] for at, byte in enumerate(payload))


def by_library(text: bytes, *, is_masked: bool) -> tuple[list[object], int | None]:
    """What the library tells of these frames, up to text that is none, and the code by which it ends."""
    library = Protocol(SERVER if is_masked else CLIENT, max_size=SMALL)
    library.receive_data(text)
    came: list[object] = []
    parts: bytes | None = None
    for event in library.events_received():
        assert isinstance(event, Frame)
        if event.opcode is TEXT:
            parts = b""
        elif event.opcode is not CONT:
            came.append((event.opcode, bytes(event.data)))
            continue
        if parts is None:
            continue
        parts += bytes(event.data)
        if event.fin:
            try:
                parts.decode()
            except UnicodeDecodeError:
                return came, 1007
            came.append(parts)
            parts = None
    return came, None if library.close_sent is None else library.close_sent.code


def test_whatever_frames_come_and_however_they_are_cut_the_library_says_what_they_are() -> None:
    draw, ended, told_all = random.Random(20261130), 0, 0
    for _ in range(4_000):
        is_masked = draw.random() < 0.5
        text = b"".join(a_frame(draw, is_masked=is_masked) for _ in range(draw.randrange(1, 7)))
        cuts = sorted(draw.sample(range(len(text) + 1), 2))
        protocol = Protocol(SERVER if is_masked else CLIENT, max_size=SMALL)
        frames = Frames(protocol, SMALL, is_masked=is_masked)
        came: list[object] = []
        for start, end in pairwise([0, *cuts, len(text)]):
            came += told(frames_of(text[start:end], frames))
        expected, code = by_library(text, is_masked=is_masked)
        assert came == expected, text
        assert (protocol.close_sent.code if protocol.close_sent else None) == code, text
        ended += code is not None
        told_all += code is None
    assert min(ended, told_all) > 400
