"""`/rpc` asked within the process: what goes along with a message, and what does not."""

import json
from typing import Any

import pytest
from trunkline.compat.contextforge.asked import Incoming
from trunkline.compat.contextforge.rpc import RPC

pytestmark = pytest.mark.anyio

PING = {"jsonrpc": "2.0", "id": 1, "method": "ping"}


class Echo:
    """Answers with a status and a body; keeps the scope and whether the client seems to be there."""

    def __init__(self, status: int = 200, body: bytes = b'{"jsonrpc":"2.0","id":1,"result":{}}') -> None:
        self.scope: dict[str, Any] = {}
        self.body: dict[str, Any] = {}
        self._answer = status, body

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        self.scope = scope
        self.body = json.loads((await receive())["body"])
        status, body = self._answer
        await send({"type": "http.response.start", "status": status, "headers": []})
        await send({"type": "http.response.body", "body": body[:5], "more_body": True})
        await send({"type": "http.response.body", "body": body[5:]})


def sent(scheme: str = "http", **headers: str) -> Incoming:
    scope = {"type": "http", "scheme": scheme, "client": ("10.0.0.1", 5), "server": ("h", 1)}
    return Incoming(scope, {name.replace("_", "-"): value for name, value in headers.items()})


async def test_headers_of_the_message_go_along_and_those_of_its_connection_do_not() -> None:
    app = Echo()
    came = sent(
        authorization="Bearer a",
        x_tenant="t",
        cookie="c",
        host="gateway",
        content_length="999",
        accept_encoding="br",
        connection="upgrade",
        sec_websocket_key="k",
        x_forwarded_internally="true",
        x_mcp_session_id="forged",
    )
    await RPC(app).ask(PING, came, "stream")
    headers = {name.decode(): value.decode() for name, value in app.scope["headers"]}
    assert headers.pop("content-length") == str(len(json.dumps(PING)))
    assert headers == {
        "content-type": "application/json",
        "accept": "application/json",
        "host": "gateway",
        "authorization": "Bearer a",
        "x-tenant": "t",
        "cookie": "c",
    }
    assert app.scope["client"] == ("10.0.0.1", 5)
    assert app.scope["query_string"] == b"session_id=stream"


@pytest.mark.parametrize(("scheme", "due"), [("ws", "http"), ("wss", "https"), ("https", "https")])
async def test_a_sockets_scheme_becomes_that_of_a_request(scheme: str, due: str) -> None:
    app = Echo()
    await RPC(app).ask(PING, sent(scheme), "stream")
    assert app.scope["scheme"] == due


@pytest.mark.parametrize("params", [None, {"a": 1}, [1]])
async def test_the_virtual_server_is_named_whatever_the_params_are(params: Any) -> None:
    app = Echo()
    message = {**PING, "params": params}
    await RPC(app).ask(message, sent(), "stream", "virtual")
    assert app.body["params"] == {**(params if isinstance(params, dict) else {}), "server_id": "virtual"}
    assert message["params"] == params


@pytest.mark.parametrize(
    ("status", "body", "code"),
    [
        (401, b'{"detail":"no"}', -32001),
        (403, b"", -32001),
        (500, b"Internal Server Error", -32603),
        (422, b'{"message":"Method invalid"}', -32603),
        (200, b"[]", -32603),
    ],
)
async def test_what_is_no_answer_becomes_an_error_that_names_the_status(status: int, body: bytes, code: int) -> None:
    answer = await RPC(Echo(status, body)).ask(PING, sent(), "stream")
    assert answer is not None
    assert answer["error"] == {"code": code, "message": f"the gateway answered with HTTP {status}"}
    assert answer["id"] == 1


async def test_a_notification_is_told_and_not_answered() -> None:
    app = Echo()
    assert await RPC(app).ask({"jsonrpc": "2.0", "method": "notifications/initialized"}, sent(), "stream") is None
    assert app.body["method"] == "notifications/initialized"


async def test_who_may_come_in_is_what_a_ping_is_answered_with() -> None:
    assert await RPC(Echo(403, b"")).check(sent(), "stream") == 403
    assert await RPC(Echo()).check(sent(), "stream") == 200
