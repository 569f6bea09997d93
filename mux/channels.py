"""The channels that live here: how each is begun, what becomes of it, and what that says of its server.

A server that cannot be reached is held back by its circuit; what failed last with each is remembered.
"""

import asyncio
import time
from collections.abc import Callable, Collection
from functools import partial

from .breaker import Breakers, Circuit, Permit, verdict
from .channel import Channel, ChannelConfig
from .errors import CircuitOpen, SessionLost, TrunklineError
from .failures import Failures, stage_of
from .generations import Version
from .id_supply import DrawIds
from .lifecycle import Effect
from .ports import Opened, Owner
from .premises import Premises
from .principal import Principal
from .record import Handshake
from .upstream import Upstream

Perform = Callable[[Channel, Effect], None]
"""Does what the life of a channel asks for."""

Ended = Callable[[Channel], None]


class _Held:
    """A channel of the pool, and who has to know what becomes of it."""

    __slots__ = ("ended", "is_settled", "perform", "permit", "server")

    def __init__(self, server: str, permit: Permit | None, perform: Perform | None, ended: Ended | None) -> None:
        self.server = server
        self.permit = permit
        """The leave of the server's circuit; None where it has no say."""
        self.perform = perform
        self.ended = ended
        self.is_settled = False
        """True once it is told whether it could be opened."""


class Channels:
    """The channels of one pool. `wall` is the time of day, for what failed."""

    def __init__(self, premises: Premises, *, wall: Callable[[], float] = time.time) -> None:
        self.failures = Failures()
        """What failed last with each server."""
        self._breakers = Breakers()
        self._held: dict[Channel, _Held] = {}
        self._statistics = premises.statistics
        self._clock = premises.clock
        self._wall = wall
        self._generations = premises.generations
        self._spawn = premises.tasks.spawn
        self._on_lost, self._on_ended = self._lost, self._ended

    @property
    def all(self) -> list[tuple[str, Channel]]:
        """Each that lives here, with its server's name."""
        return [(held.server, channel) for channel, held in self._held.items()]

    @property
    def circuits(self) -> list[Circuit]:
        """How the servers stand that failed lately, for each tenant."""
        return list(self._breakers)

    def is_let(self, server: str, principal: Principal) -> bool:
        """True where the circuit of the server and the tenant lets everybody through."""
        return self._breakers.is_closed(server, principal)

    @property
    def versions(self) -> set[Version]:
        """The settings of servers under which any is open."""
        return {channel.version for channel in self._held}

    def expire(self, now: float) -> None:
        """Forget failures that lie long enough back."""
        self._breakers.expire(now)

    def supersede(self, unchanged: Collection[str]) -> None:
        """The settings of all other servers have changed: what failed under old ones says nothing of the new ones."""
        self.failures.keep(unchanged)
        self._breakers.keep(unchanged)
        for channel, held in self._held.items():
            channel.is_superseded = not self._generations.is_current(*channel.version)
            if channel.is_superseded:
                held.permit = None

    # How one begins.

    def config(self, upstream: Upstream, handshake: Handshake, draw_ids: DrawIds) -> ChannelConfig:
        """What all channels to a server have in common."""
        return ChannelConfig(
            server=upstream.name,
            connector=upstream.connector,
            handshake=handshake,
            draw_ids=draw_ids,
            pooling=upstream.pooling,
            statistics=self._statistics,
            clock=self._clock,
            generation=upstream.generation,
            on_lost=self._on_lost,
            on_ended=self._on_ended,
        )

    def start(
        self,
        config: ChannelConfig,
        owners: list[Owner],
        principal: Principal,
        *,
        perform: Perform | None = None,
        is_guarded: bool = True,
        ended: Ended | None = None,
    ) -> Channel:
        """Begin to open a session. `perform` does what its life asks for; the circuit is asked where it is guarded.

        `ended` is told when nothing of the session is left.

        Raises:
            CircuitOpen: the server failed too often, and is not tried now.
            Overloaded: the gateway is shutting down.
        """
        permit = self._permit(config.server, principal) if is_guarded else None
        channel = Channel(config, owners)
        channel.is_superseded = not self._generations.is_current(*channel.version)
        held = _Held(config.server, permit, perform, ended)
        channel.opened.add_done_callback(partial(self._opened, channel, held))
        self._held[channel] = held
        try:
            self._spawn(Channel.run, channel)
        except TrunklineError as error:
            del self._held[channel]
            channel.close(error)
            raise
        return channel

    def _permit(self, server: str, principal: Principal) -> Permit:
        try:
            return self._breakers.admit(server, principal, self._clock())
        except CircuitOpen as refused:
            self._statistics.count("refused", refused.reason)
            raise

    async def wait_for(self, before: Channel, channel: Channel) -> None:
        """Wait until a session of the same key is open. Where the server cannot be reached for it, nor for this one."""
        held = self._held[channel]
        await asyncio.wait([before.opened, channel.opened], return_when=asyncio.FIRST_COMPLETED)
        error = before.opened.exception() if before.opened.done() else None
        if isinstance(error, TrunklineError) and verdict(error) != "unknown" and not channel.is_closing:
            if held.permit is not None:
                held.permit.failed(None, self._clock())  # the one before has told what there is to tell
                held.permit = None
            channel.close(SessionLost(error.message, executed="no") if isinstance(error, SessionLost) else error)

    # What becomes of it.

    def _opened(self, channel: Channel, held: _Held, opened: asyncio.Future[Opened]) -> None:
        """It is known whether a session could be opened."""
        if held.is_settled:
            return
        held.is_settled = True
        now, error = self._clock(), opened.exception()
        if held.permit is not None and error is None:
            held.permit.opened(now)
        elif held.permit is not None:
            held.permit.failed(error, now)
        if channel.is_superseded:  # it says nothing of the server as it is set up now
            pass
        elif error is None and not channel.is_adopted:  # of its server nothing has been seen yet
            self.failures.clear(held.server)
        elif isinstance(error, TrunklineError) and verdict(error) != "unknown":
            self.failures.note(held.server, stage_of(error), error, self._wall())
        if channel.life.stage == "opening":
            self._perform(channel, held, channel.life.step("failed" if error else channel.life.purpose, now))

    def _lost(self, channel: Channel, cause: TrunklineError) -> None:
        """A server has ended a session, or could not open it."""
        held = self._held[channel]
        self._opened(channel, held, channel.opened)  # that it was open may not have been told yet
        if channel.opened.exception() is not None:
            return
        now = self._clock()
        if held.permit is not None:
            held.permit.lost(now)
        if not channel.is_superseded:
            self.failures.note(held.server, "session", cause, self._wall())
        self._perform(channel, held, channel.life.step("lost", now))

    def _perform(self, channel: Channel, held: _Held, effect: Effect) -> None:
        if held.perform is not None:
            held.perform(channel, effect)

    def _ended(self, channel: Channel) -> None:
        """The task of a channel ends."""
        held = self._held.pop(channel)
        channel.life.step("ended", self._clock())
        self._statistics.count("channels_closed", held.server, channel.close_reason)
        if held.ended is not None:
            held.ended(channel)
