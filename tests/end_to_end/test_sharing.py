"""How far an upstream session is shared: by server, over all transports, and never beyond a principal."""

from collections.abc import Callable
from pathlib import Path

import pytest
from harness.gateways import bearer, token_settings
from harness.gateways import gateway as running_gateway
from harness.upstreams import Upstream
from harness.wire import Wire, text_of

pytestmark = pytest.mark.anyio

PATIENCE = 10.0
CALL = '{"jsonrpc":"2.0","id":1,"method":"tools/call","params":{"name":"counter","arguments":{}}}'


async def test_workflows_that_share_are_told_apart_by_their_own_calls(
    upstream: Upstream, settings_file: Callable[[str], Path]
) -> None:
    text = token_settings(up=upstream.url) + '\n[pooling]\nreuse = "user"\n'
    with running_gateway(toml=settings_file(text)) as gateway:
        async with Wire(gateway.url(), bearer("alice")) as one, Wire(gateway.url(), bearer("alice")) as two:
            await one.open()
            await two.open()
            waiting = await one.call("hold", {"gate": "sharing"}, id=b"1")
            await upstream.saw("mark:holding")
            assert text_of(await (await two.call("counter", id=b"1")).response()) == "1"
            await two.delete()
            upstream.open("sharing")
            assert text_of(await waiting.response()) == "sharing is open"
    report = upstream.report()
    assert report["counts"]["initialize"] == 1
