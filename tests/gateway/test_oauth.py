"""Tokens by client credentials, from a real authorization server: each way to prove oneself, and each way it fails."""

import logging
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any

import anyio
import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec
from harness.authorization import CLIENT, SECRET, AuthorizationServer, GuardedServer, guarded
from harness.ports import free_port
from starlette.responses import JSONResponse, RedirectResponse, Response
from trunkline.gateway import oauth as module
from trunkline.gateway.oauth import ClientCredentials, sources_of
from trunkline.gateway.settings import OAuth, Server, SettingsError
from trunkline.transports.upstream.credentials import NotIssued

pytestmark = pytest.mark.anyio

Pair = tuple[AuthorizationServer, GuardedServer]


@pytest.fixture
async def pair() -> AsyncIterator[Pair]:
    async with guarded() as both:
        yield both


@pytest.fixture(autouse=True)
def quiet() -> Iterator[None]:
    """What a source does to loggers of the libraries is undone."""
    names = ("mcp.client.auth", "httpx2")
    before = {name: logging.getLogger(name).level for name in names}
    yield
    for name, level in before.items():
        logging.getLogger(name).setLevel(level)


def source(pair: Pair, **options: Any) -> ClientCredentials:
    issuer, server = pair
    settings = OAuth(**{"issuer": issuer.issuer, "client_id": CLIENT, "client_secret": SECRET, **options})
    return ClientCredentials("up", Server(url=server.url, oauth=settings), settings)


async def refusal(source: ClientCredentials, challenge: str = "") -> str:
    with pytest.raises(NotIssued) as refused:
        await source.fetch(challenge)
    assert SECRET not in str(refused.value)
    assert "127.0.0.1" not in str(refused.value)
    return str(refused.value)


@pytest.mark.parametrize("method", ["client_secret_basic", "client_secret_post"])
async def test_a_token_is_issued_for_a_secret(pair: Pair, method: Any) -> None:
    issuer, server = pair
    token = await source(pair, token_endpoint_auth_method=method).fetch("")
    assert (token.text, token.lifetime) == ("token-1", 3600)
    assert issuer.methods == [method]
    assert issuer.forms[0]["resource"] == server.url, "it is for this server alone (RFC 8707)"
    assert not server.authorizations, "asking for a token costs the server no request but for its metadata"


async def test_a_token_is_issued_for_an_assertion(pair: Pair, tmp_path: Path) -> None:
    key = ec.generate_private_key(ec.SECP256R1())
    file = tmp_path / "key.pem"
    plain = serialization.NoEncryption()
    file.write_bytes(key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, plain))
    pair[0].public_key = key.public_key()
    signing = {"client_secret": "", "private_key": str(file), "algorithm": "ES256"}
    asking = source(pair, token_endpoint_auth_method="private_key_jwt", **signing)
    assert (await asking.fetch("")).text == "token-1"
    assert pair[0].methods == ["private_key_jwt"]
    file.unlink()
    assert await refusal(asking) == "the file of the private key cannot be read"


@pytest.mark.parametrize(
    ("scope", "challenge", "asked"),
    [
        ("", "", None),
        ("", 'Bearer scope="a b"', "a b"),
        ("files:read x", "", "files:read x"),
        ("files:read x", 'Bearer scope="a b"', "files:read x"),
    ],
)
async def test_the_scope_is_that_of_the_settings_else_what_the_server_asks_for(
    pair: Pair, scope: str, challenge: str, asked: str | None
) -> None:
    await source(pair, scope=scope).fetch(challenge)
    assert pair[0].forms[0].get("scope") == asked


async def test_where_the_server_says_its_metadata_is_there_it_is_read(pair: Pair) -> None:
    where = f"{pair[1].base}/.well-known/oauth-protected-resource/mcp"
    assert (await source(pair).fetch(f'Bearer resource_metadata="{where}"')).text == "token-1"


async def test_a_token_without_an_end_is_one(pair: Pair) -> None:
    pair[0].lifetime = None
    assert (await source(pair).fetch("")).lifetime is None


