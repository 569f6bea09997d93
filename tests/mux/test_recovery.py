"""What an event log says to the worker that comes after its writer."""

import pytest
from trunkline.mux.directory import Entry
from trunkline.mux.event_log import EPOCH
from trunkline.mux.recovery import recover


def event(n: int, message: bytes = b"", *, stream: int = 7, last: bool = False) -> Entry:
    return Entry("event", stream, n, message, last)


def answer(id: bytes) -> bytes:
    return b'{"jsonrpc":"2.0","id":%s,"result":{}}' % id


def test_a_stream_with_its_requests() -> None:
    kept = recover([Entry("opened", 7, 0, b'[1,"a", 2]'), event(1), event(2, answer(b'"a"')), event(3, answer(b"1"))])
    stream = kept.streams[7]
    assert [n for n, _ in stream.events] == [1, 2, 3]
    assert list(stream.waiting.values()) == [b"2"]
    assert (stream.last, stream.trimmed, stream.ended, stream.is_wire) == (3, 0, False, False)


def test_what_belongs_to_no_request_goes_where_the_newest_worker_says() -> None:
    homes = [Entry("opened", number, epoch, b"[]") for number, epoch in ((7, 2), (8, 3), (9, 2))]
    assert [recover(homes[:n]).home for n in range(4)] == [0, 7, 8, 8]


def test_what_belongs_to_no_request_goes_to_the_newest_wire_where_a_build_did_not_say() -> None:
    wires = [Entry("tally", number, number, b"[0,0,[],false]") for number in (7, 8)]
    said = Entry("opened", 7, 1, b"[]")
    assert [recover(entries).home for entries in (wires, [said, *wires])] == [8, 7]


def test_the_last_event_ends_a_stream() -> None:
    assert recover([event(1), event(2, answer(b"1"), last=True)]).streams[7].ended


def test_streams_are_kept_apart() -> None:
    kept = recover([event(1, b"a", stream=1), event(1, b"b", stream=2), event(2, b"c", stream=1)])
    assert kept.streams[1].events == [(1, b"a"), (2, b"c")]
    assert kept.streams[2].events == [(1, b"b")]


@pytest.mark.parametrize("late", [1, 2, 3])
def test_what_comes_twice_or_late_is_passed_over(late: int) -> None:
    kept = recover([event(1, b"1"), event(2, b"2"), event(EPOCH * 4 + 1, b"new"), event(late, b"old")])
    assert [message for _, message in kept.streams[7].events] == [b"1", b"2", b"new"]


def test_what_came_before_a_gap_cannot_be_replayed() -> None:
    stream = recover([event(1, b"1"), event(2, b"2"), event(5, b"5"), event(6, b"6")]).streams[7]
    assert stream.events == [(5, b"5"), (6, b"6")]
    assert (stream.trimmed, stream.last) == (4, 6)


def test_a_log_that_was_trimmed() -> None:
    stream = recover([event(11, b"11"), event(12, b"12")]).streams[7]
    assert (stream.trimmed, stream.last) == (10, 12)


def test_a_stream_of_which_nothing_was_kept() -> None:
    stream = recover([Entry("opened", 7, 0, b"[1]")]).streams[7]
    assert (stream.events, stream.trimmed, stream.last) == ([], 0, 0)


def test_a_wire_that_carries_everything_and_where_its_connection_began() -> None:
    first, second = (Entry("tally", 7, n, b"[%d,0,[],false]" % began) for n, began in ((1, 0), (2, 1)))
    others = [Entry("other", 7, 1, b"2"), Entry("other", 7, 9, b"1"), Entry("other", 7, 1, b"99")]
    kept = recover([first, event(1), second, *others, Entry("opened", 7, 0, b"[5]")])
    stream = kept.streams[7]
    assert (stream.is_wire, list(stream.waiting.values())) == (True, [b"5"])
    assert (kept.is_wire(7), kept.is_wire(8)) == (True, False)
    assert [tally.connection for tally in stream.connections] == [1, 2]
    assert [tally.position(2) for tally in stream.connections] == [2, 2], "one of them is another stream's"


def test_questions_that_wait() -> None:
    asked = [Entry("asked", 0, n, b'"q%d"' % n) for n in (1, 2, 3)]
    kept = recover([*asked, Entry("settled", 0, 2), Entry("settled", 0, 9)])
    assert kept.questions == {1: asked[0], 3: asked[2]}


@pytest.mark.parametrize("message", [b"no json", b'{"jsonrpc":"2.0","method":"x"}', b""])
def test_what_is_no_answer_answers_nothing(message: bytes) -> None:
    kept = recover([Entry("opened", 7, 0, b"[1]"), event(1, message)])
    assert list(kept.streams[7].waiting.values()) == [b"1"]
