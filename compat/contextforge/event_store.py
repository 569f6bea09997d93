"""The events of one Streamable HTTP session, so that a client which comes back misses nothing.

ContextForge has one store for all sessions, by request id: what one client missed could be another's. Here each session
has its own, which ends with it.
"""

import secrets
from collections import OrderedDict
from collections.abc import Awaitable, Callable
from typing import Any, Final

MAX_EVENTS: Final = 1000
"""Events of one session; the oldest give way."""


SendEvent = Callable[[Any], Awaitable[None]]


class SessionEventStore:
    """Implements the SDK's `EventStore` for one session. `event_message` makes what its callback wants."""

    def __init__(self, event_message: Callable[[Any, str], Any], *, max_events: int = MAX_EVENTS) -> None:
        self._max_events = max_events
        self._event_message = event_message
        self._events: OrderedDict[str, tuple[str, Any]] = OrderedDict()

    async def store_event(self, stream_id: str, message: Any) -> str:
        """Keep one message of a stream; its event id, which nobody can guess."""
        event_id = secrets.token_urlsafe(18)
        self._events[event_id] = stream_id, message
        while len(self._events) > self._max_events:
            self._events.popitem(last=False)
        return event_id

    async def replay_events_after(self, last_event_id: str, send_callback: SendEvent) -> str | None:
        """Send again what followed this event on its stream, and return the stream's id.

        None where the event is not one of this session, or is no longer held.
        """
        if last_event_id not in self._events:
            return None
        stream_id = self._events[last_event_id][0]
        ids = list(self._events)
        for event_id in ids[ids.index(last_event_id) + 1 :]:
            entry = self._events.get(event_id)
            if entry is not None and entry[0] == stream_id and entry[1] is not None:
                await send_callback(self._event_message(entry[1], event_id))
        return stream_id
