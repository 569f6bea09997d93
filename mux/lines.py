"""What carries workflows to their servers: lines, built by the reuse of each server, and the channels of them all."""

import itertools
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from .account import MAX_COMPARED, OWN, ChannelKey, Decision, missed
from .channel import Channel, ChannelConfig
from .directory import ID_BLOCK, Directory
from .envelope import Envelope
from .errors import TrunklineError, WorkflowEnded
from .generations import Generations, Version
from .limits import Pooling
from .line import ChannelMaker, DedicatedLine
from .ports import Connector, Line, Owner
from .principal import Principal
from .shared import ChannelGroup, SharedLine
from .sharing import shared_handshake
from .statistics import Statistics
from .workflow import Workflow

LineMaker = Callable[[ChannelMaker], Line]
Spawn = Callable[[Callable[[Any], Awaitable[None]], Any], None]
"""Starts a task of the pool: a function and its argument."""


@dataclass(frozen=True, slots=True)
class Upstream:
    """One configured server, as the pool needs it."""

    name: str
    connector: Connector
    pooling: Pooling = field(default_factory=Pooling)
    stateless: bool = False
    generation: int = 0
    """Counts the changes of its settings while the gateway runs: sessions of two generations are never mixed."""
    credential: str = ""
    """The identity of what the gateway proves itself with, never its value: a rotated token drops nothing."""
    make_line: LineMaker | None = None
    """The line for `reuse = "none"`, which lives outside of mux; None means the dedicated line."""


