"""A cancellation finds the one call that it means, at whatever worker; and none where it could mean another one."""

from contextlib import AsyncExitStack
from pathlib import Path

import anyio
import pytest
from harness.muxing import ALICE
from harness.shared_memory import SharedMemoryDirectory
from harness.worker_house import House, Serve, answer, post
from trunkline.gateway.workers import cancelling
from trunkline.gateway.workers.member import Member
from trunkline.mux.directory import Worker as Listed
from trunkline.mux.errors import Everywhere
from trunkline.mux.statistics import Statistics
from trunkline.transports.asgi import ASKED, IDENTITY, MEANT, Receive, Scope, Send

pytestmark = pytest.mark.anyio

CANCELLED = b'{"jsonrpc":"2.0","method":"notifications/cancelled","params":{"requestId":7}}'
WITH_MORE = CANCELLED[:-2] + b',"reason":"it takes too long"}}'


class Worker:
    """A worker with so many calls that a cancellation can mean; with none that it tells, it is silent."""

    def __init__(self, has: int | None) -> None:
        self.has = has
        self.heard: list[tuple[int, bytes]] = []

    async def serve(self, scope: Scope, receive: Receive, send: Send) -> None:
        assert scope[IDENTITY] == (ALICE, 12.5)
        self.heard.append((scope[MEANT], (await receive())["body"]))
        if scope[MEANT] == ASKED and self.has is None:
            await anyio.sleep_forever()
        await answer(send, b"%d" % (self.has or 0) if scope[MEANT] == ASKED else b"done")


async def cancel(house: House, here: int, *others: int | None) -> tuple[list[Worker], bytes]:
    """What each of these workers heard of one cancellation, and the answer to its client."""
    workers = [Worker(has) for has in others]
    for name, worker in zip("bcd", workers, strict=False):
        await house.begins(name, worker.serve)
    house.has = here
    client = post(WITH_MORE)
    await house.request(client, holder="")
    assert house.statistics.counts["forwards", "asked_all"] == 1
    assert all(worker.heard[0] == (ASKED, CANCELLED) for worker in workers), "nothing that makes it large"
    return workers, client.body


async def test_the_one_call_is_cancelled_where_it_is(house: House) -> None:
    (b, c), body = await cancel(house, 0, 0, 1)
    assert [len(b.heard), c.heard[1:]] == [1, [(1, WITH_MORE)]]
    assert house.meant == [ASKED]
    assert body == b"done"


async def test_the_one_call_is_cancelled_here(house: House) -> None:
    (b,), _ = await cancel(house, 1, 0)
    assert (len(b.heard), house.meant) == (1, [ASKED, 1])


@pytest.mark.parametrize(("here", "there", "meant"), [(1, 1, 2), (0, 2, 2), (2, 0, 2), (0, 0, 0)])
async def test_g1_what_could_mean_several_calls_or_none_is_counted_and_nothing_else(
    house: House, here: int, there: int, meant: int
) -> None:
    (b, c), _ = await cancel(house, here, there, 0)
    assert (len(b.heard), len(c.heard)) == (1, 1)
    assert house.meant == [ASKED, meant]


async def test_g1_a_worker_that_does_not_say_may_have_the_call(house: House, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cancelling, "TELL_SECONDS", 1.0)
    (b, c), _ = await cancel(house, 0, 1, None)
    assert (len(b.heard), len(c.heard)) == (1, 1)
    assert house.meant == [ASKED, 3]


async def answers_else(scope: Scope, receive: Receive, send: Send) -> None:
    await answer(send, b'{"error":1}')


async def dies(scope: Scope, receive: Receive, send: Send) -> None:
    raise ConnectionAbortedError("killed")


@pytest.mark.parametrize("serve", [answers_else, dies])
async def test_g1_who_answers_something_else_or_dies_over_it_may_have_the_call(house: House, serve: Serve) -> None:
    await house.begins("z", serve)
    _, _ = await cancel(house, 1)
    assert house.meant == [ASKED, 3]


async def test_a_worker_that_has_gone_has_none(house: House) -> None:
    async with AsyncExitStack() as stack:
        await house.begins("gone", Worker(1).serve, stack)
        living = await house.directory.workers()
    for worker in living:  # it is not known to be dead yet
        await house.directory.beat(worker)
    house.has = 1
    await house.request(post(WITH_MORE), holder="")
    assert house.meant == [ASKED, 1]


async def test_a_worker_of_another_host_that_has_gone_has_none(tmp_path: Path) -> None:
    directory, meant = SharedMemoryDirectory(), list[int]()

    async def serve(scope: Scope, receive: Receive, send: Send) -> None:
        await receive()
        if MEANT not in scope:
            raise Everywhere
        meant.append(scope[MEANT])
        await answer(send, b"1")

    nobody, lapsed = (lambda scope: None), (lambda since: None)
    member = Member(serve, directory, tmp_path, Statistics(), identify=nobody, on_lapse=lapsed)
    app = member.forwarder
    async with member.running():
        await directory.enroll(Listed("gone", host="another host"))
        client = post(WITH_MORE)
        await app({"type": "http", "method": "POST", "path": "/", "headers": []}, client.receive, client.send)
    assert (meant, client.body) == ([ASKED, 1], b"1")


async def test_a_cancellation_is_refused_where_nobody_knows_who_is_there(house: House) -> None:
    house.directory.is_away = True
    client = post(WITH_MORE)
    await house.request(client, holder="")
    assert client.sent[0]["status"] == 503
    assert house.statistics.counts["forwards", "refused"] == 1


@pytest.mark.parametrize("params", [b"", b',"params":{}', b',"params":{"requestId":"' + b"7" * 2000 + b'"}'])
async def test_a_cancellation_that_can_mean_none_is_asked_about_without_an_id(house: House, params: bytes) -> None:
    worker = Worker(0)
    await house.begins("b", worker.serve)
    await house.request(post(b'{"jsonrpc":"2.0","method":"notifications/cancelled"%b}' % params), holder="")
    assert worker.heard == [(ASKED, b'{"jsonrpc":"2.0","method":"notifications/cancelled","params":{}}')]
    assert house.meant == [ASKED, 0]
