"""Who gets what: the rules by which messages find their workflow and, in it, their stream. Pure.

Attribution (R1) finds the workflow; placement (R2) finds the stream; capabilities (R3) decide whether a client may be
asked at all. `InFlight` finds the call that a client's cancellation means among request ids that may collide.
"""

from collections.abc import Callable, Collection
from typing import Final, Generic, Literal, NamedTuple, TypeVar

from .envelope import Envelope, IdKey, Members, id_key, key_or_none, members_of, string_of
from .errors import InvalidParams, MethodNotFound, TrunklineError

Owner = TypeVar("Owner")
Call = TypeVar("Call")
Place = TypeVar("Place")

MODERN: Final = "2026-07-28"
LEGACY: Final = ("2024-11-05", "2025-03-26", "2025-06-18", "2025-11-25")
"""Revisions with a handshake, oldest first."""

BATCHES: Final = "2025-03-26"
"""The one revision with JSON-RPC batches (rule E10)."""

PRIMING: Final = "2025-11-25"
"""From this revision on clients understand an event with an id and empty data (SEP-1699, rule T7)."""


def attribute(origin: Owner | None, owners: Collection[Owner]) -> Owner | None:
    """The workflow that a server's message concerns: the asker's, else the only one there is, else none (R1)."""
    if origin is not None:
        return origin
    return next(iter(owners)) if len(owners) == 1 else None


def place(origin: Place | None, newest: Place | None, *, is_listening: bool) -> Place | None:
    """What carries a server's request to its client: exactly one stream (R2).

    The exchange or wire that asked, where it is open; else the newest wire that listens for what belongs to no request;
    else the newest exchange that is open; else it waits for a wire that listens. None for what one that listens gets.
    """
    return origin if origin is not None or is_listening else newest


def refusal(message: Envelope, capabilities: Members) -> TrunklineError | None:
    """The error for a server that asks what the client did not declare, or None where it did (R3, R10)."""
    if message.method == "roots/list" and "roots" not in capabilities:
        return MethodNotFound("the client has no roots")
    if message.method == "sampling/createMessage" and "sampling" not in capabilities:
        return MethodNotFound("the client does not sample")
    if message.method == "elicitation/create":
        return _elicitation_refusal(message, capabilities)
    return None


def _elicitation_refusal(message: Envelope, capabilities: Members) -> TrunklineError | None:
    declared = capabilities.get("elicitation")
    if declared is None:
        return MethodNotFound("the client does not elicit")
    modes = members_of(declared) or {}
    mode = string_of((message.params() or {}).get("mode")) or "form"
    if mode in modes or (mode == "form" and "url" not in modes):
        return None
    return InvalidParams(f"the client did not declare elicitation of mode {mode[:32]}")


class Withdrawal(NamedTuple, Generic[Call]):
    """What a client's cancellation refers to: one call, or none with the reason."""

    call: Call | None
    reason: Literal["", "unknown_cancel", "ambiguous_cancel"]


class InFlight(Generic[Call]):
    """One client's calls that wait for their answers, by the ids that it chose.

    Over HTTP the same id may be in flight twice (guarantee G1); a cancellation that could mean either is ignored.
    """

    __slots__ = ("_calls", "_size")

    def __init__(self) -> None:
        self._calls: dict[IdKey, list[Call]] = {}
        self._size = 0

    def __len__(self) -> int:
        return self._size

    def enter(self, id: bytes, call: Call) -> None:
        """A call begins."""
        self._calls.setdefault(id_key(id), []).append(call)
        self._size += 1

    def leave(self, id: bytes, call: Call) -> None:
        """A call has ended; calling it again does nothing."""
        key = id_key(id)
        calls = self._calls.get(key, [])
        if call in calls:
            calls.remove(call)
            self._size -= 1
            if not calls:
                del self._calls[key]

    def trim(self) -> None:
        """Give back what the table of calls once needed."""
        if not self._calls:
            self._calls = {}

    def meant(self, message: Envelope, can_mean: Callable[[Call], bool]) -> list[Call]:
        """The calls under the id that a client's `notifications/cancelled` names, of those it can mean."""
        key = key_or_none((message.params() or {}).get("requestId"))
        return [call for call in self._calls.get(key, []) if can_mean(call)] if key is not None else []

    def withdraw(self, message: Envelope, can_mean: Callable[[Call], bool]) -> Withdrawal[Call]:
        """The one call that a client's `notifications/cancelled` means (rule E12)."""
        calls = self.meant(message, can_mean)
        if len(calls) == 1:
            return Withdrawal(calls[0], "")
        return Withdrawal(None, "ambiguous_cancel" if calls else "unknown_cancel")
