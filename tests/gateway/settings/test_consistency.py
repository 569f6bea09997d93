"""Settings that are wrong: each key and each value by its path, and honestly what this version cannot do."""

from collections.abc import Callable
from pathlib import Path

import pytest
from harness.certificates import certificate
from trunkline.gateway.settings import Settings, SettingsError, load

HASH = "a" * 64
SERVER = '[servers.up]\nurl = "http://h/mcp"\n'
TOKEN = f"sha256 = '{HASH}', tenant = 't', subject = 's'"

Read = Callable[[str], Settings]


@pytest.fixture
def read(tmp_path: Path) -> Read:
    """Loads settings from a text."""

    def from_text(text: str) -> Settings:
        path = tmp_path / "trunkline.toml"
        path.write_text(text)
        return load(path, environ={})

    return from_text


def refusal(read: Read, text: str) -> SettingsError:
    with pytest.raises(SettingsError) as wrong:
        read(text)
    return wrong.value


@pytest.mark.parametrize(
    ("text", "path", "near"),
    [
        ("[gatway]\nport = 1", "gatway", "gateway"),
        ("[gateway]\nprot = 1", "gateway.prot", "port"),
        ("[gateway]\nhots = 'x'", "gateway.hots", "host"),
        ("[gateway.tls]\ncerts = 'x'", "gateway.tls.certs", "cert"),
        ("[directory]\nurls = 'x'", "directory.urls", "url"),
        ("[auth]\nmodes = 'none'", "auth.modes", "mode"),
        ("[pooling]\nreuses = 'none'", "pooling.reuses", "reuse"),
        ("[pooling.event_log]\nevent = 1", "pooling.event_log.event", "events"),
        ("[compat]\nsdk_habit = true", "compat.sdk_habit", "sdk_habits"),
        (SERVER + "header = {}", "servers.up.header", "headers"),
        ("[servers.'x.y']\nurll = ''", "servers.x.y.urll", "url"),
    ],
)
def test_an_unknown_key_is_named_with_the_nearest_that_exists(read: Read, text: str, path: str, near: str) -> None:
    error = refusal(read, text)
    assert error.path == path
    assert error.message == f"unknown key; did you mean {near}?"


@pytest.mark.parametrize(
    ("text", "path"),
    [
        ("[gateway]\nzzzzzz = 1", "gateway.zzzzzz"),
        ("zzzzzz = 1", "zzzzzz"),
    ],
)
def test_an_unknown_key_that_is_near_to_none_lists_what_is_known(read: Read, text: str, path: str) -> None:
    error = refusal(read, text)
    assert error.path == path
    assert "known here: " in error.message


@pytest.mark.parametrize("key", ["args", "type", "transport"])
def test_a_key_of_a_clients_settings_is_told_by_what_it_is_here(read: Read, key: str) -> None:
    error = refusal(read, SERVER + f"{key} = 'x'")
    assert (error.path, "command" in error.message, "did you mean" in error.message) == (
        f"servers.up.{key}",
        True,
        False,
    )


