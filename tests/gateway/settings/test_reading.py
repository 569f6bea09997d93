"""Settings: the file, the environment and the command line become one value, or an error that names a path."""

import os
from collections.abc import Callable, Mapping
from pathlib import Path

import pytest
from trunkline.gateway.settings import Settings, SettingsError, is_loopback, load, unread
from trunkline.gateway.settings.reading import PREFIX

Load = Callable[..., Settings]
HASH = "a" * 64
UP = '[servers.up]\nurl = "http://127.0.0.1:9000/mcp"\n'


@pytest.fixture
def load_text(tmp_path: Path) -> Load:
    """Loads settings from this text."""

    def read(text: str, environ: Mapping[str, str] | None = None, **options: object) -> Settings:
        path = tmp_path / "trunkline.toml"
        path.write_text(f"{text}\n# its end\n")
        return load(path, environ=environ or {}, **options)  # type: ignore[arg-type]

    return read


@pytest.fixture
def refused(load_text: Load) -> Callable[..., SettingsError]:
    """Loads settings that are wrong; the error."""

    def read(text: str, environ: Mapping[str, str] | None = None, **options: object) -> SettingsError:
        with pytest.raises(SettingsError) as wrong:
            load_text(text, environ, **options)
        assert str(wrong.value) == f"{wrong.value.path}: {wrong.value.message}"
        return wrong.value

    return read


def test_a_file_is_read(load_text: Load) -> None:
    settings = load_text("[gateway]\nport = 1\ntls = { cert = '', key = '' }\n[compat]\nsdk_habits = true\n" + UP)
    assert settings.gateway.port == 1
    assert settings.compat.sdk_habits is True
    assert settings.servers["up"].url == "http://127.0.0.1:9000/mcp"


@pytest.mark.parametrize("text", ["", "port = 1", "[gateway\n", "x"])
def test_a_file_that_is_no_toml_is_refused_by_its_name(tmp_path: Path, text: str) -> None:
    path = tmp_path / "settings.toml"
    path.write_bytes(b"\xff" if not text else text.encode())
    with pytest.raises(SettingsError, match=r"settings\.toml|port: unknown key"):
        load(path, environ={})


def test_a_file_that_cannot_be_read_is_refused_by_its_name(tmp_path: Path) -> None:
    for path in (tmp_path / "none.toml", tmp_path):
        with pytest.raises(SettingsError, match=str(path)):
            load(path, environ={})


@pytest.mark.parametrize("value", ["9" * 5_000, "[" * 5_000, "{x = " * 5_000], ids=["digits", "lists", "tables"])
def test_what_python_does_not_read_of_toml_is_refused_as_anything_else(tmp_path: Path, value: str) -> None:
    path = tmp_path / "settings.toml"
    path.write_text(f"[gateway]\nport = {value}\n")
    with pytest.raises(SettingsError, match=r"settings\.toml|nested too deeply"):
        load(path, environ={})
    with pytest.raises(SettingsError, match=r"^gateway\.port: .*\(it comes from TRUNKLINE_GATEWAY__PORT\)$"):
        load(None, environ={"TRUNKLINE_GATEWAY__PORT": value})


def test_a_key_that_is_nested_too_deeply_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "settings.toml"
    path.write_text(f"{'x.' * 5_000}y = 1\n")
    with pytest.raises(SettingsError, match=r"nested too deeply"):
        load(path, environ={})


# The environment and the command line.


def test_the_environment_wins_over_the_file_and_the_command_line_over_both(load_text: Load) -> None:
    text = "[gateway]\nhost = '127.0.0.2'\nport = 1\nworkers = 1\n"
    environ = {"TRUNKLINE_GATEWAY__HOST": "127.0.0.3", "TRUNKLINE_GATEWAY__PORT": "2"}
    gateway = load_text(text, environ, overrides={"gateway.port": 3}).gateway
    assert (gateway.host, gateway.port, gateway.workers) == ("127.0.0.3", 3, 1)


