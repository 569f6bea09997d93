"""What carries workflows to their servers: lines, built by the reuse of each server, and what they share."""

import asyncio
import hashlib
import itertools
from collections.abc import Callable, Collection, Sequence
from dataclasses import replace
from functools import partial
from typing import Literal

from .account import MAX_COMPARED, OWN, ChannelKey, Decision, missed
from .annotations import Annotations, Trust
from .channel import Channel, Recipients
from .channels import Channels, Ended, Perform
from .directory import ID_BLOCK, SHARED
from .errors import TrunklineError, WorkflowEnded
from .generations import Version
from .group import ChannelGroup, GroupPorts
from .id_supply import DrawIds
from .initialization import Adopted
from .line import DedicatedLine
from .membership import Membership
from .policy import Cap, cap_reached
from .ports import Line, Opened, Owner
from .premises import Premises
from .principal import Principal
from .record import Wish
from .shared import SharedLine
from .sharing import shared_handshake
from .spares import Shelf, SparedLine, SpareKey, Spares
from .upstream import Upstream
from .workflow import Workflow

Place = Literal["new", "held", "beside"]
"""`new`: it begins here. `held`: another worker held it before. `beside`: another worker holds it."""


class _OwnChannels:
    """Makes the channels of one workflow, one after the other. Implements `ChannelMaker`."""

    __slots__ = ("_lines", "_may_adopt", "_place", "_upstream", "_workflow")

    def __init__(self, lines: "Lines", workflow: Workflow, upstream: Upstream, place: Place) -> None:
        self._lines = lines
        self._workflow = workflow
        self._upstream = upstream
        self._place = place
        self._may_adopt = place != "new" and bool(workflow.record.upstream_session)

    def __call__(self, *, listen: bool = True, ended: Ended | None = None) -> Channel:
        """The first one goes on with the session that another worker had, where there is one.

        Raises:
            CircuitOpen: the server failed too often, and is not tried now.
            Overloaded: the gateway is shutting down.
        """
        lines, workflow, upstream = self._lines, self._workflow, self._upstream
        record, adopted = workflow.record, None
        if self._may_adopt:
            self._may_adopt = False
            adopted = Adopted(record.upstream_session, Opened(record.revision, record.result))
        is_pooled = upstream.make_line is None
        config = replace(
            lines.channels.config(upstream, record.handshake, self._draw_ids),
            listen=listen and self._place != "beside",
            may_rest=is_pooled,
            adopted=adopted,
            may_write=lines.may_write([workflow]) if is_pooled else None,
        )
        is_new = is_pooled and adopted is None
        channel = lines.channels.start(config, [workflow], workflow.principal, is_guarded=is_new, ended=ended)
        if is_new and record.revision:
            channel.opened.add_done_callback(self._compare)
        return channel

    def _compare(self, opened: asyncio.Future[Opened]) -> None:
        """A session was opened anew: its client keeps to a revision that the server may not have chosen again (L13)."""
        if opened.exception() is None and opened.result().revision != self._workflow.record.revision:
            self._lines.end(self._workflow, "upstream_changed")

    async def _draw_ids(self, above: int) -> range:
        return await self._lines.directory.draw_ids(self._workflow.record.session_id, above)


