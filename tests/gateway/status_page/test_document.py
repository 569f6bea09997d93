"""The status page as it is sent: one document, what it may do, and the parts of its script that decide something."""

import base64
import hashlib
import re
import subprocess
from collections import Counter
from importlib.resources import files
from pathlib import Path

import pytest
from harness.clients import node
from trunkline.gateway.status_page.document import MODULES, document

HERE = Path(__file__).parent
PARTS = Path(str(files("trunkline.gateway.status_page")))


def inline(tag: str) -> str:
    """What stands in the one element of this name."""
    [text] = re.findall(rf"<{tag}[^>]*>(.*?)</{tag}>", document().html.decode(), re.DOTALL)
    return str(text)


@pytest.mark.parametrize(("tag", "directive"), [("script", "script-src"), ("style", "style-src")])
def test_a_browser_runs_what_was_written_and_nothing_else(tag: str, directive: str) -> None:
    digest = base64.b64encode(hashlib.sha256(inline(tag).encode()).digest()).decode()
    policy = dict(part.split(" ", 1) for part in document().policy.split("; "))
    assert policy[directive] == f"'sha256-{digest}'"
    assert policy["default-src"] == policy["form-action"] == policy["frame-ancestors"] == "'none'"
    assert "unsafe" not in document().policy


def test_the_page_takes_nothing_from_elsewhere() -> None:
    html = document().html.decode()
    assert "{{" not in html
    assert re.findall(r"""(?:src|href)=["'](?!#|data:)[^"']*""", html) == []
    assert set(re.findall(r"https?://[^\s'\"]+", html)) == {"http://www.w3.org/2000/svg"}
    assert not re.search(r"\son\w+=|style=|innerHTML|insertAdjacentHTML|document\.write|eval\(|Function\(", html)


def test_every_part_is_sent_and_each_knows_only_those_before_it() -> None:
    assert sorted(MODULES) == sorted(path.stem for path in PARTS.glob("*.js"))
    for place, name in enumerate(MODULES):
        needed = re.findall(r'^import .* from "\./(\w+)\.js";$', (PARTS / f"{name}.js").read_text(), re.MULTILINE)
        assert set(needed) <= set(MODULES[:place]), name
    assert not re.search(r"^(?:import|export) ", inline("script"), re.MULTILINE)
    names = Counter(re.findall(r"^(?:async )?(?:const|let|function|class) (\w+)", inline("script"), re.MULTILINE))
    assert [name for name, count in names.items() if count > 1] == []


def test_what_its_script_decides() -> None:
    program, _ = node()
    done = subprocess.run(
        [str(program), "--test", str(HERE / "decisions.mjs")],
        env={"STATUS_PAGE": str(PARTS), "NODE_NO_WARNINGS": "1"},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
