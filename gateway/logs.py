"""Log lines for people or for machines. A secret never reaches one (guarantee G12)."""

import json
import logging
import re
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable
from typing import Any, Final, Literal, NamedTuple, TextIO

LogFormat = Literal["text", "json"]

_STANDARD: Final = frozenset(vars(logging.makeLogRecord({}))) | {"message", "asctime", "taskName", "color_message"}
_SECRETS: Final = re.compile(
    r"(?i)(bearer(?:\s|\\[fnrtv]|\\[ux][0-9a-f]{2,4})+)\S+"  # where that is shown as Python spells it as well
    r"|(://)[^\s/?#\"']+(?=@)"  # the password of a URL
    r"|(://(?:(?!://)[^\s?\"'])*+\?)[^\s\"']+"  # its query; each is looked for as far as the next URL
    r"|([?&][^\s?&=\"']+=)[^&\s\"']+"  # the query of a path
)
LINES_PER_SECOND: Final = 100
"""Of one kind. A server that fails each of its calls would have a line written for every one of them."""

Kind = tuple[str, int, str]
"""Of lines: the file and the line of the code that says them, and the server that they are about."""


def redacted(text: str) -> str:
    """The text without bearer tokens, without the passwords of URLs, and without the values of query strings."""
    return _SECRETS.sub(lambda match: f"{next(filter(None, match.groups()))}…", text)


class TextFormatter(logging.Formatter):
    """One readable line: time, level, logger, message, and the extra fields as key=value."""

    def format(self, record: logging.LogRecord) -> str:
        """See `logging.Formatter.format`."""
        fields = "".join(f" {key}={value}" for key, value in _extra(record).items())
        line = f"{_time(record)} {record.levelname.lower():7} {record.name}: {record.getMessage()}{fields}"
        lines = [redacted(line)]  # a message cannot pass for a line of its own, nor steer the terminal
        if record.exc_info:
            lines += redacted(self.formatException(record.exc_info)).split("\n")
        return "\n".join(map(_printable, lines))


class JSONFormatter(logging.Formatter):
    """One JSON object a line: time, level, logger, message, the extra fields, and the traceback as `error`."""

    def format(self, record: logging.LogRecord) -> str:
        """See `logging.Formatter.format`."""
        entry: dict[str, Any] = {
            "time": _time(record),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": redacted(record.getMessage()),
        }
        for key, value in _extra(record).items():
            entry.setdefault(key, value if value is None or isinstance(value, int | float) else redacted(str(value)))
        if record.exc_info:
            entry["error"] = redacted(self.formatException(record.exc_info))
        return _printable(json.dumps(entry, ensure_ascii=False))


class _Held(NamedTuple):
    """The last line of a kind that was not written, and how many before it were not."""

    record: logging.LogRecord
    left_out: int


class BoundedHandler(logging.StreamHandler[TextIO]):
    """Writes lines to a stream: of one kind no more than so many in a second, and the last one when that is over.

    Lines are of one kind where the same place in the code says them of the same server. The last one says as
    `left_out` how many before it were: a flood is seen to go on, and how much of one it is.
    """

    def __init__(
        self, stream: TextIO, most: int = LINES_PER_SECOND, clock: Callable[[], float] = time.monotonic
    ) -> None:
        super().__init__(stream)
        self._most = most
        self._clock = clock
        self._until = 0.0
        self._came: Counter[Kind] = Counter()
        """How many of each kind came in this second."""
        self._held: dict[Kind, _Held] = {}
        self._timer: threading.Timer | None = None
        """While lines are held: nobody knows whether another one comes."""

    def emit(self, record: logging.LogRecord) -> None:
        """See the base class."""
        now = self._clock()
        if now >= self._until:
            self._until = now + 1.0
            self._tell_held()
            self._came.clear()
        kind = (record.pathname, record.lineno, str(getattr(record, "server", "")))
        self._came[kind] += 1
        if self._came[kind] <= self._most:
            super().emit(record)
            return
        before = self._held.get(kind)
        self._held[kind] = _Held(record, 0 if before is None else before.left_out + 1)
        if self._timer is None:
            self._timer = threading.Timer(self._until - now, self._tell)
            self._timer.daemon = True
            try:
                self._timer.start()
            except RuntimeError:  # no thread can be made: the next line, or the end, tells what is held
                self._timer = None

    def close(self) -> None:
        """See the base class; what is held is written first."""
        self._tell()
        super().close()

    def _tell(self) -> None:
        self.acquire()
        try:
            self._tell_held()
        finally:
            self.release()

    def _tell_held(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        held, self._held = self._held, {}
        for record, left_out in held.values():
            if left_out:
                record.left_out = left_out
            super().emit(record)


def configure(format: LogFormat, level: str) -> None:
    """Send all logs to stderr in this format, from this level on; who debugs gets every line of a flood.

    Of libraries warnings at least: below that they tell headers, messages, and what is stored where.
    """
    debugs = level.lower() == "debug"
    handler = logging.StreamHandler(sys.stderr) if debugs else BoundedHandler(sys.stderr)
    handler.setFormatter(JSONFormatter() if format == "json" else TextFormatter())
    own = logging.getLogger("trunkline")
    own.setLevel(level.upper())
    logging.basicConfig(handlers=[handler], level=max(logging.WARNING, own.level), force=True)


def _extra(record: logging.LogRecord) -> dict[str, Any]:
    return {key: value for key, value in vars(record).items() if key not in _STANDARD}


def _printable(text: str) -> str:
    """The text with everything escaped, as in JSON, that is no character to be seen."""
    return text if text.isprintable() else "".join(c if c.isprintable() else json.dumps(c)[1:-1] for c in text)


def _time(record: logging.LogRecord) -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(record.created)) + f".{int(record.msecs):03d}Z"
