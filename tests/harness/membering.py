"""One worker of a directory in memory, on a clock that a test turns."""

import pytest
from trunkline.mux import membership as membership_module
from trunkline.mux.directory import Worker
from trunkline.mux.errors import Elsewhere
from trunkline.mux.membership import Membership

from harness.muxing import Clock
from harness.shared_memory import SharedMemoryDirectory


class At:
    """A worker on a clock that the test turns; it beats only when it is told to."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(membership_module, "BEAT_SECONDS", 3600)
        self.clock = Clock()
        self.directory = SharedMemoryDirectory(self.clock)
        self.lapses = 0
        self.since = 0.0
        self.member = self.made("a")

    def made(self, id: str) -> Membership:
        return Membership(self.directory, Worker(id, "host"), on_lapse=self._lapse, clock=self.clock)

    def _lapse(self, since: float) -> None:
        self.since = since
        assert not self.member.holds_lease, "what it holds must be doubted before it is used again"
        self.lapses += 1


async def handed_to(member: Membership) -> str | None:
    """Who gets what a worker hands on."""
    try:
        await member.hand_on()
    except Elsewhere as elsewhere:
        return elsewhere.worker
    return None
