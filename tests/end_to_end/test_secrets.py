"""G12: a token, session id, event id, ticket or key is in no log, metric, page or error, whatever goes wrong."""

import hashlib
import itertools
import json
import secrets
import signal
import time
import urllib.error
import urllib.request
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import anyio
import jwt
import pytest
from harness.duplex_clients import DuplexClient, SocketClient, SSEClient, initialize
from harness.gateways import Gateway, until
from harness.gateways import gateway as running_gateway
from harness.ports import free_port
from harness.upstream_scripted import Cut, OpenStream, Reply, ScriptedUpstream, Send, Status
from harness.upstreams import Upstream
from harness.upstreams import upstream as running_upstream
from harness.wire import Answer, Wire, text_of
from websockets.exceptions import InvalidStatus

pytestmark = pytest.mark.anyio

ISSUER = "https://issuer.example"
KEPT_HEADERS = ("mcp-session-id",)
"""An answer to a client names that client's own session."""

_numbers = itertools.count(1)


def secret(what: str) -> str:
    """A secret that stands out, and is no other's part."""
    return f"{what}-{next(_numbers)}-{secrets.token_urlsafe(24)}"


@dataclass
class Secrets:
    """What must not be told, by what it is; and what was told, by where."""

    signing_key: str = field(default_factory=lambda: secret("signing-key"))
    admin: str = field(default_factory=lambda: secret("admin-token"))
    upstream_token: str = field(default_factory=lambda: secret("upstream-token"))
    upstream_password: str = field(default_factory=lambda: secret("upstream-password"))
    upstream_query: str = field(default_factory=lambda: secret("upstream-query"))
    alice: str = field(default_factory=lambda: secret("token-of-alice"))
    bob: str = field(default_factory=lambda: secret("token-of-bob"))
    others: dict[str, str] = field(default_factory=dict)
    told: dict[str, str] = field(default_factory=dict)

    def made_up(self, what: str) -> str:
        """A secret that a client makes up, or holds without a right to it here."""
        return self.keep(what, secret(what))

    def keep(self, what: str, text: str | None) -> str:
        """One that the run has brought forth."""
        assert text
        self.others[f"{what} ({len(self.others)})"] = text
        return text

    def tell(self, where: str, text: str) -> None:
        """What was told there."""
        self.told[where] = self.told.get(where, "") + text + "\n"

    async def refused(self, answer: Answer, *statuses: int) -> None:
        """An answer to a client that did something wrong, or whose server did."""
        body = await answer.body() if not answer.is_stream else await answer.raw_response()
        assert answer.status in (statuses or (400, 401, 404)), (answer.status, body)
        heads = [f"{name}: {value}" for name, value in answer.headers.items() if name.lower() not in KEPT_HEADERS]
        self.tell("errors", "\n".join([*heads, body.decode()]))

    def leaks(self) -> list[tuple[str, str]]:
        """Where which secret was told."""
        fixed = {name: value for name, value in vars(self).items() if isinstance(value, str)}
        return found(self.told, fixed | self.others)


def found(told: Mapping[str, str], hidden: Mapping[str, str]) -> list[tuple[str, str]]:
    """Where which of these is, in full."""
    return [(where, what) for where, text in told.items() for what, value in hidden.items() if value in text]


def token(kept: Secrets, subject: str, **changes: Any) -> str:
    claims = {"iss": ISSUER, "aud": "gateway", "sub": subject, "tenant": "acme", "exp": time.time() + 600, **changes}
    return kept.keep("jwt", jwt.encode(claims, kept.signing_key, "HS256"))


def auth(mode: str, kept: Secrets) -> str:
    if mode == "jwt":
        kept.alice, kept.bob = token(kept, "alice"), token(kept, "bob")
        return f'mode = "jwt"\nissuer = "{ISSUER}"\naudience = "gateway"\nsecret = "{kept.signing_key}"\n'
    entries = [
        f'{{ sha256 = "{hashlib.sha256(value.encode()).hexdigest()}", tenant = "acme", subject = "{subject}" }}'
        for subject, value in (("alice", kept.alice), ("bob", kept.bob))
    ]
    return f'mode = "tokens"\ntokens = [{", ".join(entries)}]\n'


