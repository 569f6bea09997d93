"""Principals take turns: whatever one of them sends, another waits for at most one message of each."""

from itertools import groupby

import pytest
from harness.muxing import ALICE, BOB, CAROL
from hypothesis import given
from hypothesis import strategies as st
from trunkline.mux.errors import Overloaded
from trunkline.mux.fairness import MESSAGES_PER_ROUND, Turnstile
from trunkline.mux.principal import Principal

PRINCIPALS = {principal.subject: principal for principal in (ALICE, BOB, CAROL)}


def turnstile(per_round: int = 1, max_waiting: int = 100) -> Turnstile[str]:
    return Turnstile(per_round=per_round, max_waiting=max_waiting)


def test_a_message_passes_at_once_while_the_round_has_room() -> None:
    at = turnstile(per_round=2)
    assert [at.pass_at_once() for _ in range(3)] == [True, True, False]
    assert not at.is_fresh
    assert at.begin_round() == []
    assert at.is_fresh
    assert at.pass_at_once()


def test_a_flood_is_overtaken_by_everybody_else() -> None:
    at = turnstile()
    for n in range(50):
        at.wait(ALICE, f"alice {n}")
    at.wait(BOB, "bob 0")
    at.wait(CAROL, "carol 0")
    at.wait(BOB, "bob 1")
    assert [at.begin_round() for _ in range(5)] == [["alice 0"], ["bob 0"], ["carol 0"], ["alice 1"], ["bob 1"]]
    assert repr(at) == "Turnstile(48 of 1 principals wait)"


def test_nobody_passes_those_who_wait() -> None:
    at = turnstile(per_round=2)
    at.wait(ALICE, "first")
    assert at.begin_round() == ["first"]
    assert not at.pass_at_once(), "what comes in the round in which another goes on comes after it"
    at.wait(ALICE, "second")
    assert at.begin_round() == ["second"]
    assert at.begin_round() == []
    assert at.pass_at_once()


def test_what_comes_in_order_takes_what_those_who_waited_leave_of_a_round() -> None:
    at = turnstile(per_round=3)
    at.wait(ALICE, "first")
    assert at.begin_round() == ["first"]
    assert [at.pass_at_once(in_order=True) for _ in range(3)] == [True, True, False]
    assert at.begin_round() == []
    assert [at.pass_at_once(in_order=True) for _ in range(4)] == [True, True, True, False]
    at.wait(ALICE, "next")
    at.wait(BOB, "another")
    at.wait(ALICE, "last")
    assert at.begin_round() == ["next", "another", "last"]
    assert not at.pass_at_once(in_order=True), "the round is used up"


def test_g10_only_so_many_of_one_principal_wait() -> None:
    at = turnstile(max_waiting=2)
    for name in ("1", "2"):
        at.wait(ALICE, name)
    with pytest.raises(Overloaded) as refused:
        at.wait(ALICE, "3")
    assert refused.value.limit == "max_waiting"
    at.wait(BOB, "bob")
    assert len(at) == 3


def test_who_has_gone_takes_no_turn() -> None:
    at = turnstile(per_round=4)
    for name in ("1", "2"):
        at.wait(ALICE, name)
    at.wait(BOB, "bob")
    for principal, name in ((ALICE, "1"), (ALICE, "1"), (BOB, "bob"), (BOB, "bob"), (CAROL, "never")):
        at.withdraw(principal, name)
    assert at.begin_round() == ["2"]
    assert len(at) == 0


@given(
    st.lists(st.one_of(st.sampled_from([ALICE, BOB, CAROL]), st.none(), st.integers(0, 9)), min_size=30, max_size=200),
    st.sampled_from([1, 2, MESSAGES_PER_ROUND]),
)
def test_everybody_keeps_its_order_and_gets_its_share(steps: list[Principal | int | None], per_round: int) -> None:
    """Principals send, or go (a number); None begins a round: who waits is overtaken once by each other at most."""
    at: Turnstile[tuple[str, int]] = Turnstile(per_round=per_round)
    sent: dict[str, int] = {}
    gone: list[tuple[str, int]] = []
    waiting: list[tuple[str, int]] = []
    passed: dict[str, list[str]] = {}
    """By who waits: whose turn it was since."""

    def begin_round() -> None:
        went = at.begin_round()
        assert len(went) == min(per_round, len(waiting))
        for one in went:
            waiting.remove(one)
            passed.pop(one[0])
            for others in passed.values():
                assert one[0] not in others, "it has waited all the time, and another has had two turns"
                others.append(one[0])
            if any(name == one[0] for name, _ in waiting):
                passed[one[0]] = []
        gone.extend(went)

    def leave(one: tuple[str, int]) -> None:
        at.withdraw(PRINCIPALS[one[0]], one)
        waiting.remove(one)
        if all(name != one[0] for name, _ in waiting):
            del passed[one[0]]

    for step in steps:
        if step is None:
            begin_round()
            continue
        if isinstance(step, int):
            if waiting:
                leave(waiting[step % len(waiting)])
            continue
        message = (step.subject, sent.get(step.subject, 0))
        sent[step.subject] = message[1] + 1
        if at.pass_at_once():
            assert not waiting
            gone.append(message)
        else:
            at.wait(step, message)
            waiting.append(message)
            passed.setdefault(step.subject, [])
    while waiting:
        begin_round()
    assert len(at) == 0
    for _, messages in groupby(sorted(gone, key=lambda one: one[0]), key=lambda one: one[0]):
        numbers = [number for _, number in messages]
        assert numbers == sorted(numbers)