def test_a_variable_for_a_program_keeps_its_name_and_is_text(load_text: Load) -> None:
    environ = {"TRUNKLINE_SERVERS__GIT__ENV__Git__TOKEN": "5", "TRUNKLINE_SERVERS__GIT__COMMAND": '["x"]'}
    server = load_text("[servers.git.env]\nHERE = '1'\n", environ).servers["git"]
    assert server.env == {"HERE": "1", "Git__TOKEN": "5"}


def test_a_value_of_the_environment_is_toml_where_it_is_one(load_text: Load) -> None:
    environ = {
        "TRUNKLINE_GATEWAY__ALLOWED_HOSTS": '["a.example", "b.example"]',
        "TRUNKLINE_GATEWAY__DRAIN_TIMEOUT": "1.5",
        "TRUNKLINE_COMPAT__SDK_HABITS": "true",
        "TRUNKLINE_POOLING__EVENT_LOG__EVENTS": "7",
        "TRUNKLINE_SERVERS__FILES__URL": "http://127.0.0.1:1/mcp",
        "TRUNKLINE_SERVERS__FILES__HEADERS__X_Y": "1",
        "TRUNKLINE_HOME": "is no setting, nor is what does not begin so",
        "GATEWAY__PORT": "5",
    }
    settings = load_text("", environ)
    assert settings.gateway.allowed_hosts == ("a.example", "b.example")
    assert settings.gateway.drain_timeout == 1.5
    assert settings.compat.sdk_habits is True
    assert settings.pooling.event_log.events == 7
    assert settings.servers["files"].headers == {"x_y": "1"}
    assert settings.gateway.port == 8920


@pytest.mark.parametrize("name", ["My-Files.2", "my_files_2", "MY_files-2"])
def test_the_environment_means_the_server_of_the_file_however_that_is_spelled(load_text: Load, name: str) -> None:
    environ = {"TRUNKLINE_SERVERS__MY_FILES_2__REUSE": "none", "TRUNKLINE_SERVERS__OTHER__URL": "http://o/"}
    settings = load_text(f'[servers."{name}"]\nurl = "http://h/"\n', environ)
    assert {name: server.url for name, server in settings.servers.items()} == {name: "http://h/", "other": "http://o/"}
    assert settings.servers[name].reuse == "none"


def test_a_name_that_the_environment_can_spell_is_that_server(load_text: Load) -> None:
    text = '[servers.a-b]\nurl = "http://one/"\n[servers.a_b]\nurl = "http://two/"\n'
    settings = load_text(text, {"TRUNKLINE_SERVERS__A_B__URL": "http://three/"})
    assert {name: server.url for name, server in settings.servers.items()} == {
        "a-b": "http://one/",
        "a_b": "http://three/",
    }


@pytest.mark.parametrize(
    ("text", "path", "message"),
    [
        ('[pooling]\nreuse = "users"\n', "pooling.reuse", "expected none or workflow or user, got 'users'"),
        (f'{UP}reuse = "x"\n', "servers.up.reuse", "expected none or workflow or user, got 'x'"),
        (f'{UP}eras = ["old"]\n', "servers.up.eras[0]", "expected legacy or modern, got 'old'"),
        ('[directory]\nbackend = "sql"\n', "directory.backend", "expected memory or redis or database, got 'sql'"),
    ],
)
def test_a_choice_that_is_none_is_told_with_those_there_are(
    refused: Callable[..., SettingsError], text: str, path: str, message: str
) -> None:
    error = refused(text, {})
    assert (error.path, error.message) == (path, message)


