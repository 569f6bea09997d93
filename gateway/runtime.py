"""A directory that the processes of one gateway have to themselves, for their sockets and figures.

Each of them holds a lock in it for as long as it lives: the kernel lets go of that, however a process ends. So whoever
starts later tells what gateways left that were killed from what is in use, and removes it.
"""

import errno
import fcntl
import os
import platform
import shutil
import stat
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Final

from .settings import NotStarted, SettingsError

PREFIX: Final = "trunkline-"

LOCK: Final = f"{platform.node()}.lock"
"""Of this host: file systems of several hosts need not tell one of the locks that another holds."""

MAX_PATH_BYTES: Final = 70
"""Longer, and the sockets in it would have no room in their addresses."""

ATTEMPTS: Final = 10


@contextmanager
def runtime_directory() -> Iterator[Path]:
    """A directory that nobody else can enter, and which goes with this process; first, what dead gateways left goes.

    Raises:
        SettingsError: its path is too long for sockets.
        NotStarted: none can be made.
    """
    try:
        _sweep(Path(tempfile.gettempdir()))
        made, lock = _made()
    except OSError as error:
        raise NotStarted("TMPDIR", f"there is no directory for temporary files: {error.strerror}") from error
    try:
        if len(os.fsencode(made)) > MAX_PATH_BYTES:
            raise SettingsError("TMPDIR", f"{made.parent} is too long for the path of a socket; name a shorter one")
        yield made
    finally:
        shutil.rmtree(made, ignore_errors=True)
        os.close(lock)


def hold(directory: Path) -> int:
    """Keep it from being swept, until the descriptor that this returns is closed.

    Raises:
        FileNotFoundError: it was, since nobody who had it lives.
    """
    lock = os.open(directory / LOCK, os.O_RDWR | os.O_CREAT, 0o600)
    try:
        fcntl.flock(lock, fcntl.LOCK_SH)
        if not os.path.samestat(os.fstat(lock), os.stat(directory / LOCK)):
            raise FileNotFoundError(f"{directory} was swept")
    except BaseException:
        os.close(lock)
        raise
    return lock


def _made() -> tuple[Path, int]:
    """A new one, and its lock; another one where it was swept before that was held."""
    for _ in range(ATTEMPTS):
        with suppress(FileNotFoundError):
            made = Path(tempfile.mkdtemp(prefix=PREFIX))
            return made, hold(made)
    raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT))


def _sweep(place: Path) -> None:
    """Remove the directories there of gateways that are dead for certain; of this user, and made on this host."""
    for found in place.glob(f"{PREFIX}*"):
        with suppress(OSError):
            told = found.lstat()
            if stat.S_ISDIR(told.st_mode) and told.st_uid == os.geteuid():
                _remove_if_dead(found)


def _remove_if_dead(found: Path) -> None:
    """Remove it where nobody holds its lock.

    Raises:
        OSError: it is in use, or not known to be a gateway's.
    """
    lock = os.open(found / LOCK, os.O_RDWR | os.O_NOFOLLOW)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        shutil.rmtree(found, ignore_errors=True)
    finally:
        os.close(lock)
