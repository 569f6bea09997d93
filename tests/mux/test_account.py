"""What the pool did for a workflow, and why: keys compared part by part, and a timeline that is bounded."""

import pytest
from trunkline.mux.account import (
    FIRST,
    MAX_EVENTS,
    OPEN,
    PARTS,
    PER_CALL,
    Account,
    ChannelKey,
    Decision,
    Difference,
    Origin,
    differences,
    handshake_differences,
    lost,
    missed,
    nearest,
    refusal,
)
from trunkline.mux.errors import Overloaded, TimedOut
from trunkline.mux.principal import Principal
from trunkline.mux.record import Handshake

ALICE, BOB = Principal("i", "acme", "alice"), Principal("i", "acme", "bob")
KEY = ChannelKey(
    server="x",
    principal=ALICE,
    session_headers=(("x-region", "eu"), ("x-tenant", "s3cret")),
    revision="2025-11-25",
    capabilities=b'{"experimental":{"a":1}}',
    generation=1,
    credential="cred-1",
    client_info=b'{"name":"n"}',
    workflow="2b26b1df3ede",
)
CHANGED = {
    "server": ("y", ()),
    "principal": (BOB, ()),
    "generation": (2, ()),
    "credential": ("cred-2", ()),
    "session_headers": ((("x-region", "eu"), ("x-tenant", "other")), ("x-tenant",)),
    "revision": ("2025-06-18", ()),
    "capabilities": (b'{"experimental":{"a":2},"roots":{}}', ("experimental", "roots")),
    "client_info": (b'{"name":"m"}', ()),
    "workflow": ("000000000000", ()),
}


def test_every_part_of_a_key_is_compared() -> None:
    assert set(ChannelKey._fields) == set(PARTS) == set(CHANGED)


def test_a_key_differs_from_itself_in_nothing() -> None:
    assert differences(KEY, KEY._replace()) == ()


@pytest.mark.parametrize("part", PARTS)
def test_each_part_is_told_alone_and_by_names_only(part: str) -> None:
    value, names = CHANGED[part]
    other = KEY._replace(**{part: value})
    for pair in ((KEY, other), (other, KEY)):
        assert differences(*pair) == (Difference(part, names),)  # type: ignore[arg-type]


def test_what_differs_is_told_from_the_most_telling_part_on() -> None:
    other = KEY._replace(**{part: value for part, (value, _) in CHANGED.items()})
    assert tuple(difference.part for difference in differences(KEY, other)) == PARTS


def test_a_header_that_only_one_has_is_named() -> None:
    assert differences(KEY, KEY._replace(session_headers=())) == (
        Difference("session_headers", ("x-region", "x-tenant")),
    )


def test_a_capability_of_the_clients_own_words_is_not_repeated() -> None:
    one, two = KEY._replace(capabilities=b'{"\\u001b[2J":{},"s3cret":1}'), KEY._replace(capabilities=b"{}")
    assert differences(one, two) == (Difference("capabilities", ("other",)),)


def test_capabilities_that_are_no_object_differ_without_names() -> None:
    assert differences(KEY._replace(capabilities=b"7"), KEY._replace(capabilities=b"8")) == (
        Difference("capabilities"),
    )


# The nearest.


def test_nothing_is_nearest_to_nothing() -> None:
    assert nearest(KEY, ()) is None
    assert missed(KEY, ()) == FIRST


def test_a_session_with_another_server_is_nothing_like_it() -> None:
    assert missed(KEY, [KEY._replace(server="y")]) == FIRST


