"""A raw client and a raw server with a gateway between them, for tests that run over every pair of transports."""

import contextlib
from collections.abc import AsyncIterator
from typing import Final

from harness.gateways import Gateway
from harness.raw_client import REVISION, RawClient, Transport, raw_client
from harness.raw_text import notification, play, reply, say
from harness.raw_upstreams import RawUpstream
from harness.wire import raw_members

ODD: Final = (
    '{"big":123456789012345678901234567890,"small":-0.10e-7,"one":1.0,"text":"\\u0041\\/\\ud83d\\ude00é\\u2028",'
    '"\\u006bey":null, "list" : [ 1 , [ ] ,{ }],"":""}'
).encode()
"""What a decoder and an encoder would not both leave as it is."""

CAPABILITIES: Final = b'{"elicitation":{"form":{}},"sampling":{"x-odd":%s},"roots":{"listChanged":true},"x-odd":%s}' % (
    ODD,
    ODD,
)
"""What clients declare."""


class Pair:
    """A transport of clients, one of a server, and the gateway between them.

    Clients are named after `key`, and declare the `capabilities` if a test does not say otherwise.
    """

    def __init__(self, gateway: Gateway, down: Transport, up: RawUpstream, *, key: str, capabilities: bytes) -> None:
        self._gateway = gateway
        self._down: Transport = down
        self._up = up
        self._key = key
        self._capabilities = capabilities

    @contextlib.asynccontextmanager
    async def client(
        self, tag: str = "a", *, capabilities: bytes | None = None, revision: str = REVISION
    ) -> AsyncIterator[RawClient]:
        """A client after its handshake; at its end, nothing may have come that the test did not take."""
        url = self._gateway.server_url(self._up.transport)
        async with raw_client(self._down, url, name=f"{self._key}-{tag}") as client:
            await client.open(self._capabilities if capabilities is None else capabilities, revision)
            yield client
            # What was on its way to this client has come when this has.
            await do(client, say(notification("notifications/x-last"), unasked=True))
            await client.told("notifications/x-last")
            assert client.inbox == []
            await client.end()

    def received(self, client: RawClient, of: str = "") -> list[dict[str, bytes]]:
        """The messages that the server got of this client, in order; those of one kind, if given."""
        return [raw_members(text) for text in self._up.received(client.name, of)]


async def do(client: RawClient, *steps: bytes) -> None:
    """Play steps, in a call of its own."""
    await client.request(play(b'"do"', *steps, reply(), method="test/do"))


def beside_id(members: dict[str, bytes]) -> dict[str, bytes]:
    """All members but the id."""
    return {name: value for name, value in members.items() if name != "id"}


def result(text: bytes) -> dict[str, bytes]:
    """The members of a response's result.

    Raises:
        AssertionError: it is an error.
    """
    members = raw_members(text)
    assert "result" in members, text
    return raw_members(members["result"])
