"""What becomes of the channels of a pool: what each server's circuit lets through, and what failed last."""

import asyncio
from typing import Any

import pytest
from harness.memory_wire import Exchange, MemoryServer, echo
from harness.muxing import ALICE, BOB, CAROL, Bench, begin, bench, initialize
from trunkline.compat.per_request import PerRequestLine
from trunkline.mux.breaker import MAX_FAILURES
from trunkline.mux.directory.memory import MemoryDirectory
from trunkline.mux.errors import (
    CircuitOpen,
    SessionLost,
    TrunklineError,
    UpstreamFault,
    UpstreamRefused,
    UpstreamUnreachable,
)
from trunkline.mux.limits import Pooling
from trunkline.mux.pool import Pool
from trunkline.mux.upstream import Upstream

pytestmark = pytest.mark.anyio

DOWN = UpstreamUnreachable("connection refused", executed="no")


@pytest.mark.parametrize("reuse", ["user", "workflow"])
async def test_a_call_that_a_lost_session_refused_opens_none_past_the_circuit(reuse: str) -> None:
    async with bench(reuse=reuse, stateless=True, on_request=echo) as at:
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


async def refused(at: Bench, **options: Any) -> TrunklineError:
    """Why no session could be had."""
    try:
        await at.client(ALICE, **options)
    except TrunklineError as error:
        return error
    raise AssertionError("a session was opened")


@pytest.mark.parametrize("how", ["lost", "cut"])
async def test_g6_a_session_that_ends_before_it_is_open_has_run_no_call(how: str) -> None:
    def end(exchange: Exchange) -> None:
        if how == "lost":
            exchange.session.receiver.lost(SessionLost("the server exited", executed="unknown"))
        else:
            exchange.cut()

    async with bench() as at:
        at.server.answers_initialize = end
        error = await refused(at)
        assert isinstance(error, SessionLost)
        assert error.data["executed"] == "no"


async def test_a_server_that_is_away_is_not_tried_again_by_everybody_and_comes_back_by_a_probe() -> None:
    async with bench() as at:
        at.server.unreachable = DOWN
        for _ in range(3):
            assert not isinstance(await refused(at), CircuitOpen)
        error = await refused(at)
        assert isinstance(error, CircuitOpen)
        assert error.data["executed"] == "no"
        assert 0 < error.data["retry_after"] <= 0.5  # type: ignore[operator]
        assert at.counts["refused", "circuit_open"] == 1
        assert at.server._at["connect"] == 3
        assert at.pool.failures["x"].stage == "connect"
        assert at.pool.failures["x"].message == "connection refused", "what is held back is no failure of the server"
        await at.client(ALICE, server="y")
        await at.ended("not_opened", 4)

        at.clock.advance(0.6)
        at.server.unreachable = None
        at.server.pause("initialize")
        probe = asyncio.create_task(at.client(ALICE))
        await at.server.reached("initialize")
        assert [circuit.state for circuit in at.pool.circuits] == ["half_open"]
        assert isinstance(await refused(at), CircuitOpen)
        at.server.let("initialize")
        await probe
        await at.client(ALICE)
        assert at.pool.failures == {}


async def test_a_tenant_does_not_close_the_way_for_another() -> None:
    async with bench() as at:
        at.server.unreachable = DOWN
        for _ in range(4):
            await refused(at)
        at.server.unreachable = None
        await at.client(CAROL)
        with pytest.raises(CircuitOpen):
            await at.client(BOB)


async def test_a_server_that_refuses_or_whose_client_leaves_is_not_away() -> None:
    async with bench() as at:
        at.server.answers_initialize = lambda exchange: exchange.refuse()
        for _ in range(5):
            assert isinstance(await refused(at), UpstreamRefused)
        at.server.answers_initialize = lambda exchange: exchange.answer(at.server.result)
        at.server.pause("connect")
        for n in range(5):
            beginning = asyncio.create_task(at.client(ALICE, key=str(n)))
            await at.server.reached("connect", 6 + n)
            await at.pool.end(at.pool.workflows[0], "deleted")
            with pytest.raises(TrunklineError):
                await beginning
        at.server.let("connect")
        await at.client(ALICE)
        assert at.pool.circuits == []


async def test_g9_who_asks_for_a_revision_that_there_is_not_holds_nobody_back_from_a_server_that_agrees() -> None:
    def agree(exchange: Exchange) -> None:
        asked = exchange.json["params"]["protocolVersion"]
        exchange.answer({**at.server.result, "protocolVersion": asked})

    async with bench() as at:
        at.server.answers_initialize = agree
        for _ in range(5):
            assert isinstance(await refused(at, message=initialize("1.0")), UpstreamFault)
        assert at.pool.failures["x"].stage == "handshake"
        await at.client(BOB)
        assert at.pool.circuits == []


async def test_g9_who_has_too_many_sessions_there_holds_nobody_of_its_tenant_back_from_a_server() -> None:
    async with bench() as at:
        at.server.unreachable = UpstreamUnreachable("the server answered HTTP 429", status=429, executed="no")
        for _ in range(5):
            assert (await refused(at)).data["status"] == 429
        at.server.unreachable = None
        await at.client(BOB)
        assert at.pool.circuits == []


async def test_a_probe_that_is_given_up_lets_the_next_one_try() -> None:
    async with bench() as at:
        at.server.unreachable = DOWN
        for _ in range(3):
            await refused(at)
        at.server.unreachable = None
        at.clock.advance(1)
        at.server.pause("connect")
        beginning = asyncio.create_task(at.client(ALICE, key="k"))
        await at.server.reached("connect", 4)
        [probing] = [workflow for workflow in at.pool.workflows if workflow.record.key]
        await at.pool.end(probing, "deleted")
        with pytest.raises(TrunklineError):
            await beginning
        at.server.let("connect")
        await at.client(ALICE)


async def test_g9_a_flapping_server_costs_its_calls_an_answer_and_is_left_alone() -> None:
    async with bench(stateless=True, on_request=echo) as at:
        client = await at.client(ALICE)
        for _ in range(3):
            at.server.session.receiver.lost(SessionLost("it died", executed="unknown"))
            at.clock.advance(0.2)
            exchange = client.call()
            answer = await client.answer(exchange)
            assert "result" in answer or answer["error"]["code"] == -31001
        assert at.counts["refused", "circuit_open"] == 1
        assert len(at.server.sessions) == 3
        assert not client.workflow.ended
        at.clock.advance(1)
        assert "result" in await client.answer(client.call())


async def test_the_old_path_is_not_held_back() -> None:
    server = MemoryServer()
    server.unreachable = DOWN
    upstream = Upstream("x", server, Pooling(reuse="none"), make_line=PerRequestLine)
    async with server.running(), Pool({"x": upstream}, MemoryDirectory(), pooling=Pooling()).running() as pool:
        for _ in range(5):
            with pytest.raises(UpstreamUnreachable) as error:
                await begin(pool, ALICE)
            assert not isinstance(error.value, CircuitOpen)
        assert pool.circuits == []
        assert pool.failures["x"].stage == "connect"


async def test_a_session_that_is_lost_is_a_failure_of_its_own_stage_until_one_is_opened() -> None:
    async with bench() as at:
        await at.client(ALICE)
        at.server.session.receiver.lost(SessionLost("the server is gone", executed="unknown"))
        await at.ended("upstream_lost")
        assert at.pool.failures["x"][:2] == ("session", "the server is gone")
        await at.client(ALICE)
        assert at.pool.failures == {}
