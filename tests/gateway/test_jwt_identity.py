"""Identities from tokens: what is checked, whose it is, when it ends, and keys that change."""

import asyncio
import gzip
import hashlib
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import jwt
import pytest
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from harness.raw_http import Peer, serving
from trunkline.gateway import jwt_identity
from trunkline.gateway.jwt_identity import LEEWAY_SECONDS, MAX_TOKEN, RECHECK_SECONDS, JWTIdentity, read_keys
from trunkline.gateway.settings import AuthSection
from trunkline.mux.errors import Overloaded
from trunkline.mux.principal import Principal
from trunkline.transports.status import Unauthorized

pytestmark = pytest.mark.anyio

SECRET = "a secret that is long enough for HS256, and for HS512 as well, by sixty-four bytes"
NOW = 4_000_000_000.0
"""Far enough ahead that the library's own clock finds no token expired; what expires here is told by the test's."""

RSA = rsa.generate_private_key(public_exponent=65537, key_size=2048)
EC = ec.generate_private_key(ec.SECP256R1())


class Clock:
    now = NOW

    def __call__(self) -> float:
        return self.now


def section(**changes: Any) -> AuthSection:
    values = {
        "mode": "jwt",
        "issuer": "https://issuer",
        "audience": "gateway",
        "secret": SECRET,
        "algorithms": ("HS256",),
    }
    return AuthSection(**{**values, **changes})


def claims(**changes: Any) -> dict[str, Any]:
    due = {"iss": "https://issuer", "aud": "gateway", "sub": "alice", "tenant": "acme", "exp": NOW + 60}
    return {name: value for name, value in {**due, **changes}.items() if value is not None}


def token(key: Any = SECRET, algorithm: str = "HS256", kid: str | None = None, **changes: Any) -> str:
    return jwt.encode(claims(**changes), key, algorithm, headers={"kid": kid} if kid else None)


def verify(identity: JWTIdentity, text: str) -> Principal:
    return identity.verify(text, hashlib.sha256(text.encode()).digest())[0]


def jwks(**keys: Any) -> str:
    made = []
    for kid, key in keys.items():
        algorithm = jwt.algorithms.RSAAlgorithm if isinstance(key, rsa.RSAPrivateKey) else jwt.algorithms.ECAlgorithm
        made.append({**json.loads(algorithm.to_jwk(key.public_key())), "kid": kid})
    return json.dumps({"keys": made})


@pytest.mark.parametrize("exp", [10**400, float("inf")], ids=["huge", "infinite"])
def test_a_token_that_ends_at_no_time_is_not_valid(exp: float) -> None:
    with pytest.raises(Unauthorized):
        verify(JWTIdentity(section()), token(exp=exp))


def test_a_token_names_tenant_and_subject_and_when_it_ends() -> None:
    identity = JWTIdentity(section(), clock=Clock())
    principal, expires = identity.verify(token(), b"digest")
    assert principal == Principal("https://issuer", "acme", "alice")
    assert expires == NOW + 60


def test_the_claims_can_be_others() -> None:
    identity = JWTIdentity(section(subject_claim="email", tenant_claim="org"), clock=Clock())
    assert verify(identity, token(email="a@b", org="x")) == Principal("https://issuer", "x", "a@b")


def test_a_token_without_tenant_has_none() -> None:
    assert verify(JWTIdentity(section(), clock=Clock()), token(tenant=None)).tenant == ""


