"""What endpoints of a server have in common: headers that go on, keys, room, and a handshake that nobody made."""

import pytest
from harness.muxing import ALICE, bench
from trunkline.mux.pool import Arrival, Pool
from trunkline.mux.ports import NONE
from trunkline.mux.principal import ANONYMOUS
from trunkline.transports.endpoint import (
    DEFAULT_REVISION,
    EndpointConfig,
    admitted_key,
    begin_unasked,
    picked,
)
from trunkline.transports.guard import Guard
from trunkline.transports.status import HTTPRefusal

pytestmark = pytest.mark.anyio


def config(pool: Pool, *, anonymous_keys: bool = True) -> EndpointConfig:
    return EndpointConfig("x", pool, Guard(loopback=True), lambda _: ANONYMOUS, anonymous_keys=anonymous_keys)


def test_only_the_headers_that_are_configured_go_on() -> None:
    headers = {"x-tenant": "a", "authorization": "secret"}
    assert picked(headers, ("x-tenant", "x-absent")) == {"x-tenant": "a"}
    assert picked(headers, ()) == NONE


async def test_a_key_of_anonymous_is_admitted_where_it_is_one_persons() -> None:
    async with bench() as at:
        assert admitted_key(config(at.pool), ANONYMOUS, "k") == "k"
        shared = config(at.pool, anonymous_keys=False)
        assert admitted_key(shared, ANONYMOUS, None) is None
        assert admitted_key(shared, ALICE, "k") == "k"
        with pytest.raises(HTTPRefusal) as refused:
            admitted_key(shared, ANONYMOUS, "k")
        assert (refused.value.status, refused.value.word) == (400, "anonymous_key")


async def test_a_keyed_client_that_calls_without_a_handshake_gets_one_without_capabilities() -> None:
    async with bench() as at:
        begun = await begin_unasked(config(at.pool), ANONYMOUS, DEFAULT_REVISION, Arrival(key="k"))
        assert (begun.state, begun.workflow.record.key) == ("created", "k")
        params = at.server.of("initialize")[0].json["params"]
        assert (params["protocolVersion"], params["capabilities"]) == (DEFAULT_REVISION, {})
        again = await begin_unasked(config(at.pool), ANONYMOUS, DEFAULT_REVISION, Arrival(key="k"))
        assert (again.state, again.workflow) == ("resumed", begun.workflow)
        assert len(at.server.sessions) == 1
