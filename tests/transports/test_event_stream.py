"""Server-sent events, byte by byte."""

import pytest
from harness import sse
from hypothesis import example, given
from hypothesis import strategies as st
from trunkline.mux.errors import UpstreamFault
from trunkline.transports import event_stream
from trunkline.transports.event_stream import (
    KEEP_ALIVE,
    MAX_EVENT_ID_BYTES,
    RECONNECT,
    EventParser,
    ServerEvent,
    encode,
)
from trunkline.transports.unfinished import Unfinished

LIMIT = 1 << 16


def parsed(*chunks: bytes, limit: int = LIMIT) -> list[ServerEvent]:
    parser = EventParser(limit=limit)
    return [event for chunk in chunks for event in parser.feed(chunk)]


def message(data: bytes, id: str | None = None, name: str = "message", retry: int | None = None) -> ServerEvent:
    return ServerEvent(data, name, id, retry)


def test_an_event_is_written_with_its_id_and_name() -> None:
    assert encode(b"{}", id="7") == b"id: 7\nevent: message\ndata: {}\n\n"
    assert encode(b"/message", name="endpoint") == b"event: endpoint\ndata: /message\n\n"


def test_an_event_without_data_carries_its_id_and_nothing_else() -> None:
    assert encode(b"", id="7") == b"id: 7\ndata: \n\n"
    assert parsed(encode(b"", id="7")) == [message(b"", "7")]


def test_a_comment_is_no_event() -> None:
    assert parsed(KEEP_ALIVE, b":\n\n", b": a\n: b\n\n") == []


def test_a_reconnect_is_asked_for_in_milliseconds() -> None:
    assert parsed(RECONNECT) == [message(b"", retry=1000)]


def test_g10_an_event_id_that_is_too_long_is_a_fault_and_one_at_the_limit_is_not() -> None:
    longest = b"x" * MAX_EVENT_ID_BYTES
    assert parsed(b"id: %b\n\n" % longest) == [message(b"", longest.decode())]
    with pytest.raises(UpstreamFault):
        parsed(b"id: %bx\n" % longest)


FIELDS: list[tuple[bytes, list[ServerEvent]]] = [
    (b"data: a\n\n", [message(b"a")]),
    (b"data:a\n\n", [message(b"a")]),
    (b"data:  a\n\n", [message(b" a")]),
    (b"data: a\ndata: b\n\n", [message(b"a\nb")]),
    (b"data\ndata: b\n\n", [message(b"\nb")]),
    (b"data: a:b\n\n", [message(b"a:b")]),
    (b"event: x\ndata: a\n\ndata: b\n\n", [message(b"a", name="x"), message(b"b")]),
    (b"event: x\n\ndata: b\n\n", [message(b"b")]),
    (b"event:\ndata: b\n\n", [message(b"b")]),
    (b"event: x\nevent\ndata: b\n\n", [message(b"b")]),
    (b"id: 1\ndata: a\n\ndata: b\n\n", [message(b"a", "1"), message(b"b", "1")]),
    (b"id: 1\ndata: a\n\nid\ndata: b\n\n", [message(b"a", "1"), message(b"b", "")]),
    (b"id: 1\n\n", [message(b"", "1")]),
    (b"id: 1\0\ndata: a\n\n", [message(b"a")]),
    (b"id: \xc3\xa4\ndata: a\n\n", [message(b"a", "ä")]),
    (b"id: \xff\ndata: a\n\n", [message(b"a", "\N{REPLACEMENT CHARACTER}")]),
    (b"retry: 20\ndata: a\n\ndata: b\n\n", [message(b"a", retry=20), message(b"b")]),
    (b"retry: x\nretry: -1\nretry: 1.5\nretry:\nretry: 1000000000\ndata: a\n\n", [message(b"a")]),
    (b"unknown: x\nDATA: x\ndata: a\n\n", [message(b"a")]),
    (b": comment\ndata: a\n: comment\ndata: b\n\n", [message(b"a\nb")]),
    (b"data: a\r\n\r\ndata: b\r\rdata: c\n\n", [message(b"a"), message(b"b"), message(b"c")]),
    (b"\xef\xbb\xbfdata: a\n\n", [message(b"a")]),
    (b"data: a\n\n\xef\xbb\xbfdata: b\n\n", [message(b"a")]),
    (b"data: \xff\x0b\x0c\x1c\x1e\x85\xe2\x80\xa8\n\n", [message(b"\xff\x0b\x0c\x1c\x1e\x85\xe2\x80\xa8")]),
    (b"data: unfinished\n", []),
    (b"\n\n\n", []),
]


@pytest.mark.parametrize(("text", "events"), FIELDS, ids=[repr(text)[:50] for text, _ in FIELDS])
def test_a_stream_is_read_as_the_standard_says_wherever_it_is_cut(text: bytes, events: list[ServerEvent]) -> None:
    assert parsed(text) == events
    for cut in range(len(text) + 1):
        assert parsed(text[:cut], text[cut:]) == events, cut
    assert parsed(*(text[n : n + 1] for n in range(len(text)))) == events


def test_a_line_feed_after_a_carriage_return_is_no_line_of_its_own() -> None:
    assert parsed(b"data: a\r", b"\ndata: b\r", b"\n", b"\r\n") == [message(b"a\nb")]


