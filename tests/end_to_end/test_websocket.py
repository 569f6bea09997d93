"""WebSocket through the gateway process: upgrades and frames that are refused, and how it ends.

test_duplex_clients has what it carries.
"""

import itertools
import json
import signal
from contextlib import suppress
from pathlib import Path

import pytest
from harness.duplex_clients import SocketClient
from harness.gateways import Gateway, bearer
from harness.gateways import gateway as running_gateway
from harness.upstreams import Upstream
from harness.wire import Wire, text_of
from websockets.asyncio.client import connect
from websockets.exceptions import ConnectionClosed, InvalidStatus

pytestmark = pytest.mark.anyio

PING = {"jsonrpc": "2.0", "id": "p", "method": "ping"}
MIB = 1024 * 1024


async def refusal(client: SocketClient, query: str = "", headers: dict[str, str] | None = None) -> tuple[int, bytes]:
    """The status and the body of an upgrade that is refused."""
    with pytest.raises(InvalidStatus) as refused:
        await client.connect(query, headers)
    return refused.value.response.status_code, bytes(refused.value.response.body or b"")


# The upgrade, refused.


async def test_x1_a_foreign_origin_is_refused_at_the_upgrade(gateway: Gateway) -> None:
    client = SocketClient(gateway.server_url())
    assert (await refusal(client, headers={"Origin": "https://evil.example"}))[0] == 403


async def test_w3_the_subprotocol_is_required(gateway: Gateway) -> None:
    with pytest.raises(InvalidStatus) as refused:
        await connect(f"{gateway.server_url()}/ws".replace("http", "ws", 1), proxy=None)
    assert refused.value.response.status_code == 400
    assert b"Sec-WebSocket-Protocol" in (refused.value.response.body or b"")


async def test_g4_what_is_another_principals_is_unknown(upstream: Upstream, token_settings: Path) -> None:
    alice, bob = bearer("alice"), bearer("bob")
    with running_gateway(toml=token_settings) as gateway:
        async with SocketClient(gateway.server_url(), alice) as hers, SocketClient(gateway.server_url(), bob) as his:
            await hers.open("?workflow=chat")
            answers = {await refusal(his, f"?session_id={name}") for name in (hers.session_id, "unknown")}
            assert len(answers) == 1
            assert answers.pop()[0] == 404
            assert (await refusal(SocketClient(gateway.server_url())))[0] == 401
            await his.open("?workflow=chat")
            for client in (hers, his):
                await client.call("counter")
                assert text_of(await client.next()) == "1"


async def test_what_disagrees_is_refused(gateway: Gateway, key: str) -> None:
    async with SocketClient(gateway.server_url()) as keyed, SocketClient(gateway.server_url()) as other:
        await keyed.open(f"?workflow={key}")
        await other.open()
        for query, headers in (
            (f"?session_id={keyed.session_id}&workflow=other", {}),
            (f"?session_id={other.session_id}&workflow={key}", {}),
            (f"?session_id={other.session_id}", {"Mcp-Session-Id": keyed.session_id}),
        ):
            assert (await refusal(SocketClient(gateway.server_url()), query, headers))[0] == 400, (query, headers)


# Frames.


async def test_garbage_is_answered_and_the_socket_goes_on(gateway: Gateway) -> None:
    async with SocketClient(gateway.server_url()) as client:
        await client.connect()
        await client.send(b"garbage")
        assert (await client.next())["error"]["code"] == -32700
        await client.begin()
        for garbage, code in ((b"{", -32700), (b"[]", -32600), (b'"text"', -32600), (b"\xc3\xa4", -32700)):
            await client.send(garbage)
            assert (await client.next())["error"]["code"] == code
        await client.call("counter")
        assert text_of(await client.next()) == "1"


async def test_w3_frames_that_are_no_messages_close_the_socket_and_are_counted(gateway: Gateway) -> None:
    cases = (json.dumps(PING).encode(), 1003, "frame"), ("." * (4 * MIB + 1), 1009, "body")
    for frame, code, word in cases:
        before = gateway.metric("trunkline_refused_total", reason=word)
        async with SocketClient(gateway.server_url()) as client:
            await client.open()
            assert client.socket is not None
            with suppress(ConnectionClosed):  # it may be closed while the frame is under way
                await client.socket.send(frame)
            assert (await client.closed())[0] == code
        assert gateway.metric("trunkline_refused_total", reason=word) == before + 1


# Ends.


async def test_g8_a_drain_lets_the_call_end_and_closes_with_1001(upstream: Upstream, key: str) -> None:
    with running_gateway(upstreams={"up": upstream.url}) as gateway:
        async with SocketClient(gateway.server_url()) as client:
            await client.open()
            await client.call("hold", {"gate": key})
            await upstream.saw("mark:holding")
            gateway.process.send_signal(signal.SIGTERM)
            for number in itertools.count(2):
                await client.call("echo", {"value": number}, id=number)
                if "error" in (answer := await client.answer(number)):
                    break
            assert answer["error"]["code"] == -31002
            assert (await refusal(SocketClient(gateway.server_url())))[0] == 503
            upstream.open(key)
            assert text_of(await client.answer(1)) == f"{key} is open"
            assert await client.closed() == (1001, "drained")
        assert gateway.process.wait(15) == 0


async def test_a_workflow_that_is_gone_closes_with_4404_and_why(gateway: Gateway) -> None:
    async with SocketClient(gateway.server_url()) as client, Wire(gateway.url()) as wire:
        await client.open()
        assert (await wire.delete({"Mcp-Session-Id": client.session_id})).status == 200
        assert await client.closed() == (4404, "deleted")
        assert (await refusal(client, f"?session_id={client.session_id}"))[0] == 404
