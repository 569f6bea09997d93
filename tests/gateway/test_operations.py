"""What operators ask: liveness, readiness, figures, and who may see which sessions there are."""

import asyncio
import json
import threading
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

import httpx2
import pytest
from harness.memory_wire import MemoryServer
from harness.muxing import ALICE, Client, begin, settle
from prometheus_client import CollectorRegistry, generate_latest
from trunkline.gateway import metrics, operations
from trunkline.gateway.auth import Authenticator
from trunkline.gateway.events import Events
from trunkline.gateway.metrics import exposition
from trunkline.gateway.operations import Operations
from trunkline.gateway.settings import AuthSection, GatewaySection, Server, Settings
from trunkline.gateway.trends import Trends
from trunkline.gateway.workers.overview import Overview
from trunkline.mux.directory.memory import MemoryDirectory
from trunkline.mux.errors import SessionLost, TrunklineError, UpstreamUnreachable
from trunkline.mux.limits import Pooling
from trunkline.mux.pool import Pool
from trunkline.mux.upstream import Upstream
from trunkline.transports.guard import Guard

pytestmark = pytest.mark.anyio

ADMIN = "the-admin-token"
KEY = "chat-key-of-alice"
PRIVATE = ["/api/gateway", "/api/servers", "/api/sessions"]


class Site:
    """The operations application of a gateway, in front of a server in memory."""

    def __init__(self, *, mode: str = "none", host: str = "127.0.0.1") -> None:
        self.server = MemoryServer()
        self.settings = Settings(
            gateway=GatewaySection(host=host, admin_token=ADMIN),
            auth=AuthSection(mode=mode),  # type: ignore[arg-type]
            servers={"x": Server(url="http://user:s3cret@h/mcp?key=s3cret", headers={"Authorization": "s3cret"})},
        )
        upstreams = {"x": Upstream("x", self.server, Pooling())}
        self.pool = Pool(upstreams, MemoryDirectory(), pooling=Pooling())
        guard = Guard(loopback=host == "127.0.0.1", allowed_hosts=["mcp.example"])
        events = Events(self.pool, Overview(self.pool, Trends(self.pool.statistics)))
        self.app = Operations(self.pool, self.settings, guard, Authenticator(self.settings), events)

    async def get(
        self, path: str, *, peer: str = "127.0.0.1", base: str = "http://127.0.0.1:8920", **headers: str
    ) -> httpx2.Response:
        """The answer to a GET from this peer."""
        transport = httpx2.ASGITransport(app=self.app, client=(peer, 4711))
        async with httpx2.AsyncClient(transport=transport, base_url=base) as http:
            return await http.get(path, headers={name.replace("_", "-"): text for name, text in headers.items()})

    async def rows(self, path: str) -> list[dict[str, Any]]:
        """What a page of rows says."""
        answer = await self.get(path)
        assert answer.status_code == 200, answer.text
        found: list[dict[str, Any]] = answer.json()
        return found


@asynccontextmanager
async def running(site: Site) -> AsyncIterator[Site]:
    async with site.server.running(), site.pool.running():
        yield site


@pytest.fixture
async def site() -> AsyncIterator[Site]:
    """One person's machine."""
    async with running(Site()) as made:
        yield made


async def test_it_is_alive_and_ready(site: Site) -> None:
    assert (await site.get("/healthz")).text == "ok\n"
    ready = await site.get("/readyz")
    assert (ready.status_code, ready.text) == (200, "ready\n")


async def test_g8_while_it_drains_it_lives_and_is_not_ready(site: Site) -> None:
    client = Client((await begin(site.pool)).workflow)
    exchange = client.call()
    draining = asyncio.create_task(site.pool.drain(10))
    await settle()
    not_ready = await site.get("/readyz")
    assert (not_ready.status_code, not_ready.text) == (503, "draining\n")
    assert (await site.get("/healthz")).status_code == 200
    site.server.of("tools/call")[0].answer()
    await client.answer(exchange)
    assert await draining