async def test_a_wrong_secret_is_told_by_its_word_and_not_by_what_the_issuer_wrote(
    pair: Pair, caplog: pytest.LogCaptureFixture
) -> None:
    assert (
        await refusal(source(pair, client_secret="wrong"))
        == "the authorization server answered HTTP 401 (invalid_client)"
    )
    assert SECRET not in caplog.text


def answer(status: int, body: Any = None, **options: Any) -> Callable[[], Awaitable[Response]]:
    async def made() -> Response:
        return JSONResponse(body, status, **options)

    return made


async def huge() -> Response:
    return Response(b" " * 300_000, media_type="application/json")


async def elsewhere() -> Response:
    return RedirectResponse("http://127.0.0.1:1/token", 307)


TOLD: dict[str, tuple[Callable[[], Awaitable[Response]], str]] = {
    "down": (answer(503), "the authorization server answered HTTP 503"),
    "a word of its own": (answer(400, {"error": SECRET}), "the authorization server answered HTTP 400"),
    "a scope it does not know": (
        answer(400, {"error": "invalid_scope"}),
        "the authorization server answered HTTP 400 (invalid_scope)",
    ),
    "no token": (answer(200, {}), "the authorization server's answer holds no token"),
    "no object": (answer(200, []), "the authorization server's answer holds no token"),
    "a token of another kind": (
        answer(200, {"access_token": "x", "token_type": "mac"}),
        "the authorization server's answer holds no token",
    ),
    "an empty token": (
        answer(200, {"access_token": "", "token_type": "bearer"}),
        "the authorization server gave a token that cannot be sent",
    ),
    "a token that ends its header": (
        answer(200, {"access_token": "a\r\nX: y", "token_type": "bearer"}),
        "the authorization server gave a token that cannot be sent",
    ),
    "a huge token": (
        answer(200, {"access_token": "x" * 20_000, "token_type": "bearer"}),
        "the authorization server gave a token that cannot be sent",
    ),
    "a huge answer": (huge, "the authorization server's answer is too large"),
    "compressed": (
        answer(200, {}, headers={"Content-Encoding": "gzip"}),
        "the authorization server encoded its answer in a way that was not asked for",
    ),
    "another origin": (elsewhere, "the authorization server answered HTTP 307"),
}


@pytest.mark.parametrize("name", TOLD)
async def test_what_is_no_token_is_told_in_words_of_our_own(pair: Pair, name: str) -> None:
    pair[0].fault, told = TOLD[name]
    assert await refusal(source(pair)) == told


@pytest.mark.parametrize("lifetime", [10**400, 10**15, -1, 0])
async def test_a_token_is_taken_or_not_whatever_its_issuer_says_of_its_end(pair: Pair, lifetime: int) -> None:
    pair[0].fault = answer(200, {"access_token": "x", "token_type": "bearer", "expires_in": lifetime})
    if lifetime == 10**400:
        assert await refusal(source(pair)) == "the authorization server's answer holds no token"
    else:
        assert await source(pair).fetch("") == ("x", lifetime)


@pytest.mark.parametrize("challenge", ["Bearer \xff", "Bearer \u2603", 'Bearer resource_metadata="http://caf\xe9/"'])
async def test_a_challenge_that_cannot_be_read_is_none(pair: Pair, challenge: str) -> None:
    assert (await source(pair).fetch(challenge)).text == "token-1"


@pytest.mark.parametrize("address", ["http://[::1", "\x01", "http://127.0.0.1:99999/"])
async def test_a_challenge_that_leads_to_no_address_is_told(pair: Pair, address: str) -> None:
    with pytest.raises(NotIssued) as refused:
        await source(pair).fetch(f'Bearer resource_metadata="{address}"')
    assert address not in str(refused.value)


async def test_an_issuer_that_is_away_is_told() -> None:
    issuer = AuthorizationServer()
    issuer.listener.close()
    async with GuardedServer(issuer) as server:
        told = await refusal(source((issuer, server)))
    assert told == "the authorization server cannot be reached: ConnectError"


