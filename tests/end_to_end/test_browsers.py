"""A browser's own EventSource and WebSocket, on a page of an allowed origin: no header set, none read, and no loss."""

import json
import signal
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from harness.browser import Browser, Page, Site
from harness.cutter import Cutter
from harness.duplex_clients import initialize
from harness.gateways import Gateway
from harness.gateways import gateway as running_gateway
from harness.upstreams import Upstream
from harness.wire import text_of

pytestmark = pytest.mark.anyio

HTML = """<!doctype html><title>test</title><script>
"use strict";
const heard = [];
const errors = [];
let source, socket, place, lastEventId = "", count = 0, opened = 0, wake = () => {};

// What a page can do with an EventSource: it comes back by itself.
function stream(url) {
  source = new EventSource(url);
  source.onopen = () => { opened += 1; wake(); };
  source.addEventListener("endpoint", (event) => { place = new URL(event.data, url).href; wake(); });
  source.onmessage = (event) => {
    lastEventId = event.lastEventId;
    heard.push(JSON.parse(event.data));
    wake();
  };
  source.onerror = () => { errors.push(source.readyState); wake(); };
}

async function post(message) {
  const answer = await fetch(place, {
    method: "POST",
    headers: { "Content-Type": "application/json" },
    body: JSON.stringify(message),
  });
  return answer.status;
}

// And with a WebSocket: it is the page that comes back, and says how many messages it has received.
function line(url, resume = "") {
  count = 0;
  socket = new WebSocket(url + resume, "mcp");
  socket.onopen = () => { opened += 1; wake(); };
  socket.onmessage = (event) => { count += 1; heard.push(JSON.parse(event.data)); wake(); };
  socket.onclose = (event) => {
    errors.push([event.code, event.reason]);
    if (event.code === 1006) line(url, `&last_event_id=${count}`);
    wake();
  };
}

function refused(url) {
  socket = new WebSocket(url, "mcp");
  socket.onopen = () => { opened += 1; };
  socket.onclose = (event) => { errors.push(event.code); wake(); };
}

function say(message) { socket.send(JSON.stringify(message)); }

async function until(condition) {
  while (!condition()) await new Promise((resolve) => { wake = resolve; });
  return true;
}

const answer = (id) => heard.find((message) => message.id === id && !message.method);
const heardOf = async (id) => { await until(() => answer(id)); return answer(id); };
</script>"""


@pytest.fixture(scope="module")
def site() -> Iterator[Site]:
    with Site(HTML).served() as served:
        yield served


