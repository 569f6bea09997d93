"""Records that could not be removed are tried again ever later, and not for ever."""

import msgspec
import pytest
from trunkline.mux import leftovers as module
from trunkline.mux.leftovers import FIRST_SECONDS, LAST_SECONDS, MAX_ATTEMPTS, Leftovers
from trunkline.mux.principal import ANONYMOUS
from trunkline.mux.record import Handshake, WorkflowRecord


def record(name: str = "one") -> WorkflowRecord:
    return WorkflowRecord(name, ANONYMOUS, "x", None, Handshake("2025-11-25", b"{}", b"{}", ()))


def test_each_pause_is_twice_the_one_before_up_to_a_bound_and_there_is_a_last_attempt() -> None:
    leftovers, now, pauses = Leftovers(), 100.0, []
    while leftovers.failed(record(), now):
        assert leftovers.due(now) == []
        due = min(kept.due for kept in leftovers._kept.values())
        pauses.append(due - now)
        now = due
        assert leftovers.due(now) == [(record(), False)]
    assert pauses[:4] == [FIRST_SECONDS * factor for factor in (1, 2, 4, 8)]
    assert max(pauses) == pauses[-1] == LAST_SECONDS
    assert len(pauses) == MAX_ATTEMPTS - 1
    assert len(leftovers) == 0


def test_what_is_under_way_is_not_begun_twice() -> None:
    leftovers = Leftovers()
    leftovers.failed(record(), 0)
    assert leftovers.due(1) == [(record(), False)]
    assert leftovers.due(1000) == []
    leftovers.removed(record())
    leftovers.removed(record())
    assert len(leftovers) == 0


def test_what_a_client_wanted_is_wanted_in_each_attempt() -> None:
    leftovers = Leftovers()
    leftovers.failed(record(), 0, is_wanted=True)
    for now in (1.0, 10.0):
        assert leftovers.due(now) == [(record(), True)]
        leftovers.failed(record(), now, is_wanted=True)


def test_g10_only_so_many_are_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MAX_LEFTOVERS", 1)
    leftovers = Leftovers()
    assert leftovers.failed(record(), 0)
    assert not leftovers.failed(record("two"), 0)
    assert leftovers.failed(record(), 1)
    assert leftovers.due(10) == [(record(), False)]


def test_a_record_is_left_as_it_was_when_its_workflow_ended() -> None:
    leftovers = Leftovers()
    assert not leftovers.has(record())
    leftovers.failed(record(), 0)
    assert leftovers.has(record())
    changed = msgspec.structs.replace(record(), epoch=1)
    assert not leftovers.has(changed), "another worker has changed it since"
    leftovers.failed(held := msgspec.structs.replace(record("two"), worker="one"), 0)
    assert leftovers.has(msgspec.structs.replace(held, epoch=1)), "it was not heard that this was stored"
    assert leftovers.has(msgspec.structs.replace(held, epoch=-1)), "the directory has lost what it was told last"
    for epoch, worker in ((1, "two"), (2, "one"), (-1, "two")):
        assert not leftovers.has(msgspec.structs.replace(held, epoch=epoch, worker=worker))
    leftovers.removed(record())
    assert not leftovers.has(record())
