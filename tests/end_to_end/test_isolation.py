"""G4: whatever principals, servers, headers and interleavings there are, no session serves two principals."""

from typing import Any

import anyio
import pytest
from harness.memory_wire import MemoryServer, echo
from harness.muxing import PATIENCE, Client, begin, initialize
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from trunkline.compat.per_request import PerRequestLine
from trunkline.mux.account import ChannelKey
from trunkline.mux.directory.memory import MemoryDirectory
from trunkline.mux.limits import Pooling
from trunkline.mux.pool import Pool
from trunkline.mux.principal import Principal
from trunkline.mux.upstream import Upstream

PRINCIPALS = [
    Principal("issuer", "acme", "alice"),
    Principal("issuer", "acme", "bob"),
    Principal("issuer", "other", "alice"),
    Principal("elsewhere", "acme", "alice"),
]
"""Each differs from another in one part alone."""

step = st.fixed_dictionaries(
    {
        "principal": st.sampled_from(PRINCIPALS),
        "server": st.sampled_from(["none", "workflow", "user"]),
        "key": st.sampled_from([None, "chat", "other"]),
        "capabilities": st.sampled_from([{}, {"sampling": {}}, {"experimental": {"x": {}}}]),
        "headers": st.sampled_from([{}, {"x-tenant": "a"}]),
        "calls": st.integers(1, 3),
        "ends": st.booleans(),
    }
)


async def play(steps: list[dict[str, Any]]) -> dict[str, MemoryServer]:
    """All steps at once, each a client of its own; every call says whose it is."""
    servers = {name: MemoryServer() for name in ("none", "workflow", "user")}
    for server in servers.values():
        server.on_request = echo
    upstreams = {
        "none": Upstream("none", servers["none"], Pooling(reuse="none"), make_line=PerRequestLine),
        "workflow": Upstream("workflow", servers["workflow"], Pooling(reuse="workflow")),
        "user": Upstream("user", servers["user"], Pooling(reuse="user", max_inflight_per_channel=2)),
    }

    async def one(pool: Pool, todo: dict[str, Any]) -> None:
        principal = todo["principal"]
        begun = await begin(
            pool,
            principal,
            todo["server"],
            message=initialize(capabilities=todo["capabilities"]),
            key=todo["key"],
            session_headers=todo["headers"],
        )
        client = Client(begun.workflow)
        mine = {"whose": "/".join((principal.issuer, principal.tenant, principal.subject))}
        for _ in range(todo["calls"]):
            answer = await client.answer(client.call({"arguments": mine}))
            if "result" in answer:  # another step may have ended or begun anew what the key names
                assert answer["result"]["structuredContent"] == mine
        if todo["ends"]:
            await pool.end(begun.workflow, "deleted")

    async def guarded(pool: Pool, todo: dict[str, Any]) -> None:
        try:
            await one(pool, todo)
        except AssertionError:
            raise
        except Exception as error:
            if type(error).__name__ not in ("InvalidParams", "WorkflowEnded", "Overloaded", "SessionLost"):
                raise

    pool = Pool(upstreams, MemoryDirectory(), pooling=Pooling())
    async with servers["none"].running(), servers["workflow"].running(), servers["user"].running(), pool.running():
        with anyio.fail_after(PATIENCE):
            async with anyio.create_task_group() as tasks:
                for todo in steps:
                    tasks.start_soon(guarded, pool, todo)
    return servers


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.lists(step, min_size=2, max_size=16))
def test_g4_no_upstream_session_ever_saw_two_principals(steps: list[dict[str, Any]]) -> None:
    servers = anyio.run(play, steps)
    for name, server in servers.items():
        for session in server.sessions:
            calls = session.of("tools/call")
            assert len({call.json["params"]["arguments"]["whose"] for call in calls}) <= 1
            assert name != "none" or len(calls) <= 1


def test_the_property_can_fail(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where the principal is taken out of what a session is known by, the property does not hold."""

    def blind(server: str, principal: Principal, *rest: Any) -> ChannelKey:
        return ChannelKey(server, PRINCIPALS[0], *rest)

    monkeypatch.setattr("trunkline.mux.lines.ChannelKey", blind)
    base = {"server": "user", "key": None, "capabilities": {}, "headers": {}, "calls": 1, "ends": False}
    servers = anyio.run(play, [{**base, "principal": principal} for principal in PRINCIPALS])
    seen = [
        {call.json["params"]["arguments"]["whose"] for call in s.of("tools/call")} for s in servers["user"].sessions
    ]
    assert max(map(len, seen)) > 1
