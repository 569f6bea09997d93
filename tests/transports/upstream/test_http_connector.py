"""What connectors by HTTP have in common."""

import pytest
from trunkline.mux.statistics import Statistics
from trunkline.transports.upstream.http_connector import HTTPConnector

pytestmark = pytest.mark.anyio

URL = "http://127.0.0.1:9/mcp"


class Connector(HTTPConnector):
    always = {"Accept": "x/y"}  # noqa: RUF012 - nobody changes it


async def test_its_headers_go_before_those_of_the_settings_and_may_be_rotated() -> None:
    connector = Connector("x", URL, Statistics(), headers={"X-Key": "one", "Accept": "no"})
    assert connector.headers.headers == {"X-Key": "one", "Accept": "x/y", "User-Agent": "trunkline"}
    connector.rotate({"x-key": "two"})
    assert connector.headers.headers == {"Accept": "x/y", "User-Agent": "trunkline", "x-key": "two"}
    await connector.close()
    await connector.close()


async def test_its_headers_are_its_own_however_the_settings_spell_them() -> None:
    spelled = {"ACCEPT": "no", "user-agent": "no", "X-Key": "one"}
    connector = Connector("x", URL, Statistics(), headers=spelled)
    for _ in range(2):
        assert connector.headers.headers == {"X-Key": "one", "Accept": "x/y", "User-Agent": "trunkline"}
        connector.rotate(spelled)
    await connector.close()


PROOF = "Basic YTpiOmNAZA=="
"""Of user `a` with the password `b:c@d` (RFC 7617)."""


async def test_a_user_and_a_password_in_its_url_prove_who_the_gateway_is() -> None:
    address = "http://a:b%3Ac%40d@127.0.0.1:9/mcp"
    connector = Connector("x", address, Statistics())
    assert connector.headers.headers["Authorization"] == PROOF
    connector.rotate({"X-Key": "two"})
    assert connector.headers.headers["Authorization"] == PROOF
    connector.rotate({"authorization": "Bearer x"})
    assert connector.headers.headers["authorization"] == "Bearer x"
    assert "Authorization" not in connector.headers.headers
    await connector.close()


async def test_one_client_may_serve_two() -> None:
    first = Connector("x", URL, Statistics())
    assert Connector("x", URL, Statistics(), http=first.http).http is first.http
    await first.close()


@pytest.mark.parametrize(("url", "headers"), [("gopher://x/", None), (URL, {"X-Key": "a\x00"})])
def test_what_cannot_be_used_is_refused(url: str, headers: dict[str, str] | None) -> None:
    with pytest.raises(ValueError, match=r"URL|header"):
        Connector("x", url, Statistics(), headers=headers)


async def test_what_goes_to_the_server_is_counted_by_its_name() -> None:
    statistics = Statistics()
    connector = Connector("x", URL, statistics)
    connector.count("get")
    connector.count_dropped()
    connector.count_fault()
    assert set(statistics.counts) == {
        ("upstream_requests", "x", "get"),
        ("undelivered", "x"),
        ("upstream_faults", "x"),
    }
    await connector.close()
