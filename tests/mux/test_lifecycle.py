"""The life of a channel in the pool."""

from typing import get_args

import pytest
from trunkline.mux.errors import IllegalMove
from trunkline.mux.lifecycle import LIFE, Effect, Happening, Life, Purpose, Stage
from trunkline.mux.limits import Pooling

LIMITS = Pooling(idle_timeout=100, max_channel_age=1000)


def life(*happenings: Happening, purpose: Purpose = "shared", at: float = 0.0) -> Life:
    made = Life(purpose)
    for happening in happenings:
        made.step(happening, at)
    return made


def test_every_stage_has_an_end_and_every_word_is_used() -> None:
    stages, happenings, effects = (set(get_args(words)) for words in (Stage, Happening, Effect))
    assert {stage for stage, _ in LIFE} == {stage for stage, _ in LIFE.values()} | {"opening"} == stages
    assert {happening for _, happening in LIFE} == happenings
    assert {effect for _, effect in LIFE.values()} == effects
    assert {LIFE[stage, "ended"][0] for stage in stages} == {"closed"}


def test_a_used_session_never_becomes_a_spare() -> None:
    assert [before for (before, _), (after, _) in LIFE.items() if after == "spare"] == ["opening"]
    assert {happening for stage, happening in LIFE if stage == "lent"} == {"lost", "ended"}


def test_what_the_table_does_not_hold_is_a_defect() -> None:
    with pytest.raises(IllegalMove, match="kept while lent"):
        life("lent").step("kept", 0.0)


@pytest.mark.parametrize(
    ("happenings", "load", "now", "may_end", "may_be_replaced", "due"),
    [
        (["shared"], 1, 50.0, True, True, None),
        (["shared"], 0, 50.0, True, True, "quiet"),
        (["shared", "quiet"], 0, 99.0, True, True, None),
        (["shared", "quiet"], 0, 100.0, True, True, "idle_expired"),
        (["shared", "quiet"], 0, 100.0, False, True, None),
        (["shared", "quiet"], 1, 100.0, True, True, "taken"),
        (["shared", "quiet"], 0, 1000.0, False, True, "aged"),
        (["shared", "quiet"], 0, 1000.0, True, True, "idle_expired"),
        (["shared"], 1, 1000.0, True, True, "aged"),
        (["shared"], 1, 1000.0, True, False, None),
        (["shared"], 0, 1000.0, True, False, "quiet"),
        (["shared", "aged"], 0, 2000.0, True, True, None),
        (["kept"], 0, 99.0, True, True, None),
        (["kept"], 0, 100.0, True, True, "idle_expired"),
        (["kept"], 0, 1000.0, True, True, "aged"),
        (["lent"], 0, 5000.0, True, True, None),
        ([], 0, 5000.0, True, True, None),
    ],
)
def test_what_time_alone_makes_due(
    happenings: list[Happening], load: int, now: float, may_end: bool, may_be_replaced: bool, due: Happening | None
) -> None:
    found = life(*happenings).due(load, now, LIMITS, may_end=may_end, may_be_replaced=may_be_replaced)
    assert found == due


def test_no_age_by_default() -> None:
    assert life("shared").due(1, 1e9, Pooling(), may_end=False) is None


def test_a_stage_counts_from_when_it_began() -> None:
    made = life("shared", "quiet", at=10.0)
    assert [made.step("dismissed", now) for now in (20.0, 30.0)] == ["close", "close"]
    assert (made.stage, made.since) == ("draining", 20.0)


def test_idle_time_counts_from_the_last_call_and_age_from_the_opening() -> None:
    made = life("shared", "quiet", at=10.0)
    made.step("taken", 100.0)
    made.step("quiet", 110.0)
    assert made.due(0, 205.0, LIMITS, may_end=True) is None
    assert made.due(0, 210.0, LIMITS, may_end=True) == "idle_expired"
    assert (made.opened, made.since) == (10.0, 110.0)
