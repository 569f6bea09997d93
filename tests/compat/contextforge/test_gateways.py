"""Gateway records as servers: policy, fingerprint, generations, and what is left to the old path."""

import asyncio
import logging
import ssl
import threading
from collections.abc import Callable, Mapping
from typing import Any

import pytest
from trunkline.compat.contextforge.gateways import CONNECT_FIELDS, FRESH_SECONDS, GatewayRecord, Gateways, MakeContext
from trunkline.compat.contextforge.settings import ContextForgeSettings
from trunkline.mux.statistics import Statistics
from trunkline.mux.upstream import Upstream

URL = "http://127.0.0.1:9/mcp"
UNLIKE = {"enabled", "url", "tags", "client_cert"}
"""Fields of which another test tells what they change."""


class Records:
    """The gateway's table, and a clock."""

    def __init__(self, trusted: MakeContext = ssl.create_default_context, **settings: Any) -> None:
        self.rows: dict[str, dict[str, Any]] = {}
        self.now = 0.0
        self.read = 0
        self.asked = ""
        """The record that is being read."""
        self.changes: list[Mapping[str, Upstream]] = []
        self.reading: Callable[[], None] = lambda: None
        """What happens while a row is read."""
        self.gateways = Gateways(
            self._read,
            ContextForgeSettings(**settings),
            Statistics(),
            lambda upstreams: self.changes.append(dict(upstreams)),
            verifies_tls=True,
            trusted=trusted,
            clock=lambda: self.now,
        )

    def add(self, gateway_id: str, **fields: Any) -> None:
        self.rows[gateway_id] = {"name": "up", "transport": "STREAMABLEHTTP", "url": URL, "enabled": True, **fields}

    def later(self) -> None:
        self.now += FRESH_SECONDS

    def _read(self, gateway_id: str) -> GatewayRecord | None:
        self.read += 1
        self.asked = gateway_id
        row = self.rows.get(gateway_id)
        if row is not None:
            row = dict(row)
        self.reading()
        if row is None:
            return None
        fields = {name: value for name, value in row.items() if name in CONNECT_FIELDS}
        return GatewayRecord(gateway_id, row["name"], row["transport"], fields)


def with_one(*options: Any, **settings: Any) -> Records:
    """A table with the record `g1`."""
    records = Records(*options, **settings)
    records.add("g1")
    return records


def test_a_record_becomes_a_server_once_and_is_not_read_for_each_call() -> None:
    records = with_one()
    first = records.gateways.find("g1", URL)
    assert first is not None
    assert first.pooling.reuse == "workflow"
    assert records.gateways.find("g1", URL) is first
    assert records.read == 1
    records.later()
    assert records.gateways.find("g1", URL) is first
    assert records.read == 2


@pytest.mark.parametrize("name", [name for name in CONNECT_FIELDS if name not in UNLIKE])
def test_any_field_that_a_connection_depends_on_makes_another_generation(name: str) -> None:
    records = with_one()
    before = records.gateways.find("g1", URL)
    records.rows["g1"][name] = "SSE" if name == "transport" else {"changed": "yes"}
    records.later()
    after = records.gateways.find("g1", URL)
    assert before is not None
    assert after is not None
    assert after.generation > before.generation
    assert after.name == before.name


def test_an_edit_here_is_seen_by_the_next_call() -> None:
    records = with_one()
    before = records.gateways.find("g1", URL)
    records.rows["g1"]["auth_value"] = "another"
    assert records.gateways.find("g1", URL) is before
    records.gateways.forget("g1")
    after = records.gateways.find("g1", URL)
    assert after is not before
    records.rows["g1"]["auth_value"] = "stored a moment later"
    assert records.gateways.find("g1", URL) is not after


@pytest.mark.parametrize("change", [None, {"enabled": False}])
@pytest.mark.anyio
async def test_a_record_that_is_gone_or_disabled_takes_its_server_with_it(change: dict[str, Any] | None) -> None:
    records = with_one()
    assert records.gateways.find("g1", URL) is not None
    if change is None:
        del records.rows["g1"]
    else:
        records.rows["g1"].update(change)
    records.later()
    await records.gateways.refresh()
    assert records.changes[-1] == {}
    assert records.gateways.find("g1", URL) is None


@pytest.mark.anyio
async def test_looking_at_records_again_holds_no_call_up_and_what_a_call_has_read_meanwhile_stays() -> None:
    records = with_one()
    assert records.gateways.find("g1", URL) is not None
    records.later()
    asked, may_go_on = threading.Event(), threading.Event()

    def wait() -> None:
        asked.set()
        assert may_go_on.wait(10), "the event loop stood still"

    records.reading = wait
    looking = asyncio.create_task(records.gateways.refresh())
    assert await asyncio.to_thread(asked.wait, 10)
    records.reading = lambda: None
    records.rows["g1"]["auth_value"] = "edited"
    records.gateways.forget("g1")
    after = records.gateways.find("g1", URL)
    may_go_on.set()
    await looking
    records.later()
    assert records.gateways.find("g1", URL) is after


