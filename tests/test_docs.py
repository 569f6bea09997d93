"""The documents say what the code does."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from trunkline.mux.breaker import circuit_as_mermaid
from trunkline.mux.demux import tables_as_mermaid
from trunkline.mux.lifecycle import life_as_mermaid

ROOT = Path(__file__).parent.parent


GENERATED = {"tables": tables_as_mermaid, "life": life_as_mermaid, "circuit": circuit_as_mermaid}


@pytest.mark.parametrize("name", GENERATED)
def test_the_tables_in_the_design_are_those_of_the_code(name: str) -> None:
    page = ROOT / "docs" / "design.md"
    text = page.read_text()
    found = re.search(rf"(<!-- {name}: .*? -->\n)(.*?)(<!-- end of {name} -->)", text, re.DOTALL)
    assert found
    due = GENERATED[name]()
    if os.environ.get("TRUNKLINE_WRITE_DOCS"):
        page.write_text(text[: found.start(2)] + due + text[found.end(2) :])
    else:
        assert found[2] == due, "run the test once with TRUNKLINE_WRITE_DOCS=1"


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
    for page in (ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))):
        for target in re.findall(r"\]\(([^)#:]+)\)", page.read_text()):
            assert (page.parent / target).exists(), f"{page.name}: {target}"
