"""The settings of servers over time: those that hold, and those that were superseded and still serve somebody. Pure."""

from collections.abc import Callable, Mapping
from typing import Generic, Protocol, TypeVar

from .errors import Overloaded, UnknownServer

Version = tuple[str, int]
"""A server's name, and the generation of its settings."""


class Versioned(Protocol):
    """The settings of one server."""

    @property
    def name(self) -> str:
        """The server's name."""

    @property
    def generation(self) -> int:
        """Another one for each change; never one that the process had before."""


U = TypeVar("U", bound=Versioned)


class Generations(Generic[U]):
    """What each server's settings are, and what they were for those that began under them."""

    def __init__(self, current: Mapping[str, U]) -> None:
        self.current = dict(current)
        """By the servers' names: what begins now begins under these."""
        self._superseded: dict[Version, U] = {}

    @property
    def superseded(self) -> list[U]:
        """Settings that no longer hold, oldest first, for as long as they serve somebody."""
        return list(self._superseded.values())

    def replace(self, current: Mapping[str, U]) -> None:
        """From now on these hold; what is not among them is superseded."""
        before, self.current = self.current, dict(current)
        for settings in before.values():
            if not self.is_current(settings.name, settings.generation):
                self._superseded[settings.name, settings.generation] = settings

    def is_current(self, server: str, generation: int) -> bool:
        """True where this generation of a server's settings holds."""
        return server in self.current and self.current[server].generation == generation

    def find(self, server: str, generation: int | None = None) -> U:
        """The settings under which something may begin, for who knows the server in this generation, if in any.

        Raises:
            UnknownServer: there is no such server.
            Overloaded: its settings have changed meanwhile; who comes again meets the new ones.
        """
        if server not in self.current:
            raise UnknownServer(server)
        if generation is not None and self.current[server].generation != generation:
            raise Overloaded("the settings of this server have just changed; try again", limit="reconfigured")
        return self.current[server]

    def release(self, serves: Callable[[Version], bool]) -> list[U]:
        """Forget those that were superseded and serve nobody any longer; what was forgotten."""
        released = [version for version in self._superseded if not serves(version)]
        return [self._superseded.pop(version) for version in released]
