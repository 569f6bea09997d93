"""The check: what each server says of itself, and what is wrong where it says nothing."""

import json
import re
import sys
from typing import Any

import pytest
from harness.ports import free_port
from harness.raw_http import Peer, serving
from harness.upstreams import Upstream
from trunkline.gateway import check
from trunkline.gateway.check import Probe, probe_all
from trunkline.gateway.settings import Server, Settings
from trunkline.transports.upstream.process import LAST_LINES

pytestmark = pytest.mark.anyio

RESULT = {"protocolVersion": "2025-06-18", "capabilities": {}, "serverInfo": {"name": "raw", "version": "7"}}


async def probe(url: str, **options: Any) -> Probe:
    """The one probe of one server."""
    [found] = await probe_all(Settings(servers={"up": Server(url=url, **options)}))
    assert (found.server, found.url) == ("up", url)
    return found


def http(body: bytes, status: str = "200 OK") -> bytes:
    head = f"HTTP/1.1 {status}\r\nContent-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
    return head.encode() + body


class Script:
    """A server that answers `initialize` with this, and everything else as it should be."""

    def __init__(self, answer: bytes) -> None:
        self.answer = answer
        self.seen: list[tuple[str, dict[str, str]]] = []

    async def __call__(self, peer: Peer) -> None:
        while True:
            start, headers, body = await peer.request()
            self.seen.append((start.split()[0], headers))
            initialize = b'"initialize"' in body
            await peer.say(self.answer if initialize else http(b"", "202 Accepted"))


def answered(**members: Any) -> bytes:
    """An answer to the request with the first id."""
    return http(json.dumps({"jsonrpc": "2.0", "id": 1, **members}).encode())


async def test_a_server_says_what_it_is_and_its_session_is_ended(upstream: Upstream) -> None:
    found = await probe(upstream.url)
    assert found.fault == ""
    assert found.name
    assert found.revision == "2025-11-25"
    assert 0 < found.seconds < check.PROBE_SECONDS
    assert (await upstream.saw("delete"))["counts"]["initialize"] == 1


async def test_it_speaks_to_a_server_as_the_gateway_would() -> None:
    script = Script(answered(result=RESULT))
    async with serving(script) as server:
        found = await probe(server.url, headers={"Authorization": "Bearer s3cret"})
    assert (found.name, found.revision, found.fault) == ("raw 7", "2025-06-18", "")
    assert all(headers["authorization"] == "Bearer s3cret" for _, headers in script.seen)


async def test_a_server_that_is_away_is_a_fault() -> None:
    found = await probe(f"http://127.0.0.1:{free_port()}/mcp")
    assert found.fault
    assert (found.name, found.revision) == ("", "")


async def test_a_program_that_ends_is_a_fault_that_says_where_to_look() -> None:
    [found] = await probe_all(Settings(servers={"up": Server(command=("false",))}))
    assert found.fault == "the server exited (status 1); run its command by hand to see why"


@pytest.mark.parametrize("reads", [True, False])
async def test_a_program_that_says_why_it_ends_is_heard(reads: bool) -> None:
    lines = [f"line {number}" for number in range(30)]
    program = f"import sys; {'input(); ' if reads else ''}sys.exit({chr(10).join(lines)!r})"
    up, mute = Server(command=(sys.executable, "-c", program)), Server(command=("true",))
    [found, other] = await probe_all(Settings(servers={"up": up, "mute": mute}))
    assert (found.fault, list(found.said)) == ("the server exited (status 1)", lines[-LAST_LINES:])
    assert (other.fault, other.said) == ("the server exited (status 0); run its command by hand to see why", ())


async def test_of_a_program_that_says_much_the_end_is_heard() -> None:
    """The reason why it ends stands there, however much comes in a second."""
    lines = [f"line {number}" for number in range(1_000)]
    program = f"import sys; sys.exit({chr(10).join(lines)!r})"
    [found] = await probe_all(Settings(servers={"up": Server(command=(sys.executable, "-c", program))}))
    assert list(found.said) == lines[-LAST_LINES:]


async def test_what_a_program_says_that_is_well_is_its_own() -> None:
    answer = json.dumps({"jsonrpc": "2.0", "id": "ID", "result": RESULT}).replace('"ID"', "%s")
    program = f"import sys, json; print('up', file=sys.stderr); id = json.loads(input())['id']; print({answer!r} % id)"
    program += "; sys.stdout.flush(); sys.stdin.read()"
    [found] = await probe_all(Settings(servers={"up": Server(command=(sys.executable, "-c", program))}))
    assert (found.fault, found.said) == ("", ())


async def test_a_program_that_refuses_has_said_why() -> None:
    refusal = '{"jsonrpc":"2.0","id":%s,"error":{"code":-32602,"message":"no"}}'
    program = f"import json; print({refusal!r} % json.loads(input())['id'], flush=True); input()"
    [found] = await probe_all(Settings(servers={"up": Server(command=(sys.executable, "-c", program))}))
    assert re.fullmatch(r"refused: \{.*\}", found.fault)


async def test_g12_a_fault_shows_no_secret() -> None:
    found = await probe(f"http://user:s3cret@127.0.0.1:{free_port()}/mcp?key=s3cret", headers={"X-Key": "s3cret"})
    assert found.fault
    assert "s3cret" not in found.fault


