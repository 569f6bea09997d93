"""Which settings hold, and which were superseded: nothing begins under those, and they last while they serve."""

from typing import NamedTuple

import pytest
from trunkline.mux.errors import Overloaded, UnknownServer, UnknownSession
from trunkline.mux.generations import Generations


class Settings(NamedTuple):
    name: str
    generation: int


def among(*settings: Settings) -> dict[str, Settings]:
    return {one.name: one for one in settings}


FILES, GIT = Settings("files", 1), Settings("git", 2)


def test_what_is_replaced_or_left_out_is_superseded_and_the_rest_is_not() -> None:
    generations = Generations(among(FILES, GIT))
    newer = Settings("files", 3)
    generations.replace(among(newer, GIT))
    assert generations.superseded == [FILES]
    assert [generations.is_current(*one) for one in (FILES, newer, GIT)] == [False, True, True]
    generations.replace(among(newer))
    assert generations.superseded == [FILES, GIT]
    assert not generations.is_current(*GIT)


def test_the_same_generation_in_other_words_supersedes_nothing() -> None:
    generations = Generations(among(FILES))
    generations.replace(among(Settings("files", 1)))
    assert generations.superseded == []


def test_something_begins_under_what_holds_alone() -> None:
    generations = Generations(among(FILES, GIT))
    assert generations.find("files") == generations.find("files", 1) == FILES
    newer = Settings("files", 3)
    generations.replace(among(newer))
    assert generations.find("files") == newer
    with pytest.raises(Overloaded) as late:
        generations.find("files", 1)
    assert late.value.limit == "reconfigured"
    with pytest.raises(UnknownServer, match="no server git") as gone:
        generations.find("git", 2)
    assert isinstance(gone.value, UnknownSession), "for a client of a session it is the same 404"


def test_what_was_superseded_is_released_once_when_it_serves_nobody() -> None:
    generations = Generations(among(FILES, GIT))
    generations.replace({})
    assert generations.release(lambda version: True) == []
    assert generations.release(lambda version: version == ("git", 2)) == [FILES]
    assert generations.superseded == [GIT]
    assert generations.release(lambda version: False) == [GIT]
    assert generations.release(lambda version: False) == []
