"""`trunkline init`: the first settings file of a gateway."""

import os
from collections.abc import Sequence
from pathlib import Path

from .exits import WrongArgument
from .settings import load
from .settings.template import template
from .welcome import program


def begin(file: Path, upstreams: Sequence[str], *, is_forced: bool) -> str:
    """Write a file with every setting, in front of these servers (`NAME=URL`); what to do next, for people.

    Raises:
        SettingsError: a server is not one.
        WrongArgument: the file is there and it is not to be overwritten, or it cannot be written.
    """
    servers = load(None, environ={}, upstreams=upstreams).servers
    text = template({name: server.url for name, server in servers.items()})
    try:
        with file.open("w" if is_forced else "x", encoding="utf-8") as written:
            written.write(text)
    except FileExistsError:
        raise WrongArgument(f"{file} is there already; give another name, or --force to overwrite it") from None
    except OSError as error:
        raise WrongArgument(f"cannot write {file}: {error.strerror}; give a file that this user may write") from None
    return _next(file, has_servers=bool(servers))


def _next(file: Path, *, has_servers: bool) -> str:
    shown = os.fspath(file) if " " not in os.fspath(file) else f"'{file}'"
    check, serve = f"  {program()} check {shown}    # asks each server", f"  {program()} serve {shown}"
    if has_servers:
        return f"wrote {file}: every setting, with its default. Next:\n{check}\n{serve}"
    return (
        f"wrote {file}: every setting, with its default. It names no server yet: as it is, it runs the demo.\n"
        f"{serve}\nName your servers at its end, under [servers.NAME]. Then:\n{check}"
    )