@pytest.mark.parametrize(
    ("text", "path", "message"),
    [
        (
            '[servers.up]\ncommand = "python x.py"\n',
            "servers.up.command",
            'expected list of texts, such as ["uvx", "mcp-server-git"], got text',
        ),
        ('[gateway]\nport = "1"\n', "gateway.port", "expected whole number, 0 to 65535, got text"),
        ("[gateway]\nport = 65536\n", "gateway.port", "expected whole number, 0 to 65535"),
        (
            "[gateway]\nallowed_hosts = 1\n",
            "gateway.allowed_hosts",
            'expected list of texts, such as ["…", "…"], got whole number',
        ),
        ("[gateway]\nallowed_hosts = ['a', 1.5]\n", "gateway.allowed_hosts[1]", "expected text, got number"),
        ("[gateway]\ndrain_timeout = '30s'\n", "gateway.drain_timeout", "expected seconds, 0 or more, got text"),
        (
            "[gateway]\ndrain_timeout = 999_999_999\n",
            "gateway.drain_timeout",
            "expected seconds, 0 or more, at most 315360000",
        ),
        (f"{UP}idle_timeout = inf\n", "servers.up.idle_timeout", "expected seconds, more than 0, at most 315360000"),
        ("[gateway]\ntls = 'c.pem'\n", "gateway.tls", "expected table, got text"),
        ("[compat]\nsdk_habits = 'yes'\n", "compat.sdk_habits", "expected true or false, got text"),
        ("gateway = 1\n", "gateway", "expected table, got whole number"),
        ("[servers]\nurl = 'http://h/'\n", "servers.url", "expected table, got text"),
        (f"{UP}headers = {{ b = 'x', a = 1 }}\n", "servers.up.headers.a", "expected text, got whole number"),
        (f"{UP}event_log = {{ events = 0 }}\n", "servers.up.event_log.events", "expected whole number, 1 or more"),
        ("[auth]\ntokens = ['t']\n", "auth.tokens[0]", "expected table, got text"),
        ("[auth]\ntokens = [{ sha256 = '0', subject = 'me' }]\n", "auth.tokens[0]", "tenant has to be given"),
        (
            "[auth]\ntokens = [{ token = '0' }]\n",
            "auth.tokens[0].token",
            "unknown key; known here: admin, sha256, subject, tenant",
        ),
        (f"{UP}oauth = {{ issuer = 'https://h/' }}\n", "servers.up.oauth", "client_id has to be given"),
    ],
)
def test_a_value_of_another_kind_is_told_in_the_words_of_the_reference(
    refused: Callable[..., SettingsError], text: str, path: str, message: str
) -> None:
    error = refused(text, {})
    assert (error.path, error.message) == (path, message)


@pytest.mark.parametrize("token", ["12345", "true", "1979-05-27", "12#3", "0x1F", "[1]", "s3cret", "${X"])
def test_a_text_of_the_environment_stays_what_it_is_whatever_it_looks_like(load_text: Load, token: str) -> None:
    environ = {"TRUNKLINE_GATEWAY__ADMIN_TOKEN": token, "TRUNKLINE_SERVERS__UP__HEADERS__X": token}
    settings = load_text(UP, environ)
    assert settings.gateway.admin_token == token
    assert settings.servers["up"].headers["x"] == token


def test_a_header_of_the_environment_is_that_of_the_file_however_it_is_spelled(load_text: Load) -> None:
    text = UP + 'headers = { Authorization = "of the file", X-Api-Key = "of the file", X-Other = "o" }\n'
    prefix = "TRUNKLINE_SERVERS__UP__HEADERS__"
    environ = {f"{prefix}AUTHORIZATION": "a", f"{prefix}X_API_KEY": "k", f"{prefix}NEW": "n"}
    headers = load_text(text, environ).servers["up"].headers
    assert headers == {"Authorization": "a", "X-Api-Key": "k", "X-Other": "o", "new": "n"}


