"""What a settings file that was read again changes: servers by name, other sections, and what has to wait."""

from pathlib import Path
from typing import Any

import pytest
from trunkline.gateway.reload import Changes, compare, is_credential, place_of, renew
from trunkline.gateway.settings import Settings, SettingsError, check, load

BASE = """
[gateway]
allowed_hosts = ["mcp.example"]
[auth]
mode = "tokens"
tokens = [{ sha256 = "%s", tenant = "acme", subject = "alice" }]
[servers.files]
url = "http://127.0.0.1:9000/mcp"
headers = { Authorization = "Bearer one", X-Tenant = "blue" }
[servers.git]
url = "http://127.0.0.1:9001/mcp"
reuse = "user"
[servers.web]
url = "http://127.0.0.1:9002/mcp"
idle_timeout = 60
[servers.mail]
url = "http://127.0.0.1:9004/mcp"
idle_timeout = 60
oauth = { issuer = 'https://issuer.example/', client_secret = 's3cret', client_id = 'gateway' }
""" % ("a" * 64)


def settings(tmp_path: Path, text: str) -> Settings:
    path = tmp_path / "trunkline.toml"
    path.write_text(text)
    return load(path, environ={})


def told(changes: Changes) -> dict[str, tuple[str, ...]]:
    """Everything that is not empty and not unchanged."""
    fields = ("added", "removed", "changed", "rotated", "beside", "needs_restart")
    return {field: getattr(changes, field) for field in fields if getattr(changes, field)}


CASES: list[tuple[str, str, str, dict[str, tuple[str, ...]]]] = [
    ("nothing", "", "", {}),
    ("another order is the same", 'headers = { Authorization = "Bearer one", X-Tenant = "blue" }',
     'headers = { X-Tenant = "blue", Authorization = "Bearer one" }', {}),
    ("a key of a server", "git", "git2", {"added": ("git2",), "removed": ("git",)}),
    ("where it is", ":9001", ":9003", {"changed": ("git",)}),
    ("its own reuse", 'reuse = "user"', 'reuse = "workflow"', {"changed": ("git",)}),
    ("what it is, said in other words", 'reuse = "user"', 'reuse = "user"\nspares = 0\nmax_workflows = 10000', {}),
    ("a key that no pooling has", 'reuse = "user"', 'reuse = "user"\nstateless = true', {"changed": ("git",)}),
    ("the default for all but one", "[servers.web]", "[pooling]\nidle_timeout = 5\n[servers.web]",
     {"changed": ("files", "git")}),
    ("a default that all had anyway", "[servers.web]", '[pooling]\nreuse = "workflow"\n[servers.web]', {}),
    ("a bound of the process", "[servers.web]", "[pooling]\nevent_log = { total_bytes = 1000 }\n[servers.web]", {}),
    ("a bound of every workflow", "[servers.web]", "[pooling]\nevent_log = { events = 10 }\n[servers.web]",
     {"changed": ("files", "git", "web", "mail")}),
    ("a credential's value", "Bearer one", "Bearer two", {"rotated": ("files",)}),
    ("a client's secret", "'s3cret'", "'other'", {"rotated": ("mail",)}),
    ("another client", "'gateway'", "'other'", {"changed": ("mail",)}),
    ("what a client may do", "'gateway'", "'gateway', scope = 'read'", {"changed": ("mail",)}),
    ("another header's value", '"blue"', '"green"', {"changed": ("files",)}),
    ("a credential and another key", 'Bearer one", X', 'Bearer two", X-More = "1", X', {"changed": ("files",)}),
    ("a credential's name", "Authorization", "X-Api-Key", {"changed": ("files",)}),
    ("a token", 'subject = "alice"', 'subject = "bob"', {"beside": ("auth",)}),
    ("hosts and the admin token", '"mcp.example"]', '"other.example"]\nadmin_token = "x"',
     {"beside": ("gateway.admin_token", "gateway.allowed_hosts")}),
    ("the listener", "[gateway]", '[gateway]\nhost = "127.0.0.2"\nport = 1\ndrain_timeout = 1',
     {"beside": ("gateway.drain_timeout",), "needs_restart": ("gateway.host", "gateway.port")}),
    ("the directory", "[auth]", '[directory]\nbackend = "redis"\nurl = "redis://127.0.0.1/0"\n[auth]',
     {"needs_restart": ("directory",)}),
    ("the old path of nobody", "[auth]", "[compat]\nsdk_habits = true\n[auth]", {}),
]  # fmt: skip


@pytest.mark.parametrize(("replaced", "by", "expected"), [case[1:] for case in CASES], ids=[case[0] for case in CASES])
def test_what_differs_is_told_by_name(
    tmp_path: Path, replaced: str, by: str, expected: dict[str, tuple[str, ...]]
) -> None:
    old, new = settings(tmp_path, BASE), settings(tmp_path, BASE.replace(replaced, by))
    changes = compare(old, new)
    assert told(changes) == expected
    concerned = {name for field in ("added", "changed", "rotated") for name in expected.get(field, ())}
    assert set(changes.unchanged) == set(new.servers) - concerned


