"""What failed last with each server: for pages and tables. Pure; times are seconds of the wall clock."""

from collections.abc import Collection
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


class Failures:
    """The `last` failure of each server with which nothing has gone well since."""

    def __init__(self) -> None:
        self.last: dict[str, Failure] = {}

    def note(self, server: str, stage: Stage, error: TrunklineError, now: float) -> None:
        """A session could not be opened, or was lost."""
        before = self.last.get(server)
        self.last[server] = Failure(stage, error.message, now, before.since if before else now)

    def keep(self, servers: Collection[str]) -> None:
        """There are no others than these any longer."""
        self.last = {server: failure for server, failure in self.last.items() if server in servers}

    def clear(self, server: str) -> None:
        """A session was opened."""
        self.last.pop(server, None)


def stage_of(error: TrunklineError) -> Stage:
    """The stage at which a session could not be opened."""
    if isinstance(error, CredentialRefused):
        return "credential"
    if not isinstance(error, UpstreamUnreachable) or isinstance(error, HandshakeTimedOut):
        return "handshake"
    return "connect" if "status" not in error.data and error.data.get("executed") == "no" else "handshake"
