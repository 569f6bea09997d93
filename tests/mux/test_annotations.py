"""Which tools may be called again: by lists, pages, changes and limits; and a model that random servers are held to."""

import json
from collections.abc import Callable
from contextlib import suppress
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule
from trunkline.mux import annotations
from trunkline.mux.annotations import Annotations, Listing, Trust
from trunkline.mux.envelope import Envelope, parse
from trunkline.mux.errors import ParseError

READ: dict[str, Any] = {"readOnlyHint": True}


def request(method: str, **params: Any) -> Envelope:
    return parse(json.dumps({"jsonrpc": "2.0", "id": 1, "method": method, "params": params}).encode(), limit=100_000)


def call(name: Any, **params: Any) -> Envelope:
    return request("tools/call", name=name, arguments={}, **params)


def page(*tools: dict[str, Any], following: str | None = None) -> bytes:
    result = {"tools": list(tools), **({} if following is None else {"nextCursor": following})}
    return json.dumps({"jsonrpc": "2.0", "id": 1, "result": result}).encode()


def tool(name: str, **hints: Any) -> dict[str, Any]:
    return {"name": name, "inputSchema": {}, "annotations": {"title": "T", **hints}}


def ask(known: Annotations, scope: str = "s", **params: Any) -> Listing:
    listing = known.ask(scope, request("tools/list", **params))
    assert listing is not None
    return listing


def told(*tools: dict[str, Any]) -> Annotations:
    """What is known after one list."""
    known = Annotations()
    known.learn("s", ask(known), page(*tools))
    return known


HINTS: list[tuple[dict[str, Any], bool]] = [
    ({}, False),
    ({"readOnlyHint": True}, True),
    ({"idempotentHint": True}, True),
    ({"readOnlyHint": False, "idempotentHint": True}, True),
    ({"readOnlyHint": True, "destructiveHint": False}, True),
    ({"idempotentHint": True, "destructiveHint": True}, False),
    ({"readOnlyHint": True, "destructiveHint": True}, False),
    ({"readOnlyHint": False, "idempotentHint": False}, False),
    ({"destructiveHint": False}, False),
    ({"readOnlyHint": "true"}, False),
    ({"readOnlyHint": 1, "idempotentHint": None}, False),
]


@pytest.mark.parametrize(("hints", "may"), HINTS)
def test_g6_a_tool_may_be_called_again_by_its_own_hints(hints: dict[str, Any], may: bool) -> None:
    assert told(tool("x", **hints)).allow("s", call("x")) is may


def test_g6_of_what_was_not_listed_nothing_is_known() -> None:
    known = told(tool("x", **READ), {"name": "bare"})
    assert known.allow("s", call("x"))
    for other in (call("y"), call("bare"), call("X"), call(1), call(None), request("tools/call"), call("x", task={})):
        assert not known.allow("s", other)
    assert not known.allow("s", request("resources/read", name="x"))
    assert not known.allow("other", call("x"))
    assert not Annotations().allow("s", call("x"))


def test_a_name_that_is_listed_twice_must_be_repeatable_both_times() -> None:
    assert not told(tool("x", **READ), tool("x")).allow("s", call("x"))
    assert not told(tool("x"), tool("x", **READ)).allow("s", call("x"))


def test_a_complete_list_replaces_the_one_before() -> None:
    known = told(tool("x", **READ), tool("y", **READ))
    known.learn("s", ask(known), page(tool("y"), tool("z", **READ)))
    assert [known.allow("s", call(name)) for name in "xyz"] == [False, False, True]


def test_a_list_of_pages_counts_when_it_is_complete() -> None:
    known = told(tool("old", **READ))
    known.learn("s", ask(known), page(tool("x", **READ), tool("twice", **READ), following="2"))
    assert known.allow("s", call("old"))
    assert not known.allow("s", call("x"))
    known.learn("s", ask(known, cursor="2"), page(tool("y", **READ), following="3"))
    known.learn("s", ask(known, cursor="3"), page(tool("twice")))
    assert [known.allow("s", call(name)) for name in ("old", "x", "y", "twice")] == [False, True, True, False]


