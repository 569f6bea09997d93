"""The status page in a browser: what it shows, whether it is still so, who may see it, and what it withstands."""

import json
import re
import signal
import subprocess
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any

import aiohttp
import anyio
import anyio.to_thread
import pytest
from harness.browser import Browser, Page, browser
from harness.clients import node
from harness.cutter import Cutter
from harness.duplex_clients import SSEClient, initialize
from harness.gateways import TOKENS, Gateway, token_settings
from harness.gateways import gateway as running_gateway
from harness.operators import Operator
from harness.upstream_scripted import ScriptedUpstream, Status
from harness.upstreams import Upstream
from harness.wire import Wire
from harness.worker_gateways import worker_gateway

pytestmark = pytest.mark.anyio

ADMIN = "the-token-of-an-admin"
MANY = 5_000
DESK = {"width": 1280, "height": 860, "deviceScaleFactor": 1, "mobile": False}
TABLET = {"width": 820, "height": 1180, "deviceScaleFactor": 2, "mobile": True}
PHONE = {"width": 390, "height": 844, "deviceScaleFactor": 2, "mobile": True}
CALM = {"name": "prefers-reduced-motion", "value": "reduce"}
Settings = Callable[[str], Path]


@asynccontextmanager
async def view(chromium: Browser, url: str) -> AsyncIterator[Page]:
    """The page, live; at the end its console has told no error."""
    async with chromium.page(url) as page:
        await page.until(text_of("connection", "live"))
        yield page
        await page.run("0")
        assert page.errors == []


def text_of(id: str, pattern: str) -> str:
    """A condition: the element is there, and what it says matches."""
    return f"new RegExp({json.dumps(pattern)}).test(document.getElementById({json.dumps(id)})?.textContent ?? '')"


def there(selector: str) -> str:
    """A condition: such an element is there."""
    return f"document.querySelector({json.dumps(selector)}) !== null"


def cell(server: str, label: str) -> str:
    """What the table of servers says of one."""
    rows = "[...document.querySelectorAll('#servers tbody')]"
    row = f"{rows}.find((one) => one.querySelector('a').textContent === '{server}')"
    return f"{row}.querySelector('[data-label=\"{label}\"] span').textContent"


async def open_sessions(url: str, count: int) -> None:
    """Begin so many sessions, and hold none of their connections."""
    body = json.dumps(initialize()).encode()
    headers = {"Accept": "application/json, text/event-stream", "Content-Type": "application/json"}
    left = iter(range(count))
    async with aiohttp.ClientSession(headers=headers) as http, anyio.create_task_group() as tasks:

        async def work() -> None:
            for _ in left:
                async with http.post(url, data=body) as answer:
                    assert answer.status == 200, await answer.text()

        for _ in range(8):
            tasks.start_soon(work)


# What it shows.


async def test_with_5000_workflows_it_is_there_at_once_and_is_sent_a_page_of_them(
    chromium: Browser, upstream: Upstream, settings_file: Settings
) -> None:
    toml = settings_file(f'[servers.up]\nurl = "{upstream.url}"\neras = ["legacy"]\nreuse = "user"\n')
    with running_gateway(toml=toml) as gateway:
        await open_sessions(gateway.url(), MANY)
        async with view(chromium, f"{gateway.base}/") as page:
            await page.command("Page.reload")
            shown = await page.until("document.querySelectorAll('#workflow-rows tr').length && performance.now()")
            print(f"{MANY} workflows: the first row was there after {shown:.0f} ms")
            assert shown < 5_000, "a second, where nothing else runs on the machine"
            assert await page.run("document.getElementById('range').textContent") == "1\N{EN DASH}50 of 5,000"
            assert await page.run("document.querySelectorAll('#workflow-rows tr').length") == 50
            await page.run("document.getElementById('forward').click()")
            await page.until(text_of("range", "51.100 of 5,000"))
            last = gateway.fetch_json(f"/api/sessions?limit=1&after={MANY - 1}")["sessions"][0]["workflow"]
            await page.run("document.getElementById('q').focus()")
            await page.type(last)
            await page.until(text_of("range", "1.1 of 1"))
            assert await page.run("document.querySelector('#workflow-rows a').textContent") == last
            sizes = "performance.getEntriesByType('resource').map((one) => one.transferSize)"
            assert max(await page.run(sizes)) < 100_000


