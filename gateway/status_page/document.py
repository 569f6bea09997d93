"""The status page as one document, and the policy under which a browser runs nothing but it.

It is written as a page, a style sheet and a few JavaScript modules, and sent as one: each module's names are known to
those after it, so that a name is used once among all of them. The page holds no data and is the same for everybody;
what it shows comes from `/api/events`, to whom may see it.
"""

import hashlib
import re
from base64 import b64encode
from importlib.resources import files
from typing import Final, NamedTuple

MODULES: Final = ("merge", "stream", "words", "dom", "sparkline", "servers", "workflows", "workflow", "page")
"""In the order in which they need each other."""

_IMPORT: Final = re.compile(r"^import .*;\n", re.MULTILINE)
_EXPORT: Final = re.compile(r"^export ", re.MULTILINE)


class Document(NamedTuple):
    """A page, and the Content-Security-Policy that it is sent with."""

    html: bytes
    policy: str


def document() -> Document:
    """The status page, put together of its parts."""
    folder = files(__package__)
    style = (folder / "page.css").read_text("utf-8")
    script = "".join(_joined((folder / f"{name}.js").read_text("utf-8")) for name in MODULES)
    html = (folder / "page.html").read_text("utf-8").replace("{{style}}", style).replace("{{script}}", script)
    return Document(html.encode(), _policy(style, script))


def _joined(module: str) -> str:
    """A module without what it says to others: they stand in one script."""
    return _EXPORT.sub("", _IMPORT.sub("", module))


def _policy(style: str, script: str) -> str:
    """Nothing but this style and this script, no connection elsewhere, no HTML made of strings, no frame around it."""
    return "; ".join(
        (
            "default-src 'none'",
            f"script-src {_hash(script)}",
            f"style-src {_hash(style)}",
            "img-src data:",
            "connect-src 'self'",
            "base-uri 'none'",
            "form-action 'none'",
            "frame-ancestors 'none'",
            "require-trusted-types-for 'script'",
            "trusted-types 'none'",
        )
    )


def _hash(text: str) -> str:
    return f"'sha256-{b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"