@pytest.mark.parametrize(
    ("answer", "told"),
    [
        (answered(error={"code": -32000, "message": "not today"}), "refused: .*not today"),
        (answered(result={**RESULT, "protocolVersion": "1999-01-01"}), "revision"),
        (answered(result={"protocolVersion": 7}), "revision"),
        (http(b"not found", "404 Not Found"), "404"),
        (http(b"", "401 Unauthorized"), "401"),
        (
            b"HTTP/1.1 200 OK\r\nContent-Type: text/html\r\nContent-Length: 6\r\n\r\n<html>",
            "HTTP 200 with .*Content-Type",
        ),
        (http(b"", "307 Temporary Redirect"), "HTTP 307, which leads elsewhere and is not followed"),
        (http(b"<html>"), ""),
        (b"no http\r\n\r\n", ""),
    ],
)
async def test_an_answer_that_is_none_is_a_fault(answer: bytes, told: str) -> None:
    async with serving(Script(answer)) as server:
        found = await probe(server.url)
    assert found.fault
    assert re.search(told, found.fault), found.fault


@pytest.mark.parametrize("info", [None, "x", 7, [], {}, {"name": 7}])
async def test_a_server_that_does_not_say_who_it_is_is_no_fault(info: object) -> None:
    async with serving(Script(answered(result={**RESULT, "serverInfo": info}))) as server:
        found = await probe(server.url)
    assert (found.fault, found.revision) == ("", "2025-06-18")


async def test_a_name_that_has_no_end_is_cut() -> None:
    async with serving(Script(answered(result={**RESULT, "serverInfo": {"name": "x" * 10_000}}))) as server:
        assert (await probe(server.url)).name == "x" * check.MAX_TITLE


async def test_a_server_that_says_nothing_is_not_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(check, "PROBE_SECONDS", 0.05)

    async def silent(peer: Peer) -> None:
        await peer.closed()

    async with serving(silent) as server:
        assert (await probe(server.url)).fault == "no answer within 0.05 s"


# Without sessions.


async def test_a_server_of_which_no_session_is_offered_is_asked_as_its_clients_will(upstream: Upstream) -> None:
    sessions = await probe(upstream.url)
    initialized = upstream.counts()["initialize"]
    found = await probe(upstream.url, eras=("modern",))
    assert (found.fault, found.revision, found.name) == ("", "2026-07-28", sessions.name)
    assert upstream.counts()["initialize"] == initialized


@pytest.mark.parametrize("refusal", [answered(error={"code": -32022, "message": "no"}), http(b"no", "404 Not Found")])
async def test_a_server_that_has_no_sessions_is_no_fault_where_both_are_offered(refusal: bytes) -> None:
    async def serve(peer: Peer) -> None:
        while True:
            _, _, body = await peer.request()
            spoken = answered(result={"supportedVersions": ["2026-07-28"]})
            await peer.say(spoken if b"server/discover" in body else refusal)

    async with serving(serve) as server:
        found = await probe(server.url)
        assert (found.fault, found.revision) == ("", "2026-07-28")
        assert (await probe(server.url, eras=("legacy",))).fault


async def test_a_server_that_speaks_sessions_only_is_told_what_to_change() -> None:
    async with serving(Script(answered(result=RESULT))) as server:
        found = await probe(server.url, eras=("modern",))
    assert 'add "legacy" to its eras' in found.fault
    away = await probe(f"http://127.0.0.1:{free_port()}/mcp", eras=("modern",))
    assert away.fault


@pytest.mark.parametrize("info", [None, "x", {}, {"name": "raw", "version": "7"}])
@pytest.mark.parametrize("is_stream", [True, False])
async def test_what_a_server_without_sessions_says_of_itself(info: object, is_stream: bool) -> None:
    meta = info if info == "x" else {"io.modelcontextprotocol/serverInfo": info}
    result = {"supportedVersions": ["2026-07-28"], "_meta": meta}
    answer = json.dumps({"jsonrpc": "2.0", "id": 1, "result": result}).encode()

    async def discovered(peer: Peer) -> None:
        while True:
            _, headers, body = await peer.request()
            assert (headers["mcp-method"], b"server/discover" in body) == ("server/discover", True)
            if is_stream:
                head = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\n"
                event = b"data: " + answer + b"\n\n"
                await peer.say(head + b"Content-Length: %d\r\n\r\n" % len(event) + event)
            else:
                await peer.say(http(answer))

    async with serving(discovered) as server:
        found = await probe(server.url, eras=("modern",))
    assert (found.fault, found.revision) == ("", "2026-07-28")
    assert found.name == ("raw 7" if isinstance(info, dict) and info else "?")


async def test_servers_are_told_in_the_order_of_the_settings(upstream: Upstream) -> None:
    away = f"http://127.0.0.1:{free_port()}/mcp"
    servers = {"z": Server(url=upstream.url), "a": Server(url=away), "m": Server(url=upstream.url)}
    found = await probe_all(Settings(servers=servers))
    assert [(one.server, bool(one.fault)) for one in found] == [("z", False), ("a", True), ("m", False)]
