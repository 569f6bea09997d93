"""A principal is three verified parts."""

from typing import Any

import pytest
from trunkline.mux.principal import ANONYMOUS, Principal


def test_principals_are_equal_only_in_all_three_parts() -> None:
    one = Principal("i", "t", "s")
    assert one == Principal("i", "t", "s")
    assert len({one, Principal("x", "t", "s"), Principal("i", "x", "s"), Principal("i", "t", "x")}) == 4


def test_parts_cannot_run_into_one_another() -> None:
    assert Principal("i", "ab", "c").digest() != Principal("i", "a", "bc").digest()
    assert Principal("i", "a\0b", "c").digest() != Principal("i", "a", "b\0c").digest()
    assert "alice" not in Principal("i", "t", "alice").digest()


@pytest.mark.parametrize("parts", [("i", None, "s"), (1, "t", "s"), ("i", "t", b"s")])
def test_a_part_that_is_no_text_is_refused(parts: tuple[Any, Any, Any]) -> None:
    with pytest.raises(TypeError, match="texts"):
        Principal(*parts)


def test_anonymous_is_one_principal() -> None:
    assert ANONYMOUS.is_anonymous
    assert not Principal("i", "t", "s").is_anonymous
