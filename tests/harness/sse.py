"""Server-sent events, read and written byte by byte as the WHATWG standard says.

Written for the tests alone, so that the gateway's own parser is not what checks the gateway.
"""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Event:
    """One event. `id` is None where the event carried none; an empty one resets the last event id."""

    data: str
    id: str | None = None
    event: str = "message"
    retry: int | None = None

    def encode(self) -> bytes:
        """The event as it goes over the wire; data with line ends becomes several `data:` lines."""
        lines = [] if self.event == "message" else [f"event: {self.event}"]
        if self.id is not None:
            lines.append(f"id: {self.id}")
        if self.retry is not None:
            lines.append(f"retry: {self.retry}")
        lines += [f"data: {line}" for line in self.data.split("\n")]
        return ("\n".join(lines) + "\n\n").encode()


class Parser:
    """Bytes in, events out. Keeps what an unfinished event has so far."""

    def __init__(self) -> None:
        self._rest: list[bytes] = []
        self._fields: list[tuple[str, str]] = []
        self.comments = 0

    def feed(self, chunk: bytes) -> list[Event]:
        """The events that `chunk` completed."""
        if b"\n" not in chunk and b"\r" not in chunk and not (self._rest and self._rest[-1].endswith(b"\r")):
            self._rest.append(chunk)
            return []
        events: list[Event] = []
        text = b"".join([*self._rest, chunk])
        # A CR at the very end may be half of a CR LF: it waits for the next chunk.
        held = b"\r" if text.endswith(b"\r") else b""
        text = text[: len(text) - len(held)].replace(b"\r\n", b"\n").replace(b"\r", b"\n")
        *lines, rest = text.split(b"\n")
        self._rest = [rest + held]
        for raw in lines:
            line = raw.decode()
            if not line:
                events += self._dispatch()
            elif line.startswith(":"):
                self.comments += 1
            else:
                name, _, value = line.partition(":")
                self._fields.append((name, value.removeprefix(" ")))
        return events

    def _dispatch(self) -> list[Event]:
        fields, self._fields = self._fields, []
        data = [value for name, value in fields if name == "data"]
        last = dict(fields)
        if not data and "id" not in last and "retry" not in last:
            return []
        retry = last.get("retry", "")
        return [
            Event(
                data="\n".join(data),
                id=last.get("id"),
                event=last.get("event") or "message",
                retry=int(retry) if retry.isdigit() else None,
            )
        ]
