"""How an upstream session is begun: what is said, what is agreed on, and that it takes no longer than it may."""

import asyncio
import json

import pytest
from harness.memory_wire import Stage
from harness.muxing import begin, bench, initialize, members
from trunkline.mux import initialization
from trunkline.mux.errors import UpstreamUnreachable

pytestmark = pytest.mark.anyio


async def test_the_handshake_says_what_the_client_said_and_is_done_once() -> None:
    async with bench() as at:
        said = initialize(capabilities={"roots": {"listChanged": True}}, vendor={"n": 10**29})
        begun = await begin(at.pool, message=said, session_headers={"X-Tenant": "1"})
        first, second = at.server.session.exchanges
        assert members(first.text)["params"] == members(said.encode())["params"]
        assert first.headers == {"x-tenant": "1"}
        assert second.json == {"jsonrpc": "2.0", "method": "notifications/initialized"}
        assert at.server.session.revision == "2025-11-25"
        assert json.loads(begun.result) == at.server.result


async def test_a_client_gets_the_revision_that_the_server_chose() -> None:
    async with bench(revision="2025-03-26") as at:
        begun = await begin(at.pool, message=initialize("2025-11-25"))
        assert at.server.session.revision == begun.workflow.revision == "2025-03-26"


@pytest.mark.parametrize("stage", ["connect", "initialize", "establish"])
async def test_g9_an_open_that_takes_too_long_fails(stage: Stage, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(initialization, "OPEN_SECONDS", 0.02)
    async with bench() as at:
        at.server.pause(stage)
        with pytest.raises(UpstreamUnreachable) as told:
            await begin(at.pool)
        assert told.value.data == {"executed": "no"}
        at.server.let(stage)
        await at.closed()


async def test_e12_a_handshake_has_its_own_time_and_is_not_cancelled_as_a_call_is() -> None:
    async with bench(request_timeout=5) as at:
        at.server.pause("initialize")
        beginning = asyncio.create_task(begin(at.pool))
        await at.server.reached("initialize")
        at.clock.advance(20)
        await at.swept()
        at.server.let("initialize")
        assert (await beginning).workflow.opened.done()
        assert not at.server.of("notifications/cancelled")
