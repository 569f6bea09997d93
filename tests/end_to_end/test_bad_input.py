"""Requests that break a rule: each gets its status and its JSON-RPC error, and leaves nothing behind."""

import json
import secrets
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field

import anyio
import pytest
from harness.gateways import Gateway
from harness.upstreams import Upstream
from harness.wire import Wire, raw_members, text_of

pytestmark = pytest.mark.anyio

MIB = 1024 * 1024
LARGEST_BODY = 4 * MIB
CALL = b'{"jsonrpc":"2.0","id":1,"method":"tools/call","params":{"name":"counter","arguments":{}}}'
INITIALIZE = (
    b'{"jsonrpc":"2.0","id":1,"method":"initialize","params":{"protocolVersion":"2025-11-25","capabilities":{},'
    b'"clientInfo":{"name":"bad","version":"1"}}}'
)


def with_id(raw: bytes) -> bytes:
    """The call with an id of that spelling."""
    return CALL.replace(b'"id":1', b'"id":' + raw)


@dataclass(frozen=True)
class Bad:
    """A request that is sent on an open session, and what it has to get. A header that is None is left out."""

    status: int
    code: int | None = None
    """None where any JSON-RPC code will do."""
    body: bytes | None = CALL
    headers: dict[str, str | None] = field(default_factory=dict)
    method: str = "POST"
    answered_id: bytes = b"null"


BODIES = {
    "not JSON": Bad(400, -32700, b"hello"),
    "empty": Bad(400, -32700, b""),
    "cut off": Bad(400, -32700, CALL[:-1]),
    "two messages": Bad(400, -32700, CALL + CALL),
    "not UTF-8": Bad(400, -32700, CALL.replace(b"counter", b"count\xff")),
    "NaN": Bad(400, -32700, CALL.replace(b"{}}", b'{"n":NaN}}')),
    "nested too deeply": Bad(400, -32700, CALL.replace(b"{}}", b'{"n":' + b"[" * 12_000 + b"]" * 12_000 + b"}}")),
    "a number": Bad(400, -32600, b"1"),
    "a string": Bad(400, -32600, b'"hello"'),
    "an empty object": Bad(400, -32600, b"{}"),
    "no version": Bad(400, -32600, CALL.replace(b'"jsonrpc":"2.0",', b"")),
    "another version": Bad(400, -32600, CALL.replace(b'"2.0"', b'"1.0"')),
    "method is a number": Bad(400, -32600, CALL.replace(b'"tools/call"', b"5")),
    "params is a string": Bad(400, -32600, b'{"jsonrpc":"2.0","id":1,"method":"tools/call","params":"x"}'),
    "neither method nor result": Bad(400, -32600, b'{"jsonrpc":"2.0","id":1}'),
    "result and error": Bad(400, -32600, b'{"jsonrpc":"2.0","id":1,"result":{},"error":{"code":1,"message":"x"}}'),
    "an empty batch": Bad(400, -32600, b"[]"),
    "a batch": Bad(400, -32600, b"[" + CALL + b"]"),
    "a batch with initialize": Bad(400, -32600, b"[" + INITIALIZE + b"]"),
    "null id": Bad(400, -32600, with_id(b"null")),
    "fraction id": Bad(400, -32600, with_id(b"1.5")),
    "whole fraction id": Bad(400, -32600, with_id(b"1.0")),
    "exponent id": Bad(400, -32600, with_id(b"1e3")),
    "true id": Bad(400, -32600, with_id(b"true")),
    "object id": Bad(400, -32600, with_id(b"{}")),
    "array id": Bad(400, -32600, with_id(b"[1]")),
    "long id": Bad(400, -32600, with_id(b'"' + b"i" * 2000 + b'"')),
}

