"""The socket that a gateway listens on."""

import socket

import msgspec
import pytest
from trunkline.gateway.listener import listen, url_of
from trunkline.gateway.settings import TLS, GatewaySection, Settings, SettingsError


def settings(**gateway: object) -> Settings:
    return Settings(gateway=msgspec.convert({"port": 0, **gateway}, GatewaySection))


def test_it_listens_and_says_where() -> None:
    with listen(settings()) as listener:
        port = listener.getsockname()[1]
        socket.create_connection(("127.0.0.1", port)).close()
        assert url_of(listener, settings()) == f"http://127.0.0.1:{port}"
        secure = Settings(gateway=GatewaySection(tls=TLS(cert="c", key="k")))
        assert url_of(listener, secure) == f"https://127.0.0.1:{port}"


def test_an_address_of_the_other_family_stands_in_brackets() -> None:
    if not socket.has_ipv6:
        pytest.skip("there is no IPv6")
    with listen(settings(host="::1")) as listener:
        assert url_of(listener, settings()).startswith("http://[::1]:")


@pytest.mark.parametrize("host", ["127.0.0.1", "no-such-host.invalid"])
def test_an_address_that_cannot_be_listened_on_is_named(host: str) -> None:
    with listen(settings()) as taken:
        wanted = settings(host=host, port=taken.getsockname()[1])
        with pytest.raises(SettingsError) as refused, listen(wanted):
            pass
    assert refused.value.path == "gateway.port"
    assert host in refused.value.message


@pytest.mark.parametrize("host", ["a\0b", "ä..b"])
def test_what_is_no_host_at_all_is_named(host: str) -> None:
    with pytest.raises(SettingsError) as refused, listen(settings(host=host)):
        pass
    assert refused.value.path == "gateway.host"
