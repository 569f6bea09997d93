"""What workflows share of an upstream session: masks, counted subscriptions, filtered logs, and who is told."""

import json
import sys
import tracemalloc
from types import FrameType

import pytest
from trunkline.mux.envelope import Envelope, parse
from trunkline.mux.errors import Overloaded
from trunkline.mux.limits import MAX_BODY_BYTES
from trunkline.mux.record import Handshake, Wish
from trunkline.mux.sharing import LEVELS, Wishes, shared_handshake, shared_result

ALICE, BOB = "alice", "bob"
BOTH = (ALICE, BOB)


def told(method: str, **params: object) -> Envelope:
    text = json.dumps({"jsonrpc": "2.0", "method": method, "params": params}).encode()
    return parse(text, limit=MAX_BODY_BYTES)


def handshake(capabilities: dict[str, object], **params: object) -> Handshake:
    return Handshake("2025-11-25", json.dumps(params).encode(), json.dumps(capabilities).encode(), (("x", "y"),))


def test_l15_what_cannot_be_attributed_is_masked_and_the_name_is_our_own() -> None:
    client = {"sampling": {}, "roots": {}, "elicitation": {}, "tasks": {}, "experimental": {"a": 1}}
    shared = shared_handshake(handshake(client, clientInfo={"name": "secret"}))
    assert json.loads(shared.capabilities) == {"experimental": {"a": 1}}
    params = json.loads(shared.params)
    assert params["capabilities"] == {"experimental": {"a": 1}}
    assert params["protocolVersion"] == "2025-11-25"
    assert params["clientInfo"]["name"] == "trunkline"
    assert shared.session_headers == (("x", "y"),)


def test_clients_that_differ_only_in_what_is_masked_share() -> None:
    one = shared_handshake(handshake({"roots": {"listChanged": True}, "experimental": {}}))
    two = shared_handshake(handshake({"experimental": {}, "sampling": {}}))
    assert one.capabilities == two.capabilities


def test_l11_only_what_can_be_kept_is_promised() -> None:
    result = b'{"protocolVersion":"x","capabilities":{"tools":{},"tasks":{"list":{}}},"unknown":1e400}'
    assert shared_result(result) == b'{"protocolVersion":"x","capabilities":{"tools":{}},"unknown":1e400}'
    for untouched in (b'{"capabilities":{"tools":{}}}', b"{}", b'{"capabilities":7}'):
        assert shared_result(untouched) == untouched


def test_g9_what_a_server_tells_of_a_resource_is_held_against_each_subscription_once() -> None:
    """And not for each workflow: a hundred of them made one message of a server cost milliseconds."""
    wishes, owners, calls = Wishes[int](), range(50), 0
    for owner in owners:
        wishes.subscribe(owner, f"dir://{owner:02}/")

    def count(frame: FrameType, event: str, argument: object) -> None:
        nonlocal calls
        calls += event == "call"

    message = told("notifications/resources/updated", uri="dir://07/file")
    sys.setprofile(count)
    try:
        heard = wishes.recipients(message, None, owners)
    finally:
        sys.setprofile(None)
    assert heard == [7]
    assert calls < 5 * len(owners)


def test_r5_subscriptions_are_counted() -> None:
    wishes: Wishes[str] = Wishes()
    assert wishes.subscribe(ALICE, "r")
    assert wishes.subscribe(BOB, "r"), "until the server has accepted it, everybody asks"
    wishes.accept("r")
    assert not wishes.subscribe(BOB, "r")
    assert wishes.subscriptions == ["r"]
    assert not wishes.unsubscribe(ALICE, "r")
    assert wishes.unsubscribe(BOB, "r")
    assert wishes.subscriptions == []
    assert wishes.unsubscribe(BOB, "r"), "what is unknown is the server's to refuse"
    wishes.accept("r")
    assert wishes.subscriptions == [], "nobody wants it any longer"


def test_r5_a_refusal_takes_back_what_was_asked_by_that_request_alone() -> None:
    wishes: Wishes[str] = Wishes()
    first, second = wishes.subscribe(ALICE, "r"), wishes.subscribe(ALICE, "r")
    assert first is not None
    assert second is not None
    wishes.accept("r")
    assert not wishes.refuse(ALICE, "r", second)
    assert wishes.of(ALICE).subscriptions == ("r",)
    assert wishes.unsubscribe(ALICE, "r")
    again = wishes.subscribe(ALICE, "r")
    assert again is not None
    assert not wishes.refuse(ALICE, "r", first), "she wants it anew since"
    wishes.accept("r")
    assert wishes.of(ALICE).subscriptions == ("r",)


def test_r5_a_resource_that_nobody_wants_after_a_refusal_is_unsubscribed() -> None:
    wishes: Wishes[str] = Wishes()
    asked = {owner: wishes.subscribe(owner, "r") for owner in BOTH}
    wishes.accept("r")
    assert not wishes.unsubscribe(ALICE, "r")
    assert asked[BOB] is not None
    assert wishes.refuse(BOB, "r", asked[BOB]), "the server watches it, for one who has left"
    assert wishes.subscriptions == []


