"""An event store for the test servers: it makes the SDK's streams resumable, on either line.

One process serves many sessions and the SDK gives the store no session, so stream ids alone (request ids, in effect)
would mix sessions up. Here each stored event has an id of its own, and a replay takes only the events that were stored
for the same stream after it; tests use ids that no two sessions share.
"""

from typing import Any

from mcp.server.streamable_http import EventMessage, EventStore


def event_store() -> EventStore:
    """A new, empty store."""
    return _Events()


class _Events(EventStore):
    def __init__(self) -> None:
        self._events: list[tuple[str, Any]] = []

    async def store_event(self, stream_id: str, message: Any) -> str:
        self._events.append((stream_id, message))
        return str(len(self._events))

    async def replay_events_after(self, last_event_id: str, send_callback: Any) -> str | None:
        position = int(last_event_id)
        if not 0 < position <= len(self._events):
            return None
        stream = self._events[position - 1][0]
        for n, (stored_stream, message) in enumerate(self._events[position:], position + 1):
            if stored_stream == stream and message is not None:
                await send_callback(EventMessage(message, str(n)))
        return stream
