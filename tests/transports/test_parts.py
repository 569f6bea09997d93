"""Parts are kept in order, and in the memory that their bytes take, wherever they are kept."""

import tracemalloc
from collections.abc import Callable

import pytest
from harness.framing import frames_of
from trunkline.transports.event_stream import EventParser
from trunkline.transports.frames import Frames
from trunkline.transports.parts import SMALL_PART, keep
from trunkline.transports.upstream.answers import Body
from trunkline.transports.upstream.process import Lines
from websockets.frames import CONT, TEXT, Frame
from websockets.protocol import SERVER, Protocol

SIZE = 100_000


@pytest.mark.parametrize("sizes", [(), (1,), (1, 1, 1), (SMALL_PART, 1, 2, SMALL_PART, 3), (0, 0, 5)])
def test_parts_stay_in_order(sizes: tuple[int, ...]) -> None:
    given = [bytes([65 + n]) * size for n, size in enumerate(sizes)]
    parts: list[bytes | bytearray] = []
    for part in given:
        keep(parts, part)
    assert b"".join(parts) == b"".join(given)


def test_what_comes_at_once_is_not_copied() -> None:
    parts: list[bytes | bytearray] = []
    whole = b"x" * 10
    keep(parts, whole)
    assert parts[0] is whole


def body() -> Callable[[bytes], object]:
    return Body(10 * SIZE).add


def stream() -> Callable[[bytes], object]:
    return EventParser(limit=10 * SIZE).feed


def data_lines() -> Callable[[bytes], object]:
    parser = EventParser(limit=10 * SIZE)
    return lambda part: parser.feed(b"data:%b\n" % part)


def lines() -> Callable[[bytes], object]:
    kept = Lines(10 * SIZE)
    return lambda part: list(kept.feed(part))


def endless_line() -> Callable[[bytes], object]:
    kept = Lines(100)
    return lambda part: list(kept.feed(part))


def fragments() -> Callable[[bytes], object]:
    frames = Frames(Protocol(SERVER, max_size=10 * SIZE), 10 * SIZE, is_masked=True)
    frames_of(Frame(TEXT, b"", fin=False).serialize(mask=True), frames)
    return lambda part: frames_of(Frame(CONT, part, fin=False).serialize(mask=True), frames)


def empty_fragments() -> Callable[[bytes], object]:
    add = fragments()
    return lambda part: add(b"")


@pytest.mark.parametrize("maker", [body, stream, data_lines, lines, endless_line, fragments, empty_fragments])
def test_g10_small_parts_take_no_more_than_their_bytes(maker: Callable[[], Callable[[bytes], object]]) -> None:
    add = maker()
    tracemalloc.start()
    try:
        for n in range(SIZE // 2):
            add(b"%c%c" % (97 + n % 26, 97 + n // 26 % 26))
        taken, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert taken < 2 * SIZE, taken
