"""What failed last with each server: for pages and tables. Pure; times are seconds of the wall clock."""

from collections.abc import Collection, Iterator, Mapping
from typing import Literal, NamedTuple

from .errors import CredentialRefused, HandshakeTimedOut, TrunklineError, UpstreamUnreachable

Stage = Literal["credential", "connect", "handshake", "session"]
"""Proving to the server who we are; reaching it; agreeing on a session with it; keeping the session."""


class Failure(NamedTuple):
    """A failure of a server: at which stage, why, when, and since when nothing has gone well."""

    stage: Stage
    message: str
    at: float
    since: float


class Failures(Mapping[str, Failure]):
    """The last failure of each server with which nothing has gone well since."""

    def __init__(self) -> None:
        self._last: dict[str, Failure] = {}

    def __getitem__(self, server: str) -> Failure:
        return self._last[server]

    def __iter__(self) -> Iterator[str]:
        return iter(self._last)

    def __len__(self) -> int:
        return len(self._last)

    def note(self, server: str, stage: Stage, error: TrunklineError, now: float) -> None:
        """A session could not be opened, or was lost."""
        before = self._last.get(server)
        self._last[server] = Failure(stage, error.message, now, before.since if before else now)

    def keep(self, servers: Collection[str]) -> None:
        """There are no others than these any longer."""
        self._last = {server: failure for server, failure in self._last.items() if server in servers}

    def clear(self, server: str) -> None:
        """A session was opened."""
        self._last.pop(server, None)


def stage_of(error: TrunklineError) -> Stage:
    """The stage at which a session could not be opened."""
    if isinstance(error, CredentialRefused):
        return "credential"
    if not isinstance(error, UpstreamUnreachable) or isinstance(error, HandshakeTimedOut):
        return "handshake"
    return "connect" if "status" not in error.data and error.data.get("executed") == "no" else "handshake"