@contextmanager
def running(kept: Secrets, mode: str, log_format: str, path: Path, up: str, bad: str) -> Iterator[Gateway]:
    """A gateway with debug logs in front of a server that works, one that does not, and one that is not there."""
    dead = f"http://user:{kept.upstream_password}@127.0.0.1:{free_port()}/mcp?key={kept.upstream_query}"
    text = f'[gateway]\nadmin_token = "{kept.admin}"\n[auth]\n{auth(mode, kept)}'
    if mode == "jwt":
        text += 'algorithms = ["HS256"]\n'
    for name, url in (("up", up), ("bad", bad), ("dead", dead)):
        text += f'[servers.{name}]\nurl = "{url}"\neras = ["legacy"]\n'
        text += f'headers = {{ Authorization = "Bearer {kept.upstream_token}" }}\n'
    path.write_text(text)
    with running_gateway("--log-level", "debug", "--log-format", log_format, toml=path) as gateway:
        yield gateway


def bearer(text: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {text}"}


def wrong_tokens(kept: Secrets) -> Iterable[str]:
    """Tokens that are refused, each for a reason of its own."""
    yield kept.made_up("wrong-token")
    yield token(kept, "alice", exp=time.time() - 600)
    yield token(kept, "alice", aud="other")
    yield token(kept, "alice", iss=kept.made_up("issuer"))
    yield kept.keep("jwt of another key", jwt.encode({"sub": "alice"}, kept.made_up("signing-key"), "HS256"))
    yield kept.keep("jwt cut short", kept.alice[:-3] + "x")


async def go_wrong_over_http(kept: Secrets, gateway: Gateway, upstream: Upstream) -> None:
    """Everything that a client of Streamable HTTP can do wrong, and what a right one does in between."""
    key = kept.made_up("key")
    async with Wire(gateway.url(), {**bearer(kept.alice), "Trunkline-Workflow": key}) as wire:
        await wire.open()
        session = kept.keep("session", wire.session_id)
        await (await wire.call("counter")).response()
        held = await wire.call("hold", {"gate": "http"}, id=b'"held"')
        primed = await held.next_event()
        assert primed is not None
        event = kept.keep("event id", primed.id)
        held.cut()
        upstream.open("http")
        resumed = await wire.get(event)
        assert text_of(await resumed.response()) == "http is open"
        kept.keep("event id", resumed.last_event_id)

        for wrong in wrong_tokens(kept):
            await kept.refused(await wire.call("counter", headers=bearer(wrong)), 401)
        for headers in ({"Authorization": None}, {"Authorization": f"Basic {kept.made_up('basic')}"}):
            await kept.refused(await wire.call("counter", headers=headers), 401)
        for headers in (
            bearer(kept.bob),  # the session of another
            {"Mcp-Session-Id": kept.made_up("session")},
            {"Mcp-Session-Id": kept.made_up("session with spaces ")},
            {"Trunkline-Workflow": kept.made_up("other-key")},  # it disagrees with the session
            {"Trunkline-Workflow": f"{kept.made_up('bad-key')}/é"},
            {"MCP-Protocol-Version": "1999-01-01"},
        ):
            await kept.refused(await wire.call("counter", headers=headers))
        for event_id in (kept.made_up("event"), f"{secrets.token_hex(16)}-1-0-1"):
            await kept.refused(await wire.get(kept.keep("event id", event_id)), 400, 404)
        await kept.refused(await wire.get(event, bearer(kept.bob)), 404)
        await kept.refused(await wire.delete(bearer(kept.bob)), 404)
        argument = kept.made_up("argument")
        for body in (
            b'{"jsonrpc":"2.0","id":1,"method":"tools/call","params":{"key":"%b"' % argument.encode(),
            b'[{"jsonrpc":"2.0","id":"%b","method":"ping"}]' % argument.encode(),
            b'{"jsonrpc":"2.0","id":{"x":"%b"},"method":"ping"}' % argument.encode(),
            b'"%b"' % argument.encode(),
        ):
            await kept.refused(await wire.post(body), 400)
        unknown = await wire.post({"jsonrpc": "2.0", "id": 1, "method": f"tools/{argument}"})
        assert "error" in await unknown.response()
        async with Wire(f"{gateway.url()}?session_id={session}&ticket={kept.made_up('ticket')}") as nobody:
            await kept.refused(await nobody.post(initialize()), 401)
        # A trim ends the workflow; so does its client.
        await kept.refused(await wire.get(kept.keep("event id", event[:-1] + "7777")), 404)
        del wire.headers["Mcp-Session-Id"]
        await wire.open()
        kept.keep("session", wire.session_id)
        assert (await wire.delete({"Trunkline-End": "workflow"})).status == 200
        await kept.refused(await wire.call("counter"), 404)


async def go_wrong_over(kept: Secrets, gateway: Gateway, client: DuplexClient, base: str) -> None:
    """The same on a wire that carries everything, from its ticket on."""
    async with Wire(f"{base}/ticket", bearer(kept.alice)) as wire:
        given = [kept.keep("ticket", (await (await wire.request("POST")).json())["ticket"]) for _ in range(2)]
        await kept.refused(await wire.request("POST", headers=bearer(kept.made_up("token"))), 401)
    key = kept.made_up("key")
    async with client:
        await client.connect(f"?workflow={key}&ticket={given[0]}")
        session = kept.keep("session", client.session_id)
        client.headers = bearer(kept.alice)
        await client.begin()
        await client.call("counter")
        assert text_of(await client.answer()) == "1"
        if isinstance(client, SSEClient):
            kept.keep("event id", client.last_event_id)
            unknown = client.endpoint.replace(session, kept.made_up("session"))
            await kept.refused(await client.post(initialize(), endpoint=unknown), 404)
            await kept.refused(await client.post(initialize(), bearer(kept.bob)), 404)
            await kept.refused(await client.post(initialize(), bearer(kept.made_up("token"))), 401)
            await kept.refused(await client.post(b'{"%b' % kept.made_up("argument").encode()), 400)
        client.cut()
        if isinstance(client, SSEClient):
            await client.connect(headers={"Last-Event-ID": client.last_event_id, **client.headers})
        else:
            await client.resume()
        await client.call("counter", id=2)
        assert text_of(await client.answer(2)) == "2"
        if isinstance(client, SocketClient):
            await client.send(b'{"%b' % kept.made_up("argument").encode())
            kept.tell("errors", json.dumps(await client.next()))
        client.cut()
    for query, headers in (
        (f"?ticket={given[0]}", {}),  # it was used
        (f"?ticket={kept.made_up('ticket')}", {}),
        (f"?session_id={session}", bearer(kept.bob)),
        (f"?session_id={session}", bearer(kept.made_up("token"))),
        (f"?session_id={kept.made_up('session')}", bearer(kept.alice)),
        (f"?workflow={kept.made_up('bad key')}/", bearer(kept.alice)),
        (f"?workflow={kept.made_up('other-key')}&session_id={session}", bearer(kept.alice)),
        (f"?last_event_id={kept.made_up('event')}", bearer(kept.alice)),
        (f"?session_id={session}&last_event_id={kept.made_up('event')}", bearer(kept.alice)),
    ):
        await be_refused(kept, client, base, query.replace(" ", "%20"), headers)


async def be_refused(kept: Secrets, client: DuplexClient, base: str, query: str, headers: dict[str, str]) -> None:
    """A connection that is refused."""
    if isinstance(client, SSEClient):
        async with SSEClient(base, headers) as other:
            await kept.refused(await other.get(query))
        return
    async with SocketClient(base, headers) as socket:
        with pytest.raises(InvalidStatus) as refused:
            await socket.connect(query)
    answer = refused.value.response
    heads = "\n".join(f"{name}: {value}" for name, value in answer.headers.raw_items())
    kept.tell("errors", heads + (answer.body or b"").decode())


async def fail_upstream(kept: Secrets, gateway: Gateway, bad: ScriptedUpstream) -> None:
    """Servers that are not there, that refuse, and that echo what they were sent."""
    credential = f"no such credential: Bearer {kept.upstream_token}".encode()
    wrong = b'{"error": "Bearer %b in session %b"}' % (kept.upstream_token.encode(), bad.session.encode())
    for answer in (Status(500, wrong), Status(200, wrong, "application/json"), Status(200, wrong), Status(404, wrong)):
        bad.script = {"tools/call": [[answer]]}
        async with Wire(gateway.url("bad"), bearer(kept.alice)) as wire:
            await wire.open()
            kept.keep("session", wire.session_id)
            await kept.refused(await wire.call("x"), 200, 404)
    # A stream that breaks behind an event with an id: the gateway takes it up again, and is refused.
    event = kept.made_up("upstream-event")
    bad.script = {
        "tools/call": [[OpenStream(), Send("", event), Send({"jsonrpc": "2.0", "method": event}, event), Cut()]],
        "resume": [[Status(400, f"no event {event} in {bad.session}")]],
    }
    async with Wire(gateway.url("bad"), bearer(kept.alice)) as wire:
        await wire.open()
        kept.keep("session", wire.session_id)
        await kept.refused(await wire.call("x"), 200)
    bad.script = {"tools/call": [[Reply({"content": []})]], "DELETE": [[Status(500, wrong)]]}
    async with Wire(gateway.url("bad"), bearer(kept.alice)) as wire:
        await wire.open()
        kept.keep("session", wire.session_id)
        ended = len(bad.of("DELETE"))
        await wire.delete()
        await bad.saw("DELETE", ended + 1)
    # Its circuit opens on the way.
    for server in ("dead", "bad"):
        bad.script["initialize"] = [[Status(401, credential)], [Status(500, wrong)], [Status(200, wrong)]]
        for _ in range(4):
            async with Wire(gateway.url(server), bearer(kept.alice)) as wire:
                await kept.refused(await wire.post(initialize()), 200, 502, 503, 504)


def first_event(gateway: Gateway, query: str, headers: dict[str, str]) -> str:
    """What a listener is told at first."""
    request = urllib.request.Request(f"{gateway.base}/api/events?{query}", headers=headers)
    with urllib.request.build_opener(urllib.request.ProxyHandler({})).open(request, timeout=10) as answer:
        assert answer.readline() == b"event: snapshot\n"
        return str(answer.readline().decode())


def read_pages(kept: Secrets, gateway: Gateway) -> None:
    """What operators see, and what those see who are none."""
    kept.tell("metrics", gateway.fetch("/metrics"))
    admin = bearer(kept.admin)
    for path in ("/", "/api/gateway", "/api/servers", "/api/sessions"):
        kept.tell("pages", gateway.fetch(path, admin))
    kept.tell("pages", first_event(gateway, "limit=1000", admin))
    for row in json.loads(gateway.fetch("/api/sessions", admin)):
        kept.tell("pages", gateway.fetch(f"/api/sessions/{row['workflow']}", admin))
        kept.tell("pages", first_event(gateway, f"workflow={row['workflow']}", admin))
    for path in (
        "/",
        "/api/events?limit=" + kept.made_up("limit"),
        "/api/gateway",
        "/api/sessions",
        f"/api/sessions/{kept.made_up('handle')}",
        "/nowhere?key=" + kept.made_up("query"),
    ):
        for headers in (admin, bearer(kept.made_up("admin")), {}):
            try:
                gateway.fetch(path, headers)
            except urllib.error.HTTPError as refused:
                with refused:
                    kept.tell("errors", f"{refused.headers}{refused.read().decode()}")


async def run(kept: Secrets, mode: str, log_format: str, path: Path) -> None:
    """Provoke everything, and keep what was told."""
    async with ScriptedUpstream(session=kept.made_up("upstream-session")) as bad:
        with (
            running_upstream("sdk2", "--events") as upstream,
            running(kept, mode, log_format, path / "secrets.toml", upstream.url, bad.url) as gateway,
        ):
            base = gateway.url().removesuffix("/mcp")
            await go_wrong_over_http(kept, gateway, upstream)
            await go_wrong_over(kept, gateway, SSEClient(base), base)
            await go_wrong_over(kept, gateway, SocketClient(base), base)
            await fail_upstream(kept, gateway, bad)
            async with Wire(gateway.url(), bearer(kept.alice)) as wire:
                await wire.open()
                kept.keep("session", wire.session_id)
                await anyio.to_thread.run_sync(read_pages, kept, gateway)
                held = await wire.call("hold", {"gate": "kill"})
                await upstream.saw("mark:holding", 2)
                for session in upstream.report()["sessions"]:
                    kept.keep("upstream session", session)
                upstream.process.send_signal(signal.SIGKILL)
                await kept.refused(held, 200)
                await until(lambda: gateway.metric("trunkline_channels_closed_total", server="up") > 0)
                await anyio.to_thread.run_sync(read_pages, kept, gateway)
            gateway.process.send_signal(signal.SIGTERM)
            assert await anyio.to_thread.run_sync(gateway.process.wait, 30) == 0
            kept.tell("log", gateway.process.output())


@pytest.mark.parametrize(("mode", "log_format"), [("jwt", "text"), ("tokens", "json")])
async def test_g12_no_secret_is_told_in_logs_metrics_pages_and_errors(
    tmp_path: Path, mode: str, log_format: str
) -> None:
    kept = Secrets()
    await run(kept, mode, log_format, tmp_path)
    assert kept.leaks() == []
    # What was looked at holds what it should hold, and what was looked for would be found there.
    assert {where for where, _ in found(kept.told, {"": "up"})} == {"log", "metrics", "pages", "errors"}
    for words in ("workflow opened", "workflow ended", "upstream session lost", "upstream session not opened"):
        assert words in kept.told["log"]
    assert len(kept.others) > 60
    assert kept.told["errors"].count("-31001") + kept.told["errors"].count("-31002") > 5


async def test_g12_the_search_can_fail(tmp_path: Path) -> None:
    """Where a secret is what a server is called, it is found in all four places."""
    kept = Secrets(upstream_token="dead")
    await run(kept, "tokens", "text", tmp_path)
    assert {where for where, _ in kept.leaks()} == {"log", "metrics", "pages", "errors"}