async def test_it_shows_calls_while_they_run(chromium: Browser, gateway: Gateway, upstream: Upstream, key: str) -> None:
    async with view(chromium, f"{gateway.base}/") as page, Wire(gateway.url(), {"Trunkline-Workflow": key}) as wire:
        await wire.open()
        held = await wire.call("hold", {"gate": key})
        await upstream.saw("mark:holding")
        await page.until(f"{cell('up', 'In flight')} === '1'")
        await page.until(there("#workflow-rows [data-state=attached]"))
        upstream.open(key)
        await held.response()
        await page.until(f"{cell('up', 'In flight')} === '0'")
        await page.until(f"{cell('up', 'Calls/s')} !== '0'")
        assert re.fullmatch(r"[\d.]+ m?s|≤ 1 ms", await page.run(cell("up", "p95")))
        assert "calls a second" in await page.run("document.querySelector('.spark.rates').getAttribute('aria-label')")


async def test_before_anybody_came_it_says_what_to_do(chromium: Browser, settings_file: Settings) -> None:
    with running_gateway(toml=settings_file('[servers.files]\nurl = "http://127.0.0.1:9/mcp"\n')) as gateway:
        async with view(chromium, f"{gateway.base}/") as page:
            await page.until("!document.getElementById('nothing-yet').hidden")
            assert await page.run("document.getElementById('try-it').textContent") == gateway.url("files")
            await page.run("location.hash = '#/?q=zz'")
            await page.until("!document.getElementById('nothing-found').hidden")
            await page.run("document.getElementById('clear').click()")
            await page.until("!document.getElementById('nothing-yet').hidden")
            assert await page.run("location.hash") == "#/"


async def test_a_workflow_has_a_page_with_its_account(
    chromium: Browser, gateway: Gateway, upstream: Upstream, key: str
) -> None:
    base = gateway.url().removesuffix("/mcp")
    async with view(chromium, f"{gateway.base}/") as page, SSEClient(base) as client:
        await client.open(f"?workflow={key}")
        handle = gateway.fetch_json("/api/sessions")[-1]["workflow"]
        await page.run(f"location.hash = '#/workflows/{handle}'")
        await page.until(text_of("reasons", "Initialize *miss"))
        await page.until(text_of("timeline", "Began SSE"))
        client.cut()
        await page.until(text_of("timeline", "was cut"))
        await client.connect(f"?workflow={key}&last_event_id={client.last_event_id}")
        await page.until(text_of("timeline", "came back"))
        async with Wire(gateway.url(), {"Trunkline-Workflow": key}) as wire:
            await wire.open()
            await (await wire.call("counter")).response()
            await page.until(text_of("timeline", "another transport HTTP"))
            await page.until(text_of("reasons", "Last call *hit *The session with the server was open"))
            assert (await wire.delete({"Trunkline-End": "workflow"})).status == 200
        await page.until(text_of("reasons", "Ended *deleted"))
        await page.until(text_of("workflow-state", "ended"))
        await page.run("location.hash = '#/workflows/ffffffffffff'")
        await page.until(text_of("missing-why", "no workflow of this handle"))


async def test_it_goes_on_where_no_server_is_left(
    chromium: Browser, upstream: Upstream, settings_file: Settings
) -> None:
    toml = settings_file(f'[servers.up]\nurl = "{upstream.url}"\neras = ["legacy"]\n')
    with running_gateway(toml=toml) as gateway:
        async with Wire(gateway.url()) as wire, view(chromium, f"{gateway.base}/") as page:
            await wire.open()
            assert "result" in await (await wire.call("counter")).response()
            await page.until(there("#servers tbody"))
            await page.until(f"{cell('up', 'Calls/s')} !== '0'")
            await Operator(gateway, toml).reload("# none\n")
            await page.until(f"!({there('#servers tbody')})")
            figures = (
                "['rate', 'median', 'tail', 'hits'].map((id) => document.getElementById(`total-${id}`).textContent)"
            )
            assert await page.run(figures) == ["0", *["\N{EN DASH}"] * 3]
            await page.command("Page.reload")
            await page.until(f"{text_of('connection', 'live')} && {text_of('total-rate', '^0$')}")
            assert await page.run("document.getElementById('try-it').textContent") == gateway.url("NAME")


@pytest.mark.slow
async def test_workers_are_shown_as_one(chromium: Browser, upstream: Upstream, settings_file: Settings) -> None:
    database = settings_file("").with_name("directory.db")
    text = f'[directory]\nbackend = "database"\nurl = "sqlite+aiosqlite:///{database}"\n'
    with worker_gateway(
        settings_file(f'{text}[servers.up]\nurl = "{upstream.url}"\neras = ["legacy"]\n'), 2
    ) as gateway:
        await gateway.complete()
        sessions = [await gateway.open() for _ in range(8)]
        for session in sessions:
            await gateway.call(session, "counter")
        async with view(chromium, f"{gateway.running.base}/") as page:
            await page.until(text_of("gateway", "2 workers$"))
            await page.until(text_of("range", "1.8 of 8"))
            await page.until(f"{cell('up', 'Workflows')} === '8'")
            await page.until(f"{cell('up', 'Calls/s')} !== '0'")
            workers = "[...document.querySelectorAll('#workflow-rows .worker')].map((one) => one.textContent)"
            assert set(await page.run(workers)) <= {"1", "2"}


