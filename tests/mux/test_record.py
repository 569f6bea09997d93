"""Names that follow from a session id, and do not lead back to it."""

import msgspec
from trunkline.mux.principal import ANONYMOUS
from trunkline.mux.record import Handshake, WorkflowRecord, new_session_id


def record(session_id: str) -> WorkflowRecord:
    return WorkflowRecord(session_id, ANONYMOUS, "s", None, Handshake("2025-11-25", b"{}", b"{}"))


def test_l4_session_ids_are_long_random_and_visible_ascii() -> None:
    ids = {new_session_id() for _ in range(1000)}
    assert len(ids) == 1000
    assert not any(one.startswith("-") for one in ids), "commands would take it for an option"
    assert all(len(one) >= 32 and all("!" <= c <= "~" for c in one) for one in ids)


def test_handle_and_event_token_follow_from_the_id_and_hide_it() -> None:
    one, same, other = record("a" * 32), record("a" * 32), record("b" * 32)
    assert one.handle == same.handle != other.handle
    assert one.event_token == same.event_token != other.event_token
    assert len(one.event_token) == 32
    assert one.handle not in one.event_token


def test_only_states_of_one_workflow_follow_each_other() -> None:
    one = msgspec.structs.replace(record("a" * 32), worker="w", epoch=2)
    later = msgspec.structs.replace(one, epoch=3)
    assert later.follows(one)
    assert one.is_behind(later)
    for other in (
        msgspec.structs.replace(later, worker="v"),
        msgspec.structs.replace(later, handshake=Handshake("2025-06-18", b"{}", b"{}")),
    ):
        assert not other.follows(one)
        assert not one.is_behind(other)
