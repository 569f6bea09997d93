"""What a server's settings say of the workflows on it holds for that server alone, side by side in one pool."""

import pytest
from harness.memory_wire import MemoryServer, echo
from harness.muxing import ALICE, Client, begin
from trunkline.compat.per_request import PerRequestLine
from trunkline.mux.directory.memory import MemoryDirectory
from trunkline.mux.limits import Pooling
from trunkline.mux.pool import Pool
from trunkline.mux.upstream import Upstream

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
