"""Lines are built by the reuse of each server; what is shared is bounded, and ends with those that share it."""

from dataclasses import replace
from typing import Any

import pytest
from harness.memory_wire import MemoryServer, echo
from harness.muxing import ALICE, BOB, Client, begin, bench, initialize
from trunkline.mux.account import ChannelKey
from trunkline.mux.directory.memory import MemoryDirectory
from trunkline.mux.group import ChannelGroup
from trunkline.mux.limits import Pooling
from trunkline.mux.lines import shared_name
from trunkline.mux.pool import Pool
from trunkline.mux.principal import Principal
from trunkline.mux.upstream import Upstream

pytestmark = pytest.mark.anyio


async def test_what_a_user_shares_is_looked_after_at_the_same_cost_however_many_others_there_are(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    looked_at = 0

    def sessions(group: ChannelGroup) -> int:
        nonlocal looked_at
        looked_at += 1
        return len(group.lines())

    monkeypatch.setattr(ChannelGroup, "sessions", property(sessions))
    async with bench(reuse="user") as at:
        for n in range(50):
            await at.client(Principal("issuer", "acme", str(n)))
        looked_at = 0
        at.pool._lines.expire(at.clock())
        assert looked_at <= 50


async def test_g4_sessions_under_two_credentials_are_never_shared() -> None:
    server = MemoryServer()
    one = Upstream("x", server, Pooling(reuse="user"), credential="one")
    async with server.running(), Pool({"x": one}, MemoryDirectory(), pooling=Pooling()).running() as pool:
        await begin(pool, ALICE)
        pool.reconfigure({"x": replace(one, credential="two")}, Pooling())
        await begin(pool, ALICE)
        assert len(server.sessions) == 2


@pytest.mark.parametrize(
    "other",
    [
        {"server": "y"},
        {"principal": BOB},
        {"session_headers": (("x-tenant", "a"),)},
        {"revision": "2025-03-26"},
        {"capabilities": b'{"experimental":{}}'},
        {"credential": "two"},
    ],
    ids=lambda other: next(iter(other)),
)
def test_e4_sessions_of_two_keys_draw_their_ids_under_two_names(other: dict[str, Any]) -> None:
    key = ChannelKey("x", ALICE, (), "2025-06-18", b"{}", credential="one")
    assert shared_name(key._replace(**other)) != shared_name(key)
    assert shared_name(key._replace(generation=7)) == shared_name(key), "each worker counts its own"


async def test_g10_what_is_known_of_the_tools_of_shared_sessions_ends_with_them() -> None:
    server = MemoryServer()
    server.on_request = echo
    upstream = Upstream("x", server, Pooling(reuse="user", max_channels_per_user=1), trust_annotations=True)
    async with server.running(), Pool({"x": upstream}, MemoryDirectory(), pooling=Pooling()).running() as pool:
        for n in range(3):
            message = initialize(capabilities={"experimental": {str(n): {}}})
            client = Client((await begin(pool, ALICE, message=message)).workflow)
            await client.answer(client.call(method="tools/list"))
            await pool.end(client.workflow, "deleted")
        assert len(pool._lines._annotations._scopes) == 1
