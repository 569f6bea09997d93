"""Log lines for people or for machines. A secret never reaches one (guarantee G12)."""

import json
import logging
import re
import sys
import time
from typing import Any, Final, Literal

LogFormat = Literal["text", "json"]

_STANDARD: Final = frozenset(vars(logging.makeLogRecord({}))) | {"message", "asctime", "taskName", "color_message"}
_SECRETS: Final = re.compile(
    r"(?i)(bearer\s+)\S+"
    r"|(://)[^\s/?#@\"']+(?=@)"  # the password of a URL
    r"|(://[^\s?\"']*\?)[^\s\"']+"  # its query
    r"|([?&][^\s?&=\"']+=)[^&\s\"']+"  # the query of a path
)
_NOISY: Final = ("mcp", "uvicorn", "httpx", "asyncio", "sse_starlette", "websockets")
"""Libraries whose debug lines hold headers or messages."""


def redacted(text: str) -> str:
    """The text without bearer tokens, without the passwords of URLs, and without the values of query strings."""
    return _SECRETS.sub(lambda match: f"{next(filter(None, match.groups()))}…", text)


class TextFormatter(logging.Formatter):
    """One readable line: time, level, logger, message, and the extra fields as key=value."""

    def format(self, record: logging.LogRecord) -> str:
        """See `logging.Formatter.format`."""
        fields = "".join(f" {key}={value}" for key, value in _extra(record).items())
        line = f"{_time(record)} {record.levelname.lower():7} {record.name}: {record.getMessage()}{fields}"
        line = line.replace("\r", "\\r").replace("\n", "\\n")  # a message cannot pass for a line of its own
        if record.exc_info:
            line += "\n" + self.formatException(record.exc_info)
        return redacted(line)


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
        return json.dumps(entry, ensure_ascii=False)


def configure(format: LogFormat, level: str) -> None:
    """Send all logs to stderr in this format, from this level on."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(JSONFormatter() if format == "json" else TextFormatter())
    logging.basicConfig(handlers=[handler], level=level.upper(), force=True)
    for noisy in _NOISY:
        logging.getLogger(noisy).setLevel(max(logging.WARNING, logging.getLogger().level))


def _extra(record: logging.LogRecord) -> dict[str, Any]:
    return {key: value for key, value in vars(record).items() if key not in _STANDARD}


def _time(record: logging.LogRecord) -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(record.created)) + f".{int(record.msecs):03d}Z"
