"""ContextForge's gateway records as servers of the pool: policy, connect fingerprint, connector.

A record is read again while it is in use. Where anything of it changes that a connection depends on, the server gets
another generation, and what is open under the old one ends when its calls have.
"""

import asyncio
import hashlib
import json
import logging
import ssl
import time
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Any, Final

from ...mux.limits import Reuse
from ...mux.ports import NONE, Headers, Receiver, Wire
from ...mux.statistics import Statistics
from ...mux.upstream import Upstream
from ...transports.upstream.auto import ClosableConnector, connector_for
from ...transports.upstream.proxy import is_proxied_otherwise
from .settings import ContextForgeSettings

logger = logging.getLogger(__name__)

FRESH_SECONDS: Final = 1.0
"""How old what is known of a record may be: another worker may have edited it."""

CONNECT_FIELDS: Final = (
    "url",
    "transport",
    "enabled",
    "auth_type",
    "auth_value",
    "auth_query_params",
    "oauth_config",
    "passthrough_headers",
    "add_headers",
    "remove_headers",
    "identity_propagation",
    "gateway_mode",
    "ca_certificate",
    "ca_certificate_sig",
    "signing_algorithm",
    "client_cert",
    "client_key",
    "team_id",
    "owner_email",
    "visibility",
    "tags",
)
"""All that decides how, or for whom, a connection is made. A version that lacks one of them has no such setting."""

MAX_LEFT: Final = 16
"""URLs that one server may have been moved on from while its record stays as it is."""

SSE: Final = "sse+"
"""Before the URL of a server that is called over HTTP+SSE: the gateway knows that by the tool, not by the record."""

TAGS: Final[Mapping[str, Reuse]] = {
    f"trunkline{mark}{reuse}": reuse for mark in ":-" for reuse in ("none", "workflow", "user")
}

opening_headers: ContextVar[Headers] = ContextVar("trunkline.contextforge.opening_headers", default=NONE)
"""The headers of the call for which a session is opened."""


@dataclass(frozen=True, slots=True)
class GatewayRecord:
    """What ContextForge has stored of one server."""

    id: str
    name: str
    transport: str
    fields: Mapping[str, Any]

    @property
    def label(self) -> str:
        """A name for metrics and logs that no other record has."""
        return f"{self.name}-{self.id[:8]}"

    def fingerprint(self, url: str) -> str:
        """The same only as long as nothing has changed that a connection depends on. No value can be read from it."""
        known = json.dumps([url, self.name, self.fields], sort_keys=True, default=str)
        return hashlib.blake2b(known.encode(), digest_size=16, person=b"contextforge").hexdigest()

    def is_at(self, url: str) -> bool:
        """Whether this URL is the record's, but for what stands behind `?`: credentials, where it has them there."""
        return _place(url) == _place(str(self.fields.get("url", "")))

    def reuse(self, settings: ContextForgeSettings) -> Reuse:
        """The policy: that of a tag of the record, of the name lists, or the default."""
        tags = self.fields.get("tags") or []
        for tag in tags:
            name = tag.get("id") or tag.get("label") or "" if isinstance(tag, Mapping) else str(tag)
            if name.lower() in TAGS:
                return TAGS[name.lower()]
        if self.name in settings.reuse_none:
            return "none"
        return "user" if self.name in settings.reuse_user else settings.reuse


def _place(url: str) -> str:
    return url.removeprefix(SSE).partition("?")[0]


def is_tls(url: str) -> bool:
    """True for an https URL, on either transport."""
    return url.removeprefix(SSE).startswith("https://")


ReadRecord = Callable[[str], GatewayRecord | None]
"""Reads one record by its id; None where it is gone."""

MakeContext = Callable[[], ssl.SSLContext]


