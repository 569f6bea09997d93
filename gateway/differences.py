"""What has changed between two looks at the same thing, as a JSON merge patch (RFC 7396). Pure."""

from collections.abc import Mapping
from typing import Any, Final

NOTHING: Final[Mapping[str, Any]] = {}
"""The patch that changes nothing."""


def difference(before: Mapping[str, Any], after: Mapping[str, Any]) -> Mapping[str, Any]:
    """The merge patch that turns one object into the other; `NOTHING` where they are equal.

    A patch takes a member away by null, so that a member which is null and one which is not there are the same here. A
    list is told whole.
    """
    patch: dict[str, Any] = {name: None for name, value in before.items() if value is not None and name not in after}
    for name, value in after.items():
        old = before.get(name)
        if value is old or value == old:  # mostly, and much sooner found so than part by part
            continue
        if isinstance(value, Mapping) and isinstance(old, Mapping):
            inner = difference(old, value)
            if inner:
                patch[name] = inner
        else:
            patch[name] = value
    return patch or NOTHING
