"""Who may speak to the listener: hosts, origins, and what pages may read."""

import pytest
from trunkline.transports.guard import Guard
from trunkline.transports.status import HTTPRefusal, Unauthorized

PUBLIC = {"host": "mcp.example"}


def loopback(**options: list[str]) -> Guard:
    return Guard(loopback=True, **options)


def public(*origins: str) -> Guard:
    return Guard(loopback=False, allowed_hosts=["mcp.example", "other.example:8920"], allowed_origins=origins)


def refusal(guard: Guard, headers: dict[str, str]) -> tuple[int, str]:
    with pytest.raises(HTTPRefusal) as rejected:
        guard.check(headers)
    assert str(rejected.value) == rejected.value.message
    return rejected.value.status, rejected.value.word


def test_g10_what_is_remembered_of_hosts_is_bounded() -> None:
    guard = loopback()
    for port in range(1, 1000):
        guard.check({"host": f"localhost:{port}"})
    assert len(guard._known_hosts) == 256


@pytest.mark.parametrize("host", ["localhost", "LocalHost:8920", "127.0.0.1:1", "127.0.0.1", "[::1]:8920", "[::1]"])
def test_a_loopback_listener_is_served_under_its_own_names(host: str) -> None:
    guard = loopback()
    guard.check({"host": host})
    guard.check({"host": host})
    assert refusal(public(), {"host": host}) == (421, "host")


@pytest.mark.parametrize(
    "host",
    [
        "",
        "evil.example",
        "localhost.evil.example",
        "127.0.0.1.evil.example",
        "127.0.0.2",
        "evil.example@localhost",
        "localhost@evil.example",
        "localhost/evil.example",
        "[::1",
        "[not-an-address]",
        "localhost, evil.example",
        "localhost:" + "0" * 100_000,
    ],
)
def test_a_foreign_host_is_refused_every_time(host: str) -> None:
    guard = loopback()
    assert refusal(guard, {"host": host}) == (421, "host")
    assert refusal(guard, {"host": host}) == (421, "host")


def test_a_request_without_a_host_is_refused() -> None:
    assert refusal(loopback(), {}) == (421, "host")


@pytest.mark.parametrize("host", ["mcp.example", "MCP.example", "mcp.example:443", "other.example:8920"])
def test_a_configured_host_is_served_and_one_without_port_on_every_port(host: str) -> None:
    public().check({"host": host})


@pytest.mark.parametrize("listed", ["[FD00::1]", "fd00::1"])
def test_an_address_without_port_is_served_on_every_port(listed: str) -> None:
    guard = Guard(loopback=False, allowed_hosts=[listed])
    for host in ("[fd00::1]", "[fd00::1]:8920", "[FD00::1]:443"):
        guard.check({"host": host})
    assert refusal(guard, {"host": "[fd00::2]:8920"}) == (421, "host")


@pytest.mark.parametrize("host", ["other.example", "other.example:1", "x.mcp.example", "localhost", "127.0.0.1:8920"])
def test_other_hosts_are_not_served_where_hosts_are_configured(host: str) -> None:
    assert refusal(public(), {"host": host}) == (421, "host")


def test_hosts_beyond_those_that_are_remembered_are_checked_alike() -> None:
    guard = loopback()
    for port in range(1, 300):
        guard.check({"host": f"localhost:{port}"})
    guard.check({"host": "localhost:299"})
    assert refusal(guard, {"host": "evil.example:299"}) == (421, "host")


@pytest.mark.parametrize("origin", ["http://localhost:3000", "https://127.0.0.1", "http://[::1]:8", "HTTP://LOCALHOST"])
def test_a_page_of_this_machine_may_speak_to_a_loopback_listener_only(origin: str) -> None:
    loopback().check({"host": "localhost", "origin": origin})
    assert refusal(public(), {**PUBLIC, "origin": origin}) == (403, "origin")


@pytest.mark.parametrize("origin", ["http://localhost:3000", "https://127.0.0.1", "http://[::1]:8"])
def test_a_page_of_a_visitors_own_machine_is_foreign_to_a_listener_behind_a_proxy(origin: str) -> None:
    guard = loopback(allowed_hosts=["mcp.example"], allowed_origins=["http://localhost:5000"])
    assert refusal(guard, {**PUBLIC, "origin": origin}) == (403, "origin")
    guard.check({**PUBLIC, "origin": "http://localhost:5000"})
    guard.check({"host": "localhost:8920", "origin": origin})


