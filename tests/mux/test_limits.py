"""The limits of the contract."""

import msgspec
import pytest
from trunkline.mux.limits import EventLogLimits, Pooling


def test_the_defaults_are_those_of_the_contract() -> None:
    assert msgspec.to_builtins(Pooling()) == {
        "reuse": "workflow",
        "idle_timeout": 1800,
        "resume_window": 300,
        "request_timeout": 300,
        "spares": 0,
        "max_channel_age": 0,
        "max_workflows": 10_000,
        "max_workflows_per_user": 100,
        "max_workflows_per_tenant": 2_000,
        "max_channels_per_user": 16,
        "max_inflight_per_workflow": 64,
        "max_inflight_per_channel": 256,
        "event_log": {"events": 1000, "bytes": 4_194_304, "total_bytes": 268_435_456},
    }


@pytest.mark.parametrize(
    ("other", "is_alike"),
    [
        (Pooling(idle_timeout=1801), False),
        (Pooling(resume_window=301), False),
        (Pooling(event_log=EventLogLimits(events=999)), False),
        (Pooling(event_log=EventLogLimits(bytes=999)), False),
        (Pooling(event_log=EventLogLimits(total_bytes=2**28 - 1), request_timeout=11, spares=1), True),
    ],
)
def test_what_workflows_are_kept_by_has_a_name(other: Pooling, is_alike: bool) -> None:
    assert (other.keeping == Pooling().keeping) is is_alike


@pytest.mark.parametrize(("kind", "wrong"), [(Pooling, {"reuze": "none"}), (EventLogLimits, {"event": 1})])
def test_an_unknown_limit_is_refused(kind: type[msgspec.Struct], wrong: dict[str, object]) -> None:
    with pytest.raises(msgspec.ValidationError, match="unknown field"):
        msgspec.convert(wrong, kind)


@pytest.mark.parametrize(
    ("kind", "wrong", "fault"),
    [
        (Pooling, {"reuse": "users"}, "reuse: .*'users'"),
        (Pooling, {"idle_timeout": 0}, "idle_timeout: .* > 0"),
        (Pooling, {"idle_timeout": float("inf")}, "idle_timeout: .* <= 315360000"),
        (Pooling, {"max_channel_age": 1e300}, "max_channel_age: .* <= 315360000"),
        (Pooling, {"idle_timeout": "30"}, "idle_timeout: .*got `str`"),
        (Pooling, {"max_workflows": 0}, "max_workflows: .* >= 1"),
        (Pooling, {"spares": -1}, "spares: .* >= 0"),
        (Pooling, {"event_log": {"events": 5}}, "event_log: expected EventLogLimits"),
        (EventLogLimits, {"events": 0}, "events: .* >= 1"),
    ],
)
def test_a_limit_that_bounds_nothing_is_refused_by_its_name(
    kind: type[msgspec.Struct], wrong: dict[str, object], fault: str
) -> None:
    with pytest.raises(ValueError, match=fault):
        kind(**wrong)
