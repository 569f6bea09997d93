"""What the header values of the contract may be."""

import pytest
from trunkline.transports.headers import Asked, asked, naming, workflow_key
from trunkline.transports.status import HTTPRefusal


def test_a_client_need_not_choose_a_key() -> None:
    assert workflow_key({}) is None


@pytest.mark.parametrize("key", ["a", "0", "k" * 128, "Chat-7.draft_2:main"])
def test_a_key_is_taken_as_it_is(key: str) -> None:
    assert workflow_key({"trunkline-workflow": key}) == key


@pytest.mark.parametrize("key", ["", "k" * 129, "a b", "a/b", "a\n", "\xe4", "\u0661", "a, a", "a*"])
def test_a_key_of_other_characters_is_refused(key: str) -> None:
    with pytest.raises(HTTPRefusal, match="1-128 characters") as refused:
        workflow_key({"trunkline-workflow": key})
    assert (refused.value.status, refused.value.word) == (400, "workflow_key")


@pytest.mark.parametrize(
    ("headers", "query", "expected"),
    [
        ({}, b"", Asked(None, None, None)),
        ({"mcp-session-id": "s", "trunkline-workflow": "k", "last-event-id": "e"}, b"", Asked("s", "k", "e")),
        ({}, b"session_id=s&workflow=k&last_event_id=e&other=o", Asked("s", "k", "e")),
        ({"mcp-session-id": "s"}, b"workflow=k", Asked("s", "k", None)),
        ({"trunkline-workflow": "k"}, b"workflow=k", Asked(None, "k", None)),
        ({}, b"session_id=&workflow=&last_event_id=", Asked(None, None, None)),
        ({}, b"workflow=a%3Ab&last_event_id=%C3%A4", Asked(None, "a:b", "\xe4")),
        ({"last-event-id": "newer"}, b"last_event_id=e", Asked(None, None, "newer")),
    ],
)
def test_a_workflow_is_asked_for_by_header_or_by_query(headers: dict[str, str], query: bytes, expected: Asked) -> None:
    assert asked(headers, query) == expected


@pytest.mark.parametrize(
    ("state", "expected"),
    [(None, []), ("resumed", [(b"trunkline-workflow-state", b"resumed")])],
)
def test_a_client_is_told_its_session_id_and_how_its_key_came_to_it(
    state: str | None, expected: list[tuple[bytes, bytes]]
) -> None:
    assert naming("s1", state) == [(b"mcp-session-id", b"s1"), *expected]


@pytest.mark.parametrize(
    ("headers", "query", "word"),
    [
        ({"mcp-session-id": "s"}, b"session_id=t", "disagree"),
        ({}, b"workflow=a&workflow=b", "disagree"),
        ({}, b"last_event_id=a&last_event_id=b", "disagree"),
        ({}, b"workflow=a%20b", "workflow_key"),
        ({"trunkline-workflow": "a b"}, b"", "workflow_key"),
        ({"trunkline-workflow": ""}, b"workflow=k", "workflow_key"),
        ({}, b"session_id=\xff", "query"),
        ({}, b"&".join(b"n%d=1" % n for n in range(1000)), "query"),
    ],
)
def test_what_names_no_one_workflow_is_refused(headers: dict[str, str], query: bytes, word: str) -> None:
    with pytest.raises(HTTPRefusal) as refused:
        asked(headers, query)
    assert (refused.value.status, refused.value.word) == (400, word)