@pytest.mark.parametrize(
    ("name", "value", "path"),
    [
        ("TRUNKLINE_GATEWAY__PORT", "x", "gateway.port"),
        ("TRUNKLINE_GATEWAY__PROT", "1", "gateway.prot"),
        ("TRUNKLINE_NOTHING__PORT", "1", "nothing"),
        ("TRUNKLINE_GATEWAY__PORT__X", "1", "gateway.port.x"),
        ("TRUNKLINE_GATEWAY__ALLOWED_HOSTS", "a.example", "gateway.allowed_hosts"),
        ("TRUNKLINE_GATEWAY__ALLOWED_ORIGINS", '["*"]', "gateway.allowed_origins[0]"),
        ("TRUNKLINE_SERVERS__UP__URLL", "x", "servers.up.urll"),
    ],
)
def test_a_wrong_variable_names_its_path(
    refused: Callable[..., SettingsError], name: str, value: str, path: str
) -> None:
    error = refused("[gateway]\nport = 1\n", {name: value})
    assert error.path == path
    assert (name in error.message) is (PREFIX + path.partition("[")[0].upper().replace(".", "__") == name)


def test_a_variable_with_one_underscore_is_told_by_what_it_was_meant_to_be() -> None:
    assert unread({"TRUNKLINE_POOLING__REUSE": "user", "TRUNKLINE_DEBUG": "1", "TRUNKLINE_GATEWAY_SERVICE": "x"}) == {}
    environ = {"TRUNKLINE_POOLING_REUSE": "", "TRUNKLINE_POOLING_EVENT_LOG_BYTES": "", "TRUNKLINE_GATEWAY__PORT": ""}
    assert unread(environ) == {
        "TRUNKLINE_POOLING_REUSE": "TRUNKLINE_POOLING__REUSE",
        "TRUNKLINE_POOLING_EVENT_LOG_BYTES": "TRUNKLINE_POOLING__EVENT_LOG__BYTES",
    }


def test_what_kubernetes_sets_for_a_service_of_that_name_is_meant_for_nobody() -> None:
    service = {"TRUNKLINE_GATEWAY_SERVICE_HOST": "10.0.0.9", "TRUNKLINE_GATEWAY_SERVICE_PORT": "8920"}
    address = {"TRUNKLINE_GATEWAY_PORT_8920_TCP": "tcp://10.0.0.9:8920", "TRUNKLINE_GATEWAY_PORT_8920_TCP_PORT": "8920"}
    assert unread({**service, **address, "TRUNKLINE_GATEWAY_PORT": "tcp://10.0.0.9:8920"}) == {}
    assert unread({**service, **address, "TRUNKLINE_GATEWAY_PORT": "8920"}) == {
        "TRUNKLINE_GATEWAY_PORT": "TRUNKLINE_GATEWAY__PORT"
    }


def test_so_is_one_of_a_server_whose_name_nobody_knows_beforehand() -> None:
    named = {"TRUNKLINE_SERVERS_MY_FILES_URL": "", "TRUNKLINE_SERVERS_A_MAX_WORKFLOWS_PER_USER": ""}
    others = {"TRUNKLINE_SERVERS_SERVICE_HOST": "", "TRUNKLINE_SERVERS_URL": "", "TRUNKLINE_SERVERS__A__URL": ""}
    assert unread(named | others) == {
        "TRUNKLINE_SERVERS_MY_FILES_URL": "TRUNKLINE_SERVERS__MY_FILES__URL",
        "TRUNKLINE_SERVERS_A_MAX_WORKFLOWS_PER_USER": "TRUNKLINE_SERVERS__A__MAX_WORKFLOWS_PER_USER",
    }


def test_what_the_command_line_says_is_not_laid_to_the_environment(refused: Callable[..., SettingsError]) -> None:
    environ = {"TRUNKLINE_GATEWAY__PORT": "1", "TRUNKLINE_SERVERS__UP__URL": "http://h/"}
    for options in ({"overrides": {"gateway.port": 65536}}, {"upstreams": ["up=ftp://h/"]}):
        assert "it comes from" not in refused("", environ, **options).message


