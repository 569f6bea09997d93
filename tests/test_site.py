"""The documents as a site, as `make docs` has built it: whole without a network, and its diagrams can be drawn."""

import http.server
import json
import os
import re
import threading
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import pytest
from harness.browser import Browser
from harness.pages import ROOT, blocks, pages

pytestmark = [pytest.mark.anyio, pytest.mark.checkout]

SITE = ROOT / "build" / "site"
FETCHED = re.compile(
    r"<(?:script|img|iframe|source|link(?![^>]*canonical))\b[^>]*?(?:src|href)=[\"']?(https?:)?//", re.I
)
DIAGRAMS = [block for page in pages() if ROOT / "docs" in page.parents for block in blocks(page)]

UNTIL_DRAWN = """async (due) => {
  while (document.querySelectorAll("div.mermaid").length < due) await new Promise((done) => setTimeout(done, 20));
  return true;
}"""


@pytest.fixture(scope="module")
def site() -> Path:
    if not SITE.exists():
        reason = "there is no site: make docs"
        if os.environ.get("TRUNKLINE_PEERS") == "required":
            pytest.fail(reason)
        pytest.skip(reason)
    return SITE


@pytest.fixture(scope="module")
def served(site: Path) -> Iterator[str]:
    class Handler(http.server.SimpleHTTPRequestHandler):
        def log_message(self, format: str, *args: object) -> None:
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), partial(Handler, directory=str(site)))
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}"
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def test_no_page_fetches_anything_from_elsewhere(site: Path) -> None:
    found = list(site.rglob("*.html"))
    assert len(found) > 15
    for page in found:
        assert FETCHED.search(page.read_text()) is None, page.relative_to(site)


async def test_diagrams_are_drawn_by_what_the_site_brings(served: str, chromium: Browser) -> None:
    async with chromium.page(f"{served}/concepts.html") as page:
        due = sum(block.language == "mermaid" for block in blocks(ROOT / "docs" / "concepts.md"))
        assert await page.run(f"({UNTIL_DRAWN})({due})")
        fetched = await page.run("performance.getEntriesByType('resource').map((entry) => entry.name)")
        assert f"{served}/mermaid.min.js" in fetched
        assert [name for name in fetched if not name.startswith((served, "blob:", "data:"))] == []
        for block in DIAGRAMS:
            if block.language == "mermaid":
                told = await page.run(f"mermaid.parse({json.dumps(block.text)}).then(() => '', String)")
                assert told == "", f"{block}: {told}"
