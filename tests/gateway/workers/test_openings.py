"""What of a request goes to another worker arrives there as it was, and nothing of this process does."""

import pytest
from harness.muxing import ALICE
from trunkline.gateway.workers.conversation import Frame, decode, encode
from trunkline.gateway.workers.openings import opening, scope_of
from trunkline.transports.asgi import HOPS, IDENTITY, MEANT, Scope
from trunkline.transports.websocket import PING

pytestmark = pytest.mark.anyio


async def ping() -> None:
    pytest.fail("nobody pings")


def arrived(scope: Scope, **options: object) -> Scope:
    """The scope after its way through a conversation."""
    frame = decode(encode(Frame("open", opening(scope, **options))))  # type: ignore[arg-type]
    return scope_of(frame.payload, ping)


def test_a_request_arrives_with_who_asks_and_one_hop_more() -> None:
    scope: Scope = {
        "type": "http",
        "method": "POST",
        "path": "/servers/x/mcp",
        "query_string": b"a=b",
        "headers": [(b"x", b"\xff")],
        "client": ("127.0.0.1", 1),
        "app": object(),
        "state": {},
    }
    there = arrived(scope, identity=(ALICE, 12.5))
    assert (there["method"], there["path"], there["query_string"]) == ("POST", "/servers/x/mcp", b"a=b")
    assert [tuple(header) for header in there["headers"]] == [(b"x", b"\xff")]
    assert (there[HOPS], there[IDENTITY], there[MEANT]) == (1, (ALICE, 12.5), None)
    assert not {"app", "state"} & set(there)
    again = arrived({**there, MEANT: 1})
    assert (again[HOPS], again[IDENTITY], again[MEANT]) == (2, (ALICE, 12.5), 1)


CREDENTIALS = [(b"authorization", b"Bearer s3cret"), (b"cookie", b"sso=s3cret"), (b"proxy-authorization", b"s3cret")]


def test_g12_what_proved_who_asks_does_not_go_along_once_it_did() -> None:
    """A database may be what carries it, and keeps it in its logs and copies."""
    scope: Scope = {"type": "http", "path": "/", "headers": [*CREDENTIALS, (b"x", b"1")]}
    for known in (arrived(scope, identity=(ALICE, 1.0)), arrived({**scope, IDENTITY: (ALICE, 1.0)})):
        assert [tuple(header) for header in known["headers"]] == [(b"x", b"1")]
    assert [tuple(header) for header in arrived(scope, is_let_in=True)["headers"]] == [(b"x", b"1")]
    unverified = [tuple(header) for header in arrived(scope)["headers"]]
    assert unverified == [CREDENTIALS[0], (b"x", b"1")], "who is asked is to verify it, and by that alone"


def test_of_extensions_those_go_that_need_nothing_but_events() -> None:
    extensions = {PING: ping, "websocket.http.response": {}, "tls": {"cipher": 1}}
    there = arrived({"type": "websocket", "path": "/", "headers": [], "extensions": extensions})
    assert there["extensions"] == {PING: ping, "websocket.http.response": {}}
    assert IDENTITY not in there
