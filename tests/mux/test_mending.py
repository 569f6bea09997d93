"""What a server sends is a message, a batch, or its fault; and half a character is none."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st
from trunkline.mux.envelope import parse
from trunkline.mux.errors import ParseError, UpstreamFault
from trunkline.mux.limits import MAX_BATCH
from trunkline.mux.mending import MAX_MENDED_BYTES, parse_upstream

LIMIT = 1 << 20


def message(**members: str) -> bytes:
    """A message whose members are given as raw JSON."""
    return ("{" + ",".join(f'"{name}":{text}' for name, text in {"jsonrpc": '"2.0"', **members}.items()) + "}").encode()


def test_what_a_server_sends_amiss_is_its_fault() -> None:
    assert len(parse_upstream(b"[%b,%b]" % ((message(id="1", result="{}"),) * 2))) == 2
    assert len(parse_upstream(message(id="1", result="{}"))) == 1
    batch = b"[%b]" % b",".join([message(method='"n"')] * (MAX_BATCH + 1))
    for text in (b"", b"[]", b'{"jsonrpc":"2.0","id":1,"result":[]}', batch):
        with pytest.raises(UpstreamFault):
            parse_upstream(text)


@pytest.mark.parametrize(
    ("sent", "read"),
    [
        (r"\ud83d", r"\ufffd"),
        (r"a\uDE00b", r"a\ufffdb"),
        (r"\uDE00\uD83D", r"\ufffd\ufffd"),
        (r"\ud83d\ud83d\ude00\ude00", r"\ufffd\ud83d\ude00\ufffd"),
        (r"\\\ud83d", r"\\\ufffd"),
        (r"\ud83d\\ude00", r"\ufffd\\ude00"),
        (r"\ud83d\n\u0041", r"\ufffd\n\u0041"),
        (r"\ud83d \\ud83d", r"\ufffd \\ud83d"),
    ],
)
def test_half_a_surrogate_pair_of_a_server_is_read_as_no_character(sent: str, read: str) -> None:
    def result(text: str) -> bytes:
        return message(id="1", result=f'{{"a":"{text}","{text}":1}}')

    with pytest.raises(ParseError):
        parse(result(sent), limit=LIMIT)
    [parsed] = parse_upstream(result(sent))
    assert parsed.encode() == result(read)
    others = message(id="2", result="{}"), message(id="3", result="{}")
    batch = parse_upstream(b"[%b,%b,%b]" % (others[0], result(sent), others[1]))
    assert [one.encode() for one in batch] == [others[0], result(read), others[1]]
    for amiss in (result(sent)[:-1], result(sent + "\0"), result(sent + " " * MAX_MENDED_BYTES)):
        with pytest.raises(UpstreamFault):
            parse_upstream(amiss)
        with pytest.raises(UpstreamFault):
            parse_upstream(b"[%b]" % amiss)


@given(st.lists(st.sampled_from(["\\", '"', "a", "\ud83d", "\ude00", "\U0001f600", "u", "d83d"])).map("".join))
def test_what_a_server_sends_is_read_as_javascript_would_send_it(text: str) -> None:
    escaped = "".join(rf"\u{ord(c):04x}" if "\ud800" <= c <= "\udfff" else json.dumps(c)[1:-1] for c in text)
    sent = message(id="1", result=f'{{"a":"{escaped}"}}')
    [parsed] = parse_upstream(sent)
    expected = text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
    assert json.loads(parsed.encode())["result"]["a"] == expected
