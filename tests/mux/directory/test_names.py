"""Names in shared backends: equal for equal things only, and without what they stand for."""

from contract.directory import ALICE, record
from trunkline.mux.directory.names import key_digest, key_digest_of, name_digest, token_of
from trunkline.mux.principal import Principal


def test_the_token_of_a_session_is_that_of_its_record() -> None:
    one = record()
    assert token_of(one.session_id) == one.event_token


def test_parts_that_run_together_when_joined_differ() -> None:
    names = {
        key_digest(Principal("a", "b", "c"), "x", "y"),
        key_digest(Principal("ab", "", "c"), "x", "y"),
        key_digest(Principal("a", "b", "cx"), "", "y"),
        key_digest(Principal("a", "b", "c"), "xy", ""),
        key_digest(Principal("a", "b\x00c", ""), "x", "y"),
    }
    assert len(names) == 5


def test_a_record_has_the_name_of_its_key() -> None:
    assert key_digest_of(record("chat")) == key_digest(ALICE, "x", "chat")
    assert key_digest_of(record()) == ""


def test_names_are_short_and_plain_whatever_they_stand_for() -> None:
    for name in ("", "{}", "\x00", "ü" * 1000):
        assert name_digest(name).isalnum()
        assert len(name_digest(name)) == 40
