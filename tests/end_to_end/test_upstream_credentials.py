"""The gateway proves itself to servers by tokens of its own: expiry, revocation and outages cost no session."""

import asyncio
import hashlib
import json
import signal
import subprocess
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path

import anyio.to_thread
import jwt
import pytest
from harness.authorization import CLIENT, SECRET, AuthorizationServer, GuardedServer, guarded
from harness.duplex_clients import initialize
from harness.gateways import Gateway, command, environment, until
from harness.gateways import gateway as running_gateway
from harness.upstream_scripted import ScriptedUpstream
from harness.wire import Wire, text_of
from starlette.responses import JSONResponse, Response

pytestmark = pytest.mark.anyio

UNREACHABLE = -31001
Write = Callable[[str], Path]


def table(issuer: AuthorizationServer, server: GuardedServer, **options: str) -> str:
    """The settings of a server whose secret is in the environment."""
    oauth = {"issuer": issuer.issuer, "client_id": CLIENT, "client_secret": "${UP_SECRET}", **options}
    inline = ", ".join(f"{key} = {json.dumps(value)}" for key, value in oauth.items())
    return f'[servers.up]\nurl = "{server.url}"\neras = ["legacy"]\noauth = {{ {inline} }}\n'


@contextmanager
def before(write: Write, text: str, monkeypatch: pytest.MonkeyPatch, secret: str = SECRET) -> Iterator[Gateway]:
    """A gateway with these settings; when it ends, it has told no secret."""
    monkeypatch.setenv("UP_SECRET", secret)
    with running_gateway("--log-level", "debug", toml=write(text)) as gateway:
        yield gateway
        log = gateway.process.output()
        assert secret not in log
        assert "token-" not in log


async def count(wire: Wire, tag: str = "") -> int:
    return int(text_of(await (await wire.call("counter", {"tag": tag})).response()))


