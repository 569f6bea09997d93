"""What a reader does first, from a clean clone in a fresh virtual environment: README.md, and each page of docs/start.

Every block of a page is typed as it stands, and what is seen is compared; so are the blocks that the quick tests leave
out, since they install something.
"""

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from harness.pages import ROOT, Block, blocks
from harness.transcript import Transcript, commands, transcript

pytestmark = [pytest.mark.slow, pytest.mark.checkout, pytest.mark.timeout(3600)]


@pytest.fixture
def clone(tmp_path: Path) -> Path:
    """The last commit, and nothing that is not in it."""
    place = tmp_path / "trunkline"
    subprocess.run(["git", "clone", "-q", ROOT.as_uri(), str(place)], check=True)
    head = subprocess.run(["git", "rev-parse", "HEAD"], cwd=ROOT, check=True, capture_output=True, text=True).stdout
    subprocess.run(["git", "checkout", "-q", head.strip()], cwd=place, check=True)
    return place


@pytest.fixture
def shell(clone: Path, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> Iterator[Transcript]:
    """A shell in the clone, which knows no environment but the one that the page makes there; `.venv`, if not told."""
    outer = os.environ.get("VIRTUAL_ENV") or str(ROOT / ".venv")
    path = [part for part in os.environ["PATH"].split(os.pathsep) if not part.startswith(outer)]
    monkeypatch.setenv("PATH", os.pathsep.join(path))
    with transcript(clone, programs=clone / getattr(request, "param", ".venv") / "bin") as opened:
        yield opened


def follow(shell: Transcript, page: str) -> None:
    """Do what a page says, from its first line to its last."""
    for block in blocks(ROOT / "docs" / "start" / page):
        if block.title:
            shell.write(block)
        elif block.language == "console":
            shell.play(block)


def test_a_gateway(shell: Transcript) -> None:
    follow(shell, "gateway.md")


def test_an_agent(shell: Transcript) -> None:
    follow(shell, "agent.md")


def test_an_application(shell: Transcript) -> None:
    follow(shell, "application.md")


@pytest.mark.parametrize("shell", [".venv-forge"], indirect=True)
def test_contextforge(shell: Transcript) -> None:
    follow(shell, "contextforge.md")


def test_the_readme(shell: Transcript) -> None:
    run_and_test, curl = (block for block in blocks(ROOT / "README.md") if block.language == "console")
    [(run, _), (test, _)] = commands(run_and_test.text)
    assert (run.split()[:2], test.split()[:2]) == (["make", "run"], ["make", "test"])
    shell.play(_of(run_and_test, "$ make run &\n…\ntrunkline listens on http://127.0.0.1:8920\n…\n"))
    shell.play(curl)
    shell.play(_of(curl, curl.text.replace('"text":"1"', '"text":"2"')))
    shell.play(_of(run_and_test, "$ make test ARGS='-q tests/mux/test_demux.py'\n…\n… passed…\n"))


def test_a_python_that_is_too_old_is_named_before_anything_is_made_with_it(clone: Path) -> None:
    old = clone / "python3.9"
    old.write_text(f'#!/bin/sh\nexec {sys.executable} -c "$(echo "$2" | sed "s/sys.version_info/(3, 9, 18)/")"\n')
    old.chmod(0o755)
    made = subprocess.run(["make", "run", f"PYTHON={old}"], cwd=clone, capture_output=True, text=True, timeout=60)
    assert made.returncode == 2
    assert "trunkline needs Python 3.11 or newer" in made.stderr
    assert not (clone / ".venv").exists()


def _of(block: Block, text: str) -> Block:
    """The same block with other text."""
    return Block(block.page, block.line, block.language, "", text, "", "")
