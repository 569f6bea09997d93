"""Fail unless a wheel holds every source file of the four folders, and nothing outside of the one package."""

import sys
import zipfile

from layers import FOLDERS, ROOT

SOURCES = (".py", ".html", ".css", ".js")


def main(wheel: str) -> int:
    held = {name for name in zipfile.ZipFile(wheel).namelist() if ".dist-info/" not in name}
    due = {
        f"trunkline/{path.relative_to(ROOT).as_posix()}"
        for folder in FOLDERS
        for path in (ROOT / folder).rglob("*")
        if path.suffix in SOURCES or path.name == "py.typed"
    }
    for name in sorted(due - held):
        print(f"missing in the wheel: {name}")
    for name in sorted(held - due):
        print(f"not of the package: {name}")
    return int(held != due)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
