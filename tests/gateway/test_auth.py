"""Who is asking: tokens are known by their hash, and whatever is wrong with one is not told."""

import hashlib
import json
import time
from contextlib import nullcontext
from pathlib import Path

import jwt
import pytest
from cryptography.hazmat.primitives.asymmetric import rsa
from harness.raw_http import saying, serving
from msgspec import structs
from trunkline.gateway.auth import METADATA, Authenticator
from trunkline.gateway.settings import TLS, AuthSection, GatewaySection, Settings, TokenEntry
from trunkline.mux.errors import Overloaded
from trunkline.mux.principal import ANONYMOUS, Principal
from trunkline.transports.asgi import Grant, headers_of
from trunkline.transports.status import Unauthorized

ALICE, ROOT, ADMIN = "token-of-alice", "token-of-root", "the-admin-token"


def sha256(token: str) -> str:
    return hashlib.sha256(token.encode()).hexdigest()


def authenticator(mode: str = "tokens", *, admin_token: str = ADMIN) -> Authenticator:
    tokens = (
        TokenEntry(sha256(ALICE), "acme", "alice"),
        TokenEntry(sha256(ROOT).upper(), "acme", "root", admin=True),
    )
    auth = AuthSection(mode=mode, tokens=tokens)  # type: ignore[arg-type]
    return Authenticator(Settings(gateway=GatewaySection(admin_token=admin_token), auth=auth))


def bearer(token: str) -> dict[str, str]:
    return {"authorization": f"Bearer {token}"}


def test_a_token_is_known_by_its_sha256() -> None:
    known = authenticator()
    assert known.authenticate(bearer(ALICE)) == Principal("tokens", "acme", "alice")
    assert known.authenticate(bearer(ROOT)) == Principal("tokens", "acme", "root")


def test_whether_somebody_is_known_costs_the_same_however_many_are() -> None:
    class Stranger:
        compared = 0

        def __eq__(self, other: object) -> bool:
            self.compared += 1
            return False

        def __hash__(self) -> int:
            return 0

    tokens = tuple(TokenEntry(sha256(f"{number}"), "acme", f"user-{number}") for number in range(1000))
    known, stranger = Authenticator(Settings(auth=AuthSection(mode="tokens", tokens=tokens))), Stranger()
    assert known.knows(Principal("tokens", "acme", "user-999"))
    assert not known.knows(stranger)  # type: ignore[arg-type]
    assert stranger.compared < 10, "of each of ten thousand workflows it is asked, in one go, when settings change"


@pytest.mark.parametrize("scheme", ["Bearer", "bearer", "BEARER"])
def test_the_scheme_is_read_in_any_case(scheme: str) -> None:
    assert authenticator().authenticate({"authorization": f"{scheme} {ALICE}"}).subject == "alice"


@pytest.mark.parametrize(
    "headers",
    [
        {},
        {"authorization": ""},
        {"authorization": "Bearer"},
        {"authorization": "Bearer "},
        {"authorization": ALICE},
        {"authorization": f"Basic {ALICE}"},
        {"authorization": f"Bearer {ALICE}, Bearer {ALICE}"},
        {"authorization": f"Bearer {ALICE},x"},
        {"authorization": f"Bearer {ALICE} x"},
        {"x-authorization": f"Bearer {ALICE}"},
        {"cookie": f"token={ALICE}"},
    ],
)
def test_a_request_without_one_token_is_told_what_to_send(headers: dict[str, str]) -> None:
    with pytest.raises(Unauthorized) as refused:
        authenticator().authenticate(headers)
    assert refused.value.challenge == "Bearer"
    assert ALICE not in f"{refused.value!r} {refused.value.message}"


@pytest.mark.parametrize(
    "token", ["x", ALICE[:-1], ALICE + "x", ALICE.upper(), sha256(ALICE), ADMIN, "\N{SNOWMAN}", "\xff", "x" * 100_000]
)
def test_a_token_that_is_not_known_is_refused_without_a_word_about_it(token: str) -> None:
    with pytest.raises(Unauthorized) as refused:
        authenticator().authenticate(bearer(token))
    told = f"{refused.value!r} {refused.value.message} {refused.value.challenge}"
    assert refused.value.challenge == 'Bearer error="invalid_token"'
    assert len(told) < 200
    assert token == "x" or token not in told


def test_where_nobody_is_authenticated_a_token_changes_nothing() -> None:
    known = authenticator("none")
    assert known.authenticate({}) == known.authenticate(bearer(ALICE)) == ANONYMOUS


@pytest.mark.parametrize("mode", ["none", "tokens"])
def test_an_admin_has_the_admin_token_or_an_entry_that_says_so(mode: str) -> None:
    known = authenticator(mode)
    assert known.admin_grant(bearer(ADMIN))
    assert known.admin_grant(bearer(ROOT))
    for headers in ({}, bearer(ALICE), bearer(""), bearer(sha256(ADMIN)), {"authorization": ADMIN}):
        assert not known.admin_grant(headers)


