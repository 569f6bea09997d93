"""What the site adds to the pages of docs/: documents that stand elsewhere, files that pages link to, and Mermaid.

Diagrams are Mermaid in the sources, so that they are text in a diff, and drawn by its own script, which `make docs`
takes from npm and puts into the site. Where npm is missing, the pages show the text of a diagram; the theme's own way,
a script from somebody else's server, would leave a reader without network with nothing.
"""

import posixpath
import re
from pathlib import Path
from typing import Any, Final

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page
from pymdownx.superfences import fence_code_format

ROOT: Final = Path(__file__).parent.parent.parent
MERMAID: Final = ROOT / ".mermaid" / "mermaid.min.js"

ELSEWHERE: Final = {
    "changelog.md": "CHANGELOG.md",
    "contributing.md": "CONTRIBUTING.md",
    "reporting.md": "SECURITY.md",
    "examples/README.md": "examples/README.md",
    "bench/README.md": "bench/README.md",
}
"""Pages that are not in docs/: by their place in the site, their place in the repository."""

_LINK: Final = re.compile(r"(?<=\]\()([^)#:\s]+)(?=[)#])")


def on_config(config: MkDocsConfig) -> None:
    """Have diagrams drawn, where what draws them is there."""
    config.nav = _there(config.nav or [])
    if MERMAID.exists():
        config.extra_javascript.append("mermaid.min.js")
        fence = {"name": "mermaid", "class": "mermaid", "format": fence_code_format}
        config.mdx_configs["pymdownx.superfences"] = {"custom_fences": [fence]}


def on_files(files: Files, *, config: MkDocsConfig) -> Files:
    """Add the pages from elsewhere, and whatever pages link to outside of docs/."""
    for place, origin in ELSEWHERE.items():
        files.append(File.generated(config, place, content=(ROOT / origin).read_text()))
    if MERMAID.exists():
        files.append(File.generated(config, "mermaid.min.js", abs_src_path=str(MERMAID)))
    linked = {
        _in_site(path) for file in files.documentation_pages() for path in _links(file.src_uri, file.content_string)
    }
    for path in sorted(linked - {file.src_uri for file in files}):
        if (ROOT / path).is_file():
            files.append(File.generated(config, path, abs_src_path=str(ROOT / path)))
    return files


def on_page_markdown(markdown: str, *, page: Page, **_: Any) -> str:
    """Links as the site has them: pages are written with the places that files have in the repository."""
    place = page.file.src_uri

    def move(found: re.Match[str]) -> str:
        path = _resolved(place, found[1])
        if not (ROOT / path).is_file():
            return found[1]
        return posixpath.relpath(_in_site(path), posixpath.dirname(place) or ".")

    return _LINK.sub(move, markdown)


def _there(nav: list[Any]) -> list[Any]:
    """The navigation without pages that are not there: some are made by a program, when it has run."""
    found: list[Any] = []
    for entry in nav:
        title, target = next(iter(entry.items())) if isinstance(entry, dict) else (None, entry)
        if isinstance(target, list):
            found.append({title: _there(target)})
        elif (ROOT / ELSEWHERE.get(target, f"docs/{target}")).is_file():
            found.append(entry)
    return found


def _links(place: str, markdown: str) -> set[str]:
    """The paths in the repository that a page links to."""
    return {_resolved(place, found) for found in _LINK.findall(markdown)}


def _resolved(place: str, target: str) -> str:
    origin = ELSEWHERE.get(place, f"docs/{place}")
    return posixpath.normpath(posixpath.join(posixpath.dirname(origin), target))


def _in_site(path: str) -> str:
    """Where a file of the repository is in the site."""
    places = {origin: place for place, origin in ELSEWHERE.items()}
    return places.get(path, path.removeprefix("docs/"))