# Whether it is still so.


async def test_it_outlives_a_restart_of_the_gateway_and_shows_it(chromium: Browser, settings_file: Settings) -> None:
    toml = settings_file('[servers.files]\nurl = "http://127.0.0.1:9/mcp"\n')
    async with AsyncExitStack() as stack:
        with running_gateway(toml=toml) as old:
            cutter = await stack.enter_async_context(Cutter(old.port))
            page = await stack.enter_async_context(chromium.page(f"http://127.0.0.1:{cutter.port}/"))
            await page.until(text_of("connection", "live"))
            since = await page.run("document.getElementById('gateway').textContent")
            assert page.errors == []
            second = int(time.time())
            old.process.kill()
            await page.until(text_of("connection", "not connected since"))
            assert await page.run("document.body.hasAttribute('data-stale')")
            assert await page.run(cell("files", "State")) == "unused", "what was known is still shown"
        while int(time.time()) == second:  # noqa: ASYNC110 - the page shows no less than a second
            await anyio.sleep(0.02)
        with running_gateway(toml=toml) as new:
            cutter.lead_to(new.port)
            await page.until(text_of("connection", "live"))
            assert not await page.run("document.body.hasAttribute('data-stale')")
            assert await page.run("document.getElementById('gateway').textContent") != since
            assert [error for error in page.errors if "net::" not in error] == []


async def test_g8_it_shows_that_the_gateway_drains(
    chromium: Browser, upstream: Upstream, settings_file: Settings, key: str
) -> None:
    toml = settings_file(f'[servers.up]\nurl = "{upstream.url}"\neras = ["legacy"]\n')
    with running_gateway(toml=toml) as gateway:
        async with chromium.page(f"{gateway.base}/") as page, Wire(gateway.url()) as wire:
            await page.until(text_of("connection", "live"))
            await wire.open()
            held = await wire.call("hold", {"gate": key})
            await upstream.saw("mark:holding")
            gateway.process.send_signal(signal.SIGTERM)
            await page.until("document.getElementById('connection').dataset.state === 'draining'")
            upstream.open(key)
            await held.response()
            assert await anyio.to_thread.run_sync(gateway.process.wait, 15) == 0


# How it is used.


async def test_it_is_used_by_keyboard_alone(chromium: Browser, gateway: Gateway, upstream: Upstream, key: str) -> None:
    focused = "document.activeElement.id || document.activeElement.textContent"
    async with Wire(gateway.url(), {"Trunkline-Workflow": key}) as wire:
        await wire.open()
        handle = gateway.fetch_json("/api/sessions")[-1]["workflow"]
        async with view(chromium, f"{gateway.base}/") as page:
            await page.until(there("#workflow-rows tr"))
            await page.press("/", "/")
            assert await page.run(focused) == "q"
            await page.type(handle)
            await page.until(f"location.hash.includes('{handle}')")
            await page.until(text_of("range", "1.1 of 1"))
            seen = []
            while not seen or seen[-1] != handle:
                await page.press("Tab")
                seen.append(await page.run(focused))
                assert len(seen) < 10, seen
            assert seen[:2] == ["server", "state"]
            outline = "getComputedStyle(document.activeElement).outlineStyle"
            assert await page.run(outline) == "solid", "where the focus is can be seen"
            await page.press("Enter", "\r")
            await page.until(text_of("workflow-name", handle))
            assert await page.run(focused) == "workflow-name"
            await page.press("Escape")
            await page.until("!document.getElementById('overview').hidden")
            assert handle in await page.run("location.hash"), "what was looked for is still there"


async def test_what_has_the_focus_keeps_it_while_the_page_changes(
    chromium: Browser, gateway: Gateway, upstream: Upstream
) -> None:
    async with Wire(gateway.url()) as wire, view(chromium, f"{gateway.base}/") as page:
        await wire.open()
        await page.until(there("#workflow-rows a"))
        await page.run("globalThis.kept = document.querySelector('#workflow-rows a'); kept.focus()")
        for _ in range(2):
            await wire.open()
            total = len(gateway.fetch_json("/api/sessions"))
            await page.until(text_of("range", f"of {total}$"))
        assert await page.run("document.activeElement === kept")


