"""Merge patches: what makes the second look of the first."""

import sys
from collections.abc import Mapping
from types import FrameType
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from trunkline.gateway.differences import NOTHING, difference


def merged(target: Any, patch: Any) -> Any:
    """RFC 7396, section 2, to the letter."""
    if not isinstance(patch, Mapping):
        return patch
    result = dict(target) if isinstance(target, Mapping) else {}
    for name, value in patch.items():
        if value is None:
            result.pop(name, None)
        else:
            result[name] = merged(result.get(name), value)
    return result


def without_nulls(value: Any) -> Any:
    if not isinstance(value, Mapping):
        return value
    return {name: without_nulls(member) for name, member in value.items() if member is not None}


def test_what_is_the_same_is_not_looked_at_part_by_part() -> None:
    calls = 0

    def count(frame: FrameType, event: str, argument: object) -> None:
        nonlocal calls
        calls += event == "call"

    def servers(last: int) -> dict[str, Any]:
        return {f"s{n}": {"1": {"calls": 1}, "2": {"calls": last if n == 7 else 1}} for n in range(100)}

    before, after = servers(1), servers(2)
    sys.setprofile(count)
    try:
        patch = difference(before, after)
    finally:
        sys.setprofile(None)
    assert patch == {"s7": {"2": {"calls": 2}}}
    assert calls < 200


NAMES = st.sampled_from("abc")
VALUES = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(0, 3)
    | st.sampled_from(["", "x"])
    | st.lists(st.integers(0, 2), max_size=2),
    lambda inner: st.dictionaries(NAMES, inner, max_size=3),
    max_leaves=8,
)
OBJECTS = st.dictionaries(NAMES, VALUES, max_size=3)


@given(OBJECTS, OBJECTS)
def test_a_patch_makes_the_second_of_the_first(before: dict[str, Any], after: dict[str, Any]) -> None:
    assert merged(without_nulls(before), difference(before, after)) == without_nulls(after)


@given(OBJECTS)
def test_what_is_equal_needs_no_patch(value: dict[str, Any]) -> None:
    assert difference(value, value) is NOTHING
    assert difference(value, without_nulls(value)) == NOTHING


@pytest.mark.parametrize(
    ("before", "after", "patch"),
    [
        ({"a": 1, "b": {"c": 1, "d": 2}}, {"a": 1, "b": {"c": 1, "d": 3}}, {"b": {"d": 3}}),
        ({"a": 1, "b": 2}, {"b": 2}, {"a": None}),
        ({"a": None}, {}, {}),
        ({"a": [1, 2]}, {"a": [1, 3]}, {"a": [1, 3]}),
        ({"a": [1, 2]}, {"a": [1, 2]}, {}),
        ({"a": {"b": [1]}}, {"a": {"b": [1]}}, {}),
        ({"a": {"b": 1}}, {"a": None}, {"a": None}),
        ({"a": 1}, {"a": {"b": 1}}, {"a": {"b": 1}}),
    ],
)
def test_only_what_differs_is_told(before: Any, after: Any, patch: Any) -> None:
    assert difference(before, after) == patch