@pytest.mark.parametrize(
    "changes",
    [
        {"iss": "https://other"},
        {"iss": None},
        {"aud": "other"},
        {"aud": None},
        {"exp": None},
        {"exp": 1_000_000_000},
        {"exp": "soon"},
        {"nbf": NOW + 3600},
        {"sub": None},
        {"sub": ""},
        {"sub": 7},
        {"tenant": ["acme"]},
        {"sub": "alice\ud800"},
        {"tenant": "\udfff"},
        {"key": "another secret that is long enough"},
        {"algorithm": "HS512"},
        {"key": None, "algorithm": "none"},
    ],
    ids=str,
)
def test_x6_whatever_is_wrong_with_a_token_is_not_told(
    changes: dict[str, Any], caplog: pytest.LogCaptureFixture
) -> None:
    text = token(**changes)
    with pytest.raises(Unauthorized, match=r"^this token is not valid here$") as refused:
        verify(JWTIdentity(section(), clock=Clock()), text)
    assert "invalid_token" in refused.value.challenge
    assert text not in caplog.text


@pytest.mark.parametrize("text", ["", "x", "a.b.c", "e30.e30.e30", "\u20ac.\u20ac.\u20ac", "." * 10_000])
def test_what_is_no_token_is_refused(text: str) -> None:
    with pytest.raises(Unauthorized):
        verify(JWTIdentity(section(), clock=Clock()), text)