async def test_it_is_light_or_dark_as_the_system_is_until_somebody_chooses(chromium: Browser, gateway: Gateway) -> None:
    ground = "getComputedStyle(document.body).backgroundColor"

    async def prefer(page: Page, theme: str) -> Any:
        features = [{"name": "prefers-color-scheme", "value": theme}, CALM]
        await page.command("Emulation.setEmulatedMedia", features=features)
        return await page.run(ground)

    async with view(chromium, f"{gateway.base}/") as page:
        light, dark = await prefer(page, "light"), await prefer(page, "dark")
        assert light != dark
        await page.run("document.getElementById('theme').click()")
        assert await page.run(ground) == light
        await page.command("Page.reload")
        await page.until(f"document.readyState === 'complete' && {ground} === '{light}'")
        await page.run("localStorage.clear()")


async def test_a_browser_that_keeps_nothing_shows_it_all_the_same(gateway: Gateway) -> None:
    ground = "getComputedStyle(document.body).backgroundColor"
    with browser(keeps_nothing=True) as private:
        async with view(private, f"{gateway.base}/") as page:
            assert await page.run("(() => { try { return !localStorage } catch { return true } })()")
            await page.command("Emulation.setEmulatedMedia", features=[CALM])
            before = await page.run(ground)
            await page.run("document.getElementById('theme').click()")
            assert await page.run(ground) != before, "what is chosen holds, if only for this page"


async def test_axe_finds_nothing_and_nothing_is_off_the_screen(
    chromium: Browser, upstream: Upstream, settings_file: Settings
) -> None:
    axe = (node()[1] / "axe-core" / "axe.min.js").read_text()
    text = f'[gateway]\nadmin_token = "{ADMIN}"\n{token_settings(up=upstream.url, dead="http://127.0.0.1:9/mcp")}'

    async def check(page: Page) -> None:
        for screen, theme in ((DESK, "light"), (TABLET, "dark"), (PHONE, "light"), (PHONE, "dark")):
            features = [{"name": "prefers-color-scheme", "value": theme}, CALM]
            await page.command("Emulation.setEmulatedMedia", features=features)
            await page.command("Emulation.setDeviceMetricsOverride", **screen)
            told = "told.violations.map((one) => [one.id, one.impact, one.nodes.map((node) => node.html)])"
            assert await page.run(f"axe.run().then((told) => {told})") == [], (screen, theme)
            assert await page.run("document.documentElement.scrollWidth <= innerWidth"), screen

    with running_gateway(toml=settings_file(text)) as gateway:
        async with chromium.page(f"{gateway.base}/") as page, Wire(gateway.url(), bearer()) as wire:
            await wire.open()
            async with Wire(gateway.url("dead"), bearer()) as dead:
                await (await dead.post(initialize())).body()
            await page.run(axe)
            await page.until("!document.getElementById('sign-in').hidden")
            await check(page)
            await sign_in(page, ADMIN)
            await page.until(there("#servers .failure:not([hidden])"))
            await page.until(there("#workflow-rows a"))
            await check(page)
            await page.run("document.querySelector('#workflow-rows a').click()")
            await page.until(there("#timeline li"))
            await check(page)


# Who may see it.


@pytest.fixture(scope="module")
def closed(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Gateway]:
    """A gateway that wants tokens, and before which nobody has come yet."""
    toml = tmp_path_factory.mktemp("gateway") / "trunkline.toml"
    toml.write_text(f'[gateway]\nadmin_token = "{ADMIN}"\n{token_settings(up="http://127.0.0.1:9/mcp")}')
    with running_gateway(toml=toml) as gateway:
        yield gateway


def bearer(token: str = TOKENS["alice"]) -> dict[str, str]:
    return {"Authorization": f"Bearer {token}"}


async def sign_in(page: Page, token: str) -> None:
    await page.run("document.getElementById('token').focus()")
    await page.type(token)
    await page.press("Enter", "\r")


@pytest.mark.parametrize(
    "path", ["/", "/api/events", "/api/gateway", "/api/servers", "/api/sessions", "/api/sessions/abcd"]
)
async def test_curl_without_rights_is_told_so_and_nothing_else_and_is_counted(closed: Gateway, path: str) -> None:
    def curl(*arguments: str) -> tuple[str, str]:
        shown = ["curl", "-s", "--noproxy", "*", "-w", "%{http_code}", *arguments, closed.base + path]
        told = subprocess.run(shown, check=True, capture_output=True, text=True, timeout=30).stdout
        return told[:-3], told[-3:]

    asked = ([], ["-H", "Authorization: Bearer wrong"], ["-H", f"Authorization: Bearer {TOKENS['alice']}"])
    before = closed.metric("trunkline_refused_total", reason="unauthorized")
    for arguments in asked:
        told = await anyio.to_thread.run_sync(curl, *arguments)
        assert told == ("send the admin token as a bearer token\n", "401")
    assert closed.metric("trunkline_refused_total", reason="unauthorized") == before + len(asked)
    told = await anyio.to_thread.run_sync(curl, "-H", "Origin: https://other.example")
    assert told == ("this Origin is not allowed; see allowed_origins\n", "403")