@pytest.mark.parametrize(
    ("section", "value", "path"),
    [
        ("gateway", "host = 1", "host"),
        ("gateway", "port = 'x'", "port"),
        ("gateway", "port = -1", "port"),
        ("gateway", "port = 65536", "port"),
        ("gateway", "port = 1.5", "port"),
        ("gateway", "port = true", "port"),
        ("gateway", "workers = 0", "workers"),
        ("gateway", "workers = '1'", "workers"),
        ("gateway", "drain_timeout = -1", "drain_timeout"),
        ("gateway", "drain_timeout = nan", "drain_timeout"),
        ("gateway", "admin_token = 1", "admin_token"),
        ("gateway", "allowed_hosts = 'x'", "allowed_hosts"),
        ("gateway", "allowed_hosts = ['x', 1]", "allowed_hosts[1]"),
        ("gateway", "allowed_hosts = ['mcp.example', 'https://mcp.example']", "allowed_hosts[1]"),
        ("gateway", "allowed_origins = {}", "allowed_origins"),
        ("gateway", "allowed_origins = ['https://app.example', '*']", "allowed_origins[1]"),
        ("gateway", "admin_token = 'two words'", "admin_token"),
        ("gateway", "tls = 'x'", "tls"),
        ("gateway", "tls = { cert = 1 }", "tls.cert"),
        ("directory", "backend = 'etcd'", "backend"),
        ("directory", "url = 1", "url"),
        ("auth", "mode = 'basic'", "mode"),
        ("auth", "tokens = 'x'", "tokens"),
        ("auth", "tokens = ['x']", "tokens[0]"),
        ("auth", f"tokens = [{{ {TOKEN}, admn = true }}]", "tokens[0].admn"),
        ("auth", f"tokens = [{{ {TOKEN} }}, {{ tenant = 't', subject = 's' }}]", "tokens[1]"),
        ("auth", f"tokens = [{{ {TOKEN}, admin = 1 }}]", "tokens[0].admin"),
        ("auth", "tokens = [{ sha256 = 'x', tenant = 't', subject = 's' }]", "tokens[0].sha256"),
        ("auth", f"tokens = [{{ sha256 = '{HASH}0', tenant = 't', subject = 's' }}]", "tokens[0].sha256"),
        ("auth", f"tokens = [{{ {TOKEN} }}, {{ sha256 = '{HASH}', tenant = 't', subject = '' }}]", "tokens[1].subject"),
        ("auth", f"tokens = [{{ {TOKEN} }}, {{ {TOKEN} }}]", "tokens[1].sha256"),
        ("auth", "mode = 'tokens'", "tokens"),
        ("auth", "algorithms = 'RS256'", "algorithms"),
        ("pooling", "reuse = 'all'", "reuse"),
        *(
            ("pooling", f"{key} = {value}", key)
            for key in ("idle_timeout", "resume_window", "request_timeout")
            for value in ("0", "-1", "nan", "'x'")
        ),
        ("pooling", "spares = -1", "spares"),
        *(
            ("pooling", f"{key} = {value}", key)
            for key in (
                "max_workflows",
                "max_workflows_per_user",
                "max_workflows_per_tenant",
                "max_channels_per_user",
                "max_inflight_per_workflow",
                "max_inflight_per_channel",
            )
            for value in ("0", "-1", "1.5", "'x'")
        ),
        *(
            ("pooling", f"event_log = {{ {key} = {value} }}", f"event_log.{key}")
            for key in ("events", "bytes", "total_bytes")
            for value in ("0", "-1", "'x'")
        ),
        ("compat", "sdk_habits = 'yes'", "sdk_habits"),
    ],
)
def test_a_wrong_value_is_named_by_its_path(read: Read, section: str, value: str, path: str) -> None:
    assert refusal(read, f"[{section}]\n{value}").path == f"{section}.{path}"


@pytest.mark.parametrize("section", ["gateway", "directory", "auth", "pooling", "compat", "servers"])
def test_a_section_that_is_no_table_is_named(read: Read, section: str) -> None:
    assert refusal(read, f"{section} = 1").path == section


@pytest.mark.parametrize(
    ("value", "path"),
    [
        ("headers = 'x'", "headers"),
        ("headers = { X = 'a\\nb' }", "headers"),
        ("headers = { 'X Y' = 'a' }", "headers"),
        ("headers = { X-A = 'a', x-a = 'b' }", "headers"),
        *((f"headers = {{ {name} = '1' }}", "headers") for name in ("Content-Length", "host", "Transfer-Encoding")),
        ("forward_headers = 'X'", "forward_headers"),
        *(
            (f"{key} = ['X-A', {header!r}]", key)
            for key in ("forward_headers", "session_headers")
            for header in ("", "X A", "X-A: b", "X-B,", "*", "X-\u00e4", "x-a")
        ),
        ("session_headers = ['X-A']\nforward_headers = ['x-a']", "forward_headers"),
        ("session_headers = [1]", "session_headers[0]"),
        ("ca = '/no/such/file'", "ca"),
        ("ca = '/dev/null'", "ca"),
        ("stateless = 'x'", "stateless"),
        ("eras = ['old']", "eras[0]"),
        ("eras = []", "eras"),
        ("reuse = 'all'", "reuse"),
        ("idle_timeout = 0", "idle_timeout"),
        ("max_inflight_per_workflow = 0", "max_inflight_per_workflow"),
        ("event_log = { events = 0 }", "event_log.events"),
        ("event_log = 1", "event_log"),
        ("command = 'python server.py'", "command"),
    ],
)
def test_a_wrong_value_of_a_server_is_named_with_the_server(read: Read, value: str, path: str) -> None:
    others = "[servers.first]\nurl = 'http://h/'\n[servers.last]\nurl = 'http://h/'\n"
    assert refusal(read, others + SERVER + value.replace("'a\\nb'", '"a\\nb"')).path == f"servers.up.{path}"


