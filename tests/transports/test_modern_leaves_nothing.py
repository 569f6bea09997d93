"""G10: a request of 2026-07-28 that is over leaves nothing behind which only the garbage collector would free."""

import gc

import pytest
from contract.session import told
from harness.endpoint_bench import front
from harness.gateways import until
from harness.modern_bench import request
from harness.upstream_scripted import (
    Cut,
    Hang,
    Json,
    OpenStream,
    Pause,
    Play,
    Raw,
    Reply,
    ScriptedUpstream,
    Send,
    Status,
)
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
FAILING: dict[str, Play] = {
    "cut": [Cut()],
    "a stream that is cut": [OpenStream(), Send(told(1)), Pause("slow"), Cut()],
    "a refusal": [Status(503)],
    "what is no message": [Json("{")],
    "an event that is no message": [OpenStream(), Raw(b"data: {\n\n"), Hang()],
    "an event that is too large": [OpenStream(), Raw(b"data: "), *[Raw(b"x" * (1 << 20))] * 17, Hang()],
}
"""Answers without a response."""


def messages() -> int:
    return sum(isinstance(one, Envelope) for one in gc.get_objects())


@pytest.fixture(params=[False, True], ids=["in a task", "at once"])
def at_once(request: pytest.FixtureRequest) -> bool:
    """Whether it is answered by callbacks."""
    return bool(request.param)


async def is_answered(discover: Play, call: Play, *, has_result: bool, at_once: bool) -> None:
    """The answer has a result or not, and nothing is left of the request."""
    async with ScriptedUpstream({"server/discover": [discover], "tools/call": [call]}) as upstream:
        statistics = Statistics()
        connector = StreamableHTTPConnector("x", upstream.url, statistics)
        server = ModernHTTPServer("x", connector.http, connector.headers, statistics, timeout=10)
        requests = ModernRequests("x", server, statistics, max_inflight=64)
        async with front(options={"modern": requests}, offers_whole=at_once) as ahead:
            if at_once:
                await server.revisions()
            gc.collect()
            gc.disable()
            try:
                before = messages()
                answer = ahead.client.start("POST", BODY, {"content-type": "application/json", **HEADERS})
                if Pause("slow") in call and discover is SPOKEN:
                    await upstream.reached("slow")
                    upstream.open("slow")
                await answer.over()
                assert (b'"result"' in await answer.body()) == has_result
                del answer
                await until(lambda: messages() == before)
            finally:
                gc.enable()
        await connector.close()


@pytest.mark.parametrize("is_there", [True, False])
async def test_g10_what_was_asked_goes_with_its_answer(is_there: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(modern, "WATCH_SECONDS", 0.0)
    await is_answered(SPOKEN if is_there else [Cut()], SLOW, has_result=is_there, at_once=False)


async def test_g10_what_was_asked_goes_with_an_answer_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(modern, "WATCH_SECONDS", 0.0)
    await is_answered(SPOKEN, SLOW, has_result=True, at_once=True)


@pytest.mark.parametrize("name", FAILING)
async def test_g10_what_was_asked_goes_with_its_failure(name: str, at_once: bool) -> None:
    await is_answered(SPOKEN, FAILING[name], has_result=False, at_once=at_once)