@pytest.mark.parametrize(
    ("settings", "tags", "reuse"),
    [
        ({}, [], "workflow"),
        ({"reuse": "user"}, [], "user"),
        ({"reuse_user": ("up",)}, [], "user"),
        ({"reuse_none": ("up",), "reuse_user": ("up",)}, [], "none"),
        ({"reuse_none": ("up",)}, ["trunkline:user"], "user"),
        ({}, ["something", "trunkline-none"], "none"),
        ({}, [{"id": "trunkline:user", "label": "Trunkline:User"}], "user"),
        ({"reuse": "none"}, [{"id": "trunkline:workflow"}], "workflow"),
    ],
)
def test_the_policy_of_a_server(settings: dict[str, Any], tags: list[Any], reuse: str) -> None:
    records = Records(**settings)
    records.add("g1", tags=tags)
    found = records.gateways.find("g1", URL)
    assert (found.pooling.reuse if found else "none") == reuse


@pytest.mark.parametrize(
    ("fields", "why"),
    [
        ({"transport": "STDIO"}, "STDIO"),
        ({"client_cert": "PEM"}, "client certificate"),
        ({"gateway_mode": "direct_proxy"}, "direct-proxy"),
        ({"url": "ftp://host"}, "http"),
    ],
)
def test_what_is_left_to_the_old_path_is_told_once(
    fields: dict[str, Any], why: str, caplog: pytest.LogCaptureFixture
) -> None:
    records = Records()
    records.add("g1", **fields)
    with caplog.at_level(logging.WARNING):
        for _ in range(3):
            assert records.gateways.find("g1", fields.get("url", URL)) is None
    assert [why in record.getMessage() for record in caplog.records] == [True]


def test_a_call_to_another_url_than_the_servers_goes_the_old_path() -> None:
    records = with_one()
    assert records.gateways.find("g1", URL) is not None
    assert records.gateways.find("g1", URL + "/other") is None
    assert records.gateways.find("g1", URL) is not None


def test_what_contextforge_remembers_of_an_edited_record_is_not_taken_for_where_the_server_is() -> None:
    """Its cache of tools in another worker than the edit's holds the old URL for a minute."""
    records = with_one()
    assert records.gateways.find("g1", URL) is not None
    records.rows["g1"]["url"] = "http://127.0.0.1:10/mcp"
    records.later()
    assert records.gateways.find("g1", URL) is None
    assert records.gateways.find("g1", "http://127.0.0.1:10/mcp") is not None
    assert records.gateways.find("g1", URL) is None


def test_another_credential_in_the_url_begins_anew() -> None:
    records = with_one()
    before = records.gateways.find("g1", URL + "?key=old")
    after = records.gateways.find("g1", URL + "?key=new")
    assert before is not None
    assert after is not None
    assert after.generation > before.generation


def test_of_two_credentials_in_urls_that_calls_come_with_in_turn_the_later_one_stays() -> None:
    """ContextForge's cache of tools holds the old URL for a minute after an edit in another worker."""
    records = with_one()
    old, new = URL + "?key=old", URL + "?key=new"
    for value in ("rotated", "rotated again"):
        records.rows["g1"]["auth_query_params"] = value
        records.later()
        found = [records.gateways.find("g1", url) for url in (old, new, old, new, old)]
        assert [one is not None for one in found] == [True, True, False, True, False]
        assert found[3] is found[1]
        records.later()
        assert records.gateways.find("g1", old) is None
        assert records.gateways.find("g1", new) is found[1]


def test_a_url_that_cannot_be_used_is_not_answered_with_the_one_before() -> None:
    records = with_one()
    assert records.gateways.find("g1", URL + "?key=old") is not None
    with pytest.raises(ValueError, match="encode"):
        records.gateways.find("g1", URL + "?key=\u2713")
    assert records.changes[-1] == {}
    assert records.gateways.find("g1", URL + "?key=\u2713") is None
    assert records.gateways.find("g1", URL + "?key=new") is not None


def test_a_server_whose_credential_in_the_url_never_stays_the_same_is_left_to_the_old_path() -> None:
    records = with_one()
    found = [records.gateways.find("g1", f"{URL}?key={n}") for n in range(30)]
    assert [one is not None for one in found] == [True] * 17 + [False] * 13


@pytest.mark.parametrize("settings", [{}, {"reuse_user": ("renamed",)}])
def test_a_record_that_was_renamed_is_a_server_by_its_new_name(settings: dict[str, Any]) -> None:
    records = with_one(**settings)
    assert records.gateways.find("g1", URL) is not None
    records.rows["g1"]["name"] = "renamed"
    records.later()
    found = records.gateways.find("g1", URL)
    assert found is not None
    assert found.name == "renamed-g1"
    assert found.pooling.reuse == ("user" if settings else "workflow")
    assert list(records.changes[-1]) == ["renamed-g1"]