@pytest.mark.parametrize(
    "origin",
    [
        "",
        "null",
        "https://evil.example",
        "http://localhost.evil.example",
        "http://localhost@evil.example",
        "http://evil.example@localhost",
        "http://localhost/page",
        "file://localhost",
        "http://[",
        "http://[::1",
        "localhost",
        "http://localhost:" + "0" * 100_000,
    ],
)
def test_a_foreign_page_is_refused(origin: str) -> None:
    assert refusal(loopback(), {"host": "localhost", "origin": origin}) == (403, "origin")


@pytest.mark.parametrize("whose", ["cross-site", "same-site", "", "x"])
def test_x1_what_a_browser_asks_for_another_page_without_its_origin_is_refused(whose: str) -> None:
    guard = loopback(allowed_origins=["https://app.example"])
    with pytest.raises(HTTPRefusal) as rejected:
        guard.check_page({"sec-fetch-site": whose})
    assert (rejected.value.status, rejected.value.word) == (403, "cross_site")
    guard.check_page({"sec-fetch-site": whose, "origin": "https://app.example"})
    for own in ({}, {"sec-fetch-site": "same-origin"}, {"sec-fetch-site": "none"}):
        guard.check_page(own)


def test_a_configured_page_may_speak() -> None:
    guard = public("https://App.example/", "file://", "null")
    for odd in ("file://", "null"):
        guard.check({**PUBLIC, "origin": odd})
    guard.check({**PUBLIC, "origin": "https://app.example"})
    guard.check({**PUBLIC, "origin": "https://APP.example"})
    for foreign in ("http://app.example", "https://app.example:8443", "https://x.app.example"):
        assert refusal(guard, {**PUBLIC, "origin": foreign}) == (403, "origin")


def test_a_configured_page_may_read_the_answer_and_its_headers() -> None:
    granted = dict(public("https://app.example").cors({"origin": "https://App.example"}))
    assert granted[b"access-control-allow-origin"] == b"https://App.example", "as the page spelled it"
    assert granted[b"vary"] == b"Origin"
    exposed = granted[b"access-control-expose-headers"].split(b", ")
    assert {b"Mcp-Session-Id", b"Trunkline-Workflow-State", b"Trunkline-Pool", b"Retry-After"} <= set(exposed)


@pytest.mark.parametrize("headers", [{}, {"origin": "https://evil.example"}, {"origin": "http://localhost"}])
def test_nobody_else_is_granted_anything(headers: dict[str, str]) -> None:
    guard = loopback(allowed_origins=["https://app.example"])
    assert guard.cors(headers) == []
    assert guard.preflight(headers) == []


def test_a_preflight_names_the_methods_and_headers_of_the_contract() -> None:
    granted = dict(public("https://app.example").preflight({"origin": "https://app.example"}))
    assert granted[b"access-control-allow-origin"] == b"https://app.example"
    assert set(granted[b"access-control-allow-methods"].split(b", ")) == {b"GET", b"POST", b"DELETE", b"OPTIONS"}
    allowed = set(granted[b"access-control-allow-headers"].split(b", "))
    assert {b"Mcp-Session-Id", b"MCP-Protocol-Version", b"Last-Event-ID", b"Authorization"} <= allowed
    assert {b"Trunkline-Workflow", b"Trunkline-End", b"Content-Type", b"Accept"} <= allowed
    assert int(granted[b"access-control-max-age"]) > 0


def test_h3_a_preflight_admits_the_headers_that_repeat_arguments_and_no_others() -> None:
    asked = "content-type, mcp-param-region,Mcp-Param-X.1 , x-other, mcp-param-, mcp-param-a b, mcp-param-\xe9"
    headers = {"origin": "https://app.example", "access-control-request-headers": asked}
    allowed = dict(public("https://app.example").preflight(headers))[b"access-control-allow-headers"].split(b", ")
    assert {name for name in allowed if b"aram" in name} == {b"mcp-param-region", b"Mcp-Param-X.1"}
    assert b"x-other" not in allowed


def test_a_preflight_admits_the_headers_that_go_on_to_the_server() -> None:
    cases: list[dict[str, str]] = [{}, {"access-control-request-headers": "x-tenant, mcp-param-region"}]
    for headers in cases:
        asking = {"origin": "https://app.example", **headers}
        granted = dict(public("https://app.example").preflight(asking, ["x-tenant", "x-class"]))
        allowed = granted[b"access-control-allow-headers"].split(b", ")
        assert {b"x-tenant", b"x-class", b"Traceparent", b"Tracestate"} <= set(allowed)
        assert (b"mcp-param-region" in allowed) == bool(headers)


def test_who_is_unauthorized_is_told_what_is_wanted() -> None:
    assert (Unauthorized("no token").message, Unauthorized("no token").challenge) == ("no token", "Bearer")
    assert Unauthorized("no", challenge='Bearer error="invalid_token"').challenge == 'Bearer error="invalid_token"'
