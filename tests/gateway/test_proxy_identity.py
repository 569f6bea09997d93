"""Identities of a reverse proxy: believed from listed peers alone, and never anonymous."""

import pytest
from trunkline.gateway.auth import Authenticator
from trunkline.gateway.proxy_identity import ProxyIdentity
from trunkline.gateway.settings import AuthSection, GatewaySection, Settings
from trunkline.mux.principal import Principal
from trunkline.transports.asgi import headers_of
from trunkline.transports.status import Unauthorized

IDENTITY = ProxyIdentity(["10.0.0.1", "192.168.0.0/24", "fd00::/8"], "X-Auth-Subject", "X-Auth-Tenant")
ALICE = {"x-auth-subject": "alice", "x-auth-tenant": "acme"}


@pytest.mark.parametrize("peer", ["10.0.0.1", "192.168.0.77", "fd00::1", "::ffff:10.0.0.1"])
def test_a_listed_peer_is_believed(peer: str) -> None:
    assert IDENTITY.read(ALICE, peer) == Principal("proxy", "acme", "alice")


def test_a_tenant_need_not_be_named() -> None:
    assert IDENTITY.read({"x-auth-subject": "alice"}, "10.0.0.1") == Principal("proxy", "", "alice")


@pytest.mark.parametrize("peer", ["10.0.0.2", "127.0.0.1", "192.168.1.1", "fe80::1", "", "unix"])
def test_nobody_else_is(peer: str) -> None:
    with pytest.raises(Unauthorized):
        IDENTITY.read(ALICE, peer)


@pytest.mark.parametrize(
    "headers",
    [
        {},
        {"x-auth-subject": ""},
        {"x-auth-tenant": "acme"},
        {"x-auth-subject": "alice, bob"},
        {**ALICE, "x-auth-tenant": "acme, other"},
    ],
)
def test_a_listed_peer_that_names_nobody_or_two_is_refused_never_anonymous(headers: dict[str, str]) -> None:
    with pytest.raises(Unauthorized):
        IDENTITY.read(headers, "10.0.0.1")


def test_the_peer_is_that_of_the_socket_whatever_is_forwarded() -> None:
    settings = Settings(gateway=GatewaySection(trusted_proxies=("10.0.0.1",)), auth=AuthSection(mode="proxy"))
    authenticator = Authenticator(settings)
    raw = [(b"x-auth-subject", b"alice"), (b"x-forwarded-for", b"10.0.0.1")]
    assert authenticator.authenticate(headers_of({"headers": raw, "client": ("10.0.0.1", 1)})).subject == "alice"
    for client in (("10.0.0.9", 1), None):
        with pytest.raises(Unauthorized):
            authenticator.authenticate(headers_of({"headers": raw, "client": client}))
    with pytest.raises(Unauthorized):
        authenticator.authenticate({"x-auth-subject": "alice"})
