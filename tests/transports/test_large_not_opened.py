"""G10: a large message whose session cannot be opened is let go of at once, without the garbage collector."""

import pytest
from harness.duplex_clients import SocketClient
from harness.endpoint_bench import call, front
from harness.keeping import nothing_kept
from harness.listening import listening
from harness.memory_wire import MemoryServer
from trunkline.mux.errors import UpstreamUnreachable

pytestmark = pytest.mark.anyio

ALICE = {"Authorization": "alice"}
LARGE = call(pad="x" * 200_000)


def opens_nothing(server: MemoryServer) -> None:
    gone = UpstreamUnreachable("gone", executed="no")
    server.answers_initialize = lambda exchange: server.session.receiver.lost(gone)


async def test_g10_a_body_whose_session_cannot_be_opened() -> None:
    async with front() as at:
        opens_nothing(at.server)
        with nothing_kept(1_000_000):
            for n in range(10):
                answer = await at.client.post(LARGE, {"Trunkline-Workflow": f"k{n}", **ALICE})
                assert (await answer.json())["error"]["code"] == -31001


async def test_g10_a_message_on_a_websocket_whose_session_cannot_be_opened() -> None:
    async with listening() as at, SocketClient(at.base(), ALICE) as client:
        opens_nothing(at.server)
        await client.connect("?workflow=k")
        with nothing_kept(1_000_000):
            for n in range(10):
                await client.send({**LARGE, "id": n})
                assert (await client.next())["error"]["code"] == -31001
