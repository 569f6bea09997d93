"""The pictures of the status page in docs/images: `python -m harness.status_page_pictures FOLDER [SECONDS]`, in tests/.

A gateway with some load, of which the lines show as many seconds; five minutes fill them.
"""

import base64
import logging
import random
import sys
import tempfile
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from pathlib import Path
from typing import Any, Final, NamedTuple

import aiohttp
import anyio
from trunkline.gateway.demo import serve_demo

from harness.browser import Page, browser
from harness.cutter import Cutter
from harness.duplex_clients import DuplexClient, SocketClient, SSEClient
from harness.gateways import Gateway, gateway
from harness.ports import free_port
from harness.wire import Wire

DESK: Final = (1280, 860)
PHONE: Final = (390, 844)


class Picture(NamedTuple):
    """What is photographed."""

    name: str
    size: tuple[int, int]
    theme: str
    place: str = "#/"


async def photograph(page: Page, folder: Path, picture: Picture) -> None:
    """Keep what the page looks like in a window of this size."""
    width, height = picture.size
    await page.command(
        "Emulation.setDeviceMetricsOverride",
        width=width,
        height=height,
        deviceScaleFactor=2 if picture.size == PHONE else 1,
        mobile=picture.size == PHONE,
    )
    features = [{"name": "prefers-color-scheme", "value": picture.theme}]
    await page.command("Emulation.setEmulatedMedia", features=features)
    await page.run(f"location.hash = {picture.place!r}")
    await anyio.sleep(2)  # two events of the page
    shot = await page.command("Page.captureScreenshot", format="png")
    (folder / f"{picture.name}.png").write_bytes(base64.b64decode(shot["data"]))


@asynccontextmanager
async def busy(seconds: float) -> AsyncIterator[Gateway]:
    """A gateway that has been used for so long, and goes on to be."""
    async with AsyncExitStack() as stack:
        files, search = [await stack.enter_async_context(serve_demo()) for _ in range(2)]
        text = f"""
            [servers.files]
            url = "{files}"
            eras = ["legacy"]
            [servers.search]
            url = "{search}"
            eras = ["legacy"]
            reuse = "user"
            [servers.calendar]
            url = "http://127.0.0.1:{free_port()}/mcp"
            eras = ["legacy"]
        """
        with tempfile.TemporaryDirectory() as place:
            path = Path(place) / "trunkline.toml"
            path.write_text(text)
            running = stack.enter_context(gateway(toml=path))
            tasks = await stack.enter_async_context(anyio.create_task_group())
            for number in range(40):
                tasks.start_soon(work, running.url("search" if number % 4 == 3 else "files"), number)
            for kind in (SSEClient, SocketClient):
                for _ in range(3):
                    tasks.start_soon(listen, kind(running.url("files").removesuffix("/mcp")))
            tasks.start_soon(knock, running.url("calendar"))
            await anyio.sleep(seconds)
            yield running
            tasks.cancel_scope.cancel()


async def work(url: str, number: int) -> None:
    """A client that calls now and then, now more and now less."""
    draw = random.Random(number)
    async with Wire(url, {"Trunkline-Workflow": f"client-{number}"}) as wire:
        await wire.open()
        while number % 5:
            await anyio.sleep(draw.expovariate(1 / (0.6 + draw.random() * 3)))
            tool, arguments = "counter", {}
            if draw.random() < 0.3:
                tool, arguments = "slow", {"steps": 1, "seconds": draw.lognormvariate(-4, 0.7)}
            with suppress(aiohttp.ServerDisconnectedError):  # the connection had been idle for as long as that may be
                await (await wire.call(tool, arguments)).response()
        await anyio.sleep_forever()


async def listen(client: DuplexClient) -> None:
    """A client that stays connected."""
    async with client:
        await client.open()
        await client.call("counter")
        await client.answer()
        await anyio.sleep_forever()


async def knock(url: str) -> None:
    """A client of a server that is not there."""
    while True:
        async with Wire(url) as wire:
            await (await wire.post(initialize())).body()
        await anyio.sleep(4)


def initialize() -> dict[str, Any]:
    params = {"protocolVersion": "2025-11-25", "capabilities": {}, "clientInfo": {"name": "knock", "version": "1"}}
    return {"jsonrpc": "2.0", "id": 1, "method": "initialize", "params": params}


async def eventful(stack: AsyncExitStack, running: Gateway) -> str:
    """The handle of a workflow to which something has happened."""
    key = "eventful"
    cutter = await stack.enter_async_context(Cutter(running.port))
    base = f"http://127.0.0.1:{cutter.port}/servers/files"
    client = await stack.enter_async_context(SSEClient(base))
    await client.open(f"?workflow={key}")
    await client.call("counter")
    await client.answer()
    last = client.last_event_id
    client.cut()
    await client.connect(f"?workflow={key}&last_event_id={last}")
    await client.call("counter", id=2)
    await client.answer(2)
    async with Wire(running.url("files"), {"Trunkline-Workflow": key}) as wire:
        await wire.open()
        await (await wire.call("counter")).response()
    rows = running.fetch_json("/api/sessions")
    return str(rows[-1]["workflow"])


async def main(folder: Path, seconds: float) -> None:
    await anyio.Path(folder).mkdir(parents=True, exist_ok=True)
    async with AsyncExitStack() as stack:
        running = await stack.enter_async_context(busy(seconds))
        handle = await eventful(stack, running)
        chromium = stack.enter_context(browser())
        page = await stack.enter_async_context(chromium.page(running.base + "/"))
        for picture in (
            Picture("status-light", DESK, "light"),
            Picture("status-dark", DESK, "dark"),
            Picture("status-workflow", DESK, "light", f"#/workflows/{handle}"),
            Picture("status-phone", PHONE, "light"),
        ):
            await photograph(page, folder, picture)


if __name__ == "__main__":
    logging.disable()
    anyio.run(main, Path(sys.argv[1]), float(sys.argv[2]) if len(sys.argv) > 2 else 300.0)