def test_r5_a_workflow_that_ends_leaves_its_subscriptions() -> None:
    wishes: Wishes[str] = Wishes()
    for owner, uri in ((ALICE, "a"), (ALICE, "both"), (BOB, "both")):
        wishes.subscribe(owner, uri)
        wishes.accept(uri)
    assert wishes.leave(ALICE) == ["a"]
    assert wishes.subscriptions == ["both"]
    assert wishes.leave(ALICE) == []


@pytest.mark.parametrize(
    ("uri", "due"), [("file:///a", [ALICE]), ("file:///a/b", [ALICE, BOB]), ("file:///x", []), (None, [])]
)
def test_r5_updates_go_to_those_who_watch_it_or_what_is_above_it(uri: str | None, due: list[str]) -> None:
    wishes: Wishes[str] = Wishes()
    wishes.subscribe(ALICE, "file:///a")
    wishes.subscribe(BOB, "file:///a/b")
    message = told("notifications/resources/updated", **({"uri": uri} if uri else {}))
    assert wishes.recipients(message, None, BOTH) == (due or None)


def test_r6_the_server_hears_the_most_verbose_level_that_is_wanted() -> None:
    wishes: Wishes[str] = Wishes()
    assert wishes.set_level(ALICE, "error") == "error"
    assert wishes.set_level(ALICE, "error") is None
    assert wishes.set_level(BOB, "debug") == "debug"
    assert wishes.set_level(ALICE, "critical") is None
    assert wishes.level == "debug"


def test_r6_a_workflow_that_named_no_level_goes_on_to_hear_the_usual() -> None:
    wishes: Wishes[str] = Wishes()
    for owner in BOTH:
        assert wishes.join(owner) == (None, [])
    assert wishes.set_level(ALICE, "emergency") == "info"


def test_r6_one_that_comes_later_and_names_no_level_hears_the_usual_too() -> None:
    wishes: Wishes[str] = Wishes()
    wishes.join(ALICE)
    assert wishes.set_level(ALICE, "error") == "error"
    assert wishes.join(BOB) == ("info", [])
    assert wishes.join("carol") == (None, []), "the server knows"


def test_what_a_workflow_wants_is_known_where_it_comes_back() -> None:
    wishes: Wishes[str] = Wishes()
    wishes.join(ALICE)
    assert wishes.of(ALICE) == Wish()
    for uri in ("b", "a", "refused"):
        wishes.subscribe(ALICE, uri)
    for uri in ("a", "b"):
        wishes.accept(uri)
    wishes.subscribe(BOB, "a")
    wishes.set_level(ALICE, "error")
    assert wishes.of(ALICE) == Wish("error", ("a", "b"))
    assert wishes.of(BOB) == Wish("", ("a",))
    successor: Wishes[str] = Wishes()
    assert successor.join(BOB, wishes.of(BOB)) == (None, ["a"])
    assert successor.join(ALICE, wishes.of(ALICE)) == ("info", ["b"])
    assert successor.subscriptions == ["a", "b"]
    assert [successor.of(owner) for owner in BOTH] == [wishes.of(owner) for owner in BOTH]


def test_g10_what_comes_back_and_exceeds_a_bound_is_left_out() -> None:
    wishes: Wishes[str] = Wishes(max_subscriptions=1)
    assert wishes.join(ALICE, Wish("odd", ("a", "b"))) == (None, ["a"])
    assert wishes.of(ALICE) == Wish("", ("a",))


def test_r6_each_workflow_hears_from_its_own_level_on() -> None:
    wishes: Wishes[str] = Wishes()
    log = {level: told("notifications/message", level=level, data=1) for level in LEVELS}
    assert [wishes.recipients(one, ALICE, BOTH) for one in log.values()] == [[ALICE]] * len(LEVELS)
    wishes.set_level(ALICE, "error")
    wishes.set_level(BOB, "debug")
    heard = [level for level, one in log.items() if wishes.recipients(one, ALICE, BOTH)]
    assert heard == ["error", "critical", "alert", "emergency"]
    assert [level for level, one in log.items() if wishes.recipients(one, BOB, BOTH)] == list(LEVELS)
    assert wishes.recipients(told("notifications/message", level="odd"), ALICE, BOTH) == [ALICE]
    wishes.leave(ALICE)
    assert not wishes.recipients(log["debug"], ALICE, BOTH)
    assert wishes.recipients(log["info"], ALICE, BOTH) == [ALICE]


def test_r1_what_cannot_be_attributed_is_told_to_nobody() -> None:
    wishes: Wishes[str] = Wishes()
    for method in ("notifications/message", "notifications/unknown", "notifications/tasks/status"):
        assert wishes.recipients(told(method), None, BOTH) is None
        assert wishes.recipients(told(method), BOB, BOTH) == [BOB]
        assert wishes.recipients(told(method), None, (ALICE,)) == [ALICE]


@pytest.mark.parametrize("what", ["tools", "prompts", "resources"])
def test_lists_that_changed_are_told_to_everybody(what: str) -> None:
    assert Wishes[str]().recipients(told(f"notifications/{what}/list_changed"), None, BOTH) == BOTH


