"""The documents say what the code does."""

import ast
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from generated import REGIONS, diagram
from harness.pages import pages
from layers import FOLDERS
from trunkline.transports import headers

ROOT = Path(__file__).parent.parent


@pytest.mark.parametrize(("page", "name"), REGIONS)
def test_what_is_generated_is_what_the_code_says(page: str, name: str) -> None:
    file = ROOT / "docs" / page
    text = file.read_text()
    found = re.search(rf"(<!-- {name}: .*? -->\n)(.*?)(<!-- end of {name} -->)", text, re.DOTALL)
    assert found
    due = REGIONS[page, name]()
    if os.environ.get("TRUNKLINE_WRITE_DOCS"):
        file.write_text(text[: found.start(2)] + due + text[found.end(2) :])
    else:
        assert found[2] == due, "run the test once with TRUNKLINE_WRITE_DOCS=1"


def test_a_diagram_holds_every_row() -> None:
    table = {("here", "go"): ("there", "note"), ("there", "go"): ("there", "ignore")}
    drawn = diagram("a walk", table)
    assert "title: a walk\n" in drawn
    assert [line.strip() for line in drawn.splitlines() if "-->" in line] == [
        "here --> there: go / note",
        "there --> there: go / ignore",
    ]


def test_every_header_that_is_read_or_written_is_told() -> None:
    names = {
        value for value in vars(headers).values() if isinstance(value, str) and re.fullmatch("[a-z]+(-[a-z]+)+", value)
    }
    assert {header.name.lower() for header in headers.HEADERS} == names


@pytest.mark.checkout
def test_the_figures_in_the_readme_are_those_of_the_stored_results() -> None:
    subprocess.run([sys.executable, "-m", "bench.figures", "--check"], cwd=ROOT, check=True)


@pytest.mark.checkout
def test_every_test_that_the_limits_name_is_there() -> None:
    named = re.findall(r"`(tests/[^`:]+)::(\w+)`", (ROOT / "docs" / "limits.md").read_text())
    assert named
    for path, test in named:
        assert f"def {test}(" in (ROOT / path).read_text(), f"{path}::{test}"


@pytest.mark.checkout
@pytest.mark.parametrize("page", pages(), ids=lambda page: str(page.relative_to(ROOT)))
def test_every_file_that_a_page_names_is_there(page: Path) -> None:
    folders = "|".join((*FOLDERS, "bench", "docs", "examples", "tests"))
    named = re.findall(rf"`((?:{folders})/[\w./-]+)", page.read_text())
    assert [path for path in named if not ((ROOT / path).exists() or (ROOT / f"{path}.py").exists())] == []


LINK = re.compile(
    r"""\]\(<?([^)>\s]+)>?(?:\s+"[^"]*")?\)|^\[[^\]]+\]:\s+(\S+)|\b(?:href|src)="([^"]+)\"""", re.MULTILINE
)
ELSEWHERE = re.compile(r"[a-z][a-z+.-]*:", re.IGNORECASE)
"""The scheme of a URL."""


@pytest.mark.checkout
@pytest.mark.parametrize("page", pages(), ids=lambda page: str(page.relative_to(ROOT)))
def test_every_link_of_a_page_leads_to_a_file_and_to_a_place_in_it(page: Path) -> None:
    lost = []
    for target in links(page.read_text()):
        path, _, anchor = target.partition("#")
        file = (page.parent / path) if path else page
        if not file.exists():
            lost.append(f"{target}: there is no such file")
        elif anchor and (file.suffix != ".md" or anchor not in anchors(file.read_text())):
            lost.append(f"{target}: there is no such place in it")
    assert lost == []


def links(text: str) -> list[str]:
    """What a page refers to beside it, in the order of its lines."""
    found = ("".join(match.groups("")) for match in LINK.finditer(_prose(text)))
    return [target for target in found if not ELSEWHERE.match(target)]


def anchors(text: str) -> set[str]:
    """The named places of a page: its headings, where the site and code hosts agree on the name, and ids in HTML."""
    prose, found = _prose(text), set[str]()
    for heading in re.findall(r"^#{1,6} +(.+?) *#*$", prose, re.MULTILINE):
        plain = re.sub(r"!?\[([^\]]*)\]\([^)]*\)", r"\1", heading)
        name = re.sub(r"[^\w\s-]", "", plain).strip().lower()
        if re.sub(r"[-\s]+", "-", name) == re.sub(r"\s", "-", name):  # else the two do not agree
            found.add(re.sub(r"\s", "-", name))
    return found | set(re.findall(r'\bid="([^"]+)"', prose))


def _prose(text: str) -> str:
    """A page without its blocks of code and its comments."""
    return re.sub(r"^( *)(`{3,})[^\n]*\n.*?^\1\2$|<!--.*?-->", "", text, flags=re.MULTILINE | re.DOTALL)


def test_a_link_is_seen_wherever_it_stands_but_in_code() -> None:
    text = (
        '[a](b.md) ![c](d.png "title") [e](#f) [g](../h.md#i-j) [k](https://l/m)\n'
        '<a href="n.md">o</a> <img src="p.png">\n[q]: r.md\n```md\n[s](t.md)\n```\n<!-- [u](v.md) -->\n'
    )
    assert links(text) == ["b.md", "d.png", "#f", "../h.md#i-j", "n.md", "p.png", "r.md"]


def test_a_place_is_named_as_the_site_and_code_hosts_name_it() -> None:
    text = (
        "# One two\n\n## `a_b`, and [c](d.md): e?\n\n```sh\n# not this\n```\n\n<a id=" + '"here"' + "></a>\n## A - b\n"
    )
    assert anchors(text) == {"one-two", "a_b-and-c-e", "here"}


def _templates() -> set[str]:
    """Every text in the sources, with `…` for what is put into it."""
    found = set()
    for folder in FOLDERS:
        for path in (ROOT / folder).rglob("*.py"):
            for node in ast.walk(ast.parse(path.read_text())):
                if isinstance(node, ast.JoinedStr):
                    parts = (part.value if isinstance(part, ast.Constant) else "…" for part in node.values)
                    found.add("".join(str(part) for part in parts))
                elif isinstance(node, ast.Constant) and isinstance(node.value, str):
                    found.add(re.sub(r"%[sdg]", "…", node.value))
    return found


@pytest.mark.checkout
def test_every_message_that_troubleshooting_is_keyed_by_is_in_the_code() -> None:
    page = (ROOT / "docs" / "troubleshooting.md").read_text()
    keyed = re.findall(r"^### `+(.+?)`+$", page, re.MULTILINE)
    assert len(keyed) > 30
    assert set(keyed) - _templates() == set()
    assert len(set(keyed)) == len(keyed)