@pytest.mark.parametrize(
    ("replaced", "by", "moved"),
    [
        (":9001", ":9003", {"git"}),
        ('"blue"', '"green"', {"files"}),
        ("Bearer one", "Bearer two", set()),
        ("'gateway'", "'other'", {"mail"}),
        ("'s3cret'", "'other'", set()),
        ("[servers.web]", "[pooling]\nidle_timeout = 5\n[servers.web]", set()),
    ],
)
def test_workers_know_whether_a_server_is_where_it_was(tmp_path: Path, replaced: str, by: str, moved: set[str]) -> None:
    old, new = settings(tmp_path, BASE), settings(tmp_path, BASE.replace(replaced, by))
    assert {name for name in old.servers if place_of(old.servers[name]) != place_of(new.servers[name])} == moved


def test_the_habits_of_the_old_path_change_those_servers_that_take_it(tmp_path: Path) -> None:
    text = BASE.replace('"user"', '"none"')
    new = settings(tmp_path, text + "[compat]\nsdk_habits = true\n")
    assert told(compare(settings(tmp_path, text), new)) == {"changed": ("git",)}


def test_what_needs_a_restart_stays_and_the_rest_applies(tmp_path: Path) -> None:
    old = settings(tmp_path, BASE)
    new = settings(tmp_path, BASE.replace("[gateway]", '[gateway]\nport = 1\npublic_url = "https://mcp.example"'))
    applied = compare(old, new).settings
    assert (applied.gateway.port, applied.gateway.public_url) == (8920, "https://mcp.example")
    assert told(compare(applied, new)) == {"needs_restart": ("gateway.port",)}, "the file still asks for it"


def test_what_cannot_hold_beside_what_stays_is_refused(tmp_path: Path) -> None:
    public = BASE.replace("[gateway]", '[gateway]\nhost = "0.0.0.0"')
    alone = settings(tmp_path, '[servers.files]\nurl = "http://127.0.0.1:9000/mcp"\n')
    applied = compare(settings(tmp_path, public), alone).settings
    assert (applied.gateway.host, applied.auth.mode) == ("0.0.0.0", "none")
    with pytest.raises(SettingsError, match="allowed_hosts"):
        check(applied, insecure=False)


@pytest.mark.parametrize(
    ("header", "proves"),
    [
        *[(name, True) for name in ("Authorization", "Cookie", "X-API-Key", "x-token", "X_Api_Secret", "ApiKey")],
        *[(name, False) for name in ("X-Tenant", "X-Auth-Tenant", "X-Author", "X-Keyspace", "X-Monkey", "X-Token-Use")],
    ],
)
def test_a_credential_is_known_by_the_name_of_its_header(header: str, proves: bool) -> None:
    assert is_credential(header) is proves


HEADERS = 'headers = { Authorization = "Bearer one", X-Tenant = "blue" }'
PROOF = '/mcp"\nheaders = { Authorization = "Bearer'
RENEWED = {"Authorization": "Bearer two", "X-Tenant": "blue"}


@pytest.mark.parametrize(
    ("server", "replaced", "by", "renewed"),
    [
        ("files", "Bearer one", "Bearer two", RENEWED),
        ("files", HEADERS, 'headers = { Authorization = "Bearer two" }', None),
        ("files", HEADERS, HEADERS.replace("one", "two").replace("blue", "green"), None),
        ("files", '"blue"', '"green"', None),
        ("files", HEADERS, 'headers = { X-Api-Key = "two" }', None),
        ("files", HEADERS, f"{HEADERS}\nstateless = true", None),
        ("files", f":9000{PROOF} one", f":9009{PROOF} two", None),
        ("mail", "'s3cret'", "'other'", {}),
        ("mail", "'gateway'", "'other'", None),
    ],
)
def test_what_goes_on_under_older_settings_has_the_credentials_that_hold(
    tmp_path: Path, server: str, replaced: str, by: str, renewed: dict[str, str] | None
) -> None:
    assert replaced in BASE
    old, new = (settings(tmp_path, text).servers[server] for text in (BASE, BASE.replace(replaced, by)))
    found = renew(old, new)
    assert (None if found is None else found.headers) == renewed
    if server == "mail" and found is not None:
        assert found.oauth == new.oauth != old.oauth


@pytest.mark.parametrize(
    ("given", "line"),
    [
        ({"unchanged": ("a", "b")}, "2 unchanged"),
        ({"changed": ("files",), "unchanged": ("a", "b")}, "1 changed (files), 2 unchanged"),
        (
            {"added": ("x", "y"), "removed": ("z",), "rotated": ("r",), "beside": ("gateway.admin_token", "auth")},
            "2 added (x, y), 1 removed (z), 1 rotated (r), 0 unchanged, gateway.admin_token, auth",
        ),
    ],
)
def test_one_line_tells_it(given: dict[str, Any], line: str) -> None:
    assert str(Changes(Settings(), **given)) == line


def test_the_line_holds_no_value(tmp_path: Path) -> None:
    new = BASE.replace("Bearer one", "Bearer two").replace("[gateway]", '[gateway]\nadmin_token = "two"')
    changes = compare(settings(tmp_path, BASE), settings(tmp_path, new))
    assert "two" not in f"{changes} {changes!r}"