@pytest.mark.parametrize(
    "url",
    [
        "ftp://h/",
        "h:80/mcp",
        "http://",
        "http:///mcp",
        "/mcp",
        "http://h:0/",
        "http://h:99999/",
        "http://[::1/",
        "x",
        "http://a..b/",
        "http://é.example/mcp",
        "http://h/é",
        "wss://h/a b",
    ],
)
def test_a_url_that_leads_nowhere_is_named(read: Read, url: str) -> None:
    assert refusal(read, f"[servers.up]\nurl = '{url}'").path == "servers.up.url"


@pytest.mark.parametrize("text", ["", "url = ''", "url = 'http://h/'\ncommand = ['x']", "reuse = 'none'"])
def test_a_server_has_either_a_url_or_a_command(read: Read, text: str) -> None:
    error = refusal(read, f"[servers.up]\n{text}")
    assert (error.path, error.message) == ("servers.up", "give either url or command")


@pytest.mark.parametrize("name", ["a b", "a/b", "-a", ".", "", "ä", "a" * 65])
def test_a_servers_name_can_stand_in_a_path(read: Read, name: str) -> None:
    error = refusal(read, f"[servers.'{name}']\nurl = 'http://h/'")
    assert error.path == f"servers.{name}"
    assert "name" in error.message


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("backend = 'redis'", "needs one: redis://"),
        ("backend = 'database'", "needs one: sqlite"),
        ("backend = 'redis'\nurl = 'postgresql+asyncpg://h/d'", "begins with redis://"),
        ("backend = 'redis'\nurl = '127.0.0.1:6379'", "begins with redis://"),
        ("backend = 'redis'\nurl = 'redis://'", "begins with redis://"),
        ("backend = 'database'\nurl = 'redis://h'", "begins with sqlite"),
        ("backend = 'database'\nurl = 'postgresql://h/d'", "or postgresql+asyncpg://"),
        ("backend = 'memory'\nurl = 'redis://h'", "memory has none"),
        ("url = 'redis://h'", "memory has none"),
    ],
)
def test_a_directory_needs_a_url_of_its_kind(read: Read, text: str, said: str) -> None:
    error = refusal(read, f"[directory]\n{text}")
    assert error.path == "directory.url"
    assert said in error.message


@pytest.mark.parametrize(
    ("backend", "url"),
    [
        ("redis", "redis://127.0.0.1:6379/0"),
        ("redis", "unix:///run/redis/redis.sock"),
        ("redis", "redis+sentinel://a:26379,b:26379/main"),
        ("database", "sqlite+aiosqlite:///x.db"),
        ("database", "postgresql+asyncpg://user:password@h/d"),
    ],
)
def test_a_shared_directory_serves_several_workers(read: Read, backend: str, url: str) -> None:
    settings = read(f"[gateway]\nworkers = 2\n[directory]\nbackend = '{backend}'\nurl = '{url}'")
    assert (settings.directory.backend, settings.directory.url) == (backend, url)


@pytest.mark.parametrize(
    ("text", "path"),
    [
        ("[servers.up]\ncommand = ['']", "servers.up.command"),
        ("[servers.up]\nurl = 'stdio:'", "servers.up.url"),
        ("[servers.up]\nurl = 'stdio:x \"y'", "servers.up.url"),
        ("[servers.up]\ncommand = ['x']\nheaders = { A = 'b' }", "servers.up.headers"),
        ("[servers.up]\ncommand = ['x']\nca = 'x'", "servers.up.ca"),
        ("[servers.up]\ncommand = ['x']\nenv = { '' = 'x' }", "servers.up.env"),
        ("[servers.up]\ncommand = ['x']\nenv = { A = \"\\u0000\" }", "servers.up.env"),
        ("[servers.up]\nurl = 'http://h/mcp'\nenv = { A = 'x' }", "servers.up.env"),
        ("[servers.up]\nurl = 'stdio:x'\nforward_headers = ['X-A']", "servers.up.forward_headers"),
        ("[servers.up]\nurl = 'wss://h/mcp'\nforward_headers = ['X-A']", "servers.up.forward_headers"),
        ("[servers.up]\nurl = 'ftp://h/mcp'", "servers.up.url"),
        ("[servers.up]\nurl = 'sse+ws://h/mcp'", "servers.up.url"),
    ],
)
def test_a_server_that_cannot_be_started_or_reached_is_refused(read: Read, text: str, path: str) -> None:
    assert refusal(read, text).path == path


def test_headers_of_a_session_go_with_the_opening_of_a_websocket(read: Read) -> None:
    assert read("[servers.up]\nurl = 'wss://h/mcp'\nsession_headers = ['X-A']").servers["up"].session_headers == (
        "X-A",
    )


