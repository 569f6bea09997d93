"""Where a server is: its name is looked up apart from those of other servers, and once for all who wait.

Event loops ask in a few threads, uvloop in two. A name whose own name server does not answer holds one for as long as
the resolver is patient, which nobody can cut short: the connections to all others would wait behind it.
"""

import asyncio
import socket
import ssl
import threading
from collections.abc import Awaitable, Callable
from contextlib import suppress
from ipaddress import ip_address
from typing import TypeVar

Connection = TypeVar("Connection")


class Addresses:
    """Those of one host. There is at most one thread that asks for them."""

    def __init__(self, host: str, port: int) -> None:
        self._host = host
        self._port = port
        self._is_literal = _is_literal(host)
        self._asked: asyncio.Future[list[str]] | None = None
        """What those who come wait for, while it is asked."""

    async def first(self, connect: Callable[[str], Awaitable[Connection]]) -> Connection:
        """A connection to the first address that takes one.

        Raises:
            OSError: none does, and why the first did not; or why it failed with one that was reached.
            RuntimeError: see `find`.
        """
        failure: OSError | None = None
        try:
            for address in await self.find():
                try:
                    return await connect(address)
                except OSError as error:
                    if error.errno is None or isinstance(error, ssl.SSLError):  # it was reached; or the time is over
                        raise
                    failure = failure or error
            assert failure is not None, "there is an address"
            raise failure
        finally:
            del failure  # its traceback leads here: the garbage collector alone would free both

    async def find(self) -> list[str]:
        """The addresses, at least one; the best one first. Whoever waits may leave.

        Raises:
            OSError: none could be found.
            RuntimeError: there is no thread to ask in.
        """
        if self._is_literal:
            return [self._host]
        if self._asked is None:
            loop = asyncio.get_running_loop()
            threading.Thread(target=self._ask, args=(loop,), daemon=True).start()
            self._asked = loop.create_future()
        return await asyncio.shield(self._asked)

    def _ask(self, loop: asyncio.AbstractEventLoop) -> None:
        """In the thread."""
        found: list[str] | Exception
        try:
            told = socket.getaddrinfo(self._host, self._port, type=socket.SOCK_STREAM)
            found = [_spelled(address) for *_, address in told]
        except Exception as error:  # whatever it is, who waits must hear of it
            found = error
        with suppress(RuntimeError):  # the loop is closed
            loop.call_soon_threadsafe(self._tell, found)

    def _tell(self, found: list[str] | Exception) -> None:
        asked, self._asked = self._asked, None
        assert asked is not None, "it was asked"
        if isinstance(found, Exception):
            asked.set_exception(found)
            asked.exception()  # nobody may be waiting any longer
        else:
            asked.set_result(found)


def _is_literal(host: str) -> bool:
    try:
        ip_address(host)
    except ValueError:
        return False
    return True


def _spelled(address: tuple[object, ...]) -> str:
    """The address, with its zone where it has one (RFC 4007, 11)."""
    host, _, *rest = address
    zone = rest[1] if rest else 0
    return f"{host}%{zone}" if zone else str(host)
