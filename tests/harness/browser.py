"""Headless Chromium, driven over the DevTools protocol: a page on an origin of a test's choice, and its JavaScript.

| variable | what |
| --- | --- |
| `TRUNKLINE_CHROMIUM` | the browser's program; if not set, `chromium` on the path |
"""

import contextlib
import itertools
import json
import os
import shutil
import tempfile
import threading
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, Final

import anyio
from websockets.asyncio.client import ClientConnection, connect

from harness.clients import peer
from harness.processes import ServerProcess

PATIENCE: Final = 30.0
"""Seconds after which waiting for the browser fails the test."""

NAME: Final = "app.example"
"""The host that pages are served from, as the browser sees it; it leads to this machine."""

FLAGS: Final = (
    "--headless=new",
    "--no-sandbox",
    "--no-first-run",
    "--no-proxy-server",
    "--disable-gpu",
    "--disable-dev-shm-usage",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-extensions",
    "--disable-sync",
    "--remote-debugging-port=0",
    f"--host-resolver-rules=MAP {NAME} 127.0.0.1",
)


class Page:
    """One page of the browser."""

    def __init__(self, devtools: ClientConnection) -> None:
        self._devtools = devtools
        self._ids = itertools.count(1)
        self._session: str | None = None
        self.errors: list[str] = []
        """What the console has told as an error, an exception that nobody caught included."""

    async def command(self, method: str, **params: Any) -> dict[str, Any]:
        """Send a command of the DevTools protocol; its result.

        Raises:
            AssertionError: the browser refused it.
        """
        number = next(self._ids)
        message = {"id": number, "method": method, "params": params}
        if self._session is not None:
            message["sessionId"] = self._session
        await self._devtools.send(json.dumps(message))
        with anyio.fail_after(PATIENCE):
            while True:
                answer: dict[str, Any] = json.loads(await self._devtools.recv())
                self._note(answer.get("method"), answer.get("params", {}))
                if answer.get("id") == number:
                    assert "result" in answer, answer
                    result: dict[str, Any] = answer["result"]
                    return result

    async def open(self, url: str) -> None:
        """Open a page, and wait until its scripts have run."""
        target = await self.command("Target.createTarget", url="about:blank")
        attached = await self.command("Target.attachToTarget", targetId=target["targetId"], flatten=True)
        self._session = attached["sessionId"]
        await self.command("Runtime.enable")
        await self.command("Log.enable")
        await self.visit(url)

    async def visit(self, url: str) -> None:
        """Go to another page: what the last one had is gone."""
        await self.command("Page.navigate", url=url)
        with anyio.fail_after(PATIENCE):
            while await self.run("document.readyState + location.href") != f"complete{url}":  # noqa: ASYNC110
                await anyio.sleep(0.02)  # the page that would tell is the one that is being replaced

    async def press(self, key: str, text: str = "") -> None:
        """Press and release a key, by its name in the DOM; `text` is what it types."""
        codes = {"Tab": 9, "Enter": 13, "Escape": 27}
        code = codes.get(key, ord(key[0].upper()))
        for kind in ("keyDown", "keyUp"):
            typed = {"text": text} if text and kind == "keyDown" else {}
            await self.command("Input.dispatchKeyEvent", type=kind, key=key, windowsVirtualKeyCode=code, **typed)

    async def type(self, text: str) -> None:
        """Type where the focus is."""
        for character in text:
            await self.press(character, character)

    async def until(self, condition: str) -> Any:
        """The value of an expression in the page, once it is true.

        Raises:
            TimeoutError: it did not become true.
        """
        with anyio.fail_after(PATIENCE):
            while not (value := await self.run(condition)):  # noqa: ASYNC110
                await anyio.sleep(0.02)  # what makes it true is the page's own affair
            return value

    def _note(self, method: str | None, told: dict[str, Any]) -> None:
        if method == "Runtime.exceptionThrown":
            self.errors.append(str(told["exceptionDetails"]))
        elif method == "Runtime.consoleAPICalled" and told["type"] in ("error", "assert"):
            self.errors.append(str(told["args"]))
        elif method == "Log.entryAdded" and told["entry"]["level"] == "error":
            self.errors.append(f"{told['entry']['text']} {told['entry'].get('url', '')}")

    async def run(self, script: str) -> Any:
        """The value of an expression in the page, once it has one.

        Raises:
            AssertionError: it threw, or was rejected.
        """
        done = await self.command("Runtime.evaluate", expression=script, awaitPromise=True, returnByValue=True)
        assert "exceptionDetails" not in done, done["exceptionDetails"]
        return done["result"].get("value")


class Browser:
    """A running browser."""

    def __init__(self, url: str) -> None:
        self._url = url

    @asynccontextmanager
    async def page(self, url: str) -> AsyncIterator[Page]:
        """A page, for the length of the context."""
        async with connect(self._url, proxy=None, max_size=None, ping_interval=None) as devtools:
            page = Page(devtools)
            await page.open(url)
            yield page


@contextmanager
def browser(*, keeps_nothing: bool = False) -> Iterator[Browser]:
    """A browser of one's own; skips the test where there is none, or fails it if told so (see `clients.peer`).

    One that `keeps_nothing` refuses sites their cookies and their storage, as its user has told it.
    """
    os.environ.setdefault("TRUNKLINE_CHROMIUM", shutil.which("chromium") or "")
    program = peer("TRUNKLINE_CHROMIUM")
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as profile:
        if keeps_nothing:
            preferences = Path(profile) / "Default" / "Preferences"
            preferences.parent.mkdir()
            preferences.write_text('{"profile": {"default_content_setting_values": {"cookies": 2}}}')
        process = ServerProcess([str(program), *FLAGS, f"--user-data-dir={profile}", "about:blank"])
        try:
            yield Browser(_devtools_url(process, Path(profile) / "DevToolsActivePort"))
        finally:
            process.kill()


def _devtools_url(process: ServerProcess, file: Path) -> str:
    """Where the browser listens; it writes that to a file, and tells in no other way that a program could wait for."""
    deadline = time.monotonic() + PATIENCE
    while time.monotonic() < deadline:
        if process.returncode is not None:
            raise process.fail(f"the browser ended with {process.returncode}")
        with contextlib.suppress(OSError, ValueError):
            port, path = file.read_text().split()
            return f"ws://127.0.0.1:{port}{path}"
        time.sleep(0.05)
    raise process.fail("the browser does not listen")


class Site:
    """A site of one page, on an origin that is none of the gateway's."""

    def __init__(self, html: str) -> None:
        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                self.send_response(200)
                self.send_header("Content-Type", "text/html; charset=utf-8")
                self.end_headers()
                self.wfile.write(html.encode())

            def log_message(self, format: str, *args: object) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self.origin = f"http://{NAME}:{self._server.server_address[1]}"

    @contextmanager
    def served(self) -> Iterator["Site"]:
        """The site, for the length of the context."""
        thread = threading.Thread(target=self._server.serve_forever)
        thread.start()
        try:
            yield self
        finally:
            self._server.shutdown()
            thread.join()
            self._server.server_close()
