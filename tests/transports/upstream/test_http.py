"""Header blocks and targets: what may stand in a request, and what would end a header early or lead elsewhere."""

import errno
import socket
import ssl
from urllib.parse import urlsplit

import pytest
from trunkline.transports.upstream.http import (
    ABSENT,
    NO_PROXIED,
    CredentialFailed,
    ExchangeBroken,
    HeaderBlock,
    NotProxied,
    Withheld,
    host_of,
    parts_of,
    proof_in,
    target_of,
    target_within,
    words_of,
    words_of_status,
)


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (TimeoutError(), "no connection in time"),
        (ssl.SSLCertVerificationError("of 10.0.0.1"), "its certificate does not verify"),
        (ssl.SSLCertVerificationError(1, "of 10.0.0.1"), "its certificate does not verify"),
        (ssl.SSLError("10.0.0.1"), "TLS could not be set up"),
        (ConnectionRefusedError(errno.ECONNREFUSED, "Connect call failed ('10.0.0.1', 80)"), "Connection refused"),
        (socket.gaierror(socket.EAI_NONAME, "inner.example"), "no address could be found for its name"),
        (OSError("10.0.0.1"), "no connection"),
        (NotProxied(), NO_PROXIED),
        (OSError(-2, "10.0.0.1"), "no connection"),
    ],
)
def test_why_a_server_cannot_be_reached_is_told_without_its_address(error: OSError, words: str) -> None:
    assert words_of(error) == words


@pytest.mark.parametrize(
    ("status", "more"),
    [
        (200, " with what is no response, by its status or its Content-Type"),
        (204, " with what is no response, by its status or its Content-Type"),
        (301, ", which leads elsewhere and is not followed"),
        (308, ", which leads elsewhere and is not followed"),
        (404, ""),
        (500, ""),
    ],
)
def test_a_status_that_might_be_taken_for_well_says_what_is_wrong(status: int, more: str) -> None:
    assert words_of_status(status) == f"the server answered HTTP {status}{more}"


def test_headers_are_encoded_as_they_stand_in_a_request_once_for_all() -> None:
    block = HeaderBlock({"A": "1", "B-c": "x\ty"})
    assert block.encoded == b"A: 1\r\nB-c: x\ty\r\n"
    assert block.encoded is block.encoded


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


def test_a_block_goes_without_what_is_absent_and_no_value_is_taken_for_that() -> None:
    block = HeaderBlock({"X-Tenant": "a", "X-Other": "b"})
    assert block.with_({"x-tenant": ABSENT, "x-unknown": ABSENT}).encoded == b"X-Other: b\r\n"
    with pytest.raises(ValueError, match="x-tenant"):
        block.with_({"x-tenant": "".join(ABSENT)[:1] + ABSENT[1:]})


def test_a_block_with_others_replaces_however_they_are_written() -> None:
    block = HeaderBlock({"Accept": "x", "B": "y"})
    assert block.with_({}) is block
    assert block.with_({"accept": "z"}).headers == {"B": "y", "accept": "z"}
    assert block.headers == {"Accept": "x", "B": "y"}
    with pytest.raises(ValueError, match="cannot be sent"):
        block.with_({"C": "\n"})


def test_a_block_is_signed_once_for_as_long_as_the_signature_stays() -> None:
    block, first, second = HeaderBlock({"A": "b"}), HeaderBlock({"X": "1"}), HeaderBlock({"a": "2"})
    signed = block.signed(first)
    assert signed.headers == {"A": "b", "X": "1"}
    assert block.signed(first) is signed
    assert block.signed(second).headers == {"a": "2"}
    assert block.signed(first) is not signed


def test_without_a_credential_nothing_was_sent() -> None:
    failed = CredentialFailed("none was issued")
    assert (failed.sent, str(failed)) == (False, "none was issued")


def test_g6_what_was_withheld_was_not_sent() -> None:
    assert not Withheld().sent


def test_a_broken_exchange_says_whether_it_was_sent() -> None:
    assert ExchangeBroken("why", sent=True).sent
    assert str(ExchangeBroken("why", sent=False)) == "why"


@pytest.mark.parametrize(
    ("url", "target"),
    [("http://x", "/"), ("http://x/a%2Fb?q=1#f", "/a%2Fb?q=1"), ("http://x?q", "/?q")],
)
def test_a_target_is_a_path_with_its_query(url: str, target: str) -> None:
    assert target_of(urlsplit(url)) == target


@pytest.mark.parametrize(
    ("reference", "target"),
    [
        ("/message?session_id=1", "/message?session_id=1"),
        ("message", "/a/message"),
        ("?session_id=1", "/a/sse?session_id=1"),
        ("http://x.example/m", "/m"),
        ("http://X.EXAMPLE:80", "/"),
        ("//x.example/m", "/m"),
    ],
)
def test_a_reference_leads_within_the_server(reference: str, target: str) -> None:
    assert target_within("http://x.example/a/sse", reference) == target


@pytest.mark.parametrize(
    "reference",
    [
        "https://x.example/m",
        "http://x.example:81/m",
        "http://y.example/m",
        "//y.example/m",
        "ftp://x.example/m",
        "http://x.example@y.example/m",
        "http://x.example:99999/m",
        "http://[::1/m",
        "/m HTTP/1.1\r\nHost: y",
        "/\u00fc",
    ],
)
def test_a_reference_that_leads_elsewhere_is_refused(reference: str) -> None:
    with pytest.raises(ValueError):
        target_within("http://x.example/a/sse", reference)


def test_what_cannot_be_taken_apart_is_made_of_nothing() -> None:
    assert parts_of("http://[::1]:8920/mcp").hostname == "::1"
    assert parts_of("http://[x]/mcp").geturl() == ""


@pytest.mark.parametrize(
    ("address", "host"),
    [
        ("http://x.example:81/m", "x.example"),
        ("http://user:pass@[fd00::1]/m", "fd00::1"),
        ("http:///m", ""),
        ("http://" + "x" * 64 + ".example/m", ""),
        ("http://x..example/m", ""),
    ],
)
def test_a_host_is_one_that_can_be_asked_for(address: str, host: str) -> None:
    assert host_of(urlsplit(address)) == host


@pytest.mark.parametrize("address", ["http://x.example/m", "http://@x.example/m", "http://:@x.example/m"])
def test_a_url_without_a_user_proves_nothing(address: str) -> None:
    assert proof_in(address) == {}


@pytest.mark.parametrize(
    ("address", "pair"),
    [
        ("https://Aladdin:open%20sesame@x.example/m", "QWxhZGRpbjpvcGVuIHNlc2FtZQ=="),  # RFC 7617, 2
        ("https://test:123%C2%A3@x.example/m", "dGVzdDoxMjPCow=="),  # RFC 7617, 2.1
        ("https://token@x.example/m", "dG9rZW46"),
    ],
)
def test_a_user_and_a_password_in_a_url_are_basic_credentials(address: str, pair: str) -> None:
    assert proof_in(address) == {"Authorization": f"Basic {pair}"}