def test_records_that_cannot_be_read_leave_what_is_known_as_it_is_and_the_rest_to_the_old_path() -> None:
    records = with_one()
    before = records.gateways.find("g1", URL)
    records.later()

    def fail() -> None:
        raise RuntimeError("the database is away")

    records.reading = fail
    assert records.gateways.find("g1", URL) is before
    assert records.gateways.find("g2", URL) is None
    records.reading = lambda: None
    records.add("g2")
    records.later()
    assert records.gateways.find("g2", URL) is not None


@pytest.mark.anyio
async def test_a_record_that_can_never_be_read_keeps_no_other_from_being_looked_at() -> None:
    records = Records()
    for gateway_id in ("broken", "gone"):
        records.add(gateway_id, name=gateway_id)
        assert records.gateways.find(gateway_id, URL) is not None
    del records.rows["gone"]
    records.later()

    def fail() -> None:
        if records.asked == "broken":
            raise RuntimeError("it cannot be decrypted")

    records.reading = fail
    for _ in range(2):
        with pytest.raises(RuntimeError, match="decrypted"):
            await records.gateways.refresh()
    assert list(records.changes[-1]) == ["broken-broken"]


@pytest.mark.anyio
async def test_a_database_that_is_away_is_asked_once_in_a_while_and_not_for_each_call(
    caplog: pytest.LogCaptureFixture,
) -> None:
    records = Records()
    records.add("known")
    before = records.gateways.find("known", URL)
    records.later()

    def fail() -> None:
        raise RuntimeError("the database is away")

    records.reading, records.read = fail, 0
    for _ in range(3):
        for _ in range(5):
            assert records.gateways.find("known", URL) is before
            assert records.gateways.find("unknown", URL) is None
        records.later()
    assert records.read == 6
    assert len(caplog.records) == 6
    records.reading = lambda: None
    await records.gateways.refresh()
    assert records.gateways.find("unknown", URL) is None
    assert records.gateways.find("known", URL) is before


@pytest.mark.anyio
async def test_renewed_certificates_count_from_the_next_call_on() -> None:
    trusted: list[ssl.SSLContext] = []

    def trust() -> ssl.SSLContext:
        trusted.append(ssl.create_default_context())
        return trusted[-1]

    records, url = Records(trusted=trust), "https://127.0.0.1:9/mcp"
    records.add("g1", url=url)
    before = records.gateways.find("g1", url)
    assert records.gateways.find("g1", url) is before
    records.gateways.renew()
    assert records.changes[-1] == {}
    after = records.gateways.find("g1", url)
    assert before is not None
    assert after is not None
    assert after.generation > before.generation
    assert len(trusted) == 2
    await records.gateways.close()


@pytest.mark.anyio
async def test_certificates_that_cannot_be_used_leave_the_server_to_the_old_path() -> None:
    records = Records()
    records.add("g1", url="https://127.0.0.1:9/mcp", ca_certificate="no certificate", name="../up")
    with pytest.raises(OSError, match=r"PEM|certificate"):
        records.gateways.find("g1", "https://127.0.0.1:9/mcp")
    assert records.gateways.find("g1", "https://127.0.0.1:9/mcp") is None
    await records.gateways.close()


@pytest.mark.parametrize(
    ("name", "proxy", "is_used"),
    [
        ("http_proxy", "http://proxy:3128", True),
        ("http_proxy", "socks5://proxy:1080", False),
        ("http_proxy", "proxy:3128", True),
        ("all_proxy", "http://proxy:3128", False),
    ],
)
def test_a_server_behind_a_proxy_that_is_not_used_here_is_left_to_the_old_path(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, name: str, proxy: str, is_used: bool
) -> None:
    for other in ("http_proxy", "all_proxy", "no_proxy", "HTTP_PROXY", "ALL_PROXY", "NO_PROXY"):
        monkeypatch.delenv(other, raising=False)
    monkeypatch.setenv(name, proxy)
    records, far = Records(), "http://mcp.example/mcp"
    records.add("far", url=far)
    records.add("near")
    assert (records.gateways.find("far", far) is not None) is is_used
    assert records.gateways.find("near", URL) is not None
    assert ("proxy" in caplog.text) is not is_used
    monkeypatch.setenv("no_proxy", "mcp.example")
    assert records.gateways.find("far", far) is not None


def test_a_server_that_is_called_over_sse_is_reached_so_whatever_the_record_says() -> None:
    records = with_one()
    assert records.gateways.find("g1", "sse+" + URL) is not None
    assert records.gateways.find("g1", URL) is None


def test_the_fingerprint_shows_no_value() -> None:
    record = GatewayRecord("g1", "up", "SSE", {"auth_value": "a secret"})
    assert "secret" not in record.fingerprint(URL)
    assert record.fingerprint(URL) != GatewayRecord("g1", "up", "SSE", {"auth_value": "b"}).fingerprint(URL)