def test_the_id_to_come_back_with_is_that_of_the_last_event_that_was_complete() -> None:
    parser = EventParser(limit=LIMIT)
    parser.feed(b"id: 7\ndata: a\n")
    assert parser.last_id is None
    parser.feed(b"\n")
    assert parser.last_id == "7"
    assert parser.feed(b"data: b\n\nid: 8\ndata: half") == [message(b"b", "7")]
    assert parser.last_id == "7"
    assert parser.feed(b"\n\nid: 9\n\n") == [message(b"half", "8"), message(b"", "9")]
    assert parser.last_id == "9"


def test_a_stream_that_goes_on_after_an_event_has_its_id() -> None:
    parser = EventParser(limit=LIMIT, last_id="7")
    assert parser.feed(b"data: a\n\n") == [message(b"a", "7")]
    assert parser.last_id == "7"


line = st.binary(max_size=20).map(lambda text: text.replace(b"\n", b"").replace(b"\r", b""))


@given(st.lists(st.tuples(line, st.none() | st.integers(0, 99).map(str))), st.lists(st.integers(0, 400)))
@example([(b"a", "1"), (b"", None)], [3])
def test_what_is_written_is_read_again_wherever_it_is_cut(
    events: list[tuple[bytes, str | None]], cuts: list[int]
) -> None:
    text = b"".join(encode(data, id=event_id) for data, event_id in events)
    last, expected = None, []
    for data, event_id in events:
        last = last if event_id is None else event_id
        if data or event_id is not None:
            expected.append(message(data, last))
    ends = [*sorted(cut for cut in cuts if cut < len(text)), len(text)]
    starts = [0, *ends[:-1]]
    assert parsed(*(text[a:b] for a, b in zip(starts, ends, strict=True))) == expected


@given(st.binary(max_size=20).filter(lambda text: text.isascii() and not {10, 13, 0} & set(text)), st.integers(0, 9))
def test_another_reader_sees_the_same(data: bytes, id: int) -> None:
    (event,) = sse.Parser().feed(encode(data, id=str(id)))
    assert (event.data.encode(), event.id, event.event) == (data, str(id), "message")


@pytest.mark.parametrize("chunk", [1, 7, 64, 100_000])
def test_an_event_up_to_the_limit_is_read_and_a_larger_one_is_not(chunk: int) -> None:
    def cut(text: bytes) -> list[bytes]:
        return [text[n : n + chunk] for n in range(0, len(text), chunk)]

    fits = b"data: " + b"x" * (100 - 8) + b"\n\n"
    assert len(fits) == 100
    assert parsed(*cut(fits * 5), limit=500) == [message(b"x" * 92)] * 5
    if chunk < 100:
        assert parsed(*cut(fits * 5), limit=100 + chunk) == [message(b"x" * 92)] * 5
    for endless in (b"data: " + b"x" * 1000, b"data: x\n" * 200, b"x" * 1000 + b"\n", b"id: 1\n" * 200):
        with pytest.raises(UpstreamFault, match="larger than 500 bytes"):
            parsed(*cut(endless), limit=500)


def test_comments_do_not_count_towards_an_event() -> None:
    parser = EventParser(limit=100)
    for _ in range(100):
        assert parser.feed(KEEP_ALIVE.removesuffix(b"\n")) == []
    parser.feed(b"data: " + b"x" * 60 + b"\n")
    for _ in range(100):
        parser.feed(b": keep-alive\n")
    assert parser.feed(b"\n") == [message(b"x" * 60)]
    parser.feed(b"data: " + b"x" * 60 + b"\n: quiet\n")
    with pytest.raises(UpstreamFault):
        parser.feed(b"data: " + b"x" * 60 + b"\n")


def test_g9_comments_do_not_hide_how_large_an_event_is() -> None:
    with pytest.raises(UpstreamFault):
        EventParser(limit=500).feed(b"data:\n:\n" * 1000)


def test_an_empty_chunk_between_cr_and_lf_changes_nothing() -> None:
    parser = EventParser(limit=500)
    chunks = (b"data: a\r", b"", b"\ndata: b\r\n\r\n")
    assert [event.data for chunk in chunks for event in parser.feed(chunk)] == [b"a\nb"]


@pytest.mark.parametrize("noise", [b": still here\n\n", b"\n", b":\r\n", b": " + b"x" * 40])
def test_g9_what_comes_without_an_event_is_bounded(noise: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(event_stream, "MAX_EVENTLESS_BYTES", 200)
    parser = EventParser(limit=100)
    for _ in range(3):  # an event begins the count anew
        for _ in range(2 * 60 // len(noise)):
            assert parser.feed(noise) == []
        assert [event.data for event in parser.feed(b"\n\ndata: x\n\n")] == [b"x"]
    with pytest.raises(UpstreamFault):
        list(map(parser.feed, [noise] * 300))


def test_g10_what_has_come_of_an_event_counts_until_it_is_complete() -> None:
    unfinished = Unfinished(150_000)
    parser, other = (EventParser(limit=1_000_000, unfinished=unfinished) for _ in range(2))
    parser.feed(b"data: " + b"x" * 100_000)
    assert unfinished.held == 100_006
    with pytest.raises(UpstreamFault, match="not complete"):
        other.feed(b"data: " + b"x" * 100_000 + b"\n")
    [event] = parser.feed(b"\n\n")
    assert (len(event.data), unfinished.held) == (100_000, 0)
