"""Is each configured server there, and what does it say of itself: one handshake each, and a DELETE.

A server of which sessions are not offered, or that has none, is asked by `server/discover`, as its clients will.
"""

import logging
import sys
import time
from collections import deque
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from typing import Final, NamedTuple
from urllib.parse import urlsplit

import anyio
import msgspec
from rich.console import Console
from rich.text import Text

from ..mux import envelope as wire_format
from ..mux import modern
from ..mux.directory.memory import MemoryDirectory
from ..mux.errors import TrunklineError, UpstreamFault, UpstreamRefused
from ..mux.initialization import OPEN_SECONDS
from ..mux.limits import MAX_BODY_BYTES, MAX_EVENT_BYTES
from ..mux.pool import Pool
from ..mux.principal import ANONYMOUS
from ..mux.statistics import Statistics
from ..mux.upstream import Upstream
from ..transports.event_stream import EventParser
from ..transports.upstream.auto import AutoConnector, ClosableConnector
from ..transports.upstream.credentials import Credential
from ..transports.upstream.http_client import trusting
from ..transports.upstream.modern_http import ModernHTTPServer
from ..transports.upstream.process import LAST_LINES, STDERR
from ..transports.upstream.process import logger as process_log
from .console import fitting, meter, printable, show, write_json
from .logs import redacted
from .loop import run_command
from .oauth import sources_of
from .settings import Settings, SettingsError
from .site import connector_to

PROBE_SECONDS: Final = OPEN_SECONDS
"""As long as `serve` lets a server take: a command may have to fetch its packages first."""

MAX_TITLE: Final = 100
"""Characters of what a server calls itself that are shown: a long one would put those of others out of sight."""

PARAMS: Final = {
    "protocolVersion": "2025-11-25",
    "capabilities": {},
    "clientInfo": {"name": "trunkline-check", "version": "0"},
}


COLUMNS: Final = ("server", "url", "state", "what it is", "revision", "time")
SPARE: Final = ("url", "time", "revision", "what it is")
"""Columns that a narrow terminal can do without, from the first one on: a name stands for its URL."""

SERVER_INFO_KEY: Final = "io.modelcontextprotocol/serverInfo"


class Probe(NamedTuple):
    """What one server answered; `fault` is empty where all is well, and `said` what its command wrote before it."""

    server: str
    url: str
    name: str
    revision: str
    seconds: float
    fault: str
    said: tuple[str, ...] = ()


class _Result(msgspec.Struct, rename="camel"):
    server_info: object = None


class _DiscoverResult(msgspec.Struct):
    meta: dict[str, object] = msgspec.field(name="_meta", default_factory=dict)


class _Discovered(msgspec.Struct):
    result: _DiscoverResult = msgspec.field(default_factory=_DiscoverResult)


def run(settings: Settings, names: Collection[str], *, as_json: bool, console: Console) -> bool:
    """Probe the servers of these names, all of them where there is none, and print what they are; True if all are well.

    Raises:
        SettingsError: there is no such server, or none at all.
    """
    for name in names:
        if name not in settings.servers:
            raise SettingsError(f"servers.{name}", f"there is none; there are: {', '.join(settings.servers)}")
    wanted = {name: server for name, server in settings.servers.items() if not names or name in names}
    if not wanted:
        raise SettingsError(
            "servers", "there is no server to check; name a file, and add [servers.NAME] with a url to it"
        )
    done = 0
    with meter("servers are asked", len(wanted)).running() as told:

        def on_probe() -> None:
            nonlocal done
            done += 1
            told.tell(done, len(wanted))

        probes = run_command(probe_all(msgspec.structs.replace(settings, servers=wanted), on_probe))
    if as_json:
        write_json([_as_json(probe) for probe in probes], console)
    else:
        _show(probes, console)
        for probe in probes:
            if probe.said:
                sys.stderr.write("\n  ".join((f"{probe.server} wrote to its standard error:", *probe.said)) + "\n")
    return not any(probe.fault for probe in probes)


def _as_json(probe: Probe) -> dict[str, object]:
    told = probe._asdict()
    return {**told, "url": _shown(probe.url), "seconds": round(probe.seconds, 3), "ok": not probe.fault}


def _show(probes: Sequence[Probe], console: Console) -> None:
    rows = []
    for probe in probes:
        state = Text(printable(probe.fault), "red") if probe.fault else Text("ok", "green")
        took = f"{probe.seconds * 1000:.0f} ms"
        rows.append((probe.server, _shown(probe.url), state, probe.name, probe.revision, took))
    show(console, fitting(console, COLUMNS, rows, spare=SPARE))


def _shown(url: str) -> str:
    """A URL without the password and the query that it may hold."""
    parts = urlsplit(url)
    if not parts.netloc:  # a command
        return url
    return f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}{parts.path}"


async def probe_all(settings: Settings, on_probe: Callable[[], None] = lambda: None) -> list[Probe]:
    """One probe of each server, side by side, in the order of the settings; `on_probe` is called after each."""
    found: dict[str, Probe] = {}
    system, sources = trusting(""), sources_of(settings.servers)  # read once for all of them, as in a gateway

    async def run(name: str) -> None:
        statistics, source = Statistics(), sources.get(name)
        credential = None if source is None else Credential(name, source, statistics)
        connector = connector_to(name, settings.servers[name], statistics, credential, system=system)
        found[name] = await _probe(settings, name, said, connector, statistics)
        on_probe()

    with _heard() as said:
        async with anyio.create_task_group() as tasks:
            for name in settings.servers:
                tasks.start_soon(run, name)
    return [found[name] for name in settings.servers]


