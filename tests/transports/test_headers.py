"""What the header values of the contract may be."""

import pytest
from trunkline.transports.headers import MAX_ACCEPT, accepts, workflow_key
from trunkline.transports.status import HTTPRefusal

JSON, STREAM = "application/json", "text/event-stream"


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
    "accept",
    [
        None,
        "*/*",
        f"{JSON}, {STREAM}",
        f"{STREAM},{JSON}",
        "Application/JSON;q=0.9 , TEXT/Event-Stream; charset=utf-8",
        "application/*, text/*",
        f"{JSON}, */*;q=0.1",
        f"{JSON}, {STREAM}" + " " * (MAX_ACCEPT - len(f"{JSON}, {STREAM}")),
    ],
)
def test_both_types_are_admitted(accept: str | None) -> None:
    headers = {} if accept is None else {"accept": accept}
    assert accepts(headers, JSON, STREAM)


@pytest.mark.parametrize(
    "accept",
    [
        "",
        JSON,
        STREAM,
        "text/*",
        "text/html, application/xml",
        "application/jsonp, text/event-streams",
        f"{JSON}, {STREAM}" + " " * MAX_ACCEPT,
    ],
)
def test_both_types_are_not_admitted(accept: str) -> None:
    assert not accepts({"accept": accept}, JSON, STREAM)


def test_only_the_types_that_are_asked_for_have_to_be_there() -> None:
    assert accepts({"accept": STREAM}, STREAM)
    assert not accepts({"accept": STREAM}, JSON)