@pytest.mark.parametrize("where", [SERVER + "reuse = 'none'\n", "[pooling]\nreuse = 'none'\n" + SERVER])
def test_annotations_are_not_trusted_where_nothing_is_sent_again(read: Read, where: str) -> None:
    assert refusal(read, where + "trust_annotations = true").path == "servers.up.trust_annotations"
    assert read(SERVER + "trust_annotations = true").servers["up"].trust_annotations


PROXY = "[gateway]\ntrusted_proxies = ['127.0.0.1']\n[auth]\nmode = 'proxy'\n"
JWT = "[auth]\nmode = 'jwt'\nissuer = 'i'\naudience = 'a'\n"


@pytest.mark.parametrize(
    ("text", "path"),
    [
        ("[auth]\nmode = 'jwt'\naudience = 'a'\nsecret = 's'", "auth.issuer"),
        ("[auth]\nmode = 'jwt'\nissuer = 'i'\nsecret = 's'", "auth.audience"),
        (JWT, "auth.jwks"),
        (JWT + "secret = 's'\njwks = 'x'", "auth.jwks"),
        (JWT + "secret = 's'", "auth.algorithms"),
        (JWT + "secret = 's'\nalgorithms = ['HS256', 'RS256']", "auth.algorithms"),
        (JWT + "secret = 's'\nalgorithms = []", "auth.algorithms"),
        (JWT + "jwks = 'https://h/keys'\nalgorithms = ['none']", "auth.algorithms"),
        (JWT + "jwks = 'https://h/keys'\nalgorithms = ['HS256']", "auth.algorithms"),
        (JWT + "jwks = 'http://h/keys'", "auth.jwks"),
        (JWT + "jwks = '/no/such/file'", "auth.jwks"),
        (JWT + "jwks = 'https://h/keys'\nalgorithms = ['RS999']", "auth.algorithms"),
        (JWT + "jwks = 'https://'", "auth.jwks"),
        (JWT + "jwks = 'https://[h/keys'", "auth.jwks"),
        (JWT + "jwks = 'https://h:0/keys'", "auth.jwks"),
        (JWT + "jwks = 'https://h/keys'\nsubject_claim = ''", "auth.subject_claim"),
        (PROXY + "subject_header = ''", "auth.subject_header"),
        (PROXY + "subject_header = 'X Auth'", "auth.subject_header"),
        (PROXY + "subject_header = 'Authorization'", "auth.subject_header"),
        (PROXY + "tenant_header = 'X-Auth-Tenant:'", "auth.tenant_header"),
        (PROXY + "tenant_header = 'x-auth-subject'", "auth.tenant_header"),
        ("[auth]\nmode = 'proxy'", "gateway.trusted_proxies"),
        ("[gateway]\ntrusted_proxies = ['127.0.0.1']", "gateway.trusted_proxies"),
        ("[auth]\nmode = 'proxy'\n[gateway]\ntrusted_proxies = ['h']", "gateway.trusted_proxies[0]"),
        ("[gateway]\npublic_url = 'mcp.example'", "gateway.public_url"),
        ("[gateway]\npublic_url = 'https://mcp.example/path'", "gateway.public_url"),
        ("[gateway]\npublic_url = 'https://[mcp.example'", "gateway.public_url"),
        ("[gateway]\npublic_url = 'https://mcp.example:99999'", "gateway.public_url"),
        ("[gateway]\npublic_url = 'https://user:s3cret@mcp.example'", "gateway.public_url"),
        ("[gateway]\npublic_url = 'https://mcp.example?x=s3cret'", "gateway.public_url"),
        ("[gateway]\npublic_url = 'https://mcp.example/#s3cret'", "gateway.public_url"),
        ("[gateway]\npublic_url = 'https://名.example'", "gateway.public_url"),
        ("[gateway]\npublic_url = 'https://mcp .example'", "gateway.public_url"),
        ('[gateway]\npublic_url = "https://mcp\\n.example"', "gateway.public_url"),
    ],
)
def test_an_auth_mode_needs_what_it_verifies_with(read: Read, text: str, path: str) -> None:
    error = refusal(read, text)
    assert error.path == path
    assert "s3cret" not in f"{error}"


TOKEN = f"sha256 = '{HASH}', tenant = 't', subject = 's'"