HEADERS = {
    "content type of a form": Bad(415, headers={"Content-Type": "application/x-www-form-urlencoded"}),
    "content type of text": Bad(415, headers={"Content-Type": "text/plain"}),
    "Accept without a stream": Bad(406, headers={"Accept": "application/json"}),
    "Accept without JSON": Bad(406, headers={"Accept": "text/event-stream"}),
    "Accept of a page": Bad(406, headers={"Accept": "text/html"}),
    "GET that takes no stream": Bad(406, body=None, method="GET", headers={"Accept": "application/json"}),
    "unknown revision": Bad(400, headers={"MCP-Protocol-Version": "1999-01-01"}, answered_id=b"1"),
    "revision that is no date": Bad(400, headers={"MCP-Protocol-Version": "latest"}, answered_id=b"1"),
    "another revision": Bad(400, headers={"MCP-Protocol-Version": "2025-03-26"}, answered_id=b"1"),
    "unknown session": Bad(404, -32600, headers={"Mcp-Session-Id": "f" * 43}, answered_id=b"1"),
    "unknown session, GET": Bad(404, body=None, method="GET", headers={"Mcp-Session-Id": "f" * 43}),
    "unknown session, DELETE": Bad(404, body=None, method="DELETE", headers={"Mcp-Session-Id": "f" * 43}),
    "unknown session, initialize": Bad(404, -32600, INITIALIZE, headers={"Mcp-Session-Id": "f" * 43}, answered_id=b"1"),
    "no session": Bad(400, -32600, headers={"Mcp-Session-Id": None}, answered_id=b"1"),
    "no session, GET": Bad(400, body=None, method="GET", headers={"Mcp-Session-Id": None}),
    "no session, DELETE": Bad(400, body=None, method="DELETE", headers={"Mcp-Session-Id": None}),
    "event id that is none": Bad(404, body=None, method="GET", headers={"Last-Event-ID": "1"}),
    "event id that is made up": Bad(404, body=None, method="GET", headers={"Last-Event-ID": "f" * 40 + "-1-1"}),
    "key with a space": Bad(400, headers={"Trunkline-Workflow": "a b"}, answered_id=b"1"),
    "key too long": Bad(400, headers={"Trunkline-Workflow": "k" * 129}, answered_id=b"1"),
    "key that is not the session's": Bad(400, headers={"Trunkline-Workflow": "another"}, answered_id=b"1"),
    "PUT": Bad(405, method="PUT"),
    "PATCH": Bad(405, method="PATCH"),
    "foreign Origin": Bad(403, headers={"Origin": "https://evil.example"}),
    "opaque Origin": Bad(403, headers={"Origin": "null"}),
    "Origin that begins well": Bad(403, headers={"Origin": "http://localhost.evil.example"}),
    "foreign Host": Bad(421, headers={"Host": "evil.example"}),
    "Host that begins well": Bad(421, headers={"Host": "127.0.0.1.evil.example"}),
}

TABLE = {**BODIES, **HEADERS}


@pytest.fixture
async def wire(gateway: Gateway) -> AsyncIterator[Wire]:
    """A session without batches."""
    async with Wire(gateway.url()) as wire:
        await wire.open("2025-06-18")
        yield wire


async def send(wire: Wire, bad: Bad) -> tuple[int, bytes]:
    """Send it; the status and the body."""
    defaults: dict[str, str | None] = {
        "Accept": "application/json, text/event-stream",
        "Content-Type": "application/json",
    }
    answer = await wire.request(bad.method, bad.body, {**defaults, **wire.headers, **bad.headers})
    return answer.status, await answer.body()


def check(bad: Bad, status: int, body: bytes) -> None:
    """The answer is what the table says, and says so in JSON-RPC."""
    assert status == bad.status, body
    members = raw_members(body)
    error = json.loads(members["error"])
    assert type(error["code"]) is int
    assert error["message"]
    if bad.code is not None:
        assert error["code"] == bad.code
    assert members["id"] in (b"null", bad.answered_id)
    # What cannot be read has no id; what can be read has its own.
    if bad.answered_id == b"null":
        assert members["id"] == b"null"


async def unchanged(wire: Wire, gateway: Gateway, upstream: Upstream, calls: int) -> None:
    """The session still counts from where it was, and nothing of the refused requests reached the upstream."""
    assert text_of(await (await wire.call("counter")).response()) == str(calls + 1)
    report = upstream.report()
    assert report["counts"]["method:tools/call"] == calls + 1
    assert report["counts"]["initialize"] == len(report["sessions"]) == 1


@pytest.mark.parametrize("name", TABLE)
async def test_a_bad_request_is_refused_and_changes_nothing(
    wire: Wire, gateway: Gateway, upstream: Upstream, name: str
) -> None:
    refused = gateway.metric("trunkline_refused_total")

    check(TABLE[name], *await send(wire, TABLE[name]))

    assert gateway.metric("trunkline_refused_total") == refused + 1
    await unchanged(wire, gateway, upstream, calls=0)


async def test_a_wrong_method_is_told_the_right_ones(wire: Wire) -> None:
    answer = await wire.request("PUT", CALL)

    assert answer.status == 405
    assert {"GET", "POST", "DELETE"} <= {method.strip() for method in answer.headers["Allow"].split(",")}


