"""The stock gateway, started with trunkline inside, by uvicorn's own command line."""

import sys
from collections.abc import Sequence
from importlib.util import find_spec
from typing import Final

from . import DISTRIBUTION, SettingError
from .installation import PACKAGE
from .settings import is_off, read_environment, read_settings

APPLICATION: Final = "trunkline.compat.contextforge.app:app"
"""Importing it installs trunkline and then imports ContextForge's application: in each worker of its own."""


def main(arguments: Sequence[str]) -> int:
    """Run until stopped; the exit status. `arguments` are uvicorn's, after an optional `--`."""
    import uvicorn.main

    if find_spec(PACKAGE) is None:
        fault = f"{DISTRIBUTION} is not installed in this environment; install trunkline into the one that holds it"
        print(f"trunkline: {fault}", file=sys.stderr)  # noqa: T201
        return 2
    environ = read_environment()
    given = list(arguments[1:] if arguments[:1] == ["--"] else arguments)
    interval = environ.get("WEBSOCKET_PING_INTERVAL")
    if interval and not any(argument.startswith("--ws-ping-interval") for argument in given):
        given += ["--ws-ping-interval", interval]
    try:
        if not is_off(environ):
            read_settings(environ)  # a worker that cannot use them would end, and be started again, for ever
        uvicorn.main.main([APPLICATION, *given], prog_name="trunkline contextforge", standalone_mode=False)
    except SettingError as error:
        print(f"trunkline: {error}", file=sys.stderr)  # noqa: T201
        return 2
    except SystemExit as ended:
        return ended.code if isinstance(ended.code, int) else 1
    return 0