def test_the_nearest_has_the_server_then_the_principal_then_the_most_in_common() -> None:
    far = KEY._replace(server="y")
    anothers = KEY._replace(principal=BOB)
    own = KEY._replace(revision="2025-06-18", generation=2, credential="")
    nearer = KEY._replace(revision="2025-06-18", generation=2)
    for last, expected in (
        (far, ["server"]),
        (anothers, ["principal"]),
        (own, ["generation", "credential", "revision"]),
    ):
        candidates = [far, anothers, own][: [far, anothers, own].index(last) + 1]
        found = nearest(KEY, candidates)
        assert found is not None
        assert [difference.part for difference in found] == expected
    assert missed(KEY, [far, own, nearer, anothers]) == Decision(
        "miss", "key", differs=(Difference("generation"), Difference("revision"))
    )


def test_a_handshake_that_differs_is_told_by_its_fields() -> None:
    before = Handshake("2025-11-25", b"{}", b"{}", (("x-tenant", "a"),))
    now = Handshake("2025-06-18", b'{"clientInfo":{}}', b'{"sampling":{}}', ())
    assert handshake_differences(before, now) == (
        Difference("session_headers", ("x-tenant",)),
        Difference("revision"),
        Difference("capabilities", ("sampling",)),
    )


def test_a_refusal_names_its_limit_or_its_kind() -> None:
    assert refusal(Overloaded("too many", limit="max_inflight_per_channel")).detail == "max_inflight_per_channel"
    assert refusal(TimedOut("s3cret")) == Decision("refused", "error", "timed_out")


# The account of one workflow.


def account(now: float = 1.0) -> Account:
    return Account(1, now, "http")


def test_a_call_that_hits_leaves_one_word() -> None:
    made = account()
    assert made.call is None
    made.last = "hit"
    assert (made.call, made.events) == (OPEN, None)


def test_the_last_call_is_told_with_its_reason() -> None:
    made = account()
    made.miss(lost("aged"), 2.0)
    assert made.call == Decision("miss", "lost", "aged")
    assert made.timeline[-1] == (2.0, "reopened", "aged")
    made.miss(FIRST, 3.0)
    assert made.call == FIRST
    assert len(made.timeline) == 2
    made.refuse(TimedOut("later"))
    assert made.call == Decision("refused", "error", "timed_out")
    made.last = "bypass"
    assert made.call == PER_CALL
    made.last = "hit"
    assert made.call == OPEN


def test_a_timeline_begins_with_how_it_began() -> None:
    made = account(7.0)
    assert made.timeline == ((7.0, "created", "http"),)
    made.origin = Origin("idle", "2b26b1df3ede")
    assert made.timeline == ((7.0, "reset", "http"),)
    made.note(8.0, "attached")
    made.take_over(9.0)
    assert made.timeline == ((9.0, "taken_over", "http"),)


def test_what_repeats_itself_is_one_entry_of_the_last_time() -> None:
    made = account()
    for now in (2.0, 3.0, 4.0):
        made.note(now, "resumed")
    made.note(5.0, "moved", "sse")
    assert made.timeline[1:] == ((4.0, "resumed", ""), (5.0, "moved", "sse"))


def test_a_loss_is_told_before_what_it_led_to() -> None:
    for before in ([], [(2.0, "resumed", "")]):
        made = account()
        for _, what, detail in before:
            made.note(2.0, what, detail)
        made.miss(lost("session_lost"), 3.0)
        made.lose(3.5, "session_lost", again=True)
        made.lose(4.0, "aged", again=False)
        made.lose(5.0, "session_lost", again=True)
        assert [event[1:] for event in made.timeline[1 + len(before) :]] == [
            ("lost", "session_lost"),
            ("reopened", "session_lost"),
            ("lost", "aged"),
            ("lost", "session_lost"),
        ]


def test_g10_a_timeline_is_bounded_and_keeps_the_beginning_and_the_newest() -> None:
    made = account(0.0)
    for turn in range(100):
        made.note(float(turn), "cut" if turn % 2 else "resumed")
        assert len(made.timeline) <= MAX_EVENTS
    assert len(made.timeline) == MAX_EVENTS
    assert made.timeline[0] == (0.0, "created", "http")
    assert [event.at for event in made.timeline[1:]] == [float(turn) for turn in range(85, 100)]