async def test_a_token_that_expires_mid_session_costs_one_request_to_its_issuer_and_no_session(
    settings_file: Write, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with guarded(lifetime=1) as (issuer, server):
        with before(settings_file, table(issuer, server), monkeypatch) as gateway:
            async with Wire(gateway.url()) as wire:
                await wire.open()
                assert await count(wire) == 1
                issued = issuer.seen["token"]
                issuer.lifetime = 3600
                await issuer.expired()
                counts = await asyncio.gather(*(count(wire, f"n{n}") for n in range(50)))
                assert sorted(counts) == list(range(2, 52)), "the same upstream session goes on"
                assert issuer.seen["token"] == issued + 1
                assert set(server.runs.values()) == {1}
                metric = "trunkline_upstream_credentials_total"
                assert gateway.metric(metric, server="up", outcome="issued") == issued + 1
                assert gateway.metric("trunkline_upstream_requests_total", kind="initialize") == 1


async def test_a_token_that_was_revoked_is_renewed_and_each_call_runs_once(
    settings_file: Write, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with guarded() as (issuer, server):
        with before(settings_file, table(issuer, server), monkeypatch) as gateway:
            async with Wire(gateway.url()) as wire:
                await wire.open()
                assert await count(wire) == 1
                issuer.revoke()
                counts = await asyncio.gather(*(count(wire, f"n{n}") for n in range(50)))
                assert sorted(counts) == list(range(2, 52))
                assert issuer.seen["token"] == 2
                assert server.runs == {"": 1, **{f"n{n}": 1 for n in range(50)}}
                assert gateway.metric("trunkline_upstream_credentials_total", outcome="refused") == 1


async def test_it_holds_for_a_server_of_http_and_sse(settings_file: Write, monkeypatch: pytest.MonkeyPatch) -> None:
    async with guarded(sse=True) as (issuer, server):
        with before(settings_file, table(issuer, server), monkeypatch) as gateway:
            async with Wire(gateway.url()) as wire:
                await wire.open()
                assert await count(wire) == 1
                issuer.revoke()
                assert await count(wire) == 2
                assert issuer.seen["token"] == 2


async def test_an_issuer_that_is_down_costs_a_clear_error_and_nothing_is_held_against_it(
    settings_file: Write, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def down() -> Response:
        return JSONResponse({}, 503)

    async with guarded() as (issuer, server):
        with before(settings_file, table(issuer, server), monkeypatch) as gateway:
            async with Wire(gateway.url()) as wire:
                await wire.open()
                assert await count(wire) == 1
                issuer.revoke()
                issuer.fault = down
                error = (await (await wire.call("counter")).response())["error"]
                assert error["code"] == UNREACHABLE
                assert error["message"] == "the authorization server answered HTTP 503"
                assert error["data"] == {"executed": "no"}
                issuer.fault = None
                assert await count(wire) == 2


async def test_a_wrong_secret_is_a_clear_error_and_the_check_shows_it(
    settings_file: Write, monkeypatch: pytest.MonkeyPatch
) -> None:
    told = "the authorization server answered HTTP 401 (invalid_client)"
    async with guarded() as (issuer, server):
        text = table(issuer, server)
        with before(settings_file, text, monkeypatch, "wr0ng secret") as gateway:
            async with Wire(gateway.url()) as wire:
                error = (await (await wire.post(initialize())).response())["error"]
                assert (error["code"], error["message"]) == (UNREACHABLE, told)
            shown = json.dumps(gateway.fetch_json("/api/servers"))
            assert told in shown
            assert '"stage": "credential"' in shown
        path = str(settings_file(text))
        checked = await anyio.to_thread.run_sync(
            lambda: subprocess.run(
                command("check", path), env={**environment(), "COLUMNS": "300"}, capture_output=True, text=True
            )
        )
        assert checked.returncode == 1
        assert told in checked.stdout + checked.stderr
        assert "wr0ng secret" not in checked.stdout + checked.stderr


@pytest.mark.parametrize("is_out", [False, True], ids=["in place", "while its server is out of them"])
async def test_a_secret_that_is_rotated_in_the_settings_costs_no_session(
    settings_file: Write, monkeypatch: pytest.MonkeyPatch, is_out: bool
) -> None:
    async with guarded() as (issuer, server):
        text = table(issuer, server)
        with before(settings_file, text, monkeypatch) as gateway:

            async def reload(settings: str, told: str) -> None:
                settings_file(settings)
                gateway.process.send_signal(signal.SIGHUP)
                await until(lambda: told in gateway.process.log())

            async with Wire(gateway.url()) as wire:
                await wire.open()
                assert await count(wire) == 1
                if is_out:
                    await reload(text.replace("servers.up", "servers.other"), "1 removed (up)")
                issuer.secret = "an0ther secret"
                issuer.revoke()
                told = "1 added (up)" if is_out else "1 rotated (up)"
                await reload(text.replace("${UP_SECRET}", issuer.secret), told)
                assert await count(wire) == 2
                assert issuer.secret not in gateway.process.output()


JWT_SECRET = "a secret that is long enough for HS256, as a test has it"
CLIENT_TOKEN = jwt.encode(
    {"iss": "https://i", "aud": "gateway", "sub": "alice", "tenant": "t", "exp": time.time() + 86_400},
    JWT_SECRET,
    "HS256",
)
DIGEST = hashlib.sha256(CLIENT_TOKEN.encode()).hexdigest()
AUTH = {
    "none": "",
    "tokens": f'[auth]\nmode = "tokens"\ntokens = [{{ sha256 = "{DIGEST}", tenant = "t", subject = "alice" }}]\n',
    "jwt": f'[auth]\nmode = "jwt"\nissuer = "https://i"\naudience = "gateway"\nsecret = "{JWT_SECRET}"\n'
    'algorithms = ["HS256"]\n',
    "proxy": '[auth]\nmode = "proxy"\n[gateway]\ntrusted_proxies = ["127.0.0.1"]\n',
}


@asynccontextmanager
async def three(mode: str) -> AsyncIterator[tuple[ScriptedUpstream, GuardedServer, str]]:
    """Settings with servers that get no token, a fixed one, and one that the gateway asks for."""
    async with guarded() as (issuer, server), ScriptedUpstream() as open_server:
        both = '["legacy", "modern"]'
        text = AUTH[mode] + table(issuer, server).replace('["legacy"]', both)
        text += f'[servers.open]\nurl = "{open_server.url}"\neras = {both}\n'
        text += f'[servers.fixed]\nurl = "{open_server.url}"\nheaders = {{ Authorization = "Bearer ${{UP_SECRET}}" }}\n'
        yield open_server, server, text


@pytest.mark.parametrize("mode", AUTH)
async def test_g12_a_clients_own_token_never_reaches_a_server(
    mode: str, settings_file: Write, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with three(mode) as (open_server, server, text):
        with before(settings_file, text, monkeypatch) as gateway:
            for name in ("open", "fixed", "up"):
                headers = {"Authorization": f"Bearer {CLIENT_TOKEN}", "X-Auth-Subject": "alice", "Cookie": CLIENT_TOKEN}
                async with Wire(gateway.url(name), headers) as wire:
                    await wire.post(initialize())
    assert server.authorizations[0] == "Bearer token-1"
    seen = {came.headers.get("authorization") for came in open_server.received}
    assert seen == {None, f"Bearer {SECRET}"}
    everything = [*(value for came in open_server.received for value in came.headers.values()), *server.authorizations]
    assert not any(CLIENT_TOKEN in value for value in everything)
