"""Sessions that wait for their client, and servers that are held back: a gateway as it is run."""

from collections.abc import Callable
from pathlib import Path

import pytest
from harness.gateways import Gateway, bearer, token_settings, until
from harness.gateways import gateway as running_gateway
from harness.ports import free_port
from harness.upstreams import Upstream
from harness.upstreams import upstream as running_upstream
from harness.wire import Wire, text_of

pytestmark = pytest.mark.anyio

CIRCUIT_OPEN = 'trunkline_refused_total{reason="circuit_open"}'


async def began(gateway: Gateway, headers: dict[str, str]) -> tuple[str, str]:
    """What the pool did for a new client, and what its first call of the counter said."""
    async with Wire(gateway.url(), headers) as wire:
        pool = (await wire.open()).headers["Trunkline-Pool"]
        return pool, text_of(await (await wire.call("counter")).response())


async def test_a_session_waits_for_the_next_client_of_a_kind_and_was_never_used(
    upstream: Upstream, settings_file: Callable[[str], Path]
) -> None:
    text = token_settings(up=upstream.url) + "\n[pooling]\nspares = 1\n"
    with running_gateway(toml=settings_file(text)) as gateway:
        alice = bearer("alice")
        assert await began(gateway, alice) == ("miss", "1")
        for n in range(1, 4):
            await until(lambda n=n: gateway.metric("trunkline_channels", server="up") == n + 1)
            await until(lambda: not gateway.metric("trunkline_channels", server="up", state="opening"))
            assert await began(gateway, alice) == ("spare", "1"), "nobody has counted on it before"
        assert await began(gateway, bearer("bob")) == ("miss", "1")
        assert gateway.metric("trunkline_pool_requests_total", server="up", result="spare") == 3
        await until(lambda: gateway.metric("trunkline_channels", server="up") == 7)
        opened = await upstream.saw("initialized", 7)
        assert opened["counts"]["initialize"] == 7, "one handshake for each session: five clients and two spares"


async def test_a_server_that_is_away_is_refused_fast_and_serves_again_when_it_is_back() -> None:
    port = free_port()
    with running_gateway(upstreams={"up": f"http://127.0.0.1:{port}/mcp"}) as gateway:

        async def refusal() -> dict[str, object]:
            async with Wire(gateway.url()) as wire:
                answer = await wire.post(
                    b'{"jsonrpc":"2.0","id":1,"method":"initialize","params":'
                    b'{"protocolVersion":"2025-11-25","capabilities":{},"clientInfo":{"name":"t","version":"1"}}}'
                )
                error: dict[str, object] = (await answer.response())["error"]
                return error

        errors = [await refusal() for _ in range(20)]
        assert {error["code"] for error in errors} == {-31001}
        told = [error["data"] for error in errors]
        assert all(data["executed"] == "no" for data in told)  # type: ignore[index]
        assert ["retry_after" in data for data in told[:3]] == [False] * 3  # type: ignore[operator]
        assert any("retry_after" in data for data in told)  # type: ignore[operator]
        assert gateway.metrics()[CIRCUIT_OPEN] >= 1
        [row] = gateway.fetch_json("/api/servers")
        assert row["circuit"]["state"] in ("open", "half_open")
        assert (row["state"], row["last_failure"]["stage"]) == ("failing", "connect")

        with running_upstream("sdk2", port=port):

            def is_back() -> bool:
                [row] = gateway.fetch_json("/api/servers")
                return row["circuit"]["state"] != "open" or row["circuit"]["retry_after"] == 0

            await until(is_back, timeout=40)
            assert (await began(gateway, {}))[1] == "1"
            [row] = gateway.fetch_json("/api/servers")
            assert (row["state"], row["last_failure"]) == ("ok", None)