class _Hearing(logging.Filter):
    """Keeps the last lines of what each server says on its stderr; to the log goes what would go there without it."""

    def __init__(self, level: int) -> None:
        super().__init__()
        self._level = level
        self.said: dict[str, deque[str]] = {}

    def filter(self, record: logging.LogRecord) -> bool:
        """See the base class."""
        text = record.getMessage()
        if text.startswith(STDERR):
            self.said.setdefault(vars(record)["server"], deque(maxlen=LAST_LINES)).append(redacted(text[len(STDERR) :]))
        return record.levelno >= self._level


@contextmanager
def _heard() -> Iterator[Mapping[str, Collection[str]]]:
    """What servers say on their stderr while the context lasts."""
    level, hearing = process_log.level, _Hearing(process_log.getEffectiveLevel())
    process_log.addFilter(hearing)
    process_log.setLevel(logging.INFO)
    try:
        yield hearing.said
    finally:
        process_log.removeFilter(hearing)
        process_log.setLevel(level)


async def _probe(
    settings: Settings,
    name: str,
    said: Mapping[str, Collection[str]],
    connector: ClosableConnector,
    statistics: Statistics,
) -> Probe:
    server = settings.servers[name]
    started = time.perf_counter()
    title = revision = fault = ""

    def by_hand() -> str:
        return "; run its command by hand to see why" if server.process and name not in said else ""

    try:
        with anyio.fail_after(PROBE_SECONDS):
            title, revision = await _ask(settings, name, connector, statistics)
    except UpstreamRefused as refused:
        fault = f"refused: {refused.raw.decode(errors='replace')[:200]}"
    except TrunklineError as error:
        fault = f"{error.message}{by_hand()}"
    except TimeoutError:
        fault = f"no answer within {PROBE_SECONDS:g} s{by_hand()}"
    finally:
        await connector.close()
    shown = f"stdio:{server.process[0]}" if server.process else server.url
    words = tuple(said.get(name, ())) if fault else ()
    return Probe(name, shown, title, revision, time.perf_counter() - started, fault, words)


async def _ask(settings: Settings, name: str, connector: ClosableConnector, statistics: Statistics) -> tuple[str, str]:
    """What a server says it is, and the revision by which its clients are served: one with sessions where it has them.

    Raises:
        TrunklineError: it serves nobody, and why.
    """
    eras = settings.servers[name].eras
    if "legacy" not in eras:
        return await _discover(name, connector, statistics)
    try:
        return await _shake_hands(settings, name, connector, statistics)
    except TrunklineError as error:
        if "modern" in eras and isinstance(connector, AutoConnector):
            with suppress(TrunklineError):
                return await _discover(name, connector, statistics)
        raise error


async def _shake_hands(
    settings: Settings, name: str, connector: ClosableConnector, statistics: Statistics
) -> tuple[str, str]:
    """What a server of sessions says it is, and the revision that was agreed upon."""
    pool = Pool({name: Upstream(name, connector)}, MemoryDirectory(), pooling=settings.pooling, statistics=statistics)
    message = wire_format.parse(wire_format.request("initialize", PARAMS, b"1"), limit=MAX_BODY_BYTES)
    async with pool.running():
        begun = await pool.begin(ANONYMOUS, name, message)
        return _title(msgspec.json.decode(begun.result, type=_Result).server_info), begun.workflow.revision


async def _discover(name: str, connector: ClosableConnector, statistics: Statistics) -> tuple[str, str]:
    """What a server without sessions says it is, and the newest revision that it has in common with the gateway."""
    assert isinstance(connector, AutoConnector), "only an http(s) url may be without sessions"
    wire = connector.streamable
    server = ModernHTTPServer(name, wire.http, wire.headers, statistics, timeout=PROBE_SECONDS)
    spoken = await server.revisions()
    if not modern.is_spoken(spoken):
        raise UpstreamFault(f'the server speaks sessions only ({spoken[-1]}): add "legacy" to its eras')
    body, headers = modern.probe()
    passage = server.send(wire_format.parse(body, limit=MAX_BODY_BYTES), body, headers)
    try:
        answer = (await passage.form()).whole
        text = b""
        while (piece := await passage.next(PROBE_SECONDS)) is not None:
            text += piece
    finally:
        passage.close()
    if answer is None:
        answer = EventParser(limit=MAX_EVENT_BYTES).feed(text)[-1].data
    return _title(_server_info(answer)), max(set(spoken) & set(modern.REVISIONS))


def _server_info(answer: bytes) -> object:
    try:
        return msgspec.json.decode(answer, type=_Discovered).result.meta.get(SERVER_INFO_KEY)
    except msgspec.DecodeError:  # whatever is missing here, the server has shown what it speaks
        return None


def _title(info: object) -> str:
    named = info if isinstance(info, dict) else {}
    return f"{named.get('name', '?')} {named.get('version', '')}".strip()[:MAX_TITLE]
