"""Who is told of a call's end beside its client: the log, by a warning where the server let it down, and who traces."""

import logging
from typing import Final

from .errors import CredentialRefused, HandshakeTimedOut, SessionLost, TimedOut, UpstreamFault, UpstreamUnreachable
from .ports import Span

logger = logging.getLogger(__name__)

LOUD: Final = frozenset(
    error.reason
    for error in (CredentialRefused, HandshakeTimedOut, SessionLost, TimedOut, UpstreamFault, UpstreamUnreachable)
)
"""Outcomes that are worth a warning. Those that a client brings about are not, nor is an open circuit: what opened it
was told."""

MAX_SHOWN_ID: Final = 64


def is_told(outcome: str) -> bool:
    """True where a line is due for a call that ended so: to be asked first, since most often there is none."""
    return outcome in LOUD or logger.isEnabledFor(logging.DEBUG)


def tell(outcome: str, why: str, about: dict[str, str], *, method: str, id: bytes, seconds: float, sent: int) -> None:
    """One line for a call: `why` says what went wrong, empty where nothing did.

    `about` holds its server, its principal's digest and its workflow's handle; `method` is a label; `id` is the
    client's own, as it spelled it; `sent` is the id that the request had upstream, 0 where it was not sent.
    """
    fields: dict[str, object] = {**about, "method": method, "id": shown(id), "seconds": round(seconds, 6)}
    if sent:
        fields["upstream_id"] = sent
    level = logging.WARNING if outcome in LOUD else logging.DEBUG
    logger.log(level, "call ended: %s%s", outcome, why and f" ({why})", extra=fields)


def end_span(span: Span | None, outcome: str) -> None:
    """The same for who traces, if anybody does: a defect of theirs costs nobody an answer."""
    if span is not None:
        try:
            span.ended(outcome)
        except Exception:
            logger.exception("a call could not be traced to its end")


def shown(id: bytes) -> str:
    """A client's id for people: as it was spelled, at most `MAX_SHOWN_ID` characters, all of them printable."""
    text = id.decode("utf-8", "replace")
    text = "".join(character if character.isprintable() else "?" for character in text[: MAX_SHOWN_ID + 1])
    return text if len(text) <= MAX_SHOWN_ID else text[: MAX_SHOWN_ID - 1] + "…"
