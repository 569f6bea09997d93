"""Records of workflows that have ended but could not be removed: what is tried again, and when. Pure."""

from dataclasses import dataclass
from typing import Final

from .record import WorkflowRecord

FIRST_SECONDS: Final = 1.0
LAST_SECONDS: Final = 60.0
"""The first pause before another attempt, and the longest; each is twice the one before."""

MAX_ATTEMPTS: Final = 10
"""Together they last some five minutes. What is left then is forgotten by the directory in its own time."""

MAX_LEFTOVERS: Final = 10_000
"""Records that are kept for another attempt: as many as a process may have workflows by default."""


@dataclass(slots=True)
class _Leftover:
    record: WorkflowRecord
    is_wanted: bool
    """Whether its client wanted the end."""
    attempts: int
    due: float


class Leftovers:
    """What is left in the directory, by session id; bounded in number and in attempts."""

    def __init__(self) -> None:
        self._kept: dict[str, _Leftover] = {}

    def __len__(self) -> int:
        return len(self._kept)

    def failed(self, record: WorkflowRecord, now: float, *, is_wanted: bool = False) -> bool:
        """A removal has failed, of what its client wanted to end or of another; False where it is not tried again."""
        kept = self._kept.get(record.session_id)
        if kept is None:
            if len(self._kept) >= MAX_LEFTOVERS:
                return False
            kept = self._kept[record.session_id] = _Leftover(record, is_wanted, 0, now)
        kept.attempts += 1
        if kept.attempts >= MAX_ATTEMPTS:
            del self._kept[record.session_id]
            return False
        kept.due = now + min(LAST_SECONDS, FIRST_SECONDS * 2 ** (kept.attempts - 1))
        return True

    def removed(self, record: WorkflowRecord) -> None:
        """The record is gone."""
        self._kept.pop(record.session_id, None)

    def has(self, record: WorkflowRecord) -> bool:
        """True for the record of a workflow that has ended, as its worker changed it last."""
        kept = self._kept.get(record.session_id)
        if kept is None:
            return False
        before = kept.record
        return record.epoch == before.epoch or record.follows(before) or record.is_behind(before)

    def due(self, now: float) -> list[tuple[WorkflowRecord, bool]]:
        """Whose removal is to be tried now, and whether its client wanted it; each once until it has failed again."""
        due = [kept for kept in self._kept.values() if kept.due <= now]
        for kept in due:
            kept.due = float("inf")
        return [(kept.record, kept.is_wanted) for kept in due]