@pytest.mark.parametrize(
    ("given", "path", "mode"),
    [
        (f"tokens = [{{ {TOKEN} }}]", "auth.tokens", "tokens"),
        (f"tokens = [{{ {TOKEN}, admin = true }}, {{ {TOKEN.replace(HASH, 'b' * 64)} }}]", "auth.tokens", "tokens"),
        ("secret = 's3cret'", "auth.secret", "jwt"),
        ("jwks = 'https://h/keys'", "auth.jwks", "jwt"),
        ("issuer = 'i'", "auth.issuer", "jwt"),
        ("audience = 'a'", "auth.audience", "jwt"),
    ],
)
def test_who_is_to_be_asked_for_a_credential_is_so_or_it_is_refused(
    read: Read, given: str, path: str, mode: str
) -> None:
    error = refusal(read, f"[auth]\n{given}")
    assert error.path == path
    assert f'mode = "{mode}"' in error.message


def test_an_operators_token_needs_no_mode(read: Read) -> None:
    assert read(f"[auth]\ntokens = [{{ {TOKEN}, admin = true }}]").auth.mode == "none"


def test_a_token_in_place_of_its_hash_is_told_what_makes_one(read: Read) -> None:
    error = refusal(read, "[auth]\nmode = 'tokens'\ntokens = [{ sha256 = 's3cret', tenant = 't', subject = 's' }]\n")
    assert error.path == "auth.tokens[0].sha256"
    assert "`trunkline token`" in error.message
    assert "s3cret" not in error.message


def test_a_token_that_stands_twice_is_told_with_where_it_stands_first(read: Read) -> None:
    entry = "{{ sha256 = '{}', tenant = 't', subject = '{}' }}".format
    two = f"{entry(HASH, 'alice')}, {entry(HASH.replace('a', 'b'), 'alice')}"
    assert len(read(f"[auth]\nmode = 'tokens'\ntokens = [{two}]").auth.tokens) == 2, "two tokens of one user are two"
    error = refusal(read, f"[auth]\nmode = 'tokens'\ntokens = [{two}, {entry(HASH.upper(), 'bob')}]")
    assert error.path == "auth.tokens[2].sha256"
    assert "auth.tokens[0] is the same token" in error.message


def test_a_proxy_need_not_name_a_tenant(read: Read) -> None:
    auth = read(PROXY + "subject_header = 'Remote-User'\ntenant_header = ''").auth
    assert (auth.subject_header, auth.tenant_header) == ("Remote-User", "")


@pytest.mark.parametrize(
    "keys",
    [
        '{"keys": []}',
        '{"keys": [{"kty": "another"}]}',
        '{"keys": 1}',
        "[]",
        "{",
        "[" * 9999,
        '{"keys": [{"kty": "oct"}]}',
    ],
)
def test_a_file_of_keys_has_one_that_can_be_used(read: Read, tmp_path: Path, keys: str) -> None:
    (tmp_path / "keys.json").write_text(keys)
    assert refusal(read, f"{JWT}jwks = '{tmp_path}/keys.json'").path == "auth.jwks"


def test_memory_serves_one_worker_and_says_why(read: Read) -> None:
    error = refusal(read, "[gateway]\nworkers = 2")
    assert error.path == "gateway.workers"
    assert "memory" in error.message
    assert "would not know the sessions" in error.message


def test_files_of_certificates_are_read_at_once(read: Read, tmp_path: Path) -> None:
    cert_file, key_file, _ = certificate(tmp_path)
    tls = f"[gateway.tls]\ncert = '{cert_file}'\n"
    assert read(f"{tls}key = '{key_file}'\n{SERVER}ca = '{cert_file}'").gateway.tls.cert == str(cert_file)
    for wrong in (cert_file, tmp_path / "none.pem"):
        assert refusal(read, f"{tls}key = '{wrong}'").path == "gateway.tls"
    assert refusal(read, tls).path == "gateway.tls"
    assert refusal(read, f"[gateway.tls]\nkey = '{key_file}'").path == "gateway.tls"
    assert refusal(read, f"{SERVER}ca = '{key_file}'").path == "servers.up.ca"
    assert refusal(read, f'{SERVER}ca = "a\\u0000b"').path == "servers.up.ca"
    assert refusal(read, f'{tls}key = "a\\u0000b"').path == "gateway.tls"


def test_a_key_with_a_passphrase_is_refused_and_nobody_is_asked_for_it(read: Read, tmp_path: Path) -> None:
    made = certificate(tmp_path)
    made.lock(b"secret")
    error = refusal(read, f"[gateway.tls]\ncert = '{made.cert}'\nkey = '{made.key}'")
    assert error.path == "gateway.tls"
    assert "passphrase" in error.message