def test_a_page_without_those_before_it_says_nothing() -> None:
    known = told(tool("x", **READ))
    known.learn("s", ask(known, cursor="2"), page(tool("y", **READ)))
    assert known.allow("s", call("x"))
    assert not known.allow("s", call("y"))
    assert known.ask("s", request("tools/list", cursor=2)) is None


def test_only_so_many_lists_are_under_way_at_once() -> None:
    known = Annotations()
    for n in range(annotations.MAX_LISTINGS + 1):
        known.learn("s", ask(known), page(tool(f"x{n}", **READ), following=str(n)))
    known.learn("s", ask(known, cursor="0"), page())
    assert not known.allow("s", call("x0")), "it was given up"
    known.learn("s", ask(known, cursor="1"), page())
    assert known.allow("s", call("x1"))


def test_when_tools_have_changed_nothing_is_known_nor_told_by_a_list_that_was_under_way() -> None:
    known = told(tool("x", **READ))
    early, part = ask(known), ask(known)
    known.learn("s", part, page(tool("x", **READ), following="2"))
    known.change("s")
    assert not known.allow("s", call("x"))
    known.learn("s", early, page(tool("x", **READ)))
    known.learn("s", ask(known, cursor="2"), page())
    assert not known.allow("s", call("x"))
    known.learn("s", ask(known), page(tool("x", **READ)))
    assert known.allow("s", call("x"))
    known.change("never asked")
    assert repr(known) == "Annotations(1 scopes, 2 held)"


BAD = [
    b"{",
    b'{"jsonrpc":"2.0","id":1,"result":{}}',
    b'{"jsonrpc":"2.0","id":1,"result":{"tools":7}}',
    b'{"jsonrpc":"2.0","id":1,"result":{"tools":[{"name":7}]}}',
    b'{"jsonrpc":"2.0","id":1,"result":{"tools":[],"nextCursor":7}}',
    b'{"jsonrpc":"2.0","id":1,"result":{"tools":[{"name":"x","annotations":"?"}]}}',
    b'{"result":{"tools":[{"name":"x","annotations":{"readOnlyHint":' + b"[" * 5000 + b"]" * 5000 + b"}}]}}",
    page(following="c" * 300),
    page(tool("x", **READ), *(tool(f"t{n}", **READ) for n in range(annotations.MAX_TOOLS))),
]


@pytest.mark.parametrize("answer", BAD, ids=range(len(BAD)))
def test_a_list_that_cannot_be_read_or_is_too_long_leaves_nothing_known(answer: bytes) -> None:
    known = told(tool("x", **READ))
    known.learn("s", ask(known), answer)
    assert not known.allow("s", call("x"))
    assert known.held == 1


def nearly_too_deep(method: str) -> Envelope:
    """A request that was read, and of which only the first level can be read further down the stack."""
    for depth in range(1000, 0, -1):
        nested = b"[" * depth + b"]" * depth
        text = b'{"jsonrpc":"2.0","id":1,"method":"%b","params":{"name":"x","a":%b}}' % (method.encode(), nested)
        with suppress(ParseError):
            return parse(text, limit=100_000)
    raise AssertionError("nothing is read")


def below(frames: int, read: Callable[[], object]) -> object:
    return read() if not frames else below(frames - 1, read)


def test_g6_what_is_nested_nearly_too_deeply_is_nothing_to_learn_from_and_not_called_again() -> None:
    known = told(tool("x", readOnlyHint=True))
    if below(30, lambda: known.ask("s", nearly_too_deep("tools/list"))) is not None:
        pytest.skip("this Python has the same room for JSON however deep its own stack is")
    message = nearly_too_deep("tools/call")
    assert below(30, lambda: known.allow("s", message)) is False


