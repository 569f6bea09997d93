"""Who is looked after when."""

from math import inf

import pytest
from hypothesis import given
from hypothesis import strategies as st
from trunkline.mux.rota import LONGEST_SECONDS, SOON_SECONDS, Rota


def test_who_is_added_is_due_until_it_is_put_off() -> None:
    rota: Rota[str] = Rota()
    rota.add("a")
    assert rota.due(0) == rota.due(1) == ["a"]
    rota.put_off("a", due=100, now=1)
    assert rota.due(99) == []
    assert rota.due(101) == ["a"]
    assert len(rota) == 1
    assert repr(rota) == "Rota(1 soon, 0 later)"


def test_what_is_due_within_moments_is_not_put_off() -> None:
    rota: Rota[str] = Rota()
    rota.add("a")
    rota.put_off("a", due=10 + SOON_SECONDS / 2, now=10)
    assert rota.due(10) == ["a"]


def test_what_is_never_due_is_looked_after_now_and_then() -> None:
    rota: Rota[str] = Rota()
    rota.add("a")
    rota.put_off("a", due=inf, now=5)
    assert rota.due(5 + LONGEST_SECONDS - 1) == []
    assert rota.due(5 + LONGEST_SECONDS) == ["a"]


def test_to_what_something_happens_is_due_soon() -> None:
    rota: Rota[str] = Rota()
    for one in "ab":
        rota.add(one)
        rota.put_off(one, due=100, now=0)
    rota.stir("a")
    rota.stir("a")
    assert rota.due(1) == ["a"]
    assert rota.due(101) == ["a", "b"]


@pytest.mark.parametrize("is_put_off", [True, False])
def test_who_is_removed_is_never_due(is_put_off: bool) -> None:
    rota: Rota[str] = Rota()
    rota.add("a")
    if is_put_off:
        rota.put_off("a", due=100, now=0)
    rota.remove("a")
    assert (rota.due(101), len(rota)) == ([], 0)


def test_who_was_not_added_is_not_looked_after() -> None:
    rota: Rota[str] = Rota()
    rota.stir("a")
    rota.put_off("a", due=100, now=0)
    rota.remove("a")
    assert (rota.due(101), len(rota)) == ([], 0)


@given(
    st.lists(
        st.tuples(st.sampled_from("abcde"), st.sampled_from(["add", "remove", "stir", "off", "look"]), st.floats(0, 50))
    )
)
def test_nobody_is_forgotten(moves: list[tuple[str, str, float]]) -> None:
    """Whatever happens: who is there is due when the time has come that it was put off to."""
    rota: Rota[str] = Rota()
    latest: dict[str, float] = {}
    now = 0.0
    for one, move, seconds in moves:
        match move:
            case "add" if one not in latest:
                rota.add(one)
                latest[one] = now
            case "remove":
                rota.remove(one)
                latest.pop(one, None)
            case "stir" if one in latest:
                rota.stir(one)
                latest[one] = now
            case "off" if one in rota.due(now):
                rota.put_off(one, now + seconds, now)
                latest[one] = now + seconds
            case "look":
                now += seconds
        due = rota.due(now)
        assert len(due) == len(set(due)) <= len(rota) == len(latest)
        assert {who for who, at in latest.items() if at <= now} <= {*due} <= {*latest}
