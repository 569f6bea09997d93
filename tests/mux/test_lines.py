"""Lines are built by the reuse of each server, side by side in one pool."""

import pytest
from harness.memory_wire import MemoryServer, echo
from harness.muxing import ALICE, Client, begin, bench
from trunkline.compat.per_request import PerRequestLine
from trunkline.mux.breaker import MAX_FAILURES
from trunkline.mux.directory.memory import MemoryDirectory
from trunkline.mux.limits import Pooling
from trunkline.mux.lines import Upstream
from trunkline.mux.pool import Pool

pytestmark = pytest.mark.anyio


async def test_each_server_has_its_own_reuse() -> None:
    servers = {name: MemoryServer() for name in ("none", "workflow", "user")}
    for server in servers.values():
        server.on_request = echo
    upstreams = {
        "none": Upstream("none", servers["none"], Pooling(reuse="none"), make_line=PerRequestLine),
        "workflow": Upstream("workflow", servers["workflow"], Pooling(reuse="workflow")),
        "user": Upstream("user", servers["user"], Pooling(reuse="user")),
    }
    async with servers["none"].running(), servers["workflow"].running(), servers["user"].running():
        async with Pool(upstreams, MemoryDirectory(), pooling=Pooling()).running() as pool:
            for name in upstreams:
                for _ in range(2):
                    client = Client((await begin(pool, ALICE, name)).workflow)
                    for _ in range(2):
                        assert "result" in await client.answer(client.call())
            opened = {name: len(server.sessions) for name, server in servers.items()}
            assert opened == {"none": 6, "workflow": 2, "user": 1}
            assert {server for server, _ in pool.channels} >= {"workflow", "user"}
        assert pool.channels == []


@pytest.mark.parametrize("reuse", ["user", "workflow"])
async def test_a_call_that_a_lost_session_refused_opens_none_past_the_circuit(reuse: str) -> None:
    async with bench(reuse=reuse, stateless=True) as at:
        at.server.on_request = echo
        client = await at.client(ALICE)
        for _ in range(MAX_FAILURES - 1):
            at.server.session.forget()
            assert "result" in await client.answer(client.call())
        at.server.session.forget()
        refused = await client.answer(client.call())
        assert refused["error"]["code"] == -31001
        assert refused["error"]["data"]["executed"] == "no"
        assert refused["error"]["data"]["retry_after"] > 0
        assert len(at.server.sessions) == MAX_FAILURES
        at.clock.advance(1)
        assert "result" in await client.answer(client.call())
        assert [circuit.state for circuit in at.pool.circuits] == ["closed"]