def test_a_server_of_the_command_line_replaces_the_url_of_the_file(load_text: Load) -> None:
    given = {"up": "http://h/mcp?a=b", "x.y": "https://h/", "z": "stdio:python 'a server.py'"}
    servers = load_text(UP, upstreams=[f"{name}={url}" for name, url in given.items()]).servers
    assert {name: server.url for name, server in servers.items()} == given


@pytest.mark.parametrize(
    ("upstream", "path"),
    [
        ("up", "--upstream"),
        ("up=", "--upstream"),
        ("http://127.0.0.1/mcp", "--upstream"),
        ("=http://h/", "servers."),
        ("a b=http://h/", "servers.a b"),
    ],
)
def test_a_malformed_upstream_is_refused(refused: Callable[..., SettingsError], upstream: str, path: str) -> None:
    assert refused("", upstreams=[upstream]).path == path


# Variables.


@pytest.mark.parametrize(
    ("text", "name"), [(UP + 'headers = { X-Key = "${KEY}" }', "KEY"), (UP, "TRUNKLINE_SERVERS__UP__HEADERS__X-KEY")]
)
def test_bytes_of_the_environment_that_are_no_text_are_refused_and_not_shown(
    refused: Callable[..., SettingsError], text: str, name: str
) -> None:
    error = refused(text, {name: os.fsdecode(b"s3cret-\xff")})
    assert error.path.lower() == "servers.up.headers.x-key"
    assert "is no text in the encoding that is set here" in error.message
    assert "s3cret" not in error.message


def test_of_two_servers_of_one_name_none_is_left_out_without_a_word(refused: Callable[..., SettingsError]) -> None:
    error = refused("", upstreams=["a=http://h/", "b=http://h/", "a=http://i/"])
    assert (error.path, error.message) == ("--upstream", "a is named twice; give each server a name of its own")


def test_a_variable_is_replaced_wherever_a_text_stands(load_text: Load) -> None:
    text = UP + 'headers = { Authorization = "Bearer ${A}-${B}" }\nforward_headers = ["X-${B}"]\n'
    server = load_text(text, {"A": "1${B}", "B": "2"}).servers["up"]
    assert server.headers == {"Authorization": "Bearer 1${B}-2"}, "once: what is put in is not looked at"
    assert server.forward_headers == ("X-2",)


@pytest.mark.parametrize(
    ("text", "path"),
    [
        ("[gateway]\nadmin_token = '${NONE}'", "gateway.admin_token"),
        ("[gateway]\nallowed_hosts = ['a', '${NONE}']", "gateway.allowed_hosts[1]"),
        ("[auth]\ntokens = [{ sha256 = '${NONE}' }]", "auth.tokens[0].sha256"),
        ("[servers.up]\nheaders = { X = 'a${NONE}' }", "servers.up.headers.X"),
    ],
)
def test_a_variable_that_is_not_set_is_named_with_its_path(
    refused: Callable[..., SettingsError], text: str, path: str
) -> None:
    error = refused(text)
    assert (error.path, error.message) == (path, "the environment has no NONE; set it, or take ${NONE} out")


# Listeners that others can reach.

PUBLIC = "[gateway]\nhost = '{}'\n"
TOKENS = f"[auth]\nmode = 'tokens'\ntokens = [{{ sha256 = '{HASH}', tenant = 't', subject = 's' }}]\n"


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.168.1.5", "mcp.example", "", "localhost.example"])
def test_a_listener_that_is_not_loopback_needs_hosts_and_an_auth_mode(
    load_text: Load, refused: Callable[..., SettingsError], host: str
) -> None:
    bare = PUBLIC.format(host)
    named = bare + "allowed_hosts = ['mcp.example']\n"
    assert refused(bare + TOKENS).path == "gateway.allowed_hosts"
    assert refused(bare, insecure=True).path == "gateway.allowed_hosts"
    assert refused(named).path == "auth.mode"
    assert load_text(named + TOKENS).auth.mode == "tokens"
    assert load_text(named, insecure=True).auth.mode == "none"


