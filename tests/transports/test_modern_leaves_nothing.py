"""G10: a request of 2026-07-28 that is over leaves nothing behind which only the garbage collector would free."""

import gc

import pytest
from harness.endpoint_bench import front
from harness.gateways import until
from harness.modern_bench import request
from harness.upstream_scripted import Cut, Pause, Play, Reply, ScriptedUpstream
from trunkline.mux.envelope import Envelope
from trunkline.mux.modern import CAPABILITIES_KEY, VERSION_KEY
from trunkline.mux.routing import MODERN
from trunkline.mux.statistics import Statistics
from trunkline.transports import modern
from trunkline.transports.modern import ModernRequests
from trunkline.transports.upstream.modern_http import ModernHTTPServer
from trunkline.transports.upstream.streamable_http import StreamableHTTPConnector

pytestmark = pytest.mark.anyio

BODY = request("tools/call", {"name": "t", "_meta": {VERSION_KEY: MODERN, CAPABILITIES_KEY: {}}}, b"1")
HEADERS = {"mcp-protocol-version": MODERN, "mcp-method": "tools/call", "mcp-name": "t"}
SPOKEN: Play = [Reply({"supportedVersions": [MODERN], "capabilities": {}, "resultType": "complete"})]
SLOW: Play = [Pause("slow"), Reply({"resultType": "complete", "content": []})]


def messages() -> int:
    return sum(isinstance(one, Envelope) for one in gc.get_objects())


@pytest.mark.parametrize("is_there", [True, False])
async def test_g10_what_was_asked_goes_with_its_answer(is_there: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(modern, "WATCH_SECONDS", 0.0)
    plays = {"server/discover": [SPOKEN if is_there else [Cut()]], "tools/call": [SLOW]}
    async with ScriptedUpstream(plays) as upstream:
        statistics = Statistics()
        connector = StreamableHTTPConnector("x", upstream.url, statistics)
        server = ModernHTTPServer("x", connector.http, connector.headers, statistics, timeout=10)
        requests = ModernRequests("x", server, statistics, max_inflight=64)
        async with front(options={"modern": requests}) as ahead:
            gc.collect()
            gc.disable()
            try:
                before = messages()
                answer = ahead.client.start("POST", BODY, {"content-type": "application/json", **HEADERS})
                if is_there:
                    await upstream.reached("slow")
                    upstream.open("slow")
                await answer.over()
                assert (b"result" in await answer.body()) == is_there
                del answer
                await until(lambda: messages() == before)
            finally:
                gc.enable()
        await requests.close()
