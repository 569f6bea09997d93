"""The documents say what the code does."""

import ast
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from generated import REGIONS
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
def test_every_relative_link_leads_somewhere() -> None:
    for page in (ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))):
        for target in re.findall(r"\]\(([^)#:]+)\)", page.read_text()):
            assert (page.parent / target).exists(), f"{page.relative_to(ROOT)}: {target}"


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