async def test_g10_a_crowd_that_asks_for_metrics_costs_what_one_does(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = 0

    def counted(*args: Any) -> Callable[[], bytes]:
        nonlocal made
        made += 1
        return exposition(*args)

    monkeypatch.setattr(operations, "exposition", counted)
    for number in range(1, 4):
        made = 0
        site.pool.statistics.count("refused", "body")
        answers = await asyncio.gather(*(site.get("/metrics") for _ in range(50)))
        assert made < 10
        for answer in answers:
            assert f'trunkline_refused_total{{reason="body"}} {number}.0' in answer.text, "as it was when it was asked"


async def test_g10_others_are_answered_while_metrics_are_written(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    has_begun, are_answered = threading.Event(), threading.Event()

    def written(registry: CollectorRegistry) -> bytes:
        has_begun.set()
        assert are_answered.wait(10), "the loop stood still"
        return generate_latest(registry)

    monkeypatch.setattr(metrics, "generate_latest", written)
    asked = asyncio.create_task(site.get("/metrics"))
    assert await asyncio.to_thread(has_begun.wait, 10)
    site.pool.statistics.count("refused", "body")
    later = asyncio.create_task(site.get("/metrics"))
    assert (await site.get("/healthz")).status_code == 200
    are_answered.set()
    one = 'trunkline_refused_total{reason="body"} 1.0'
    assert (one in (await asked).text, one in (await later).text) == (False, True), "as it was when it was asked"


async def test_metrics_are_in_prometheus_text_format(site: Site) -> None:
    answer = await site.get("/metrics")
    assert answer.status_code == 200
    assert answer.headers["content-type"] == "text/plain; version=0.0.4; charset=utf-8"
    assert 'trunkline_channels{server="x",state="active"} 0.0' in answer.text


async def test_probes_are_answered_under_every_host_and_figures_under_the_listeners_own(site: Site) -> None:
    for path, status in (("/healthz", 200), ("/readyz", 200), ("/metrics", 421), *((path, 421) for path in PRIVATE)):
        assert (await site.get(path, base="http://evil.example")).status_code == status
    for path in ("/metrics", *PRIVATE):
        assert (await site.get(path, origin="https://evil.example")).status_code == 403


# Rows.


async def test_a_server_is_unused_then_ok_then_failing(site: Site) -> None:
    [row] = await site.rows("/api/servers")
    assert row == {
        "server": "x",
        "state": "unused",
        "reuse": "workflow",
        "channels": 0,
        "channel_states": {"opening": 0, "active": 0, "idle": 0, "draining": 0},
        "workflows": 0,
        "attached": 0,
        "inflight": 0,
        "last_failure": None,
        "circuit": None,
    }
    client = Client((await begin(site.pool)).workflow)
    exchange = client.call()
    [row] = await site.rows("/api/servers")
    assert (row["state"], row["channels"], row["workflows"], row["inflight"]) == ("ok", 1, 1, 1)
    site.server.unreachable = UpstreamUnreachable("connection refused", executed="no")
    with pytest.raises(TrunklineError):
        await begin(site.pool)
    [row] = await site.rows("/api/servers")
    assert row["state"] == "failing"
    assert row["last_failure"]["message"] == "connection refused"
    assert row["last_failure"]["stage"] == "connect"
    assert row["circuit"] == {"state": "closed", "failures": 1, "retry_after": 0.0}
    for _ in range(3):
        with pytest.raises(TrunklineError):
            await begin(site.pool)
    [row] = await site.rows("/api/servers")
    assert (row["circuit"]["state"], row["circuit"]["failures"]) == ("open", 3)
    assert 0 < row["circuit"]["retry_after"] <= 0.5
    client.leave()
    assert exchange.is_open


async def test_a_server_that_lost_a_session_is_not_failing(site: Site) -> None:
    await begin(site.pool)
    await begin(site.pool)
    site.server.session.receiver.lost(SessionLost("the server is gone", executed="unknown"))
    [row] = await site.rows("/api/servers")
    assert (row["state"], row["last_failure"]["stage"]) == ("ok", "session")


async def test_a_session_is_shown_by_its_handle(site: Site) -> None:
    begun = await begin(site.pool, ALICE, key=KEY)
    [row] = await site.rows("/api/sessions")
    assert row["workflow"] == begun.workflow.record.handle
    assert (row["server"], row["state"], row["keyed"], row["inflight"]) == ("x", "detached", True, 0)
    assert (row["transport"], row["channel"]) == ("http", "open")


async def test_g12_no_page_shows_a_secret(site: Site) -> None:
    begun = await begin(site.pool, ALICE, key=KEY, session_headers={"X-Tenant": "s3cret"})
    Client(begun.workflow).call()
    record = begun.workflow.record
    pages = ("/metrics", "/nothing", *PRIVATE, f"/api/sessions/{record.handle}", f"/api/sessions/{record.session_id}")
    shown = "".join([(await site.get(path)).text for path in pages])
    for secret in (record.session_id, KEY, "s3cret", ADMIN, "alice", "acme", record.event_token):
        assert secret not in shown
    begun.workflow.wire_left()


# Who may see them.


@pytest.mark.parametrize("path", PRIVATE)
@pytest.mark.parametrize(
    ("peer", "base", "headers"),
    [
        ("192.168.1.7", "http://127.0.0.1:8920", {}),
        ("", "http://127.0.0.1:8920", {}),
        ("127.0.0.1", "http://mcp.example", {}),
        ("127.0.0.1", "http://127.0.0.1:8920", {"forwarded": "for=192.0.2.1"}),
        ("127.0.0.1", "http://127.0.0.1:8920", {"x_forwarded_for": "127.0.0.1"}),
        ("127.0.0.1", "http://127.0.0.1:8920", {"X_Forwarded_Host": "localhost"}),
        ("127.0.0.1", "http://127.0.0.1:8920", {"x_forwarded_proto": "https"}),
    ],
)
async def test_from_elsewhere_or_through_a_proxy_only_the_admin_token_opens_them(
    site: Site, path: str, peer: str, base: str, headers: dict[str, str]
) -> None:
    closed = await site.get(path, peer=peer, base=base, **headers)
    assert (closed.status_code, closed.headers["www-authenticate"]) == (401, "Bearer")
    wrong = await site.get(path, peer=peer, base=base, authorization=f"Bearer {ADMIN}x", **headers)
    assert wrong.status_code == 401
    opened = await site.get(path, peer=peer, base=base, authorization=f"Bearer {ADMIN}", **headers)
    assert opened.status_code == 200
    assert ADMIN not in closed.text + wrong.text


@pytest.mark.parametrize("path", ["/", *PRIVATE])
async def test_two_headers_of_one_name_are_not_the_first_of_them(site: Site, path: str) -> None:
    transport = httpx2.ASGITransport(app=site.app, client=("192.0.2.1", 4711))
    twice = [("authorization", f"Bearer {ADMIN}"), ("authorization", "Bearer another")]
    async with httpx2.AsyncClient(transport=transport, base_url="http://mcp.example") as http:
        for headers in (twice, twice[::-1]):
            assert (await http.get(path, headers=headers)).status_code == 401
        hosts = [("host", "mcp.example"), ("host", "evil.example"), twice[0]]
        assert (await http.get(path, headers=hosts)).status_code == 421


@pytest.mark.parametrize("base", ["http://127.0.0.1:8920", "http://localhost:8920", "http://[::1]:8920"])
@pytest.mark.parametrize("peer", ["127.0.0.1", "::1"])
async def test_on_one_persons_machine_they_are_open(site: Site, base: str, peer: str) -> None:
    for path in PRIVATE:
        assert (await site.get(path, base=base, peer=peer)).status_code == 200


@pytest.mark.parametrize(("mode", "host"), [("tokens", "127.0.0.1"), ("none", "0.0.0.0")])
async def test_with_authentication_or_beyond_loopback_they_are_closed(mode: str, host: str) -> None:
    async with running(Site(mode=mode, host=host)) as site:
        for path in PRIVATE:
            assert (await site.get(path, base="http://mcp.example")).status_code == 401
            opened = await site.get(path, base="http://mcp.example", authorization=f"Bearer {ADMIN}")
            assert opened.status_code == 200


async def test_an_unknown_path_tells_what_is_served_to_whom_it_concerns(site: Site) -> None:
    near, far = await site.get("/mcp"), await site.get("/mcp", peer="192.0.2.1")
    assert (near.status_code, far.status_code) == (404, 404)
    assert "/servers/x/mcp" in near.text
    assert "/servers/NAME/mcp" in far.text
    assert "/servers/x/" not in far.text


async def test_a_websocket_that_is_not_asked_for_as_one_is_told_from_what_is_not_there(site: Site) -> None:
    found, absent = await site.get("/servers/x/ws"), await site.get("/servers/y/ws")
    assert (found.status_code, found.headers["upgrade"], absent.status_code) == (426, "websocket", 404)
    assert "Upgrade" in found.text
    assert (await site.get("/servers/x/ws/")).status_code == 404


@pytest.mark.parametrize("path", ["/", "/healthz", "/readyz", "/metrics", "/api/events", *PRIVATE])
async def test_pages_are_only_read(site: Site, path: str) -> None:
    transport = httpx2.ASGITransport(app=site.app, client=("127.0.0.1", 4711))
    async with httpx2.AsyncClient(transport=transport, base_url="http://127.0.0.1") as http:
        assert (await http.post(path)).status_code == 405
        assert (await http.head(path)).status_code == 200


async def test_rows_are_json(site: Site) -> None:
    for path in PRIVATE:
        answer = await site.get(path)
        assert answer.headers["content-type"] == "application/json"
        assert isinstance(json.loads(answer.text), dict if path == "/api/gateway" else list)


# The status page.

HTML = "text/html,application/xhtml+xml,*/*;q=0.8"


async def test_the_page_is_the_same_for_everybody_and_runs_nothing_but_itself(site: Site) -> None:
    known, asked = await site.get("/", accept=HTML), await site.get("/", peer="192.0.2.1", accept=HTML)
    assert (known.status_code, asked.status_code, asked.headers["www-authenticate"]) == (200, 401, "Bearer")
    assert known.text == asked.text
    assert not any(word in known.text for word in ("s3cret", ADMIN, "/servers/x"))
    for answer in (known, asked):
        assert answer.headers["content-type"] == "text/html; charset=utf-8"
        assert answer.headers["content-security-policy"].startswith("default-src 'none'; script-src 'sha256-")
        assert (answer.headers["cache-control"], answer.headers["x-frame-options"]) == ("no-store", "DENY")
        assert answer.headers["x-content-type-options"] == "nosniff"


@pytest.mark.parametrize("path", ["/", "/api/events", "/api/sessions/abcd", *PRIVATE])
async def test_without_rights_there_is_401_and_nothing_else(site: Site, path: str) -> None:
    for headers in ({}, {"authorization": "Bearer wrong"}, {"authorization": f"Basic {ADMIN}"}):
        answer = await site.get(path, peer="192.0.2.1", **headers)
        assert (answer.status_code, answer.text) == (401, "send the admin token as a bearer token\n")
    assert (await site.get(path, base="http://evil.example")).status_code == 421
    assert (await site.get(path, origin="https://evil.example")).status_code == 403


@pytest.mark.parametrize("path", ["/api/events", "/api/sessions/abcd", *PRIVATE])
async def test_x1_a_page_of_another_site_can_have_nothing_asked_for_it(site: Site, path: str) -> None:
    """Images and scripts are asked for without an Origin; but browsers say for whose page."""
    for whose in ("cross-site", "same-site"):
        answer = await site.get(path, sec_fetch_site=whose)
        assert (answer.status_code, answer.text) == (403, "no page of another site may ask for this\n")
        assert (await site.get("/", sec_fetch_site=whose)).status_code == 200, "a link leads to it"


@pytest.mark.parametrize("path", ["/", "/api/events", "/api/sessions/abcd", *PRIVATE])
async def test_g12_who_may_not_see_them_is_counted_with_the_reason(site: Site, path: str) -> None:
    refused: dict[str, dict[str, Any]] = {
        "unauthorized": {"peer": "192.0.2.1"},
        "host": {"base": "http://evil.example"},
        "origin": {"origin": "https://evil.example"},
        "cross_site": {"sec_fetch_site": "cross-site"},
    }
    if path == "/":  # to which a link may lead
        del refused["cross_site"]
        await site.get(path, peer="192.0.2.1", accept=HTML)
    for request in refused.values():
        assert (await site.get(path, **request)).status_code in (401, 403, 421)
    counts = site.pool.statistics.counts
    assert {reason: counts["refused", reason] for reason in refused} == {
        **dict.fromkeys(refused, 1),
        "unauthorized": 2 if path == "/" else 1,
    }
    assert (await site.get("/api/servers")).status_code == 200
    assert site.pool.statistics.total("refused") == sum(counts["refused", reason] for reason in refused)


@pytest.mark.parametrize("host", ["[", "evil.example", "127.0.0.1/servers/x/ws?", "[::1"])
async def test_x1_nothing_is_told_of_a_path_that_is_none_to_who_asks_for_another_host(site: Site, host: str) -> None:
    answer = await site.get("/servers/y/mcp", host=host)
    assert (answer.status_code, site.pool.statistics.counts["refused", "host"]) == (421, 1)


async def test_g12_who_may_not_see_the_figures_is_counted_with_the_reason(site: Site) -> None:
    assert (await site.get("/metrics", base="http://evil.example")).status_code == 421
    assert site.pool.statistics.counts["refused", "host"] == 1


@pytest.mark.parametrize("path", PRIVATE)
async def test_no_cache_keeps_what_only_operators_see(site: Site, path: str) -> None:
    answer = await site.get(path, sec_fetch_site="same-origin")
    assert answer.status_code == 200
    assert (answer.headers["cache-control"], answer.headers["cross-origin-resource-policy"]) == (
        "no-store",
        "same-origin",
    )
