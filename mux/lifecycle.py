"""The life of a channel in the pool, as a table: what it is there for, and what becomes of it.

Pure: times are seconds of the pool's clock. Who holds a channel feeds its `Life` what happens, and performs the effect.
"""

from collections.abc import Mapping
from typing import Final, Literal

from .errors import IllegalMove
from .limits import Pooling

Stage = Literal["opening", "spare", "lent", "active", "idle", "replacing", "draining", "closed"]
Purpose = Literal["lent", "kept", "shared"]
"""What a channel is opened for: one workflow, the next that comes, or all of a principal."""

Happening = Literal[
    "lent",  # it is open, or taken, for one workflow
    "kept",  # it is open for the next workflow that comes
    "shared",  # it is open for several workflows
    "failed",  # it could not be opened
    "taken",  # a call came
    "quiet",  # nothing is in flight
    "idle_expired",  # nobody has needed it for idle_timeout
    "aged",  # it has lived for max_channel_age
    "replaced",  # another one has taken its place
    "not_replaced",  # none could be opened in its place
    "dismissed",  # nobody needs it any longer: evicted, reconfigured, stopped
    "lost",  # the server has ended it
    "ended",  # it is closed
]
Effect = Literal[
    "serve",
    "offer",
    "instruct",
    "back_off",
    "hand_over",
    "note",
    "replace",
    "drain",
    "keep",
    "close",
    "tell",
    "reopen",
    "forget",
    "ignore",
]

LIFE: Final[Mapping[tuple[Stage, Happening], tuple[Stage, Effect]]] = {
    ("opening", "lent"): ("lent", "serve"),
    ("opening", "kept"): ("spare", "offer"),
    ("opening", "shared"): ("active", "instruct"),
    ("opening", "failed"): ("closed", "back_off"),
    ("opening", "dismissed"): ("draining", "close"),
    # A spare was never used. Once it is lent it holds a workflow's state, and goes to no other.
    ("spare", "lent"): ("lent", "hand_over"),
    ("spare", "idle_expired"): ("draining", "close"),
    ("spare", "aged"): ("draining", "close"),
    ("spare", "dismissed"): ("draining", "close"),
    ("spare", "lost"): ("closed", "back_off"),
    ("lent", "lost"): ("closed", "tell"),
    ("active", "quiet"): ("idle", "note"),
    ("active", "aged"): ("replacing", "replace"),
    ("active", "dismissed"): ("draining", "close"),
    ("active", "lost"): ("closed", "reopen"),
    ("idle", "taken"): ("active", "note"),
    ("idle", "idle_expired"): ("draining", "close"),
    ("idle", "aged"): ("replacing", "replace"),
    ("idle", "dismissed"): ("draining", "close"),
    ("idle", "lost"): ("closed", "reopen"),
    # Make before break: it serves until another one knows what it knows.
    ("replacing", "replaced"): ("draining", "drain"),
    ("replacing", "not_replaced"): ("active", "keep"),
    ("replacing", "dismissed"): ("draining", "close"),
    ("replacing", "lost"): ("closed", "reopen"),
    ("draining", "lost"): ("closed", "ignore"),
    ("draining", "dismissed"): ("draining", "close"),
    ("opening", "ended"): ("closed", "forget"),
    ("spare", "ended"): ("closed", "forget"),
    ("lent", "ended"): ("closed", "forget"),
    ("active", "ended"): ("closed", "forget"),
    ("idle", "ended"): ("closed", "forget"),
    ("replacing", "ended"): ("closed", "forget"),
    ("draining", "ended"): ("closed", "forget"),
    ("closed", "ended"): ("closed", "ignore"),
    ("closed", "dismissed"): ("closed", "ignore"),
}


class Life:
    """Where one channel stands in the pool."""

    __slots__ = ("opened", "purpose", "since", "stage")

    def __init__(self, purpose: Purpose = "lent") -> None:
        self.purpose: Purpose = purpose
        """What happens once it is open."""
        self.stage: Stage = "opening"
        self.since = 0.0
        """When it came to this stage."""
        self.opened = 0.0

    def step(self, happening: Happening, now: float) -> Effect:
        """What has to be done about it.

        Raises:
            IllegalMove: that cannot happen at this stage.
        """
        try:
            stage, effect = LIFE[self.stage, happening]
        except KeyError:
            raise IllegalMove(f"{happening} while {self.stage}") from None
        if self.stage == "opening":
            self.opened = now
        if stage != self.stage:
            self.stage, self.since = stage, now
        return effect

    def due(
        self, load: int, now: float, limits: Pooling, *, may_end: bool, may_be_replaced: bool = True
    ) -> Happening | None:
        """What has happened to it by the mere course of time; None where nothing has.

        `load` is what is in flight on it. `may_end` where it is there for more than what is in flight, and
        `may_be_replaced` where another one may be opened beside it.
        """
        if self.stage == "idle" and load:
            return "taken"
        has_aged = 0 < limits.max_channel_age <= now - self.opened
        if self.stage == "spare":
            return "aged" if has_aged else "idle_expired" if self._waited(now, limits) else None
        if self.stage == "idle" and may_end and (has_aged or self._waited(now, limits)):
            return "idle_expired"
        if self.stage in ("active", "idle") and has_aged and may_be_replaced:
            return "aged"
        return "quiet" if self.stage == "active" and not load else None

    def _waited(self, now: float, limits: Pooling) -> bool:
        return self.since + limits.idle_timeout <= now
