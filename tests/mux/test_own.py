"""Requests of the gateway's own: nobody sees what comes of them."""

import pytest
from harness.memory_wire import echo, message
from harness.muxing import ALICE, bench, settle
from trunkline.mux.errors import SessionLost, TrunklineError
from trunkline.mux.own import OwnCaller, own_request

pytestmark = pytest.mark.anyio


async def test_a_session_answers_it_and_no_client_hears_of_it() -> None:
    async with bench() as at:
        client = await at.client(ALICE)
        ended: list[bool] = []
        [channel] = client.workflow.line.channels
        channel.request(own_request("ping", {}), OwnCaller(ended.append), {})
        ping = await at.server.got("ping")
        ping.say(message("notifications/message", {"level": "info", "data": 1}))
        ping.say(message("roots/list", id=7))
        assert (await at.server.got("response")).json["error"]["code"] == -31005
        ping.say(message("notifications/cancelled", {"requestId": 7}))
        ping.answer()
        await settle()
        assert ended == [True]
        at.server.on_request = echo
        assert len(await client.answers(client.call())) == 1


async def test_it_is_over_too_when_the_session_is_lost() -> None:
    async with bench(reuse="user") as at:
        client = await at.client(ALICE)
        ended: list[bool] = []
        [channel] = client.workflow.line.channels
        channel.request(own_request("ping", {}), OwnCaller(ended.append), {})
        await at.server.got("ping")
        await at.pool.end(client.workflow, "deleted")
        assert ended == [], "it is no workflow's own"
        cause: TrunklineError = SessionLost("gone", executed="unknown")
        at.server.session.receiver.lost(cause)
        assert ended == [False]