async def test_an_issuer_that_is_silent_is_not_waited_for(pair: Pair, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "REQUEST_SECONDS", 1.0)  # what comes before it is answered in that time
    release = anyio.Event()

    async def silent() -> Response:
        await release.wait()
        return JSONResponse({})

    pair[0].fault = silent
    assert await refusal(source(pair)) == "the authorization server cannot be reached: ReadTimeout"
    release.set()


async def test_a_secret_goes_to_no_issuer_but_the_configured_one(pair: Pair) -> None:
    told = await refusal(source(pair, issuer="https://another.example"))
    assert told == "discovery leads beyond the server and the configured issuer"
    assert not pair[0].seen["token"]


async def test_an_issuer_that_calls_itself_something_else_is_not_believed(pair: Pair) -> None:
    pair[0].metadata = {"issuer": "https://another.example"}
    await refusal(source(pair))
    assert not pair[0].seen["token"]


@pytest.mark.parametrize("address", ["http://203.0.113.1/token", "ftp://127.0.0.1/token"])
async def test_a_secret_goes_over_https_or_stays_on_this_machine(pair: Pair, address: str) -> None:
    pair[0].metadata = {"token_endpoint": address}
    await refusal(source(pair))
    assert not pair[0].seen["token"]


async def test_a_server_beyond_this_machine_does_not_lead_the_gateway_to_what_is_on_it(pair: Pair) -> None:
    settings = OAuth(issuer="https://issuer.example", client_id=CLIENT, client_secret=SECRET)
    asking = ClientCredentials("up", Server(url="https://server.example/mcp", oauth=settings), settings)
    with pytest.raises(NotIssued, match="neither https nor this machine's"):
        await asking.fetch(f'Bearer resource_metadata="{pair[1].base}/.well-known/oauth-protected-resource/mcp"')


async def test_a_server_leads_the_gateway_nowhere_but_to_itself_and_the_configured_issuer(pair: Pair) -> None:
    """What lies behind the gateway would be asked for, and its statuses told (SSRF)."""
    async with AuthorizationServer() as inside, GuardedServer(inside) as other:
        where = f"{other.base}/.well-known/oauth-protected-resource/mcp"
        by_challenge = source(pair), f'Bearer resource_metadata="{where}"'
        by_metadata = source((inside, other), issuer=pair[0].issuer), ""
        for asking, challenge in (by_challenge, by_metadata):
            assert await refusal(asking, challenge) == "discovery leads beyond the server and the configured issuer"
        assert not inside.seen
    assert not pair[0].seen["token"]


async def test_a_server_that_does_not_say_who_issues_its_tokens_is_told() -> None:
    settings = OAuth(issuer="http://127.0.0.1:1", client_id=CLIENT, client_secret=SECRET)
    url = f"http://127.0.0.1:{free_port()}/mcp"
    asking = ClientCredentials("up", Server(url=url, oauth=settings), settings)
    assert await refusal(asking) == "the authorization server cannot be reached: ConnectError"


@pytest.mark.parametrize("proxy", ["socks5://127.0.0.1:1", "nonsense://h", "http://h:x", "http://127.0.0.1:1"])
async def test_a_proxy_that_leads_nowhere_is_told(monkeypatch: pytest.MonkeyPatch, proxy: str) -> None:
    monkeypatch.setenv("https_proxy", proxy)
    settings = OAuth(issuer="https://issuer.example", client_id=CLIENT, client_secret=SECRET)
    asking = ClientCredentials("up", Server(url="https://server.example/mcp", oauth=settings), settings)
    assert (await refusal(asking)).startswith("the authorization server cannot be reached: ")


def test_without_oauth_there_is_no_credential() -> None:
    assert not sources_of({"up": Server(url="http://h/mcp")})


def test_an_sdk_without_the_provider_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "mcp.client.auth.extensions", None)
    settings = OAuth(issuer="https://i", client_id="c", client_secret="s")
    with pytest.raises(SettingsError, match="mcp>=2") as wrong:
        sources_of({"up": Server(url="https://h/mcp", oauth=settings)})
    assert wrong.value.path == "servers.up.oauth"
