"""A directory that the processes of one gateway have to themselves, for their sockets and figures.

Each of them holds a lock on it for as long as it lives: the kernel lets go of that, however a process ends. So whoever
starts later tells what gateways left that were killed from what is in use, and removes it. (Programs that tidy up after
some days, such as systemd-tmpfiles, leave alone what is locked.)
"""

import fcntl
import os
import platform
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Final

from .settings import NotStarted, SettingsError

PREFIX: Final = "trunkline-"

MARK: Final = f"{platform.node()}.host"
"""A file in it: it is a gateway's, of this host. Where hosts share a file system, none need hear of others' locks."""

MAX_PATH_BYTES: Final = 70
"""Longer, and the sockets in it would have no room in their addresses."""


@contextmanager
def runtime_directory() -> Iterator[Path]:
    """A directory that nobody else can enter, and which goes with this process; first, what dead gateways left goes.

    Raises:
        SettingsError: its path is too long for sockets.
        NotStarted: none can be made, or held.
    """
    with ExitStack() as ours:
        try:
            _sweep(Path(tempfile.gettempdir()))
            made = Path(tempfile.mkdtemp(prefix=PREFIX))
            ours.callback(shutil.rmtree, made, ignore_errors=True)
            ours.callback(os.close, hold(made))
            (made / MARK).touch()  # only from now on it may be swept
        except OSError as error:
            why = error.strerror or error
            raise NotStarted("TMPDIR", f"no directory can be had among the temporary files: {why}") from error
        if len(os.fsencode(made)) > MAX_PATH_BYTES:
            raise SettingsError("TMPDIR", f"{made.parent} is too long for the path of a socket; name a shorter one")
        yield made


def hold(directory: Path) -> int:
    """Keep it from being swept, until the descriptor that this returns is closed.

    Raises:
        FileNotFoundError: it was, since nobody who had it lives.
    """
    lock = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
    try:
        fcntl.flock(lock, fcntl.LOCK_SH)
        if not os.path.samestat(os.fstat(lock), directory.stat()):
            raise FileNotFoundError(f"{directory} was swept")
    except BaseException:
        os.close(lock)
        raise
    return lock


def _sweep(place: Path) -> None:
    """Remove the directories there of gateways that are dead for certain; of this user, and made on this host."""
    for found in place.glob(f"{PREFIX}*"):
        with suppress(OSError):
            _remove_if_dead(found)


def _remove_if_dead(found: Path) -> None:
    """Remove it where nobody has it locked.

    Raises:
        OSError: it is in use, or no such directory.
    """
    lock = os.open(found, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
    try:
        os.stat(MARK, dir_fd=lock)
        if os.fstat(lock).st_uid == os.geteuid():
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            shutil.rmtree(found, ignore_errors=True)
    finally:
        os.close(lock)
