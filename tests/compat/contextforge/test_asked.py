"""Who asks: by what the gateway has verified of this very message."""

import base64
import json

import pytest
from trunkline.compat.contextforge.asked import KEY, Asked, carried_by, principal_of, read_headers, session_of


def bearer(**claims: object) -> dict[str, str]:
    payload = base64.urlsafe_b64encode(json.dumps(claims).encode()).decode().rstrip("=")
    return {"Authorization": f"Bearer head.{payload}.signature"}


def test_two_users_are_two_and_one_in_two_tenants_as_well() -> None:
    alice, bob = principal_of("alice@x", [], {}), principal_of("bob@x", [], {})
    in_a, in_b = principal_of("alice@x", ["a"], {}), principal_of("alice@x", ["b"], {})
    assert len({alice, bob, in_a, in_b}) == 4
    assert principal_of("alice@x", ["b", "a"], {}) == principal_of("alice@x", ["a", "b"], {})


def test_two_users_of_one_team_are_of_two_tenants() -> None:
    assert principal_of("alice@x", ["a"], {}).tenant != principal_of("bob@x", ["a"], {}).tenant


def test_the_teams_are_read_from_the_token_where_the_gateway_does_not_tell_it() -> None:
    assert principal_of("alice@x", None, bearer(teams=["b", {"id": "a"}])) == principal_of("alice@x", ["a", "b"], {})
    assert principal_of("alice@x", [], bearer(teams=["b"])) == principal_of("alice@x", [], {})


def test_a_token_that_is_limited_to_no_team_is_told_from_one_without_a_limit() -> None:
    limited, unlimited = bearer(teams=[]), bearer(teams=None)
    assert principal_of("alice@x", None, limited) != principal_of("alice@x", None, unlimited)
    assert principal_of("alice@x", [], unlimited) == principal_of("alice@x", None, limited)


@pytest.mark.parametrize(
    "headers",
    [
        None,
        {},
        {"authorization": "Basic eDp5"},
        {"authorization": "Bearer only.two"},
        {"authorization": "Bearer a.!!!.c"},
        {"authorization": "Bearer a.W10.c"},
        bearer(teams="all"),
        bearer(),
    ],
)
def test_what_says_nothing_of_teams_has_no_tenant(headers: dict[str, str] | None) -> None:
    assert principal_of("alice@x", None, headers) == principal_of("alice@x", None, None)


@pytest.mark.parametrize(
    ("user", "subject", "verified"),
    [
        ("alice@x", "alice@x", True),
        ({"email": "alice@x"}, "alice@x", True),
        ({"sub": "alice@x"}, "alice@x", True),
        ("anonymous", "", False),
        ("unknown", "", False),  # as ContextForge 1.0 calls for a tool whom it calls None for a resource
        (None, "", False),
        ({}, "", False),
    ],
)
def test_nobody_is_told_from_somebody(user: object, subject: str, verified: bool) -> None:
    asked = Asked(principal_of(user, [], {}), "session")
    assert asked.principal.subject == subject
    assert asked.is_verified is verified


def test_the_session_is_that_of_the_stream_else_the_one_that_the_headers_name() -> None:
    headers = {"Mcp-Session-Id": "theirs", "Trunkline-Workflow": "key"}
    assert session_of(headers) == "theirs"
    assert session_of({**headers, "X-Mcp-Session-Id": "inside"}) == "inside"
    assert session_of(None) == ""
    token = carried_by.set("stream")
    try:
        assert session_of(headers) == "stream"
    finally:
        carried_by.reset(token)


def test_a_key_is_no_session_whatever_the_session_is_called() -> None:
    assert session_of({"Trunkline-Workflow": "key"}) == KEY + "key"
    assert session_of({"Trunkline-Workflow": "other"}) != session_of({"Trunkline-Workflow": "key"})
    assert any(character in KEY for character in "\r\n"), "a header could hold it"


def test_headers_are_read_by_lower_case_name() -> None:
    assert read_headers({"headers": [(b"X-A", b"1")]}) == {"x-a": "1"}
    assert read_headers({}) == {}