@pytest.mark.parametrize(
    ("uri", "is_heard"),
    [("mem://1", True), ("mem://1/x", True), ("mem://1?q", True), ("mem://1#f", True), ("mem://10", False)],
)
def test_r5_what_begins_alike_is_not_below(uri: str, is_heard: bool) -> None:
    wishes: Wishes[str] = Wishes()
    wishes.subscribe(ALICE, "mem://1")
    wishes.subscribe(BOB, "dir://")
    assert (wishes.recipients(told("notifications/resources/updated", uri=uri), None, BOTH) == [ALICE]) is is_heard
    assert wishes.recipients(told("notifications/resources/updated", uri="dir://x"), None, BOTH) == [BOB]


def test_g9_a_long_uri_is_not_copied_for_each_that_is_watched() -> None:
    """Of 16 MiB that took milliseconds, for each subscription of each workflow that shares the session."""
    wishes: Wishes[str] = Wishes()
    for owner in BOTH:
        wishes.subscribe(owner, "mem://")
    message = told("notifications/resources/updated", uri="mem://" + "x" * 1_000_000)
    tracemalloc.start()
    try:
        assert wishes.recipients(message, None, BOTH) == [ALICE, BOB]
        assert tracemalloc.get_traced_memory()[1] < 1_500_000, "it is read, and no more"
    finally:
        tracemalloc.stop()
    assert not wishes.recipients(told("notifications/resources/updated", uri=""), None, BOTH)
    wishes.subscribe(ALICE, "")
    assert wishes.recipients(told("notifications/resources/updated", uri=""), None, BOTH) == [ALICE]
    assert not wishes.recipients(told("notifications/resources/updated", uri="/x"), None, BOTH)


def test_g10_only_so_many_subscriptions_are_held() -> None:
    wishes: Wishes[str] = Wishes(2)
    for uri in ("a", "b", "a"):
        wishes.subscribe(ALICE, uri)
    with pytest.raises(Overloaded):
        wishes.subscribe(BOB, "c")
    wishes.subscribe(BOB, "b")


def test_r6_a_workflow_hears_from_its_own_level_on_whatever_the_server_has() -> None:
    wishes: Wishes[str] = Wishes()
    for owner in BOTH:
        wishes.join(owner)
    wishes.set_level(ALICE, "error")
    wishes.set_level(BOB, "debug")
    wishes.refuse_level(BOB, "debug")
    message = told("notifications/message", level="info")
    assert [wishes.recipients(message, owner, BOTH) for owner in BOTH] == [(), [BOB]]


def test_r6_a_level_that_was_refused_is_told_again() -> None:
    wishes: Wishes[str] = Wishes()
    assert wishes.set_level(ALICE, "debug") == "debug"
    wishes.refuse_level(ALICE, "debug")
    assert wishes.set_level(ALICE, "debug") == "debug"


@pytest.mark.parametrize(("before", "hears"), [("", True), ("error", False)])
def test_r6_a_level_that_was_refused_filters_nothing(before: str, hears: bool) -> None:
    wishes: Wishes[str] = Wishes()
    wishes.join(ALICE)
    for level in filter(None, [before, "critical"]):
        wishes.set_level(ALICE, level)
    wishes.refuse_level(ALICE, "critical")
    told_of = [
        wishes.recipients(told("notifications/message", level=level), ALICE, [ALICE]) for level in ("info", "error")
    ]
    assert told_of == [[ALICE] if hears else (), [ALICE]]


def test_r6_the_refusal_of_a_level_leaves_the_one_that_was_wished_for_since() -> None:
    wishes: Wishes[str] = Wishes()
    wishes.set_level(ALICE, "debug")
    wishes.set_level(ALICE, "error")
    wishes.refuse_level(ALICE, "debug")
    assert wishes.of(ALICE).level == "error"


@pytest.mark.parametrize("order", [("critical", "error"), ("error", "critical")])
def test_r6_of_levels_that_were_all_refused_none_filters(order: tuple[str, str]) -> None:
    wishes: Wishes[str] = Wishes()
    wishes.set_level(ALICE, "critical")
    wishes.set_level(ALICE, "error")
    for level in order:
        wishes.refuse_level(ALICE, level)
    assert wishes.of(ALICE).level == ""


def test_g10_a_level_that_is_set_again_and_again_is_kept_once() -> None:
    wishes: Wishes[str] = Wishes()
    for _ in range(100):
        wishes.set_level(ALICE, "error")
    wishes.refuse_level(ALICE, "error")
    assert wishes.of(ALICE).level == ""


def test_r6_the_refusal_of_a_level_leaves_the_newest_that_was_accepted() -> None:
    wishes: Wishes[str] = Wishes()
    for level in ("debug", "info", "error"):
        wishes.set_level(ALICE, level)
    wishes.accept_level(ALICE, "info")
    wishes.refuse_level(ALICE, "error")
    assert wishes.of(ALICE).level == "info"
    wishes.refuse_level(ALICE, "debug")
    assert wishes.of(ALICE).level == "info"
    wishes.leave(ALICE)
    wishes.accept_level(ALICE, "info")
    assert wishes.of(ALICE).level == ""