@pytest.mark.parametrize("host", ["127.0.0.1", "127.9.9.9", "::1", "localhost"])
def test_a_loopback_listener_needs_neither(load_text: Load, host: str) -> None:
    assert is_loopback(host)
    assert load_text(PUBLIC.format(host)).gateway.host == host


# Headers.


@pytest.mark.parametrize("key", ["forward_headers", "session_headers"])
@pytest.mark.parametrize(
    "header",
    [
        *("Authorization", "COOKIE", "host", "Mcp-Session-Id", "mcp-anything", "Trunkline-Workflow", "Content-Length"),
        *("Connection", "Keep-Alive", "Proxy-Authenticate", "Proxy-Authorization", "TE", "Trailer"),
        *("Transfer-Encoding", "Upgrade", "Accept", "Content-Type", "Accept-Encoding", "Content-Encoding", "Expect"),
        *("Last-Event-ID", "Proxy-Connection", "Sec-WebSocket-Key"),
    ],
)
def test_a_header_that_is_the_gateways_own_is_never_passed_on(
    refused: Callable[..., SettingsError], key: str, header: str
) -> None:
    error = refused(UP + f"{key} = ['X-Fine', '{header}']")
    assert error.path == f"servers.up.{key}"
    assert header in error.message


def test_other_headers_are_passed_on(load_text: Load) -> None:
    server = load_text(UP + "forward_headers = ['X-Class', 'Mcpx']\nsession_headers = ['X-Tenant']").servers["up"]
    assert (server.forward_headers, server.session_headers) == (("X-Class", "Mcpx"), ("X-Tenant",))


@pytest.mark.parametrize("text", ['[pooling]\nreuse = "user"\n', UP + 'reuse = "user"\n'])
def test_sharing_by_user_needs_users(load_text: Load, refused: Callable[..., SettingsError], text: str) -> None:
    assert load_text(text)
    error = refused('[gateway]\nhost = "0.0.0.0"\nallowed_hosts = ["h"]\n' + text, insecure=True)
    assert error.path.endswith(".reuse")
    assert "verified identities" in error.message


@pytest.mark.parametrize("scheme", ["http", "https", "sse+http", "sse+https", "ws", "wss"])
def test_every_transport_has_its_scheme(load_text: Load, scheme: str) -> None:
    assert load_text(f'[servers.up]\nurl = "{scheme}://h:1/mcp"\n')


def test_a_server_has_what_it_does_not_say_of_its_log_from_all(load_text: Load) -> None:
    log = (
        load_text(
            UP + "event_log = { events = 5000 }\n[pooling.event_log]\nbytes = 67108864\ntotal_bytes = 1073741824\n"
        )
        .pooling_for("up")
        .event_log
    )
    assert (log.events, log.bytes, log.total_bytes) == (5000, 67108864, 1073741824)


def test_a_bound_of_the_process_is_no_servers(refused: Callable[..., SettingsError]) -> None:
    error = refused(UP + "event_log = { total_bytes = 1000 }\n")
    assert (error.path, error.message) == (
        "servers.up.event_log.total_bytes",
        "unknown key; it bounds the process: pooling.event_log has it",
    )


@pytest.mark.parametrize("text", ["", "\n", "\ufeff"])
def test_a_file_that_holds_nothing_yet_is_refused(tmp_path: Path, text: str) -> None:
    """Whoever writes a file empties it first: read then, it would take out every server and let everybody in."""
    path = tmp_path / "trunkline.toml"
    path.write_text(text)
    with pytest.raises(SettingsError, match="is empty"):
        load(path, environ={})
    path.write_text("# nothing is given\n")
    assert load(path, environ={}) == Settings()


def test_a_file_that_begins_with_a_byte_order_mark_is_read(tmp_path: Path) -> None:
    path = tmp_path / "trunkline.toml"
    path.write_text("[gateway]\nport = 1", encoding="utf-8-sig")
    assert load(path, environ={}).gateway.port == 1
