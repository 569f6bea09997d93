"""IBM ContextForge with trunkline inside: upstream sessions are kept. No file of it is changed.

    from trunkline.compat import contextforge

    contextforge.install()  # before mcpgateway.main is imported
    from mcpgateway.main import app

or, for a whole server, `python -m trunkline.compat.contextforge -- --port 4444`, which takes uvicorn's arguments.
`TRUNKLINE_CONTEXTFORGE=off` in the environment leaves everything as it was. See docs/migrating.md.
"""

import logging
import sys
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from typing import NamedTuple

from .installation import MAIN, PACKAGE, ContextForge, Installation, MissingNames, put
from .settings import ContextForgeSettings, SettingError, is_off, read_environment, read_settings, tell_meaningless

__all__ = ["ContextForgeSettings", "Installed", "SettingError", "install", "installed"]

logger = logging.getLogger(__name__)

DISTRIBUTION = "mcp-contextforge-gateway"


class Installed(NamedTuple):
    """What became of it."""

    is_active: bool
    version: str
    """Of ContextForge; empty where it is not there."""
    reason: str
    """Why it is not active; empty where it is."""
    installation: Installation | None = None


_installed: Installed | None = None


def installed() -> Installed | None:
    """What became of the last `install`; None before any."""
    return _installed


def install(**options: object) -> Installed:
    """Put trunkline into the ContextForge of this process. `options` are fields of `ContextForgeSettings`.

    Either every name is replaced or none. On a version that lacks a name nothing is changed, the log says which one it
    is, and the gateway runs as it is. Doing it twice is doing it once.

    Raises:
        RuntimeError: `mcpgateway.main` was imported before: it has bound the old names.
        SettingError: a setting that cannot be used.
    """
    global _installed
    if _installed is not None and _installed.is_active:
        return _installed
    _installed = _install(options)
    if _installed.is_active:
        logger.info("trunkline keeps upstream sessions in ContextForge %s", _installed.version)
    else:
        logger.warning("trunkline changes nothing in ContextForge: %s", _installed.reason)
    return _installed


def _install(options: dict[str, object]) -> Installed:
    try:
        found = version(DISTRIBUTION)
    except PackageNotFoundError:
        found = ""
    environ = read_environment()
    if is_off(environ):
        return Installed(False, found, "TRUNKLINE_CONTEXTFORGE is off")
    if find_spec(PACKAGE) is None:
        return Installed(False, found, f"{DISTRIBUTION} is not installed")
    if MAIN in sys.modules:
        raise RuntimeError(f"trunkline must be installed before {MAIN} is imported")
    settings = read_settings(environ, **options)
    tell_meaningless(environ)
    try:
        installation = Installation(ContextForge(), settings)
        put(installation.replacements())
    except MissingNames as error:
        return Installed(False, found, str(error))
    except AttributeError as error:  # a name is there, and what it stands for is not what it was
        return Installed(False, found, f"this version of ContextForge lacks a name: {error}")
    return Installed(True, found, "", installation)
