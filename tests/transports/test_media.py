"""What a message declares itself to be, and what its sender accepts."""

import pytest
from trunkline.transports.media import JSON_TYPE, MAX_ACCEPT, STREAM_TYPE, accepts, content_type


@pytest.mark.parametrize(
    ("declared", "expected"),
    [
        (JSON_TYPE, JSON_TYPE),
        ("Application/JSON ; charset=utf-8", JSON_TYPE),
        ("text/event-stream;charset=utf-8", STREAM_TYPE),
        ("", ""),
    ],
)
def test_a_type_is_told_without_its_parameters(declared: str, expected: str) -> None:
    assert content_type({"content-type": declared}) == expected


def test_what_declares_nothing_has_no_type() -> None:
    assert content_type({}) == ""


@pytest.mark.parametrize(
    "accept",
    [
        None,
        "*/*",
        f"{JSON_TYPE}, {STREAM_TYPE}",
        f"{STREAM_TYPE},{JSON_TYPE}",
        "Application/JSON;q=0.9 , TEXT/Event-Stream; charset=utf-8",
        "application/*, text/*",
        f"{JSON_TYPE}, */*;q=0.1",
        f"{JSON_TYPE}, {STREAM_TYPE}" + " " * (MAX_ACCEPT - len(f"{JSON_TYPE}, {STREAM_TYPE}")),
    ],
)
def test_both_types_are_admitted(accept: str | None) -> None:
    headers = {} if accept is None else {"accept": accept}
    assert accepts(headers, JSON_TYPE, STREAM_TYPE)


@pytest.mark.parametrize(
    "accept",
    [
        "",
        JSON_TYPE,
        STREAM_TYPE,
        "text/*",
        "text/html, application/xml",
        "application/jsonp, text/event-streams",
        f"{JSON_TYPE}, {STREAM_TYPE}" + " " * MAX_ACCEPT,
    ],
)
def test_both_types_are_not_admitted(accept: str) -> None:
    assert not accepts({"accept": accept}, JSON_TYPE, STREAM_TYPE)


def test_only_the_types_that_are_asked_for_have_to_be_there() -> None:
    assert accepts({"accept": STREAM_TYPE}, STREAM_TYPE)
    assert not accepts({"accept": STREAM_TYPE}, JSON_TYPE)
