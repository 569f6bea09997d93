"""What clients' large messages take in this process until each of them is answered, or cut. Pure.

Small ones are bounded by their number. Of large ones a few hundred are more than a machine may have: whoever sends them
slowly, or to a server that does not answer, is refused before others are in want of memory (guarantee G10).
"""

from collections import Counter
from typing import Final

from .errors import Overloaded
from .limits import MIB
from .principal import Principal

LARGE_BYTES: Final = 65_536
"""Messages up to this size do not count."""

MAX_BYTES: Final = 256 * MIB
"""Of all users together."""

MAX_BYTES_PER_USER: Final = 64 * MIB

MAX_BYTES_PER_SERVER: Final = 192 * MIB
"""A server that does not answer leaves to the others as much as one user may have (guarantee G9)."""


class Burden:
    """The bytes that each user has here, and each server. What was taken up is to be laid down."""

    def __init__(
        self, *, total: int = MAX_BYTES, per_user: int = MAX_BYTES_PER_USER, per_server: int = MAX_BYTES_PER_SERVER
    ) -> None:
        self._total = total
        self._per_user = per_user
        self._per_server = per_server
        self.held = 0
        """Bytes of all users together."""
        self._users: Counter[Principal] = Counter()
        self._servers: Counter[str] = Counter()

    def __repr__(self) -> str:
        return f"Burden({self.held} bytes of {len(self._users)} users)"

    def take_up(self, principal: Principal, server: str, size: int) -> None:
        """So many bytes more of a user's large message for a server.

        Raises:
            Overloaded: that would be too much; nothing was taken up.
        """
        if self._users.get(principal, 0) + size > self._per_user:
            why = "too much of one user's large messages is not answered yet"
            raise Overloaded(why, limit="max_large_bytes_per_user")
        if self._servers.get(server, 0) + size > self._per_server:
            why = "too much of large messages for this server is not answered yet"
            raise Overloaded(why, limit="max_large_bytes_per_server")
        if self.held + size > self._total:
            raise Overloaded("too much of large messages is not answered yet", limit="max_large_bytes")
        self._users[principal] += size
        self._servers[server] += size
        self.held += size

    def lay_down(self, principal: Principal, server: str, size: int) -> None:
        """They are gone."""
        self._users[principal] -= size
        self._servers[server] -= size
        self.held -= size
        if not self._users[principal]:
            del self._users[principal]
        if not self._servers[server]:
            del self._servers[server]
