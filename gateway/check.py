"""Is each configured server there, and what does it say of itself: one handshake each, and a DELETE."""

import time
from typing import Final, NamedTuple

import anyio
import msgspec

from ..mux import envelope as wire_format
from ..mux.directory.memory import MemoryDirectory
from ..mux.errors import TrunklineError, UpstreamRefused
from ..mux.limits import MAX_BODY_BYTES
from ..mux.lines import Upstream
from ..mux.pool import Pool
from ..mux.principal import ANONYMOUS
from ..mux.statistics import Statistics
from .app import connector_to
from .settings import Settings

PROBE_SECONDS: Final = 10.0
PARAMS: Final = {
    "protocolVersion": "2025-11-25",
    "capabilities": {},
    "clientInfo": {"name": "trunkline-check", "version": "0"},
}


class Probe(NamedTuple):
    """What one server answered; `fault` is empty where all is well."""

    server: str
    url: str
    name: str
    revision: str
    seconds: float
    fault: str


class _Result(msgspec.Struct, rename="camel"):
    server_info: object = None


async def probe_all(settings: Settings) -> list[Probe]:
    """One probe of each server, side by side, in the order of the settings."""
    found: dict[str, Probe] = {}

    async def run(name: str) -> None:
        found[name] = await _probe(settings, name)

    async with anyio.create_task_group() as tasks:
        for name in settings.servers:
            tasks.start_soon(run, name)
    return [found[name] for name in settings.servers]


async def _probe(settings: Settings, name: str) -> Probe:
    server = settings.servers[name]
    statistics = Statistics()
    connector = connector_to(name, server, statistics)
    pool = Pool({name: Upstream(name, connector)}, MemoryDirectory(), pooling=settings.pooling, statistics=statistics)
    message = wire_format.parse(wire_format.request("initialize", PARAMS, b"1"), limit=MAX_BODY_BYTES)
    started = time.perf_counter()
    title = revision = fault = ""
    try:
        with anyio.fail_after(PROBE_SECONDS):
            async with pool.running():
                begun = await pool.begin(ANONYMOUS, name, message)
                told = msgspec.json.decode(begun.result, type=_Result).server_info
                info = told if isinstance(told, dict) else {}
                title = f"{info.get('name', '?')} {info.get('version', '')}".strip()
                revision = begun.workflow.revision
    except UpstreamRefused as refused:
        fault = f"refused: {refused.raw.decode(errors='replace')[:200]}"
    except TrunklineError as error:
        fault = error.message
    except TimeoutError:
        fault = f"no answer within {PROBE_SECONDS:g} s"
    finally:
        await connector.close()
    shown = f"stdio:{server.process[0]}" if server.process else server.url
    return Probe(name, shown, title, revision, time.perf_counter() - started, fault)
