"""What is answered by a status alone is sent once, is bounded, and says what became of it."""

import asyncio
import tracemalloc
from collections.abc import Callable

import anyio
import pytest
from trunkline.mux.errors import SessionLost, UpstreamUnreachable
from trunkline.mux.limits import MIB
from trunkline.transports.upstream import http_delivery as module
from trunkline.transports.upstream.answers import ERROR_BODY_BYTES
from trunkline.transports.upstream.http import Answer, ExchangeBroken
from trunkline.transports.upstream.http_delivery import Deliveries, Receipt, acknowledged, announce

pytestmark = pytest.mark.anyio

PATIENCE = 10.0


class Line:
    """What was sent, with what it does to each message."""

    def __init__(self, status: int = 0, broken: ExchangeBroken | None = None) -> None:
        self.answers: list[Answer] = []
        self.cuts = 0
        self.news: list[asyncio.Future[int]] = []
        self._status = status
        self._broken = broken
        self._over = asyncio.Event()

    def send(self, answer: Answer) -> Callable[[], None]:
        """Send a message; it is answered in the next turn, unless there is nothing to answer."""
        self.answers.append(answer)
        if self._status or self._broken is not None:
            asyncio.get_running_loop().call_soon(self._answer, answer)
        return self._cut

    def over(self, status: asyncio.Future[int]) -> None:
        """What became of one."""
        self.news.append(status)
        self._over.set()

    async def told(self) -> asyncio.Future[int]:
        """What became of the one."""
        async with asyncio.timeout(PATIENCE):
            await self._over.wait()
        (status,) = self.news
        return status

    def _answer(self, answer: Answer) -> None:
        if self._status:
            answer.began(self._status, {})
        answer.ended(self._broken)

    def _cut(self) -> None:
        self.cuts += 1


async def test_a_receipt_is_the_status() -> None:
    receipt = Receipt()
    receipt.began(202, {})
    receipt.came(b"whatever")
    receipt.ended(None)
    assert await receipt.over == 202


async def test_a_receipt_that_does_not_end_is_cut() -> None:
    receipt, cuts = Receipt(), []
    receipt.cut = lambda: cuts.append(1)
    receipt.began(200, {})
    receipt.came(b"x" * (ERROR_BODY_BYTES + 1))
    receipt.ended(ExchangeBroken("late", sent=True))
    assert await receipt.over == 200
    assert cuts


async def test_a_receipt_that_is_a_stream_is_not_heard_to_its_end() -> None:
    receipt, cuts = Receipt(), []
    receipt.cut = lambda: cuts.append(1)
    receipt.began(200, {"content-type": "text/event-stream; charset=utf-8"})
    assert receipt.over.result() == 200
    assert cuts


async def test_a_receipt_whose_body_breaks_is_a_status_all_the_same() -> None:
    receipt = Receipt()
    receipt.began(202, {})
    receipt.ended(ExchangeBroken("cut", sent=True))
    assert receipt.over.result() == 202


async def test_a_receipt_that_did_not_come_fails() -> None:
    receipt = Receipt()
    receipt.ended(ExchangeBroken("cut", sent=True))
    with pytest.raises(ExchangeBroken, match="cut"):
        await receipt.over


async def test_a_status_is_waited_for() -> None:
    line = Line(status=404)
    assert await acknowledged(line.send) == 404
    assert line.cuts == 1


@pytest.mark.parametrize(("sent", "kind"), [(True, SessionLost), (False, UpstreamUnreachable)])
async def test_a_status_that_does_not_come_says_whether_the_message_may_have_arrived(
    *, sent: bool, kind: type[Exception]
) -> None:
    line = Line(broken=ExchangeBroken("cut", sent=sent))
    with pytest.raises(kind):
        await acknowledged(line.send)
    assert line.cuts == 1


async def test_a_handshake_needs_a_server_that_takes_it() -> None:
    await announce(Line(status=202).send)
    with pytest.raises(UpstreamUnreachable, match="HTTP 400") as refused:
        await announce(Line(status=400).send)
    assert refused.value.data == {"executed": "no", "status": 400}


