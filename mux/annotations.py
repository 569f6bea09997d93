"""What servers say of their tools, where their word is trusted: which may be called a second time (guarantee G6).

Pure. A scope is where a list of tools holds: one workflow's session, or the sessions that the workflows of a principal
share. What is known of a scope is what the last complete list said that passed through it, until the server says that
its tools have changed. A tool may be called again if it is read-only or idempotent by its own hints, and is not
declared destructive; of what was not listed, nothing is known.
"""

import itertools
from collections import OrderedDict
from collections.abc import Hashable
from typing import Any, Final, NamedTuple

import msgspec

from . import envelope as wire_format
from .envelope import Envelope, Members
from .errors import InvalidMessage

MAX_HELD: Final = 100_000
"""Tools that are remembered over all scopes; the scope that was unused for longest is forgotten first."""

MAX_TOOLS: Final = 4_096
"""Tools of one list; of a longer one nothing is remembered."""

MAX_NAME: Final = 256
"""A tool with a longer name is not remembered, nor a list that goes on at a longer cursor."""

MAX_LISTINGS: Final = 4
"""Lists of one scope that are under way, page by page; the oldest is given up."""


class Listing(NamedTuple):
    """A `tools/list` that was asked for: what was known then, and from where on it continues another."""

    epoch: int
    cursor: str | None


class _Hints(msgspec.Struct, rename="camel"):
    read_only_hint: Any = None
    idempotent_hint: Any = None
    destructive_hint: Any = None


class _Tool(msgspec.Struct):
    name: str
    annotations: _Hints | None = None


class _Page(msgspec.Struct, rename="camel"):
    tools: list[_Tool]
    next_cursor: str | None = None


class _Answer(msgspec.Struct):
    result: _Page


class _Known:
    """What is known of one scope."""

    __slots__ = ("counted", "epoch", "pages", "repeatable")

    def __init__(self, epoch: int) -> None:
        self.epoch = epoch
        self.counted = 0
        """Its part of what is held."""
        self.repeatable: frozenset[str] = frozenset()
        self.pages: dict[str, dict[str, bool]] = {}
        """Lists that are not complete, by the cursor of the page that is missing: each tool, and whether it may."""

    @property
    def size(self) -> int:
        return 1 + len(self.repeatable) + sum(map(len, self.pages.values()))


class Annotations:
    """The tools of all scopes that may be called again; at most `limit` are remembered."""

    def __init__(self, limit: int = MAX_HELD) -> None:
        self._limit = limit
        self._epochs = itertools.count(1)
        self._scopes: OrderedDict[Hashable, _Known] = OrderedDict()
        self.held = 0
        """What is remembered: tools, and scopes."""

    def __repr__(self) -> str:
        return f"Annotations({len(self._scopes)} scopes, {self.held} held)"

    def ask(self, scope: Hashable, message: Envelope) -> Listing | None:
        """A `tools/list` goes to the server; None where nothing can be learned from its answer."""
        params = _params(message)
        if params is None:
            return None
        cursor = params.get("cursor")
        text = wire_format.string_of(cursor)
        if cursor is not None and text is None:
            return None
        known = self._scopes.get(scope)
        if known is None:
            known = self._keep(scope, _Known(next(self._epochs)))
        return Listing(known.epoch, text)

    def learn(self, scope: Hashable, listing: Listing, answer: bytes) -> None:
        """Its answer has come; one that was asked for before the tools changed says nothing."""
        known = self._scopes.get(scope)
        if known is None or known.epoch != listing.epoch:
            return
        try:
            page = msgspec.json.decode(answer, type=_Answer).result
        except (msgspec.DecodeError, RecursionError):
            self.change(scope)
            return
        listed = {} if listing.cursor is None else known.pages.pop(listing.cursor, None)
        if listed is None:
            return
        for tool in page.tools:
            if len(tool.name) <= MAX_NAME:
                listed[tool.name] = _is_repeatable(tool) and listed.get(tool.name, True)
        following = page.next_cursor
        if len(listed) > MAX_TOOLS or (following is not None and len(following) > MAX_NAME):
            self.change(scope)
            return
        if following is None:
            known.repeatable = frozenset(name for name, may in listed.items() if may)
        else:
            known.pages.pop(following, None)
            known.pages[following] = listed
            if len(known.pages) > MAX_LISTINGS:
                del known.pages[next(iter(known.pages))]
        self._keep(scope, known)

    def change(self, scope: Hashable) -> None:
        """The server's tools have changed: nothing is known of them, and no list that is under way tells."""
        if scope in self._scopes:
            self._keep(scope, _Known(next(self._epochs)))

    def forget(self, scope: Hashable) -> None:
        """The scope has ended."""
        known = self._scopes.pop(scope, None)
        if known is not None:
            self.held -= known.counted

    def allow(self, scope: Hashable, message: Envelope) -> bool:
        """True where this request may be sent a second time, although it may have run. A task is begun only once."""
        known = self._scopes.get(scope)
        if known is None or message.method != "tools/call":
            return False
        self._scopes.move_to_end(scope)
        params = _params(message) or {}
        return "task" not in params and wire_format.string_of(params.get("name")) in known.repeatable

    def _keep(self, scope: Hashable, known: _Known) -> _Known:
        """Remember this of a scope, and forget others where it is too much."""
        self.forget(scope)
        self._scopes[scope] = known
        known.counted = known.size
        self.held += known.counted
        while self.held > self._limit:
            self.forget(next(iter(self._scopes)))
        return known


class Trust:
    """What one workflow may rely on: its part of `annotations`. With `is_own`, its scope ends with it."""

    def __init__(self, annotations: Annotations, scope: Hashable, *, is_own: bool) -> None:
        self._annotations = annotations
        self._scope = scope
        self._is_own = is_own

    def ask(self, message: Envelope) -> Listing | None:
        """See `Annotations.ask`."""
        return self._annotations.ask(self._scope, message)

    def learn(self, listing: Listing, answer: bytes) -> None:
        """See `Annotations.learn`."""
        self._annotations.learn(self._scope, listing, answer)

    def change(self) -> None:
        """See `Annotations.change`."""
        self._annotations.change(self._scope)

    def allows(self, message: Envelope) -> bool:
        """See `Annotations.allow`."""
        return self._annotations.allow(self._scope, message)

    def end(self) -> None:
        """The workflow has ended."""
        if self._is_own:
            self._annotations.forget(self._scope)


def _is_repeatable(tool: _Tool) -> bool:
    hints = tool.annotations
    if hints is None or hints.destructive_hint is True:
        return False
    return hints.read_only_hint is True or hints.idempotent_hint is True


def _params(message: Envelope) -> Members | None:
    """The first level of `params`; None where they cannot be read, which the server may read all the same."""
    try:
        return message.params() or {}
    except InvalidMessage:
        return None
