"""What a server has sent of large messages that are not complete, on all its connections together: bounded. Pure."""

from typing import Final

from ..mux.burden import LARGE_BYTES
from ..mux.errors import UpstreamFault
from ..mux.limits import MIB

MAX_UNFINISHED_BYTES: Final = 256 * MIB
"""Of one server. Each message is bounded as well, but their number by that of connections alone."""


class Part:
    """What one message takes, for as long as this is kept: by whoever keeps what has come of it."""

    __slots__ = ("_whole", "size")

    def __init__(self, whole: "Unfinished") -> None:
        self._whole = whole
        self.size = 0

    def __del__(self) -> None:
        self._whole.held -= self.size


class Unfinished:
    """Of one server. Small messages do not count."""

    __slots__ = ("_limit", "held")

    def __init__(self, limit: int = MAX_UNFINISHED_BYTES) -> None:
        self._limit = limit
        self.held = 0
        """Bytes of all that count."""

    def hold(self, part: Part | None, size: int) -> Part | None:
        """The part of a message of which so much has come, to be kept instead of what it was; None where it is small.

        Raises:
            UpstreamFault: that is too much.
        """
        if size <= LARGE_BYTES:
            return None
        part = part or Part(self)
        if self.held + size - part.size > self._limit:
            why = f"the server has sent more than {self._limit} bytes of messages that are not complete"
            raise UpstreamFault(why, limit="max_unfinished_bytes")
        self.held += size - part.size
        part.size = size
        return part