async def test_an_admin_signs_in_with_a_token_that_is_kept_nowhere(
    chromium: Browser, upstream: Upstream, settings_file: Settings
) -> None:
    text = f'[gateway]\nadmin_token = "{ADMIN}"\n{token_settings(up=upstream.url)}'
    with running_gateway(toml=settings_file(text)) as gateway:
        async with chromium.page(f"{gateway.base}/") as page, Wire(gateway.url(), bearer()) as wire:
            await wire.open()
            await page.until("!document.getElementById('sign-in').hidden")
            assert "token" in await page.run("document.activeElement.id")
            for wrong in ("wrong", TOKENS["alice"]):
                await sign_in(page, wrong)
                await page.until("!document.getElementById('refusal').hidden")
                assert await page.run("document.getElementById('overview').hidden")
            page.errors.clear()  # the browser tells a 401 as an error
            await sign_in(page, ADMIN)
            await page.until(there("#workflow-rows tr"))
            whole = "[document.documentElement.outerHTML, location.href, document.cookie, localStorage, sessionStorage]"
            assert ADMIN not in await page.run(f"JSON.stringify({whole})")
            asked = await page.run("performance.getEntriesByType('resource').map((one) => one.name).join()")
            assert ADMIN not in asked
            assert (await page.run("document.getElementById('token').value")) == ""
            assert [error for error in page.errors if "401" not in error] == []
            await page.run("document.getElementById('sign-out').click()")
            await page.until("!document.getElementById('sign-in').hidden")
            await page.command("Page.reload")
            await page.until("document.readyState === 'complete' && !document.getElementById('sign-in').hidden")
            assert ADMIN not in gateway.process.output()


# What it withstands.

HOSTILE = "<img src=x onerror=\"document.title='owned'\"><script>document.title='owned'</script>\u202e\u0000 Bearer"


async def test_what_servers_and_clients_say_is_text_and_nothing_else(
    chromium: Browser, settings_file: Settings
) -> None:
    error = {"jsonrpc": "2.0", "id": 1, "error": {"code": -32000, "message": HOSTILE}}
    async with ScriptedUpstream() as bad:
        bad.script["initialize"] = [[Status(200, json.dumps(error).encode(), "application/json")]]
        with running_gateway(upstreams={"bad": bad.url}) as gateway:
            async with Wire(gateway.url("bad"), {"Trunkline-Workflow": "x"}) as wire:
                await (await wire.post(initialize())).body()
            async with view(
                chromium, f"{gateway.base}/#/?q=%3Cimg%20src=x%20onerror=alert(1)%3E&server=%3Cscript%3E"
            ) as page:
                await page.until(there("#servers .failure:not([hidden])"))
                shown = await page.run("document.querySelector('#servers .failure').textContent")
                assert "\u202e" not in shown
                assert await page.run("document.images.length + document.scripts.length") == 1
                assert await page.run("document.title") != "owned"
                await page.run("location.hash = '#/workflows/' + encodeURIComponent('<img src=x onerror=alert(1)>')")
                await page.until("!document.getElementById('workflow-missing').hidden")
                assert await page.run("document.images.length + document.scripts.length") == 1


async def test_g10_a_flood_of_listeners_costs_nobody_else_anything(
    chromium: Browser, gateway: Gateway, upstream: Upstream, key: str
) -> None:
    async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0)) as http:
        answers = [await http.get(f"{gateway.base}/api/events?limit=1000") for _ in range(40)]
        statuses = [answer.status for answer in answers]
        assert (statuses.count(200), statuses.count(503)) == (32, 8)
        assert gateway.metric("trunkline_refused_total", reason="listeners") == 8
        async with chromium.page(f"{gateway.base}/") as page, Wire(gateway.url(), {"Trunkline-Workflow": key}) as wire:
            await page.until(text_of("connection", "32 listen already"))
            await wire.open()
            assert "result" in await (await wire.call("counter")).response()
            for answer in answers:
                answer.close()
            await page.until(text_of("connection", "live"))
            assert [error for error in page.errors if "503" not in error] == []
