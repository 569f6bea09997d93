"""The one place that opens a directory by its settings."""

from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, AsyncExitStack, asynccontextmanager
from typing import Final, Literal

from ..errors import DirectoryUnavailable
from . import SharedDirectory

Backend = Literal["redis", "database"]

PACKAGES: Final = {"redis": "trunkline", "database": "'trunkline[database]'"}


class DirectoryNotOpened(Exception):
    """The directory of the settings cannot be used; the message says why, without the URL's password."""


class DirectoryAway(DirectoryNotOpened):
    """The settings may be right: nothing answers there now."""


@asynccontextmanager
async def open_directory(backend: Backend, url: str) -> AsyncIterator[SharedDirectory]:
    """The directory that several workers share, from entering the context on.

    Raises:
        DirectoryNotOpened: a package is missing, or the URL is not valid.
        DirectoryAway: nothing answers there.
    """
    async with AsyncExitStack() as stack:
        try:
            directory = await stack.enter_async_context(_opener(backend)(url))
        except ImportError as missing:
            reason = f"the package {missing.name} is missing: pip install {PACKAGES[backend]}"
            raise DirectoryNotOpened(f"directory.backend {backend}: {reason}") from None
        except ValueError as error:
            raise DirectoryNotOpened(f"directory.url: {error}") from None
        except DirectoryUnavailable as error:
            raise DirectoryAway(refusal(error, url)) from None
        yield directory


def _opener(backend: Backend) -> Callable[[str], AbstractAsyncContextManager[SharedDirectory]]:
    """What opens this backend by its URL; its package is imported only where it is used."""
    if backend == "redis":
        from .redis import open_redis

        return open_redis
    from .database import open_database

    return open_database


def refusal(error: DirectoryUnavailable, url: str) -> str:
    """What an operator is told where a directory cannot be used from the start."""
    remedy = error.remedy or "start it there, or correct the URL"
    return f"directory.url: {error.message}, at {place(url)}; {remedy}"


def place(url: str) -> str:
    """A URL without what may be secret: user, password and options. PostgreSQL's may have `/` and `?` in a password."""
    scheme, separator, rest = url.partition("://")
    shown, _, options = rest.partition("?")
    if not rest.startswith("/"):  # else it is a file, which has neither
        shown = "…" if "@" in options else shown.rpartition("@")[2]
    return f"{scheme}{separator}{shown}"
