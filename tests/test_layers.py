"""The rules of `layers`, held against the sources; and the checker, held against sources that break them."""

import ast
import functools
from collections.abc import Iterator
from pathlib import Path

import pytest
from layers import FOLDERS, IO_MODULES, LIBRARY, MUX_ORDER, PURE, ROOT

pytestmark = pytest.mark.checkout


def modules(root: Path) -> Iterator[Path]:
    for folder in FOLDERS:
        yield from sorted((root / folder).rglob("*.py"))


@functools.cache
def parsed(path: Path) -> ast.Module:
    return ast.parse(path.read_text())


def imports(path: Path, root: Path) -> Iterator[str]:
    """What a module imports: `mux.channel` for our own, however it is written, and the bare top name for others."""
    package = path.relative_to(root).with_suffix("").parts[:-1]
    tree = parsed(path)
    guarded = {
        id(inner)
        for node in ast.walk(tree)
        if isinstance(node, ast.If) and isinstance(node.test, ast.Name) and node.test.id == "TYPE_CHECKING"
        for inner in ast.walk(node)
    }
    for node in ast.walk(tree):
        if id(node) in guarded:
            continue
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            if not node.level:
                yield node.module or ""
                continue
            base = package[: len(package) - node.level + 1]
            target = ".".join((*base, *((node.module or "").split(".") if node.module else ())))
            yield from (f"{target}.{alias.name}" if not node.module else target for alias in node.names)


def rank(name: str) -> int:
    return next(i for i, names in enumerate(MUX_ORDER) if name in names)


def violations(root: Path) -> list[str]:
    found: list[str] = []
    for path in modules(root):
        where = path.relative_to(root)
        for target in imports(path, root):
            top = target.partition(".")[0]
            if top == "trunkline":
                found.append(f"{where}: imports {target} by its installed name; inside, imports are relative")
            elif is_bare(path, target):
                found.append(f"{where}: imports the bare name {target}")
            elif top in FOLDERS and FOLDERS.index(top) > FOLDERS.index(where.parts[0]):
                found.append(f"{where}: imports upwards from {target}")
            elif top == "mcp" and where.parts[0] in LIBRARY:
                found.append(f"{where}: the library imports the SDK")
            elif top in IO_MODULES and where.as_posix() in PURE:
                found.append(f"{where}: a pure module imports {target}")
            elif top == "mux" and where.parts[0] == "mux" and len(target.split(".")) > 1:
                mine, theirs = where.with_suffix("").parts[1], target.split(".")[1]
                if mine != "__init__" and rank(theirs) > rank(mine):
                    found.append(f"{where}: {mine} imports {theirs}, which stands above it")
    return found


def is_bare(path: Path, target: str) -> bool:
    for node in ast.walk(parsed(path)):
        if isinstance(node, ast.Import) and any(alias.name == target for alias in node.names):
            return target.partition(".")[0] in FOLDERS
        if isinstance(node, ast.ImportFrom) and not node.level and node.module == target:
            return target.partition(".")[0] in FOLDERS
    return False


def test_imports_go_one_way() -> None:
    assert violations(ROOT) == []


def test_every_pure_module_exists() -> None:
    assert [name for name in PURE if not (ROOT / name).is_file()] == []


UNTESTED_ALONE = {
    "mux/ports.py": "protocols only",
    "mux/premises.py": "names what the parts of a pool have in common",
    **dict.fromkeys(
        (
            f"compat/contextforge/{name}.py"
            for name in ("__main__", "app", "client", "installation", "launch", "registry", "streamable_http")
        ),
        "needs ContextForge: tests/end_to_end/contextforge runs it there",
    ),
    "gateway/__main__.py": "tests/gateway/test_signals.py runs it as a process",
    "gateway/app.py": "tests/end_to_end runs it as a process",
    "gateway/process.py": "tests/end_to_end runs it as a process",
    "gateway/site.py": "tests/end_to_end runs it as a process",
    "transports/base.py": "abstract; test_host holds what implements it",
}
"""Modules without a test file of their own, and why."""


def test_every_module_has_its_test_file() -> None:
    missing = [
        str(path.relative_to(ROOT))
        for path in modules(ROOT)
        if path.name != "__init__.py"
        and str(path.relative_to(ROOT)) not in UNTESTED_ALONE
        and not (ROOT / "tests" / path.relative_to(ROOT).parent / f"test_{path.name}").is_file()
    ]
    assert missing == []


@pytest.mark.parametrize(
    ("file", "text"),
    [
        ("mux/demux.py", "import asyncio"),
        ("mux/envelope.py", "from time import monotonic"),
        ("mux/errors.py", "from .pool import Pool"),
        ("mux/demux.py", "from .channel import Channel"),
        ("mux/channel.py", "from ..transports import guard"),
        ("transports/asgi.py", "from ..gateway.settings import Settings"),
        ("transports/asgi.py", "import mcp"),
        ("compat/x.py", "from mcp.types import Tool"),
        ("gateway/app.py", "from mux.pool import Pool"),
        ("gateway/app.py", "from trunkline.mux.pool import Pool"),
    ],
)
def test_a_violation_is_found(tmp_path: Path, file: str, text: str) -> None:
    for folder in FOLDERS:
        (tmp_path / folder).mkdir()
    (tmp_path / file).write_text(text + "\n")
    assert len(violations(tmp_path)) == 1
