"""What the framing of a message costs: server-sent events, by trunkline's own code, and WebSocket, by its library."""

import pytest
from trunkline.mux.limits import MAX_EVENT_BYTES
from trunkline.transports.event_stream import EventParser, encode
from websockets.frames import Frame, Opcode
from websockets.protocol import Protocol, Side

from bench.micro.measuring import SIZES, Measure

CHUNK = 65_536
"""What comes at once from a socket, at most."""


def message(size: int) -> bytes:
    return b'{"jsonrpc":"2.0","id":17,"result":{"text":"%b"}}' % (b"x" * size)


@pytest.mark.parametrize("size", SIZES)
def test_write_an_event(measured: Measure, size: int) -> None:
    text = message(size)
    assert text in measured(lambda: encode(text, id="1-1-17"))


@pytest.mark.parametrize("size", SIZES)
def test_read_an_event(measured: Measure, size: int) -> None:
    text = encode(message(size), id="1-1-17")
    chunks = [text[at : at + CHUNK] for at in range(0, len(text), CHUNK)]
    parser = EventParser(limit=MAX_EVENT_BYTES)

    def once() -> int:
        return sum(len(event.data) for chunk in chunks for event in parser.feed(chunk))

    assert measured(once) == len(message(size))


@pytest.mark.parametrize("size", SIZES)
def test_write_a_frame(measured: Measure, size: int) -> None:
    text = message(size)
    protocol = Protocol(Side.SERVER)

    def once() -> int:
        protocol.send_text(text)
        return sum(map(len, protocol.data_to_send()))

    assert measured(once) > len(text)


@pytest.mark.parametrize("size", SIZES)
def test_read_a_frame(measured: Measure, size: int) -> None:
    text = Frame(Opcode.TEXT, message(size)).serialize(mask=True)
    protocol = Protocol(Side.SERVER, max_size=MAX_EVENT_BYTES)

    def once() -> int:
        protocol.receive_data(text)
        return sum(len(event.data) for event in protocol.events_received() if isinstance(event, Frame))

    assert measured(once) == len(message(size))
