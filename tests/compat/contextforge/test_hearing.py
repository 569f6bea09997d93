"""What servers say, on its way to ContextForge: one after the other, and within bounds."""

import asyncio
import logging
from collections.abc import Callable

import anyio
import pytest
from trunkline.compat.contextforge import hearing as module
from trunkline.compat.contextforge.hearing import Hearing
from trunkline.compat.contextforge.reuse import Told

pytestmark = [pytest.mark.anyio, pytest.mark.timeout(30)]


class Handler:
    """Takes messages while it `goes_on`, and fails at those that say so."""

    def __init__(self) -> None:
        self.goes_on = asyncio.Event()
        self.begun: list[bytes] = []
        self.done: list[bytes] = []
        self._changed = asyncio.Event()
        self.hearing = Hearing(self._handle)

    def hear(self, message: bytes, session: str = "a") -> None:
        self.hearing.hear(Told("gateway1", "http://up/mcp", session, message))

    async def until(self, is_so: Callable[[], bool]) -> None:
        while not is_so():
            self._changed.clear()
            await self._changed.wait()

    async def _handle(self, told: Told) -> None:
        self.begun.append(told.message)
        self._changed.set()
        if told.session == "a":
            await self.goes_on.wait()
        if told.message == b"fail":
            raise RuntimeError("a failure")
        if told.message == b"cancel":
            raise asyncio.CancelledError
        self.done.append(told.message)
        self._changed.set()


async def test_messages_of_one_session_are_handed_on_one_after_the_other() -> None:
    handler = Handler()
    for n in range(5):
        handler.hear(b"%d" % n)
    handler.hear(b"another's", session="b")
    await handler.until(lambda: handler.done == [b"another's"])
    assert handler.begun == [b"0", b"another's"]
    handler.goes_on.set()
    await handler.until(lambda: len(handler.done) == 6)
    assert handler.done[1:] == [b"0", b"1", b"2", b"3", b"4"]
    handler.hear(b"later")
    await handler.until(lambda: handler.done[-1] == b"later")


@pytest.mark.parametrize(("name", "size"), [("MAX_WAITING", 1), ("MAX_WAITING_BYTES", 100)])
async def test_g10_a_server_that_says_more_than_is_taken_has_no_more_of_it_kept(
    name: str, size: int, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(module, name, 3 * size)
    handler = Handler()
    handler.hear(b"x" * 10 * size)
    await handler.until(lambda: len(handler.begun) == 1)
    for _ in range(1000):
        handler.hear(b"y" * size)
    [told] = caplog.records  # also of one that goes on for ever
    assert "gateway1" in told.getMessage()
    handler.goes_on.set()
    await handler.until(lambda: any("997" in record.getMessage() for record in caplog.records))
    assert handler.done == [b"x" * 10 * size, *3 * [b"y" * size]]
    handler.hear(b"z")
    await handler.until(lambda: handler.done[-1] == b"z")


async def test_where_handing_on_is_cancelled_later_messages_are_heard() -> None:
    handler = Handler()
    handler.goes_on.set()
    handler.hear(b"cancel")
    await handler.until(lambda: handler.begun == [b"cancel"])
    await anyio.wait_all_tasks_blocked()
    handler.hear(b"later")
    await handler.until(lambda: handler.done == [b"later"])


async def test_a_message_that_cannot_be_taken_holds_up_no_other(caplog: pytest.LogCaptureFixture) -> None:
    handler = Handler()
    handler.goes_on.set()
    handler.hear(b"fail")
    handler.hear(b"next")
    await handler.until(lambda: handler.done == [b"next"])
    assert [record.levelno for record in caplog.records] == [logging.ERROR]