async def test_a_body_over_the_limit_is_refused_and_one_at_the_limit_is_not(
    wire: Wire, gateway: Gateway, upstream: Upstream
) -> None:
    def padded(size: int) -> bytes:
        return CALL.replace(b"{}}", b'{"pad":"' + b"x" * (size - len(CALL) - 8) + b'"}}')

    assert len(padded(LARGEST_BODY)) == LARGEST_BODY
    largest = await wire.post(padded(LARGEST_BODY))
    assert text_of(await largest.response()) == "1"

    too_large = await wire.post(padded(LARGEST_BODY + 1))
    check(Bad(413), too_large.status, await too_large.body())
    await unchanged(wire, gateway, upstream, calls=1)


async def test_a_body_without_length_is_refused_once_it_is_too_long(
    wire: Wire, gateway: Gateway, upstream: Upstream
) -> None:
    with anyio.fail_after(20):
        stream = await anyio.connect_tcp("127.0.0.1", gateway.port)
        async with stream:
            head = (
                f"POST /servers/up/mcp HTTP/1.1\r\nHost: 127.0.0.1:{gateway.port}\r\n"
                "Content-Type: application/json\r\nAccept: application/json, text/event-stream\r\n"
                f"Mcp-Session-Id: {wire.session_id}\r\nTransfer-Encoding: chunked\r\n\r\n"
            )
            await stream.send(head.encode())
            chunk = b"%x\r\n%b\r\n" % (MIB, b" " * MIB)
            for _ in range(5):
                await stream.send(chunk)
            # The end of the body was never sent: the refusal cannot wait for it.
            assert (await stream.receive()).startswith(b"HTTP/1.1 413 ")
    await unchanged(wire, gateway, upstream, calls=0)


@pytest.mark.parametrize("path", ["/servers/unknown/mcp", "/servers/up", "/servers/up/mcp/more", "/nothing", "/mcp"])
async def test_a_path_that_is_none_is_404(gateway: Gateway, path: str) -> None:
    async with Wire(gateway.base) as wire:
        answer = await wire.request("POST", CALL, {"Content-Type": "application/json"}, path=path)

        assert answer.status == 404


async def test_ten_thousand_refused_requests_leave_no_memory_behind(
    wire: Wire, gateway: Gateway, upstream: Upstream
) -> None:
    made: list[Callable[[], Bad]] = [
        lambda: Bad(404, headers={"Mcp-Session-Id": secrets.token_urlsafe(32)}),
        lambda: Bad(404, body=None, method="GET", headers={"Last-Event-ID": secrets.token_hex(24)}),
        lambda: Bad(404, body=None, method="DELETE", headers={"Mcp-Session-Id": secrets.token_urlsafe(32)}),
        lambda: Bad(400, headers={"Trunkline-Workflow": secrets.token_urlsafe(24)}),
        lambda: Bad(400, headers={"MCP-Protocol-Version": secrets.token_hex(5)}),
        lambda: Bad(400, body=with_id(b'{"%b":1}' % secrets.token_hex(8).encode())),
        lambda: Bad(400, body=CALL.replace(b"2.0", secrets.token_hex(4).encode())),
        lambda: Bad(400, body=b"[" + CALL + b"]"),
        lambda: Bad(400, body=secrets.token_bytes(40)),
        lambda: Bad(406, headers={"Accept": f"text/{secrets.token_hex(8)}"}),
        lambda: Bad(415, headers={"Content-Type": f"text/{secrets.token_hex(8)}"}),
        lambda: Bad(403, headers={"Origin": f"https://{secrets.token_hex(8)}.example"}),
        lambda: Bad(421, headers={"Host": f"{secrets.token_hex(8)}.example"}),
    ]

    async def refuse(requests: int) -> None:
        """Send so many, sixteen at once."""
        left = iter(range(requests))

        async def one_after_the_other() -> None:
            for n in left:
                bad = made[n % len(made)]()
                status, body = await send(wire, bad)
                assert status == bad.status, (bad, body)

        async with anyio.create_task_group() as tasks:
            for _ in range(16):
                tasks.start_soon(one_after_the_other)

    # What a process needs once, whatever it is asked: connections, caches, arenas of the allocator.
    await refuse(2_000)
    before = gateway.process.rss_bytes()
    refused = gateway.metric("trunkline_refused_total")
    await refuse(10_000)
    grown = gateway.process.rss_bytes() - before

    assert gateway.metric("trunkline_refused_total") == refused + 10_000
    assert grown < 2 * MIB, f"{grown / MIB:.2f} MiB"
    await unchanged(wire, gateway, upstream, calls=0)
