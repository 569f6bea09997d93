"""The loss of a session is told once, with what surely did not run, when that is known of all or the wait is over."""

import asyncio

import pytest
from contract.session import Nobody
from trunkline.mux.errors import SessionLost
from trunkline.mux.request import Request
from trunkline.transports.upstream import loss as module
from trunkline.transports.upstream.loss import Loss

pytestmark = pytest.mark.anyio

PATIENCE = 10.0
NEVER = 1000.0
CAUSE = SessionLost("forgotten", executed="unknown")


def request(number: int) -> Request:
    return Request(number, b"1", b"", Nobody(), 0.0, 60.0)


async def turns() -> None:
    """Let the loop do what is due at once."""
    for _ in range(3):
        await asyncio.sleep(0)


class Told:
    """Waits for the news."""

    def __init__(self) -> None:
        self.news: list[tuple[SessionLost, list[Request]]] = []
        self._come = asyncio.Event()

    def __call__(self, cause: SessionLost, refused: list[Request]) -> None:
        self.news.append((cause, refused))
        self._come.set()

    async def once(self) -> tuple[SessionLost, list[Request]]:
        """What was told, once it was."""
        async with asyncio.timeout(PATIENCE):
            await self._come.wait()
        (news,) = self.news
        return news


def lost(*unanswered: Request, refused: Request | None = None, at_once: bool = False) -> tuple[Loss, Told]:
    """A session that is lost while these requests are not answered."""
    loss, told = Loss(), Told()
    loss.unanswered.update(dict.fromkeys(unanswered))
    loss.come(CAUSE, told, refused, at_once=at_once)
    assert not told.news, "never from within what found it out"
    return loss, told


@pytest.fixture(autouse=True)
def endless_wait(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "LOST_SECONDS", NEVER)


async def test_where_nothing_else_is_unanswered_it_is_told_soon() -> None:
    one = request(1)
    _, told = lost(refused=one)
    assert await told.once() == (CAUSE, [one])


async def test_it_waits_for_what_becomes_of_the_others() -> None:
    first, second, third = request(1), request(2), request(3)
    loss, told = lost(second, third, refused=first)
    loss.come(SessionLost("another cause", executed="unknown"), told, second)
    loss.settle(second)
    await turns()
    assert not told.news
    loss.settle(third)
    assert await told.once() == (CAUSE, [first, second])


async def test_it_is_told_once_though_the_wait_would_be_over_later(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "LOST_SECONDS", 0.01)
    one, two = request(1), request(2)
    loss, told = lost(two, refused=one)
    loss.settle(two)
    assert await told.once() == (CAUSE, [one])
    later = asyncio.Event()
    asyncio.get_running_loop().call_later(2 * module.LOST_SECONDS, later.set)
    await later.wait()
    assert await told.once() == (CAUSE, [one])


async def test_it_does_not_wait_for_ever(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "LOST_SECONDS", 0.01)
    one = request(1)
    _, told = lost(request(2), refused=one)
    assert await told.once() == (CAUSE, [one])


@pytest.mark.parametrize("is_known", [False, True])
async def test_what_cannot_be_refused_any_more_is_not_waited_for(*, is_known: bool) -> None:
    one = request(1)
    loss, told = lost(request(2), refused=one, at_once=not is_known)
    if is_known:
        loss.come(CAUSE, told, at_once=True)
    assert await told.once() == (CAUSE, [one])
    loss.come(CAUSE, told, at_once=True)
    await turns()
    assert await told.once() == (CAUSE, [one])


async def test_what_is_done_is_not_among_what_did_not_run() -> None:
    one = request(1)
    _, told = lost(refused=one)
    one.state = "done"
    assert await told.once() == (CAUSE, [])


async def test_what_is_closed_tells_nothing() -> None:
    loss, told = lost()
    loss.close()
    loss.close()
    loss.come(CAUSE, told, at_once=True)
    after, soon = Loss(), Told()
    after.close()
    after.come(CAUSE, soon)
    await turns()
    assert not told.news
    assert not soon.news


async def test_it_is_blank_until_something_may_be_lost() -> None:
    loss, one = Loss(), request(1)
    assert loss.is_blank
    loss.unanswered[one] = None
    assert not loss.is_blank
    loss.settle(one)
    assert loss.is_blank
    loss.come(CAUSE, Told())
    assert not loss.is_blank
    loss.close()