def test_a_tool_with_a_name_without_end_is_not_remembered() -> None:
    known = told(tool("x" * 300, **READ), tool("y", **READ))
    assert not known.allow("s", call("x" * 300))
    assert known.allow("s", call("y"))


def test_g10_over_the_limit_the_scope_that_was_unused_for_longest_is_forgotten() -> None:
    known = Annotations(limit=6)
    for scope in "abc":
        known.learn(scope, ask(known, scope), page(tool("x", **READ)))
    assert known.allow("a", call("x"))
    late = ask(known, "d")
    assert [known.allow(scope, call("x")) for scope in "abc"] == [True, False, True]
    known.learn("d", late, page(*(tool(f"x{n}", **READ) for n in range(9))))
    assert (known.held, known.allow("d", call("x1"))) == (0, False)
    known.learn("d", late, page(tool("x", **READ)))
    assert known.held == 0, "what was forgotten is not told of by a list that was under way"


def test_what_a_workflow_knows_ends_with_it_unless_it_shares_it() -> None:
    known = Annotations()
    shared = [Trust(known, "shared", is_own=False) for _ in range(2)]
    own = Trust(known, "own", is_own=True)
    for trust in (shared[0], own):
        listing = trust.ask(request("tools/list"))
        assert listing is not None
        trust.learn(listing, page(tool("x", **READ)))
        assert trust.allows(call("x"))
        trust.end()
    assert shared[1].allows(call("x"))
    assert not own.allows(call("x"))
    shared[1].change()
    assert not shared[0].allows(call("x"))
    own.end()


NAMES = st.sampled_from("abc")
TOOLS = st.lists(st.tuples(NAMES, st.booleans()), max_size=4)


class Server(RuleBasedStateMachine):
    """A server with two scopes, whose tools change, and clients that list them in pages, interleaved."""

    def __init__(self) -> None:
        super().__init__()
        self.known = Annotations(limit=40)
        self.tools: dict[str, dict[str, bool]] = {"p": {}, "q": {}}
        self.sure: dict[str, bool] = {"p": False, "q": False}
        """Whether a list was completed since the last change."""
        self.asked: list[tuple[str, Listing, dict[str, bool]]] = []

    @rule(scope=st.sampled_from("pq"), tools=TOOLS)
    def change(self, scope: str, tools: list[tuple[str, bool]]) -> None:
        self.tools[scope] = dict(tools)
        self.sure[scope] = False
        self.known.change(scope)

    @rule(scope=st.sampled_from("pq"))
    def list_tools(self, scope: str) -> None:
        self.asked.append((scope, ask(self.known, scope), self.tools[scope]))

    @rule(data=st.data())
    def answer(self, data: st.DataObject) -> None:
        if self.asked:
            at = data.draw(st.integers(0, len(self.asked) - 1))
            scope, listing, tools = self.asked.pop(at)
            listed = [tool(name, readOnlyHint=may) for name, may in tools.items()]
            first = data.draw(st.integers(0, len(listed)))
            if first < len(listed):
                self.known.learn(scope, listing, page(*listed[:first], following="x"))
                self.known.learn(scope, Listing(listing.epoch, "x"), page(*listed[first:]))
            else:
                self.known.learn(scope, listing, page(*listed))
            self.sure[scope] = tools is self.tools[scope]

    @invariant()
    def nothing_is_called_again_that_the_server_does_not_call_repeatable_now(self) -> None:
        for scope, tools in self.tools.items():
            for name in "abc":
                allowed = self.known.allow(scope, call(name))
                assert not allowed or tools.get(name, False)
                assert allowed or not (self.sure[scope] and tools.get(name, False))

    @invariant()
    def what_is_held_is_counted(self) -> None:
        assert self.known.held == sum(known.size for known in self.known._scopes.values()) <= 40


TestServer = Server.TestCase


@given(st.binary(max_size=200))
def test_no_answer_raises(answer: bytes) -> None:
    known = told(tool("x", **READ))
    known.learn("s", ask(known), answer)
    assert isinstance(known.allow("s", call("x")), bool)