def test_g10_a_token_is_looked_at_up_to_a_length_that_none_has() -> None:
    """Taking one apart costs time by its length, and whoever sent it is not known yet."""
    identity = JWTIdentity(section(), clock=Clock())
    longest = token(padding="x" * (MAX_TOKEN * 3 // 4 - 300))
    assert MAX_TOKEN - 400 < len(longest) <= MAX_TOKEN
    assert verify(identity, longest).subject == "alice"
    with pytest.raises(Unauthorized):
        verify(identity, token(padding="x" * (MAX_TOKEN * 3 // 4)))


def test_a_remembered_token_ends_when_it_expires() -> None:
    clock = Clock()
    identity = JWTIdentity(section(), clock=clock)
    text = token()
    assert verify(identity, text).subject == "alice"
    clock.now = NOW + 59
    assert verify(identity, text).subject == "alice"
    assert len(identity._known) == 1


def test_a_key_that_was_withdrawn_stops_counting() -> None:
    clock = Clock()
    identity = JWTIdentity(section(), clock=clock)
    text = token(exp=NOW + 10 * RECHECK_SECONDS)
    assert verify(identity, text).subject == "alice"
    identity.keys._secret = "another secret that is long enough"
    assert verify(identity, text).subject == "alice", "it was verified a moment ago"
    clock.now += RECHECK_SECONDS
    with pytest.raises(Unauthorized):
        verify(identity, text)
    assert LEEWAY_SECONDS < RECHECK_SECONDS


def test_g10_only_so_many_tokens_are_remembered(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(jwt_identity, "REMEMBERED", 3)
    identity = JWTIdentity(section(), clock=Clock())
    for n in range(10):
        verify(identity, token(sub=f"user-{n}"))
    assert len(identity._known) == 3


def test_keys_of_a_file_are_found_by_name(tmp_path: Path) -> None:
    path = tmp_path / "jwks.json"
    path.write_text(jwks(one=RSA, two=EC))
    identity = JWTIdentity(section(secret="", jwks=str(path), algorithms=("RS256", "ES256")), clock=Clock())
    assert verify(identity, token(RSA, "RS256", "one")).subject == "alice"
    assert verify(identity, token(EC, "ES256", "two")).subject == "alice"
    for text in (token(RSA, "RS256", "three"), token(RSA, "RS256"), token(RSA, "RS256", "two")):
        with pytest.raises(Unauthorized):
            verify(identity, text)


def test_the_only_key_needs_no_name(tmp_path: Path) -> None:
    path = tmp_path / "jwks.json"
    path.write_text(jwks(one=RSA))
    identity = JWTIdentity(section(secret="", jwks=str(path), algorithms=("RS256",)), clock=Clock())
    assert verify(identity, token(RSA, "RS256")).subject == "alice"


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"keys":[]}', '{"keys":7}', '{"keys":[{"kty":"odd"}]}'])
def test_what_is_no_key_set_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match=r"key|JSON|Expecting"):
        read_keys(text)


@pytest.mark.parametrize(
    "odd",
    [
        {"kty": "RSA", "alg": "HS256"},
        {"kty": "oct", "alg": "HS256", "k": None},
        {"kty": "oct"},
        {"kty": "OKP", "crv": "Ed25519", "x": "A" * 43, "alg": "none"},
        {"kty": "EC", "crv": "P-256", "x": {}, "y": []},
        {"kty": ["RSA"]},
        {"kty": "RSA", "n": "AQAB", "e": None},
        {"kty": "odd"},
        {},
        None,
        7,
    ],
    ids=str,
)
def test_a_key_that_cannot_be_used_costs_no_other(odd: Any) -> None:
    keys = json.loads(jwks(one=RSA))["keys"]
    assert list(read_keys(json.dumps({"keys": [odd, *keys, odd]}))) == ["one"]
    with pytest.raises(ValueError, match="it holds no key"):
        read_keys(json.dumps({"keys": [odd]}))


def test_a_name_that_is_none_is_no_name() -> None:
    keys = json.loads(jwks(one=RSA))
    keys["keys"][0]["kid"] = ["a"]
    assert list(read_keys(json.dumps(keys))) == ["#0"]


def test_a_key_whose_name_is_empty_is_one_among_others(tmp_path: Path) -> None:
    path = tmp_path / "jwks.json"
    path.write_text(jwks(**{"": RSA, "two": EC}))
    identity = JWTIdentity(section(secret="", jwks=str(path), algorithms=("RS256", "ES256")), clock=Clock())
    assert identity.keys.is_file
    assert verify(identity, token(EC, "ES256", "two")).subject == "alice"
    with pytest.raises(Unauthorized):
        verify(identity, token(RSA, "RS256", "three"))


@pytest.mark.anyio
@pytest.mark.parametrize(
    ("status", "body", "told"),
    [
        ("404 Not Found", b"no", "HTTP 404"),
        ("200 OK", b"<html>", "Expecting value: line 1 column 1 (char 0)"),
        ("200 OK", b"{}", "it is no JSON Web Key Set"),
        ("200 OK", b'{"keys": []}', "it holds no key that can be used"),
        ("", b"", "ServerDisconnectedError"),
    ],
)
async def test_the_log_says_what_comes_in_place_of_keys(
    caplog: pytest.LogCaptureFixture, status: str, body: bytes, told: str
) -> None:
    async def serve(peer: Peer) -> None:
        await peer.request()
        if status:
            head = f"HTTP/1.1 {status}\r\nContent-Length: {len(body)}\r\n\r\n"
            await peer.say(head.encode() + body)

    async with serving(serve) as server:
        auth = section(secret="", jwks=f"{server.url}?key=s3cret", algorithms=("RS256",))
        await JWTIdentity(auth, clock=Clock()).keys.refresh()
    assert caplog.messages == [f"the keys of auth.jwks could not be read: {told}"]


def test_what_the_log_says_of_a_token_is_short_whatever_it_holds(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO")
    odd = jwt.encode(claims(), SECRET, "HS256", headers={"crit": ["x" * 50_000], "x" * 50_000: 1})
    with pytest.raises(Unauthorized):
        verify(JWTIdentity(section(), clock=Clock()), odd)
    assert "a token was refused" in caplog.text
    assert len(caplog.text) < 500


async def test_keys_count_only_if_no_redirect_took_them_off_this_machine_or_https() -> None:
    read: list[str] = []

    async def serve(peer: Peer) -> None:
        start, headers, _ = await peer.request()
        read.append(headers["host"])
        port = headers["host"].rpartition(":")[2]
        if start.startswith("GET /keys "):
            body = jwks(one=RSA).encode()
            await peer.say(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%b" % (len(body), body))
            return
        there = {"/here": f"http://localhost:{port}/keys", "/away": f"http://0.0.0.0:{port}/keys"}[start.split()[1]]
        await peer.say(f"HTTP/1.1 302 Found\r\nLocation: {there}\r\nContent-Length: 0\r\n\r\n".encode())

    async with serving(serve) as server:
        for path, is_believed in (("/away", False), ("/here", True)):
            jwks_url = server.url.replace("/mcp", path)
            identity = JWTIdentity(section(secret="", jwks=jwks_url, algorithms=("RS256",)), clock=Clock())
            await identity.keys.refresh()
            assert (identity.keys.find("one") is not None) is is_believed, path
    assert any(host.startswith("0.0.0.0") for host in read), "it was there to be read"


async def test_g10_keys_that_may_be_more_than_they_look_are_not_unpacked() -> None:
    packed = gzip.compress(jwks(one=RSA).encode())

    async def serve(peer: Peer) -> None:
        _, headers, _ = await peer.request()
        assert headers.get("accept-encoding") == "identity"
        head = b"HTTP/1.1 200 OK\r\nContent-Encoding: gzip\r\nContent-Length: %d\r\n\r\n" % len(packed)
        await peer.say(head, packed)

    async with serving(serve) as server:
        identity = JWTIdentity(section(secret="", jwks=server.url, algorithms=("RS256",)), clock=Clock())
        await identity.keys.refresh()
        assert identity.keys.find("one") is None


async def test_before_keys_could_be_read_nobody_is_told_that_a_token_is_wrong() -> None:
    """A client that is told so gives up its token, and asks its user for another one."""
    sets = ["no key set", jwks(one=RSA)]
    async with key_server(sets, asyncio.Event()) as url:
        identity = JWTIdentity(section(secret="", jwks=url, algorithms=("RS256",)), clock=Clock())
        for _ in range(2):
            with pytest.raises(Overloaded) as refused:
                verify(identity, token(RSA, "RS256", "one"))
            assert refused.value.limit == "issuer_keys"
            await identity.keys.refresh()
            if not sets[1:]:
                break
        await identity.keys.refresh()
        assert verify(identity, token(RSA, "RS256", "one")).subject == "alice"
        with pytest.raises(Unauthorized):
            verify(identity, token(RSA, "RS256", "another"))


@asynccontextmanager
async def key_server(sets: list[str], served: asyncio.Event) -> AsyncIterator[str]:
    async def serve(peer: Peer) -> None:
        await peer.request()
        body = sets.pop(0) if len(sets) > 1 else sets[0]
        half = len(body) // 2
        await peer.say(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%b" % (len(body), body[:half].encode()))
        await asyncio.sleep(0.01)  # so that it comes in two segments
        await peer.say(body[half:].encode())
        served.set()

    async with serving(serve) as server:
        yield server.url


async def until_verified(identity: JWTIdentity, text: str) -> Principal:
    async with asyncio.timeout(10):
        while True:
            try:
                return verify(identity, text)
            except (Overloaded, Unauthorized):
                await asyncio.sleep(0.01)  # the keys are read by a task that tells nobody


async def test_keys_of_a_url_are_read_beside_the_requests_and_anew_for_an_unknown_one(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(jwt_identity, "HASTE_SECONDS", 0.01)
    served = asyncio.Event()
    async with key_server(["no key set", jwks(one=RSA), jwks(one=RSA, two=EC)], served) as url:
        monkeypatch.setattr(jwt_identity, "REFRESH_SECONDS", 0.05)
        identity = JWTIdentity(section(secret="", jwks=url, algorithms=("RS256", "ES256")), clock=Clock())
        with pytest.raises(Overloaded):
            verify(identity, token(RSA, "RS256", "one"))
        task = asyncio.create_task(identity.keys.run())
        try:
            assert (await until_verified(identity, token(RSA, "RS256", "one"))).subject == "alice"
            assert (await until_verified(identity, token(EC, "ES256", "two"))).subject == "alice"
        finally:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)
    assert served.is_set()