def test_without_an_admin_token_no_token_is_the_empty_one() -> None:
    known = authenticator(admin_token="")
    assert not known.admin_grant(bearer(""))
    assert not known.admin_grant({"authorization": "Bearer "})
    assert known.admin_grant(bearer(ROOT))


def test_no_token_is_kept_as_it_was_sent() -> None:
    known = authenticator()
    known.authenticate(bearer(ALICE))
    kept = f"{vars(known)}"
    assert not any(token in kept for token in (ALICE, ROOT, ADMIN))


@pytest.mark.parametrize(
    ("gateway", "base"),
    [
        (GatewaySection(), "http://h:1"),
        (GatewaySection(tls=TLS("cert.pem", "key.pem")), "https://h:1"),
        (GatewaySection(public_url="https://mcp.example/"), "https://mcp.example"),
    ],
)
def test_where_to_learn_who_gives_tokens_is_told_as_clients_reach_the_listener(
    gateway: GatewaySection, base: str
) -> None:
    auth = AuthSection(mode="jwt", issuer="i", audience="a", secret="s" * 32, algorithms=("HS256",))
    with pytest.raises(Unauthorized) as refused:
        Authenticator(Settings(gateway=gateway, auth=auth)).authenticate({"host": "h:1"}, server="up")
    assert refused.value.challenge == f'Bearer resource_metadata="{base}{METADATA}/servers/up/mcp"'


# Settings that change.


def entries(*subjects: str) -> tuple[TokenEntry, ...]:
    """A token for each subject; `NAME/2` is a second one of the same."""
    return tuple(TokenEntry(sha256(subject), "acme", subject.partition("/")[0]) for subject in subjects)


def tokens(*subjects: str) -> Settings:
    return Settings(auth=AuthSection(mode="tokens", tokens=entries(*subjects)))


def grant_of(authenticator: Authenticator, headers: dict[str, str]) -> Grant:
    """By what a request with these headers may keep something open."""
    request = headers_of({"headers": []})
    request.update(headers)
    authenticator.authenticate(request)
    return request.grant


def test_a_token_that_is_taken_out_ends_what_it_opened_and_no_other_does() -> None:
    before = Authenticator(tokens("alice", "alice/2", "bob"))
    held = {name: grant_of(before, bearer(name)) for name in ("alice", "alice/2", "bob")}
    after = Authenticator(tokens("alice/2", "bob", "carol"), before)
    assert not any(grant.is_withdrawn for grant in held.values()), "nothing happens before it is replaced"
    before.give_way(after)
    assert {name: grant.is_withdrawn for name, grant in held.items()} == {"alice": True, "alice/2": False, "bob": False}
    assert grant_of(after, bearer("bob")) is held["bob"]
    assert [after.knows(Principal("tokens", "acme", name)) for name in ("alice", "bob", "carol", "dave")] == [
        True,
        True,
        True,
        False,
    ]
    with pytest.raises(Unauthorized):
        after.authenticate(bearer("alice"))


def test_a_token_that_stands_for_somebody_else_by_now_ends_what_it_opened() -> None:
    before = Authenticator(tokens("alice"))
    grant = grant_of(before, bearer("alice"))
    moved = TokenEntry(sha256("alice"), "other", "alice")
    after = Authenticator(Settings(auth=AuthSection(mode="tokens", tokens=(moved,))), before)
    before.give_way(after)
    assert grant.is_withdrawn
    assert not grant_of(after, bearer("alice")).is_withdrawn


SECRET = "a secret that is long enough for HS256, as a test has it"
JWT = AuthSection(mode="jwt", issuer="https://issuer.example", audience="gateway", secret=SECRET, algorithms=("HS256",))
PROXY = GatewaySection(trusted_proxies=("127.0.0.1",))
RULES: dict[str, tuple[Settings, Principal]] = {
    "none": (Settings(), ANONYMOUS),
    "tokens": (tokens("alice"), Principal("tokens", "acme", "alice")),
    "jwt": (Settings(auth=JWT), Principal("https://issuer.example", "acme", "alice")),
    "another issuer": (
        Settings(auth=AuthSection(**{**structs.asdict(JWT), "issuer": "https://other.example"})),
        Principal("https://other.example", "acme", "alice"),
    ),
    "proxy": (Settings(gateway=PROXY, auth=AuthSection(mode="proxy")), Principal("proxy", "acme", "alice")),
}


