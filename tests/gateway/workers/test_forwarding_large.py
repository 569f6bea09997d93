"""A large body that another worker is to serve: what it counts, and for how long."""

import pytest
from harness.changing import until
from harness.keeping import nothing_kept
from harness.muxing import ALICE, bench
from harness.worker_house import Client, House, answer, post
from trunkline.gateway.workers import forwarding
from trunkline.gateway.workers.forwarding import Forwarder
from trunkline.mux.burden import Burden
from trunkline.mux.errors import Elsewhere
from trunkline.mux.limits import MIB
from trunkline.mux.pool import Pool
from trunkline.transports.asgi import Message, Receive, Scope, Send
from trunkline.transports.endpoint import EndpointConfig
from trunkline.transports.guard import Guard
from trunkline.transports.http_endpoint import HTTPEndpoint, HTTPRequest

pytestmark = pytest.mark.anyio

LARGE = b"x" * MIB


class AnotherOnes(HTTPEndpoint):
    """Reads what another worker is to serve."""

    def __init__(self, pool: Pool) -> None:
        super().__init__(EndpointConfig("x", pool, Guard(loopback=True), lambda headers: ALICE), {"POST": self._post})

    async def _post(self, request: HTTPRequest) -> None:
        body = await self.body(request)
        assert body == LARGE
        raise Elsewhere("b")


async def hand_on_large(house: House, pool: Pool, *more: Message) -> Client:
    """A large body comes to worker `a`, which hands it on to `b`, and then more of its client."""
    house.forwarder = Forwarder(AnotherOnes(pool), house.member, house.opened, house.statistics)
    client = post(bytes(bytearray(LARGE)))
    for message in more:
        client.does(message)
    await house.request(client, headers=[(b"host", b"127.0.0.1")])
    return client


async def test_g10_a_large_body_counts_until_the_worker_that_serves_it_begins_to_answer(house: House) -> None:
    held: list[int] = []
    burdens: list[Burden] = []

    async def serve(scope: Scope, receive: Receive, send: Send) -> None:
        assert (await receive())["body"] == LARGE
        held.append(burdens[0].held)
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await until(lambda: not burdens[0].held)
        await send({"type": "http.response.body", "body": b"done"})

    await house.begins("b", serve)
    async with bench() as at:
        at.pool.burden = Burden(per_user=len(LARGE))
        burdens.append(at.pool.burden)
        assert (await hand_on_large(house, at.pool)).body == b"done"
    assert held == [len(LARGE)]


async def test_g10_a_large_body_counts_no_longer_once_its_client_has_gone(house: House) -> None:
    async def serve(scope: Scope, receive: Receive, send: Send) -> None:
        while (await receive())["type"] != "http.disconnect":
            pass

    await house.begins("b", serve)
    async with bench() as at:
        at.pool.burden = Burden(per_user=len(LARGE))
        assert not (await hand_on_large(house, at.pool, {"type": "http.disconnect"})).sent
        assert at.pool.burden.held == 0


async def test_g10_a_large_body_counts_once_however_often_its_worker_is_looked_for(
    house: House, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(forwarding, "PATIENCE_SECONDS", 0.3)
    async with bench() as at:
        at.pool.burden = Burden(per_user=len(LARGE))
        client = await hand_on_large(house, at.pool)
        assert (client.sent[0]["status"], at.pool.burden.held) == (503, 0)
        assert b"max_large" not in client.body


async def test_g10_a_large_body_that_was_handed_on_waits_for_no_garbage_collector(house: House) -> None:
    async def serve(scope: Scope, receive: Receive, send: Send) -> None:
        await receive()
        await answer(send, b"done")

    await house.begins("b", serve)
    async with bench() as at:
        with nothing_kept(10 * len(LARGE)):
            for _ in range(30):
                assert (await hand_on_large(house, at.pool)).body == b"done"
