"""HTTP+SSE through the gateway process: what is refused, and how it ends; test_duplex_clients has what it carries."""

import itertools
import signal
from pathlib import Path

import pytest
from harness.duplex_clients import SSEClient
from harness.gateways import Gateway, bearer
from harness.gateways import gateway as running_gateway
from harness.upstreams import Upstream
from harness.wire import text_of

pytestmark = pytest.mark.anyio

PING = {"jsonrpc": "2.0", "id": "p", "method": "ping"}


async def test_x1_a_foreign_origin_is_refused(gateway: Gateway) -> None:
    async with SSEClient(gateway.server_url()) as client:
        assert (await client.get(headers={"Origin": "https://evil.example"})).status == 403
        await client.connect()
        refused = await client.post(PING, {"Origin": "https://evil.example"})
        assert refused.status == 403


async def test_g4_what_is_another_principals_is_unknown(upstream: Upstream, token_settings: Path) -> None:
    alice, bob = bearer("alice"), bearer("bob")
    with running_gateway(toml=token_settings) as gateway:
        async with SSEClient(gateway.server_url(), alice) as hers, SSEClient(gateway.server_url(), bob) as his:
            await hers.open()
            unknown = hers.endpoint.replace(hers.session_id, "0" * len(hers.session_id))
            posts = [await his.post(PING, endpoint=endpoint) for endpoint in (hers.endpoint, unknown)]
            gets = [await his.get(f"?session_id={name}") for name in (hers.session_id, "unknown")]
            gets.append(await his.get(headers={"Last-Event-ID": hers.last_event_id}))
            assert {answer.status for answer in (*posts, *gets)} == {404}
            assert len({await answer.body() for answer in (*posts, *gets)}) == 1
            assert (await his.post(PING, {"Authorization": "Bearer wrong"}, endpoint=hers.endpoint)).status == 401
            await hers.call("counter")
            assert text_of(await hers.next()) == "1"
    assert upstream.counts()["method:tools/call"] == 1


async def test_what_disagrees_is_refused(gateway: Gateway, key: str) -> None:
    async with SSEClient(gateway.server_url()) as keyed, SSEClient(gateway.server_url()) as other:
        await keyed.open(f"?workflow={key}")
        await other.open()
        for query, headers in (
            (f"?session_id={keyed.session_id}&workflow=other", {}),
            (f"?session_id={other.session_id}&workflow={key}", {}),
            (f"?session_id={other.session_id}", {"Last-Event-ID": keyed.last_event_id}),
            (f"?session_id={other.session_id}", {"Mcp-Session-Id": keyed.session_id}),
            (f"?workflow={key}", {"Last-Event-ID": other.last_event_id}),
        ):
            assert (await other.get(query, headers)).status == 400, (query, headers)


async def test_g8_a_drain_lets_the_call_end_and_asks_the_client_to_come_back(upstream: Upstream, key: str) -> None:
    with running_gateway(upstreams={"up": upstream.url}) as gateway:
        async with SSEClient(gateway.server_url()) as client:
            await client.open()
            await client.call("hold", {"gate": key})
            await upstream.saw("mark:holding")
            gateway.process.send_signal(signal.SIGTERM)
            # Its own answer to what comes later tells that it drains.
            for number in itertools.count(2):
                await client.call("echo", {"value": number}, id=number)
                if "error" in (answer := await client.answer(number)):
                    break
            assert answer["error"]["code"] == -31002
            async with SSEClient(gateway.server_url()) as later:
                stream = await later.get(headers={"Last-Event-ID": client.last_event_id})
                assert stream.status == 200
                event = await stream.next_event()
                assert event is not None
                assert (event.data, event.retry) == ("", 1000)
                assert await stream.next_event() is None
            upstream.open(key)
            assert text_of(await client.answer(1)) == f"{key} is open"
            assert client.stream is not None
            last = await client.stream.next_event()
            assert last is not None
            assert last.retry == 1000
            assert await client.stream.next_event() is None
        assert gateway.process.wait(15) == 0


async def test_the_stream_of_a_workflow_that_is_gone_ends(gateway: Gateway) -> None:
    async with SSEClient(gateway.server_url()) as client:
        await client.open()
        ended = await client._wire.request("DELETE", path="/mcp", headers={"Mcp-Session-Id": client.session_id})
        assert ended.status == 200
        await client.over()
        assert (await client.get(headers={"Last-Event-ID": client.last_event_id})).status == 404
        assert (await client.post(PING)).status == 404
