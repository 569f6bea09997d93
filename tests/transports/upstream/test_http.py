"""Header blocks: what may stand in a request, and what would end a header early."""

import pytest
from trunkline.transports.upstream.http import ExchangeBroken, HeaderBlock


def test_headers_are_encoded_as_they_stand_in_a_request() -> None:
    assert HeaderBlock({"A": "1", "B-c": "x\ty"}).encoded == b"A: 1\r\nB-c: x\ty\r\n"


def test_what_came_in_as_bytes_goes_out_as_the_same_bytes() -> None:
    assert HeaderBlock({"A": b"caf\xc3\xa9".decode("latin-1")}).encoded == b"A: caf\xc3\xa9\r\n"


def test_a_value_beyond_latin1_is_sent_as_utf8() -> None:
    assert HeaderBlock({"A": "\u20ac"}).encoded == b"A: \xe2\x82\xac\r\n"


@pytest.mark.parametrize("name", ["", "a b", "a:", "a\r\n", "\xe9", "a\0"])
def test_a_name_that_is_no_token_is_refused(name: str) -> None:
    with pytest.raises(ValueError, match="cannot be sent"):
        HeaderBlock({name: "x"})


@pytest.mark.parametrize("value", ["a\r\nB: c", "a\n", "\0", "a\x7f", "\x1b[31m"])
def test_a_value_that_would_end_its_header_is_refused_and_not_told(value: str) -> None:
    with pytest.raises(ValueError, match="'A' cannot be sent") as raised:
        HeaderBlock({"A": value})
    assert value not in str(raised.value)


def test_a_block_with_others_replaces_however_they_are_written() -> None:
    block = HeaderBlock({"Accept": "x", "B": "y"})
    assert block.with_({}) is block
    assert block.with_({"accept": "z"}).headers == {"B": "y", "accept": "z"}
    assert block.headers == {"Accept": "x", "B": "y"}
    with pytest.raises(ValueError, match="cannot be sent"):
        block.with_({"C": "\n"})


def test_a_broken_exchange_says_whether_it_was_sent() -> None:
    assert ExchangeBroken("why", sent=True).sent
    assert str(ExchangeBroken("why", sent=False)) == "why"
