"""The code blocks of the documents, and what is to become of each.

| block | what runs it |
| --- | --- |
| `console` | a shell: what follows `$ ` is typed, the rest is what has to be seen (see `transcript`) |
| any with `title="NAME"` | written to that file, for a later `console` block of the page, which has to name it |
| `toml` | the gateway's settings have to take it |
| `mermaid` | Chromium has to draw it, as part of the site |

Any other block needs a comment of one line before it: `<!-- run by: tests/FILE.py::TEST -->` or
`<!-- not run: REASON -->`. These two also take a block out of the table above.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

ROOT: Final = Path(__file__).parent.parent.parent

_FENCE = re.compile(r"^(?P<indent> *)(?P<ticks>`{3,})(?P<info>[^`]*)$")
_TITLE = re.compile(r'title="([^"]+)"')
_MARK = re.compile(r"<!-- (run by|not run): (.+) -->")


@dataclass(frozen=True, slots=True)
class Block:
    """One fenced block."""

    page: Path
    line: int
    language: str
    title: str
    """The file that it stands for; empty for a fragment."""
    text: str
    run_by: str
    """The test that runs it, by its own mark; empty where it has none."""
    not_run: str
    """Why it is not run; empty where it is."""

    def __str__(self) -> str:
        return f"{self.page.relative_to(ROOT)}:{self.line}"

    @property
    def is_marked(self) -> bool:
        """True where a comment says what becomes of it."""
        return bool(self.run_by or self.not_run)


def pages() -> list[Path]:
    """Every page that people read."""
    found = [*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md"), *(ROOT / "examples").rglob("*.md")]
    return sorted([*found, ROOT / "bench" / "README.md"])


def blocks(page: Path) -> list[Block]:
    """The fenced blocks of a page, in order."""
    return list(_blocks(page, page.read_text().splitlines()))


def _blocks(page: Path, lines: list[str]) -> Iterator[Block]:
    marks: dict[str, str] = {}
    number = 0
    while number < len(lines):
        line = lines[number]
        number += 1
        if marked := _MARK.fullmatch(line.strip()):
            marks[marked[1]] = marked[2]
        elif opened := _FENCE.match(line):
            began = number
            while number < len(lines) and lines[number].strip() != opened["ticks"]:
                number += 1
            inside = [inner.removeprefix(opened["indent"]) for inner in lines[began:number]]
            number += 1
            language, _, rest = opened["info"].strip().partition(" ")
            title = _TITLE.search(rest)
            yield Block(
                page,
                began,
                language,
                title[1] if title else "",
                "\n".join(inside) + "\n",
                marks.pop("run by", ""),
                marks.pop("not run", ""),
            )
        elif line.strip():
            marks.clear()
