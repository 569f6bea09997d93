"""Every code block of the pages is run, or says why it is not. What runs a block: see `harness.pages`."""

import json
import re
from pathlib import Path

import pytest
from harness.pages import ROOT, Block, blocks, pages
from harness.transcript import commands, is_shown, transcript
from trunkline.gateway.settings import load

pytestmark = pytest.mark.checkout

PAGES = pages()
PLAYED = [page for page in PAGES if any(block.language == "console" and not block.is_marked for block in blocks(page))]


ELSEWHERE = [block for page in PAGES for block in blocks(page) if block.run_by]
SETTINGS = [block for page in PAGES for block in blocks(page) if block.language == "toml" and not block.is_marked]


def named(item: object) -> str:
    return str(item) if isinstance(item, Block) else str(Path(str(item)).relative_to(ROOT))


@pytest.mark.parametrize("page", PAGES, ids=named)
def test_no_block_of_a_page_is_neither_run_nor_marked(page: Path) -> None:
    found = blocks(page)
    typed = " ".join(block.text for block in found if block.language == "console" or block.title)
    for block in found:
        assert block.language, f"{block}: a block names its language"
        is_used = block.title and re.search(rf"(?<![\w.]){re.escape(block.title.removesuffix('.py'))}\b", typed)
        assert block.is_marked or block.language in ("console", "toml", "mermaid") or is_used, f"{block} is not run"


@pytest.mark.parametrize("block", ELSEWHERE, ids=named)
def test_a_block_that_is_run_elsewhere_names_a_test_that_reads_its_page(block: Block) -> None:
    path, _, test = block.run_by.partition("::")
    text = (ROOT / path).read_text()
    assert f"def {test}(" in text, block.run_by
    assert block.page.name in text, f"{block.run_by} does not read {block.page.name}"


@pytest.mark.timeout(400)
@pytest.mark.parametrize("page", PLAYED, ids=named)
def test_what_a_page_types_shows_what_the_page_says(page: Path, tmp_path: Path) -> None:
    with transcript(tmp_path) as shell:
        for block in blocks(page):
            if block.title:
                shell.write(block)
            elif block.language == "console" and not block.is_marked:
                shell.play(block)


CLIENTS = [block for page in PAGES if page.name == "gateway.md" for block in blocks(page) if block.language == "json"]


@pytest.mark.parametrize("block", CLIENTS, ids=named)
def test_settings_of_clients_lead_to_the_server(block: Block) -> None:
    """As a client reads them: for each server where it is, or the program that leads there; over Streamable HTTP."""
    [(key, given)] = json.loads(block.text).items()
    assert key in ("servers", "mcpServers")
    [(name, server)] = given.items()
    url = server["url"] if "url" in server else server["args"][-1]
    assert server.get("type", "http") == "http"
    served = f"http://127.0.0.1:8920/servers/{name}/mcp"
    assert url == served
    assert any(f"trunkline call {served}" in other.text for other in blocks(block.page)), "what the page itself calls"


@pytest.mark.parametrize("block", SETTINGS, ids=named)
def test_settings_of_a_page_are_taken(block: Block, tmp_path: Path) -> None:
    file = tmp_path / "trunkline.toml"
    file.write_text(block.text)
    load(file, environ=dict.fromkeys(re.findall(r"\$\{(\w+)\}", block.text), "0" * 64))


def test_a_transcript_sees_what_is_wrong() -> None:
    assert is_shown(["one", "two … four", "…"], "one\ntwo three four\nfive\nsix\n")
    assert is_shown(["…", "six"], "one\nsix\n")
    assert is_shown(["…", "six"], "six\n")
    assert is_shown([""], "")
    for wrong in ("one\ntwo three\n", "one\n", "two three four\n", ""):
        assert not is_shown(["one", "two … four"], wrong)
    assert list(commands("$ a \\\n  b\nc\n$ d\n")) == [("a \\\n  b", ["c"]), ("d", [])]
