"""What the wires on one stream have in common: counting, and losing the session once."""

import anyio.lowlevel
import pytest
from contract.session import INITIALIZED, REVISION, Receiver, Session
from trunkline.mux.errors import SessionLost
from trunkline.mux.request import Request
from trunkline.mux.statistics import Statistics
from trunkline.transports.upstream.one_stream import OneStreamWire

pytestmark = pytest.mark.anyio


class ListWire(OneStreamWire):
    """Puts everything into a list, up to a number."""

    def __init__(self, receiver: Receiver, room: int = 100) -> None:
        self.statistics = Statistics()
        super().__init__("x", receiver, self.statistics)
        self.texts: list[bytes] = []
        self.room = room

    def close(self) -> None:
        self._is_closed = True

    def hear(self, text: bytes) -> None:
        self._received(text)

    def _put(self, text: bytes, request: Request | None) -> bool:
        if len(self.texts) >= self.room:
            return False
        self.texts.append(text)
        return True


async def test_what_is_sent_is_counted_by_kind() -> None:
    receiver = Receiver()
    wire = ListWire(receiver)
    session = Session(wire, receiver)
    session.request("initialize")
    await wire.establish(REVISION, INITIALIZED)
    first = session.request()
    wire.abandon(first)
    session.request()
    session.send(b"{}")
    session.send(b"{}", kind="response")
    counts = {labels[-1]: count for labels, count in wire.statistics.counts.items()}
    assert counts == {"initialize": 1, "initialized": 1, "call": 2, "notification": 1, "response": 1}
    assert len(wire.texts) == 6


async def test_a_stream_that_is_full_loses_the_session_once_and_says_what_was_not_sent() -> None:
    receiver = Receiver()
    wire = ListWire(receiver, room=1)
    session = Session(wire, receiver)
    sent, first, second = (session.request() for _ in range(3))
    session.send(b"{}")
    wire.lose("another reason")
    await receiver.until(lambda: receiver.of("lost"))
    (lost,) = receiver.of("lost")
    assert isinstance(lost.error, SessionLost)
    assert lost.error.message == "the server does not read what is sent to it", "the first cause wins"
    assert lost.error.data == {"executed": "unknown"}
    assert lost.refused == (first, second)
    assert sent.state == "pending"
    wire.hear(b"{}")
    assert len(receiver.reports) == 1, "nothing follows"
    with pytest.raises(SessionLost):
        await wire.establish(REVISION, INITIALIZED)


async def test_a_handshake_that_cannot_be_sent_raises() -> None:
    receiver = Receiver()
    wire = ListWire(receiver, room=0)
    with pytest.raises(SessionLost):
        await wire.establish(REVISION, INITIALIZED)
    assert not wire.statistics.counts
    await receiver.until(lambda: receiver.of("lost"))


async def test_a_closed_wire_tells_nothing() -> None:
    receiver = Receiver()
    wire = ListWire(receiver)
    wire.lose("too late to be told")
    wire.close()
    wire.lose("after its end")
    wire.hear(b"{}")
    Session(wire, receiver).send(b"{}")
    for _ in range(5):
        await anyio.lowlevel.checkpoint()
    assert receiver.reports == []
    assert wire.texts == []


async def test_a_fault_is_counted() -> None:
    receiver = Receiver()
    wire = ListWire(receiver)
    wire.lose("what is no message", is_fault=True)
    assert wire.statistics.total("upstream_faults", "x") == 1
    await receiver.until(lambda: receiver.of("lost"))