async def test_what_was_delivered_makes_room() -> None:
    deliveries, line = Deliveries(), Line(status=202)
    assert deliveries.put(9, line.send, line.over)
    assert len(deliveries) == 1
    assert (await line.told()).result() == 202
    assert (len(deliveries), line.cuts) == (0, 1)


async def test_only_so_many_are_under_way(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MAX_DELIVERIES", 2)
    deliveries, line = Deliveries(), Line()
    assert [deliveries.put(9, line.send, line.over) for _ in range(3)] == [True, True, False]
    assert len(line.answers) == 2


def test_g10_a_session_of_which_nothing_is_under_way_keeps_little_for_it() -> None:
    """There are many that rest."""
    tracemalloc.start()
    try:
        before, _ = tracemalloc.get_traced_memory()
        kept = [Deliveries() for _ in range(1000)]
        after, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert (after - before) / len(kept) < 512


async def test_g10_only_so_many_bytes_are_under_way() -> None:
    deliveries, line = Deliveries(), Line()
    sizes = [4 * MIB, 4 * MIB, 4 * MIB, 3 * MIB, 2 * MIB, MIB, 1]
    assert [deliveries.put(size, line.send, line.over) for size in sizes] == [True] * 4 + [False, True, False]
    deliveries.cut()
    await anyio.wait_all_tasks_blocked()
    await asyncio.sleep(0)
    assert (len(deliveries), len(line.news)) == (0, 5)
    assert deliveries.put(4 * MIB, line.send, line.over)


async def test_g9_a_server_that_takes_none_has_few_connections_of_them() -> None:
    deliveries, line = Deliveries(), Line()
    count = module.MAX_AT_ONCE + 3
    assert all(deliveries.put(1, line.send, line.over) for _ in range(count))
    assert (len(deliveries), len(line.answers)) == (count, module.MAX_AT_ONCE)
    for n in (0, 1):
        line.answers[n].began(202, {})
        line.answers[n].ended(None)
    await anyio.wait_all_tasks_blocked()
    assert (len(deliveries), len(line.answers)) == (count - 2, module.MAX_AT_ONCE + 2)
    deliveries.cut()
    await anyio.wait_all_tasks_blocked()
    assert (len(deliveries), len(line.answers)) == (0, module.MAX_AT_ONCE + 2), "what waits is not sent any longer"
    assert sum(news.cancelled() for news in line.news) == count - 2


async def test_a_server_that_does_not_acknowledge_is_not_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "DELIVER_SECONDS", 0.01)
    deliveries, line = Deliveries(), Line()
    deliveries.put(9, line.send, line.over)
    assert (await line.told()).cancelled()
    assert (len(deliveries), line.cuts) == (0, 1)


async def test_what_waited_too_long_for_its_turn_is_told_and_never_sent(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MAX_AT_ONCE", 1)
    deliveries, hanging, waiting = Deliveries(), Line(), Line()
    deliveries.put(9, hanging.send, hanging.over)
    monkeypatch.setattr(module, "DELIVER_SECONDS", 0.01)
    deliveries.put(9, waiting.send, waiting.over)
    broken = (await waiting.told()).exception()
    assert isinstance(broken, ExchangeBroken)
    assert not broken.sent
    assert len(deliveries) == 1
    hanging.answers[0].began(202, {})
    hanging.answers[0].ended(None)
    assert (await hanging.told()).result() == 202
    assert (len(deliveries), waiting.answers) == (0, [])


async def test_what_breaks_is_told() -> None:
    deliveries, line = Deliveries(), Line(broken=ExchangeBroken("cut", sent=True))
    deliveries.put(9, line.send, line.over)
    assert isinstance((await line.told()).exception(), ExchangeBroken)


async def test_all_can_be_cut() -> None:
    deliveries, line = Deliveries(), Line()
    deliveries.put(9, line.send, line.over)
    deliveries.cut()
    assert (await line.told()).cancelled()
    assert (len(deliveries), line.cuts) == (0, 1)