@pytest.fixture(scope="module")
def settings(site: Site, upstream_process: Upstream, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("gateway") / "trunkline.toml"
    path.write_text(f'[gateway]\nallowed_origins = ["{site.origin}"]\n[servers.up]\nurl = "{upstream_process.url}"\n')
    return path


@pytest.fixture(scope="module")
def gateway_process(settings: Path) -> Iterator[Gateway]:
    with running_gateway(toml=settings) as process:
        yield process


@asynccontextmanager
async def cut_off(gateway: Gateway) -> AsyncIterator[Cutter]:
    async with Cutter(gateway.port) as cutter:
        yield cutter


def url(cutter: Cutter, path: str, scheme: str = "http") -> str:
    return f"{scheme}://127.0.0.1:{cutter.port}/servers/up/{path}"


def call(id: int, tool: str, **arguments: Any) -> dict[str, Any]:
    return {"jsonrpc": "2.0", "id": id, "method": "tools/call", "params": {"name": tool, "arguments": arguments}}


class Client:
    """What a test has its page do, on either transport."""

    def __init__(self, page: Page, say: str) -> None:
        self.page = page
        self._say = say

    async def send(self, message: dict[str, Any]) -> None:
        status = await self.page.run(f"{self._say}({json.dumps(message)})")
        assert status in (None, 202), status

    async def begin(self) -> None:
        await self.send(initialize(0))
        assert "result" in await self.answer(0)
        await self.send({"jsonrpc": "2.0", "method": "notifications/initialized"})

    async def answer(self, id: int) -> dict[str, Any]:
        answer: dict[str, Any] = await self.page.run(f"heardOf({id})")
        return answer

    async def count(self, id: int) -> str:
        """Call the counter."""
        await self.send(call(id, "counter"))
        return text_of(await self.answer(id))

    async def ids(self) -> list[object]:
        """The ids of all answers that have come."""
        ids: list[object] = await self.page.run("heard.filter((m) => !m.method).map((m) => m.id)")
        return ids


@asynccontextmanager
async def on_stream(chromium: Browser, site: Site, at: str) -> AsyncIterator[Client]:
    """A page with an EventSource."""
    async with chromium.page(f"{site.origin}/") as page:
        await page.run(f"stream({json.dumps(at)})")
        await page.run("until(() => place)")
        yield Client(page, "post")


@asynccontextmanager
async def on_socket(chromium: Browser, site: Site, at: str) -> AsyncIterator[Client]:
    """A page with a WebSocket."""
    async with chromium.page(f"{site.origin}/") as page:
        await page.run(f"line({json.dumps(at)})")
        await page.run("until(() => opened)")
        yield Client(page, "say")


def cut(cutter: Cutter) -> None:
    for connection in cutter.connections:
        connection.cut()


async def test_g5_an_event_source_comes_back_by_itself_and_misses_nothing(
    chromium: Browser, site: Site, gateway: Gateway, upstream: Upstream, key: str
) -> None:
    async with cut_off(gateway) as cutter, on_stream(chromium, site, url(cutter, f"sse?workflow={key}")) as client:
        await client.begin()
        assert await client.count(1) == "1"
        await client.send(call(2, "hold", gate=key))
        await upstream.saw("mark:holding")
        cut(cutter)
        upstream.open(key)
        assert text_of(await client.answer(2)) == f"{key} is open"
        assert await client.count(3) == "2"
        assert await client.ids() == [0, 1, 2, 3]
        assert await client.page.run("errors") == [0], "it was cut once, and went on"
    assert upstream.counts()["initialize"] == 1


async def test_g5_a_page_that_was_left_goes_on_where_it_stood_and_is_cut_again(
    chromium: Browser, site: Site, gateway: Gateway, upstream: Upstream, key: str
) -> None:
    async with cut_off(gateway) as cutter, on_stream(chromium, site, url(cutter, "sse")) as client:
        await client.begin()
        await client.send(call(1, "hold", gate=key))
        await upstream.saw("mark:holding")
        seen = await client.page.run("lastEventId")
        session_id = await client.page.run("new URL(place).searchParams.get('session_id')")
        await client.page.visit(f"{site.origin}/again")
        upstream.open(key)
        query = f"sse?session_id={session_id}&last_event_id={seen}"
        await client.page.run(f"stream({json.dumps(url(cutter, query))})")
        assert text_of(await client.answer(1)) == f"{key} is open"
        # From here on the browser sends a newer Last-Event-ID than the one in the query that it keeps.
        cut(cutter)
        await client.page.run("until(() => opened === 2)")
        assert await client.count(2) == "1"
        assert await client.ids() == [1, 2]
    assert upstream.counts()["initialize"] == 1


async def test_g5_a_web_socket_of_a_page_goes_on_by_what_it_received(
    chromium: Browser, site: Site, gateway: Gateway, upstream: Upstream, key: str
) -> None:
    at = f"ws?workflow={key}"
    async with cut_off(gateway) as cutter, on_socket(chromium, site, url(cutter, at, "ws")) as client:
        await client.begin()
        assert await client.count(1) == "1"
        await client.send(call(2, "hold", gate=key))
        await upstream.saw("mark:holding")
        cut(cutter)
        upstream.open(key)
        assert text_of(await client.answer(2)) == f"{key} is open"
        assert await client.count(3) == "2"
        cut(cutter)
        await client.page.run("until(() => opened === 3)")
        assert await client.count(4) == "3"
        assert await client.ids() == [0, 1, 2, 3, 4]
    assert upstream.counts()["initialize"] == 1


async def test_a_page_moves_from_its_event_source_to_a_web_socket(
    chromium: Browser, site: Site, gateway: Gateway, upstream: Upstream, key: str
) -> None:
    async with cut_off(gateway) as cutter, on_stream(chromium, site, url(cutter, "sse")) as client:
        await client.begin()
        assert await client.count(1) == "1"
        await client.send(call(2, "hold", gate=key))
        await upstream.saw("mark:holding")
        await client.page.run("source.close()")
        upstream.open(key)
        session_id = await client.page.run("new URL(place).searchParams.get('session_id')")
        at = url(cutter, f"ws?session_id={session_id}&last_event_id=", "ws")
        await client.page.run(f"line({json.dumps(at)} + lastEventId)")
        assert text_of(await client.answer(2)) == f"{key} is open"
        socket = Client(client.page, "say")
        assert await socket.count(3) == "2"
        assert await socket.ids() == [0, 1, 2, 3]
    assert upstream.counts()["initialize"] == 1


async def test_x1_a_page_of_another_origin_can_neither_read_nor_speak(
    chromium: Browser, gateway: Gateway, upstream: Upstream, key: str
) -> None:
    with Site(HTML).served() as foreign:
        async with cut_off(gateway) as cutter, chromium.page(f"{foreign.origin}/") as page:
            await page.run(f"stream({json.dumps(url(cutter, 'sse'))})")
            await page.run("until(() => errors.length)")
            assert await page.run("[opened, errors, source.readyState]") == [0, [2], 2]
            await page.run(f"refused({json.dumps(url(cutter, f'ws?workflow={key}', 'ws'))})")
            await page.run("until(() => errors.length === 2)")
            assert await page.run("[opened, errors[1]]") == [0, 1006]
    assert "initialize" not in upstream.counts()


async def test_g8_an_event_source_outlives_a_drain_and_the_restart_after_it(
    chromium: Browser, site: Site, settings: Path, upstream: Upstream, key: str
) -> None:
    with running_gateway(toml=settings) as old:
        async with (
            cut_off(old) as cutter,
            on_stream(chromium, site, url(cutter, f"sse?workflow={key}")) as client,
            chromium.page(f"{site.origin}/") as late,
        ):
            await client.begin()
            await client.send(call(1, "hold", gate=key))
            await upstream.saw("mark:holding")
            old.process.send_signal(signal.SIGTERM)
            await until_draining(client)
            # It comes while the gateway drains: 200, `retry` and the end, so that it tries again and does not give up.
            await late.run(f"stream({json.dumps(url(cutter, f'sse?workflow={key}-late'))})")
            await late.run("until(() => errors.length >= 2)")
            assert await late.run("opened >= 1 && errors.every((state) => state === 0)")
            upstream.open(key)
            assert text_of(await client.answer(1)) == f"{key} is open", "no call is lost"
            await client.page.run("until(() => errors.length)")
            assert await client.page.run("errors[0]") == 0, "it was asked to come back"
            assert old.process.wait(15) == 0
            with running_gateway(toml=settings) as new:
                cutter.lead_to(new.port)
                await late.run("until(() => place)")
                latecomer = Client(late, "post")
                await latecomer.begin()
                assert await latecomer.count(1) == "1"


async def until_draining(client: Client) -> None:
    """Wait until the gateway takes no more calls."""
    number = 100
    while True:
        await client.send(call(number, "echo", value=number))
        if "error" in await client.answer(number):
            return
        number += 1
