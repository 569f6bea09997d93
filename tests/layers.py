"""The layers of the house, in one place: who may import whom, and which modules do no I/O."""

from pathlib import Path

ROOT = Path(__file__).parent.parent
FOLDERS = ("mux", "transports", "compat", "gateway")
"""Lowest first: a folder imports from itself and from those before it."""

PURE = (
    "mux/annotations.py",
    "gateway/differences.py",
    "gateway/known_head.py",
    "gateway/reasons.py",
    "gateway/settings/spelling.py",
    "gateway/trends.py",
    "mux/account.py",
    "mux/breaker.py",
    "mux/burden.py",
    "mux/demux.py",
    "mux/envelope.py",
    "mux/errors.py",
    "mux/event_log.py",
    "mux/failures.py",
    "mux/fairness.py",
    "mux/generations.py",
    "mux/handshake.py",
    "mux/leftovers.py",
    "mux/lifecycle.py",
    "mux/limits.py",
    "mux/mending.py",
    "mux/long_strings.py",
    "mux/modern.py",
    "mux/placement.py",
    "mux/policy.py",
    "mux/ports.py",
    "mux/principal.py",
    "mux/questions.py",
    "mux/record.py",
    "mux/recovery.py",
    "mux/request.py",
    "mux/rota.py",
    "mux/routing.py",
    "mux/sharing.py",
    "mux/statistics.py",
    "mux/tally.py",
    "transports/client_ledger.py",
    "transports/event_stream.py",
    "transports/guard.py",
    "transports/headers.py",
    "transports/media.py",
    "transports/parts.py",
    "transports/retries.py",
    "transports/status.py",
    "transports/tracing.py",
    "transports/unfinished.py",
    "transports/upstream/backoff.py",
    "transports/upstream/http.py",
    "gateway/reload.py",
    "gateway/workers/merged.py",
)
"""Modules that decide without I/O; their own tests cover them to the last branch."""

IO_MODULES = frozenset(
    {
        "aiohttp",
        "anyio",
        "asyncio",
        "httptools",
        "redis",
        "select",
        "socket",
        "starlette",
        "time",
        "uvicorn",
        "websockets",
    }
)

MUX_ORDER = (
    {"errors", "limits", "principal", "statistics"},
    {"long_strings"},
    {
        "account",
        "breaker",
        "burden",
        "envelope",
        "event_log",
        "failures",
        "fairness",
        "generations",
        "lifecycle",
        "policy",
        "record",
        "rota",
        "tally",
    },
    {"leftovers", "mending"},
    {"call_log", "ports"},
    {"request"},
    {"demux"},
    {"annotations", "routing", "sharing"},
    {"modern"},
    {"directory"},
    {"handshake", "journal", "own", "placement", "questions", "recovery"},
    {"id_supply", "initialization", "listening"},
    {"calls", "channel", "duplex", "duplexes", "exchange", "streams", "upstream", "workflow"},
    {"lease", "membership", "premises", "residents", "tasks"},
    {"line"},
    {"channels", "group", "spares"},
    {"shared"},
    {"lines"},
    {"comparison", "recording"},
    {"cluster"},
    {"ending"},
    {"lookup", "opening"},
    {"sweep"},
    {"pool"},
)
"""Inside mux, lowest first: a module imports from its own rank and from lower ones."""

LIBRARY = ("mux", "transports", "compat")
"""Folders that another gateway mounts: they must not need the SDK."""