class Lines:
    """The lines of one pool. `spawn` starts an owner task; `end` ends a workflow for a cause."""

    def __init__(
        self,
        directory: Directory,
        statistics: Statistics,
        clock: Callable[[], float],
        *,
        generations: "Generations[Upstream]",
        spawn: Spawn,
        end: Callable[[Workflow, str], None],
    ) -> None:
        self._directory = directory
        self._statistics = statistics
        self._clock = clock
        self._generations = generations
        self._spawn = spawn
        self._end = end
        self._channels: dict[Channel, str] = {}
        self._groups: dict[ChannelKey, ChannelGroup] = {}

    @property
    def channels(self) -> list[tuple[str, Channel]]:
        """Each channel that lives here, with its server's name."""
        return [(server, channel) for channel, server in self._channels.items()]

    def line(self, workflow: Workflow, upstream: Upstream) -> Line:
        """The line of a new workflow."""
        if upstream.pooling.reuse == "user":
            return SharedLine(self._group(workflow, upstream), workflow)
        return self._dedicated(workflow, upstream)

    def expire(self, now: float) -> None:
        """Look after the sessions that workflows share, and end those that nobody has used for long enough."""
        for key in [key for key, group in self._groups.items() if group.expire(now)]:
            self._groups.pop(key).close(WorkflowEnded("idle"))
        self._close_superseded()

    def supersede(self) -> None:
        """The settings of servers have changed: what is open under old ones serves those who have it, and ends."""
        for channel in self._channels:
            channel.is_superseded = not self._generations.is_current(*channel.version)
        self._close_superseded()

    def serves(self, version: Version) -> bool:
        """True while anything is open under these settings of a server."""
        groups = ((key.server, key.generation) for key in self._groups)
        return version in groups or any(channel.version == version for channel in self._channels)

    def close(self, cause: TrunklineError) -> None:
        """End the sessions that workflows share; a workflow's own end with it."""
        while self._groups:
            self._groups.popitem()[1].close(cause)

    def _close_superseded(self) -> None:
        """End the sessions under old settings that no workflow uses any longer."""
        for key, group in list(self._groups.items()):
            if not group.owners and not self._generations.is_current(key.server, key.generation):
                self._groups.pop(key).close(WorkflowEnded("reconfigured"))

    def _dedicated(self, workflow: Workflow, upstream: Upstream) -> Line:
        record = workflow.record

        def make_channel(*, listen: bool = True) -> Channel:
            config = ChannelConfig(
                server=upstream.name,
                connector=upstream.connector,
                handshake=record.handshake,
                session_headers=dict(record.handshake.session_headers),
                draw_ids=lambda: self._directory.draw_ids(record.session_id),
                pooling=upstream.pooling,
                statistics=self._statistics,
                clock=self._clock,
                listen=listen,
                generation=upstream.generation,
            )
            return self._start_channel(config, [workflow])

        if upstream.make_line is not None:
            return upstream.make_line(make_channel)
        limit = upstream.pooling.max_inflight_per_channel
        return DedicatedLine(make_channel, stateless=upstream.stateless, max_waiting=limit, why=OWN)

    def _group(self, workflow: Workflow, upstream: Upstream) -> ChannelGroup:
        """The upstream sessions that this workflow shares with others of its principal."""
        handshake = shared_handshake(workflow.record.handshake)
        key = ChannelKey(
            upstream.name,
            workflow.principal,
            handshake.session_headers,
            handshake.revision,
            handshake.capabilities,
            upstream.generation,
            upstream.credential,
        )
        if key in self._groups:
            return self._groups[key]
        why = self._why_none(key)
        self._make_room(workflow.principal, upstream.pooling)

        def make_channel(group: ChannelGroup, is_primary: bool) -> Channel:
            ids = (range(first, first + ID_BLOCK) for first in itertools.count(1, ID_BLOCK))

            async def draw_ids() -> range:
                return next(ids)

            config = ChannelConfig(
                server=upstream.name,
                connector=upstream.connector,
                handshake=handshake,
                session_headers=dict(handshake.session_headers),
                draw_ids=draw_ids,
                pooling=upstream.pooling,
                statistics=self._statistics,
                clock=self._clock,
                listen=is_primary,
                recipients=group.wishes.recipients if is_primary else _of_its_call,
                generation=upstream.generation,
            )
            return self._start_channel(config, group.owners)

        self._groups[key] = group = ChannelGroup(
            key,
            upstream.pooling,
            make_channel,
            may_open=lambda: self._has_room_for_channel(key.principal, upstream.pooling),
            on_changed=self._end_changed,
            clock=self._clock,
            why=why,
        )
        return group

    def _why_none(self, key: ChannelKey) -> Decision:
        """Why a session of this key has to be opened: how the user's own differ, else some of the newest."""
        own = [other for other in self._groups if other.principal == key.principal and other.server == key.server]
        return missed(key, own or itertools.islice(reversed(self._groups), MAX_COMPARED))

    def _make_room(self, principal: Principal, limits: Pooling) -> None:
        """End the sessions of this user that no workflow uses, the longest unused first, until one may be opened."""
        unused = [key for key, group in self._groups.items() if key.principal == principal and not group.owners]
        for key in unused:
            if self._has_room_for_channel(principal, limits):
                return
            self._groups.pop(key).close(WorkflowEnded("evicted"))

    def _has_room_for_channel(self, principal: Principal, limits: Pooling) -> bool:
        held = sum(group.sessions for group in self._groups.values() if group.key.principal == principal)
        return principal.is_anonymous or held < limits.max_channels_per_user

    def _end_changed(self, owner: Owner) -> None:
        if isinstance(owner, Workflow):
            self._end(owner, "upstream_changed")

    def _start_channel(self, config: ChannelConfig, owners: list[Owner]) -> Channel:
        channel = Channel(config, owners)
        channel.is_superseded = not self._generations.is_current(*channel.version)
        self._channels[channel] = config.server
        self._spawn(self._own, channel)
        return channel

    async def _own(self, channel: Channel) -> None:
        try:
            await channel.run()
        finally:
            server = self._channels.pop(channel)
            self._statistics.count("channels_closed", server, channel.close_reason)


def _of_its_call(message: Envelope, origin: Owner | None, owners: Sequence[Owner]) -> Sequence[Owner]:
    """Who is told by a session beside the primary one: the call on whose stream it came."""
    return () if origin is None else (origin,)