class OpeningConnector:
    """A connector whose sessions are opened under the headers of the call that needs them. Implements `Connector`."""

    def __init__(self, inner: ClosableConnector) -> None:
        self._inner = inner

    @asynccontextmanager
    async def connect(self, receiver: Receiver, headers: Headers, *, listen: bool) -> AsyncIterator[Wire]:
        """See `Connector.connect`."""
        async with self._inner.connect(receiver, {**opening_headers.get(), **headers}, listen=listen) as wire:
            yield wire

    async def close(self) -> None:
        """See `ClosableConnector.close`."""
        await self._inner.close()


@dataclass(slots=True)
class _Known:
    record: GatewayRecord | None
    read: float
    url: str = ""
    fingerprint: str = ""
    left: set[str] = field(default_factory=set)
    """Where the server was before, by the record as it is now: ContextForge remembers such URLs for a while."""
    settles: float = 0.0
    """Until then, what is read may be what was stored before an edit."""


class Gateways:
    """The servers of the pool, made from records as calls meet them.

    `changed` hears of all servers when one of them has changed. `trusted` makes what verifies a server whose record has
    no certificates.
    """

    def __init__(
        self,
        read: ReadRecord,
        settings: ContextForgeSettings,
        statistics: Statistics,
        changed: Callable[[Mapping[str, Upstream]], None],
        *,
        verifies_tls: bool,
        trusted: MakeContext = ssl.create_default_context,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._read = read
        self._settings = settings
        self._statistics = statistics
        self._changed = changed
        self._verifies_tls = verifies_tls
        self._trusted = trusted
        self._clock = clock
        self._known: dict[str, _Known] = {}
        self._upstreams: dict[str, Upstream] = {}
        self._generation = 0
        self._connectors: dict[int, OpeningConnector] = {}
        """By the generation that they were made for."""
        self._told: set[str] = set()

    def find(self, gateway_id: str, url: str) -> Upstream | None:
        """The server for a call to this URL, which begins with `sse+` for HTTP+SSE; None where it goes the old path.

        Raises:
            ValueError: a URL that cannot be used.
            OSError: certificates that cannot be used.
        """
        known = self._refreshed(gateway_id)
        record = known.record
        if record is None or self._why_old_path(record, url) is not None:
            return None
        if known.url != url:
            is_another = known.url != "" and known.url.startswith(SSE) != url.startswith(SSE)
            if is_another or not record.is_at(url):  # not by the record as it is now: of what ContextForge remembers
                return None
            if url in known.left or len(known.left) == MAX_LEFT:  # two that take turns would end each other's sessions
                return None
            if known.url:
                known.left.add(known.url)
            known.url, known.fingerprint = url, record.fingerprint(url)
            try:
                self._build(record, url)
            except (OSError, ValueError):
                self._drop(record.label)  # a call by this URL is not one by the URL before
                raise
        return self._upstreams.get(record.label)

    async def refresh(self) -> None:
        """Look at every record that is in use again, while calls go on: one that is gone must not keep its sessions.

        One that cannot be read ends it, and is the last to be looked at the next time.
        """
        for gateway_id, known in list(self._known.items()):
            now, before = self._clock(), known.read
            if self._is_due(known, now):
                try:
                    record = await asyncio.to_thread(self._read, gateway_id)
                except Exception:
                    latest = self._known.pop(gateway_id, None)  # a call may have read it meanwhile
                    if latest is not None:
                        self._known[gateway_id] = latest
                    raise
                if self._known.get(gateway_id) is known and known.read == before:  # no call has read it meanwhile
                    self._take(gateway_id, record, now)

    async def release(self, upstream: Upstream) -> None:
        """Nothing is open any longer under these settings of a server."""
        connector = self._connectors.pop(upstream.generation, None)
        if connector is not None:
            await connector.close()

    async def close(self) -> None:
        """Give up what is held for coming sessions, after all have ended. Idempotent."""
        while self._connectors:
            await self._connectors.popitem()[1].close()

    def renew(self) -> None:
        """What verifies servers is to be made anew: each has another generation from its next call on."""
        for known in self._known.values():
            known.url = ""
            known.left.clear()
        self._upstreams.clear()
        self._changed(self._upstreams)

    def forget(self, gateway_id: str) -> None:
        """The record is being edited here: calls read it again, for as long as it may take to be stored."""
        if gateway_id in self._known:
            self._known[gateway_id].read = float("-inf")
            self._known[gateway_id].settles = self._clock() + FRESH_SECONDS

    def _refreshed(self, gateway_id: str) -> _Known:
        now = self._clock()
        known = self._known.get(gateway_id)
        if known is not None and not self._is_due(known, now):
            return known
        try:
            record = self._read(gateway_id)
        except Exception:
            logger.exception("the record of a server could not be read")
            known = self._known.setdefault(gateway_id, _Known(None, now))
            known.read = now  # it holds as long as what was read: a database that is away is not asked for each call
            return known
        return self._take(gateway_id, record, now)

    def _is_due(self, known: _Known, now: float) -> bool:
        return now - known.read >= FRESH_SECONDS or now < known.settles

    def _take(self, gateway_id: str, record: GatewayRecord | None, now: float) -> _Known:
        """Take what was read of a record at this time."""
        known = self._known.get(gateway_id)
        if known is None:
            known = self._known[gateway_id] = _Known(record, now)
        before, known.record, known.read = known.record, record, now
        if record is None or not record.fields.get("enabled", True):
            record = known.record = None
            del self._known[gateway_id]
        if record is None or record.fingerprint(known.url) != known.fingerprint:
            known.url = ""  # the next call says where the server is now
            known.left.clear()
            if before is not None:
                self._drop(before.label)
        return known

    def _build(self, record: GatewayRecord, url: str) -> None:
        self._generation += 1
        ca = self._trusting(record) if is_tls(url) else ""
        connector = self._connectors[self._generation] = OpeningConnector(
            connector_for(record.label, self._statistics, url=url, ca=ca)
        )
        self._upstreams[record.label] = Upstream(
            name=record.label,
            connector=connector,
            pooling=self._settings.pooling(record.reuse(self._settings)),
            generation=self._generation,
        )
        self._changed(self._upstreams)

    def _drop(self, label: str) -> None:
        if self._upstreams.pop(label, None) is not None:
            logger.info("the record of a server has changed or gone: its sessions end when their calls have")
            self._changed(self._upstreams)

    def _why_old_path(self, record: GatewayRecord, url: str) -> str | None:
        """Why calls to this server are left to ContextForge; None where they are not. Each reason is told once."""
        why: str | None = None
        if record.reuse(self._settings) == "none":
            return "none"
        if record.transport.lower() not in ("sse", "streamablehttp"):
            why = f"its transport is {record.transport}"
        elif not url.removeprefix(SSE).startswith(("http://", "https://")):
            why = "its URL is not http or https"
        elif record.fields.get("client_cert"):
            why = "it wants a client certificate"
        elif record.fields.get("gateway_mode") == "direct_proxy":
            why = "it is in direct-proxy mode"
        elif is_tls(url) and not self._verifies_tls:
            why = "TLS certificates are not verified here, or signed ones are asked for"
        elif is_proxied_otherwise(url.removeprefix(SSE)):
            why = "the proxy before it is named by ALL_PROXY, or is another than HTTP"
        if why is not None and record.id not in self._told:
            self._told.add(record.id)
            logger.warning("server %s keeps a session for each call: %s", record.name, why)
        return why

    def _trusting(self, record: GatewayRecord) -> ssl.SSLContext:
        """Whose certificates count for it. As ContextForge has it: those of the record beside the system's.

        Raises:
            OSError, ValueError: the record's cannot be read.
        """
        text = record.fields.get("ca_certificate")
        if not text:
            return self._trusted()
        context = ssl.create_default_context()
        pem = text if isinstance(text, str) else bytes(text).decode()
        if not pem.isascii():
            raise ValueError("the certificates are no PEM")
        context.load_verify_locations(cadata=pem)
        return context
