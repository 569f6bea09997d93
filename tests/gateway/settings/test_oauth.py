"""The settings of a server's client credentials: what names them, and what is refused before a secret goes anywhere."""

from pathlib import Path

import msgspec
import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec
from trunkline.gateway.settings import OAuth, Settings, SettingsError, load

OAUTH = "issuer = 'https://i', client_id = 'c', client_secret = 's'"


def read(folder: Path, text: str, url: str = "https://h/mcp", **environ: str) -> Settings:
    path = folder / "trunkline.toml"
    path.write_text(f"[servers.up]\nurl = '{url}'\n{text}")
    return load(path, environ=environ)


def refusal(folder: Path, text: str, url: str = "https://h/mcp") -> SettingsError:
    with pytest.raises(SettingsError) as wrong:
        read(folder, text, url)
    return wrong.value


def oauth_of(settings: Settings) -> OAuth:
    oauth = settings.servers["up"].oauth
    assert oauth is not None
    return oauth


def test_a_secret_comes_from_the_environment_even_one_of_digits_and_is_not_shown(tmp_path: Path) -> None:
    text = "oauth = { issuer = 'https://i', client_id = 'c', client_secret = '${S}' }"
    settings = read(tmp_path, text, S="s3cret")
    assert oauth_of(settings).client_secret == "s3cret"
    assert oauth_of(settings).token_endpoint_auth_method == "client_secret_basic"
    assert "s3cret" not in repr(settings)
    named = read(tmp_path, f"oauth = {{ {OAUTH} }}", TRUNKLINE_SERVERS__UP__OAUTH__CLIENT_SECRET="0123")
    assert oauth_of(named).client_secret == "0123"


@pytest.mark.parametrize(
    "url",
    ["https://h/mcp", "http://127.0.0.1/mcp", "http://localhost/mcp", "sse+https://h/sse", "sse+http://[::1]/sse"],
)
def test_a_token_goes_over_https_or_stays_on_this_machine(tmp_path: Path, url: str) -> None:
    assert oauth_of(read(tmp_path, f"oauth = {{ {OAUTH} }}", url)).client_id == "c"


def test_the_identity_of_a_credential_is_the_client_what_it_may_do_and_who_knows_it() -> None:
    first = OAuth(issuer="https://i", client_id="c", client_secret="s", scope="a")
    same = msgspec.structs.replace(first, client_secret="t", token_endpoint_auth_method="client_secret_post")
    assert same.identity == first.identity
    for change in ({"issuer": "https://j"}, {"client_id": "d"}, {"scope": "b"}):
        assert msgspec.structs.replace(first, **change).identity != first.identity


@pytest.mark.parametrize(
    ("text", "path"),
    [
        (f"headers = {{ authorization = 'x' }}\noauth = {{ {OAUTH} }}", "oauth"),
        ("oauth = 1", "oauth"),
        ("oauth = { client_id = 'c', client_secret = 's' }", "oauth"),
        ("oauth = { issuer = 'https://i', client_secret = 's' }", "oauth"),
        (f"oauth = {{ {OAUTH}, client_idd = 'x' }}", "oauth.client_idd"),
        (f"oauth = {{ {OAUTH}, scope = 1 }}", "oauth.scope"),
        (f"oauth = {{ {OAUTH}, scope = 'a  b' }}", "oauth.scope"),
        (f"oauth = {{ {OAUTH}, scope = 'a\"b' }}", "oauth.scope"),
        (f"oauth = {{ {OAUTH}, token_endpoint_auth_method = 'none' }}", "oauth.token_endpoint_auth_method"),
        (f"oauth = {{ {OAUTH}, private_key = 'x' }}", "oauth.client_secret"),
        (f"oauth = {{ {OAUTH}, token_endpoint_auth_method = 'private_key_jwt' }}", "oauth.private_key"),
        ("oauth = { issuer = 'https://i', client_id = 'c' }", "oauth.client_secret"),
        ("oauth = { issuer = 'https://i', client_id = '', client_secret = 's' }", "oauth.client_id"),
        ("oauth = { issuer = 'http://i', client_id = 'c', client_secret = 's' }", "oauth.issuer"),
        ("oauth = { issuer = 'i', client_id = 'c', client_secret = 's' }", "oauth.issuer"),
        ("oauth = { issuer = '', client_id = 'c', client_secret = 's' }", "oauth.issuer"),
    ],
)
def test_what_cannot_be_is_named_by_its_path(tmp_path: Path, text: str, path: str) -> None:
    assert refusal(tmp_path, text).path == f"servers.up.{path}"


@pytest.mark.parametrize(
    ("url", "path"),
    [
        ("http://h/mcp", "url"),
        ("sse+http://h/sse", "url"),
        ("https://user:s3cret@h/mcp", "url"),
        ("wss://h/ws", "oauth"),
        ("stdio:server", "oauth"),
    ],
)
def test_a_token_goes_nowhere_else(tmp_path: Path, url: str, path: str) -> None:
    assert refusal(tmp_path, f"oauth = {{ {OAUTH} }}", url).path == f"servers.up.{path}"


@pytest.mark.parametrize("issuer", ["https://[", "https://é.example/", "https://h:99999/"])
def test_an_issuer_that_is_no_url_is_named(tmp_path: Path, issuer: str) -> None:
    error = refusal(tmp_path, f"oauth = {{ issuer = '{issuer}', client_id = 'c', client_secret = 's' }}")
    assert error.path == "servers.up.oauth.issuer"


def test_the_key_that_signs_is_read_at_once(tmp_path: Path) -> None:
    key = ec.generate_private_key(ec.SECP256R1())
    good, public = tmp_path / "key.pem", tmp_path / "public.pem"
    plain = serialization.NoEncryption()
    good.write_bytes(key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, plain))
    form = serialization.PublicFormat.SubjectPublicKeyInfo
    public.write_bytes(key.public_key().public_bytes(serialization.Encoding.PEM, form))

    def text(file: Path, algorithm: str) -> str:
        signing = f"token_endpoint_auth_method = 'private_key_jwt', private_key = '{file}', algorithm = '{algorithm}'"
        return f"oauth = {{ issuer = 'https://i', client_id = 'c', {signing} }}"

    assert oauth_of(read(tmp_path, text(good, "ES256"))).private_key == str(good)
    for file, algorithm in ((public, "ES256"), (tmp_path / "none", "ES256"), (good, "RS256"), (tmp_path, "ES256")):
        assert refusal(tmp_path, text(file, algorithm)).path == "servers.up.oauth.private_key"
    for algorithm in ("HS256", "none", "XX"):
        assert refusal(tmp_path, text(good, algorithm)).path == "servers.up.oauth.algorithm"