class Lines:
    """The lines of one pool, on its `channels`. `end` ends a workflow; `note` hears of its wishes."""

    def __init__(
        self,
        premises: Premises,
        channels: Channels,
        *,
        end: Callable[[Workflow, str], None],
        note: Callable[[Workflow], None] | None,
        members: Membership | None = None,
    ) -> None:
        self._members = members
        self.channels = channels
        self._census = premises.residents.held.census
        self._caps = premises.caps
        self._spares = Spares(
            premises.directory,
            may_open=self._may_open_spare,
            exceeded=partial(self._cap, more=0),
            clock=premises.clock,
        )
        self._is_closed = False
        self.directory = premises.directory
        self._clock = premises.clock
        self._generations = premises.generations
        self.end = end
        self._note = note
        self._groups: dict[ChannelKey, ChannelGroup] = {}
        self._groups_of: dict[Principal, dict[ChannelKey, ChannelGroup]] = {}
        self._annotations = Annotations()

    def line(self, workflow: Workflow, upstream: Upstream, place: Place = "new") -> Line:
        """The line of a workflow that begins, or that another worker has begun."""
        shelf = self._shelf(workflow, upstream) if place == "new" else None
        if shelf is None:
            self._spares.make_room(workflow.principal, upstream.name)
        if upstream.pooling.reuse == "user":
            group = self._group(workflow, upstream, place)
            if upstream.trust_annotations:
                workflow.trust = Trust(self._annotations, group.key, is_own=False)
            return SharedLine(group, workflow, workflow.record.wish, partial(self._note_wish, workflow))
        # The old path sends nothing again; and who serves it beside its holder does not hear that tools have changed.
        if upstream.trust_annotations and upstream.make_line is None and place != "beside":
            workflow.trust = Trust(self._annotations, workflow.record.session_id, is_own=True)
        return self._dedicated(workflow, upstream, shelf, place)

    def expire(self, now: float) -> None:
        """Look after the sessions that workflows share, and end those that nobody has used for long enough."""
        for key in [key for key, group in self._groups.items() if group.expire(now)]:
            self._end_group(key, WorkflowEnded("idle"), release=not self._is_sure)
        self._close_superseded()
        self._spares.expire(now)
        self.channels.expire(now)

    @property
    def _is_sure(self) -> bool:
        """True while no other worker can have what is shared here."""
        return self._members is None or self._members.holds_lease

    def lapse(self) -> None:
        """The directory may have forgotten which ids it gave to sessions that workflows share: it is told (E4)."""
        for group in self._groups.values():
            for line in group.lines():
                if line.channel is not None:
                    line.channel.ids.draw_anew()

    def supersede(self, unchanged: Collection[str]) -> None:
        """The settings of all other servers have changed: what is open under old ones serves those who have it."""
        self.channels.supersede(unchanged)
        self._close_superseded()
        self._spares.supersede(self._generations.is_current)

    @property
    def versions(self) -> set[Version]:
        """The settings of servers under which anything is open."""
        return self.channels.versions | {(key.server, key.generation) for key in self._groups}

    def close_unused(self, cause: TrunklineError) -> None:
        """End the sessions that were shared and that nobody has: no other worker would go on with them."""
        self._is_closed = True
        self._spares.close("drained")
        for key in [key for key, group in self._groups.items() if not group.owners]:
            self._end_group(key, cause, release=not self._is_sure)

    def close(self, cause: TrunklineError) -> None:
        """End the sessions that workflows shared; a workflow's own end with it.

        Where there are other workers, they may go on with those that are shared.
        """
        for key in tuple(self._groups):
            self._end_group(key, cause, release=self._members is not None)

    def give_up(self, owner: Workflow) -> list[Workflow]:
        """Another worker has the session that this workflow shares: leave it to that one. Who else shared it."""
        others: list[Workflow] = []
        for key, group in tuple(self._groups.items()):
            if owner in group.owners:
                others += [other for other in group.owners if isinstance(other, Workflow) and other is not owner]
                self._end_group(key, WorkflowEnded("taken_over"), release=True)
        return others

    def _close_superseded(self) -> None:
        """End the sessions under old settings that no workflow uses any longer."""
        for key, group in list(self._groups.items()):
            if not group.owners and not self._generations.is_current(key.server, key.generation):
                self._end_group(key, WorkflowEnded("reconfigured"))

    def _end_group(self, key: ChannelKey, cause: TrunklineError, *, release: bool = False) -> None:
        """The one door through which shared sessions leave the pool."""
        own = self._groups_of[key.principal]
        del own[key]
        if not own:
            del self._groups_of[key.principal]
        self._annotations.forget(key)
        self._groups.pop(key).close(cause, release=release)

    def _dedicated(self, workflow: Workflow, upstream: Upstream, shelf: Shelf | None, place: Place) -> Line:
        make_channel = _OwnChannels(self, workflow, upstream, place)
        if upstream.make_line is not None:
            return upstream.make_line(make_channel)
        limit = upstream.pooling.max_inflight_per_channel
        if shelf is None:
            return DedicatedLine(make_channel, stateless=upstream.stateless, max_waiting=limit, why=OWN)
        return SparedLine(
            make_channel,
            shelf=shelf,
            owner=workflow,
            session_id=workflow.record.session_id,
            stateless=upstream.stateless,
            max_waiting=limit,
        )

    def _shelf(self, workflow: Workflow, upstream: Upstream) -> Shelf | None:
        """Where spares for workflows like this one are found; None where its server keeps none."""
        if not upstream.pooling.spares or upstream.pooling.reuse != "workflow":
            return None
        handshake = workflow.record.handshake
        key = SpareKey(upstream.name, upstream.generation, workflow.principal, upstream.credential, handshake)

        def make_spare(owners: list[Owner], draw_ids: DrawIds, perform: Perform) -> Channel:
            config = self.channels.config(upstream, handshake, draw_ids)
            config = replace(config, may_rest=True, purpose="kept")
            return self.channels.start(config, owners, key.principal, perform=perform)

        return self._spares.shelf(key, upstream.pooling, make_spare)

    def _cap(self, principal: Principal, server: str, *, more: int) -> Cap | None:
        """The cap that so many more workflows on a server would break, spares counted."""
        return cap_reached(self._census, principal, server, self._caps, spares=self._spares.census, more=more)

    def _may_open_spare(self, key: SpareKey) -> bool:
        is_wanted = not self._is_closed and self._generations.is_current(key.server, key.generation)
        is_reached = self.channels.is_let(key.server, key.principal)
        return is_wanted and is_reached and self._cap(key.principal, key.server, more=1) is None

    def _group(self, workflow: Workflow, upstream: Upstream, place: Place) -> ChannelGroup:
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
        name = SHARED + shared_name(key)
        record = workflow.record
        adopted = Adopted(record.upstream_session, Opened(record.revision, record.result))
        may_adopt = place == "held" and bool(record.upstream_session)
        why = self._why_none(key)
        self._make_room(workflow.principal, upstream)
        newest: Channel | None = None

        def make_channel(group: ChannelGroup, is_primary: bool, recipients: Recipients) -> Channel:
            nonlocal newest, may_adopt
            is_adopted, may_adopt = may_adopt and is_primary, False
            before = None if newest is None or newest.opened.done() else newest
            config = replace(
                self.channels.config(upstream, handshake, self._drawing_for(name)),
                listen=is_primary,
                adopted=adopted if is_adopted else None,
                may_write=self.may_write(group.owners),
                recipients=recipients,
                purpose="shared",
                first=None if before is None else partial(self.channels.wait_for, before),
            )
            newest = self.channels.start(
                config, group.owners, key.principal, perform=group.perform, is_guarded=not is_adopted
            )
            return newest

        ports = GroupPorts(
            make_channel,
            may_open=lambda: self._has_room_for_channel(key.principal, upstream),
            on_changed=self._end_changed,
            clock=self._clock,
        )
        self._groups[key] = group = ChannelGroup(key, upstream.pooling, ports, why=why)
        self._groups_of.setdefault(key.principal, {})[key] = group
        return group

    def _drawing_for(self, name: str) -> DrawIds:
        """Blocks of ids for one session: its own where no other worker can go on with it, else those of its record."""
        ids = (range(first, first + ID_BLOCK) for first in itertools.count(1, ID_BLOCK))

        async def draw_ids(above: int) -> range:
            return next(ids) if self._members is None else await self.directory.draw_ids(name, above)

        return draw_ids

    def _why_none(self, key: ChannelKey) -> Decision:
        """Why a session of this key has to be opened: how the user's own differ, else some of the newest."""
        own = [group.key for group in self._groups_on(key.principal, key.server)]
        return missed(key, own or itertools.islice(reversed(self._groups), MAX_COMPARED))

    def _make_room(self, principal: Principal, upstream: Upstream) -> None:
        """End the sessions of this user that no workflow uses, the longest unused first, until one may be opened."""
        unused = [group.key for group in self._groups_on(principal, upstream.name) if not group.owners]
        for key in unused:
            if self._has_room_for_channel(principal, upstream):
                return
            self._end_group(key, WorkflowEnded("evicted"))

    def _has_room_for_channel(self, principal: Principal, upstream: Upstream) -> bool:
        if principal.is_anonymous:
            return True
        sessions = sum(group.sessions for group in self._groups_on(principal, upstream.name))
        return sessions < upstream.pooling.max_channels_per_user

    def _groups_on(self, principal: Principal, server: str) -> list[ChannelGroup]:
        """What this user's workflows share on one server, of whatever settings."""
        return [group for key, group in self._groups_of.get(principal, {}).items() if key.server == server]

    def _end_changed(self, owner: Owner) -> None:
        if isinstance(owner, Workflow):
            self.end(owner, "upstream_changed")

    def _note_wish(self, workflow: Workflow, wish: Wish) -> None:
        workflow.wish = wish
        if self._note is not None:
            self._note(workflow)

    def may_write(self, owners: Sequence[Owner]) -> Callable[[], bool] | None:
        """Whether what only this worker may do for these may be done; None where there is no other worker."""
        members = self._members
        return None if members is None else lambda: members.holds_lease and not any(map(_is_doubted, owners))


def shared_name(key: ChannelKey) -> str:
    """The name of the session of this key, the same on every worker."""
    told = repr((key.server, key.principal, key.session_headers, key.revision, key.capabilities, key.credential))
    return hashlib.blake2b(told.encode(), digest_size=16).hexdigest()


def _is_doubted(owner: Owner) -> bool:
    return isinstance(owner, Workflow) and owner.is_doubted