@pytest.mark.parametrize("after", RULES)
@pytest.mark.parametrize("before", RULES)
def test_other_rules_end_what_was_opened_under_the_old_ones(before: str, after: str) -> None:
    old = Authenticator(RULES[before][0])
    new = Authenticator(RULES[after][0], old)
    grants = old._grants
    old.give_way(new)
    assert all(grant.is_withdrawn is (before != after) for grant in grants)
    assert {name: new.knows(principal) for name, (_, principal) in RULES.items()} == {
        name: name == after for name in RULES
    }
    assert new.tickets is old.tickets
    assert (new.jwt is old.jwt) is (before == after or new.jwt is None is old.jwt)


def test_another_secret_of_the_issuer_counts_alone() -> None:
    old = Authenticator(Settings(auth=JWT))
    new = Authenticator(Settings(auth=AuthSection(**{**structs.asdict(JWT), "secret": SECRET + "2"})), old)
    claims = {"iss": JWT.issuer, "aud": "gateway", "sub": "alice", "exp": time.time() + 60}
    old_token, new_token = (jwt.encode(claims, secret, "HS256") for secret in (SECRET, SECRET + "2"))
    grant = grant_of(old, bearer(old_token))
    old.give_way(new)
    assert grant.is_withdrawn
    assert new.authenticate(bearer(new_token)).subject == "alice"
    with pytest.raises(Unauthorized):
        new.authenticate(bearer(old_token))
    assert new.knows(old.authenticate(bearer(old_token))), "who comes with a token of the new key goes on"


@pytest.mark.anyio
async def test_keys_that_were_read_from_a_url_count_until_they_can_be_read_again() -> None:
    """Other rules for tokens are no reason to refuse everybody while the issuer does not answer."""
    key = rsa.generate_private_key(public_exponent=65537, key_size=2048)
    body = json.dumps({"keys": [json.loads(jwt.algorithms.RSAAlgorithm.to_jwk(key.public_key()))]}).encode()

    async with serving(
        saying(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%b" % (len(body), body), ends=True)
    ) as issuer:
        auth = AuthSection(mode="jwt", issuer="i", audience="a", jwks=issuer.url)
        old = Authenticator(Settings(auth=auth))
        assert old.jwt is not None
        await old.jwt.keys.refresh()
    token = jwt.encode({"iss": "i", "aud": "b", "sub": "alice", "exp": time.time() + 60}, key, "RS256")
    for change, is_known in (({"audience": "b"}, True), ({"audience": "b", "jwks": "http://127.0.0.1:9/keys"}, False)):
        new = Authenticator(Settings(auth=structs.replace(auth, **change)), old)
        assert new.jwt is not None
        await new.jwt.keys.refresh()
        with nullcontext() if is_known else pytest.raises(Overloaded):
            assert new.authenticate(bearer(token)).subject == "alice"


def test_keys_in_a_file_are_read_again_and_those_that_are_gone_no_longer_count(tmp_path: Path) -> None:
    keys = tmp_path / "keys.json"
    old, new = (rsa.generate_private_key(public_exponent=65537, key_size=2048) for _ in range(2))

    def write(key: rsa.RSAPrivateKey) -> None:
        keys.write_text(json.dumps({"keys": [json.loads(jwt.algorithms.RSAAlgorithm.to_jwk(key.public_key()))]}))

    def token(key: rsa.RSAPrivateKey) -> dict[str, str]:
        due = {"iss": "https://issuer", "aud": "gateway", "sub": "alice", "exp": int(time.time()) + 60}
        return bearer(jwt.encode(due, key, "RS256"))

    write(old)
    auth = AuthSection(mode="jwt", issuer="https://issuer", audience="gateway", jwks=str(keys), algorithms=("RS256",))
    before = Authenticator(Settings(auth=auth))
    grant = grant_of(before, token(old))
    write(new)
    after = Authenticator(Settings(auth=auth), before)
    before.give_way(after)
    assert not grant.is_withdrawn, "another key may have signed for the same"
    assert after.authenticate(token(new)).subject == "alice"
    with pytest.raises(Unauthorized):
        after.authenticate(token(old))


def test_what_an_admin_opened_ends_with_the_token(tmp_path: Path) -> None:
    def settings(admin: str, *names: str) -> Settings:
        entries = tuple(TokenEntry(sha256(name), "acme", name, admin=True) for name in names)
        return Settings(gateway=GatewaySection(admin_token=admin), auth=AuthSection(mode="tokens", tokens=entries))

    before = Authenticator(settings("one", "root", "other"))
    held = {name: before.admin_grant(bearer(name)) for name in ("one", "root", "other")}
    after = Authenticator(settings("two", "root"), before)
    before.give_way(after)
    assert {name: grant and grant.is_withdrawn for name, grant in held.items()} == {
        "one": True,
        "root": False,
        "other": True,
    }
    assert after.admin_grant(bearer("root")) is held["root"]
    assert after.admin_grant(bearer("one")) is None
