"""The ring behind resumption: what is replayed, what is trimmed, and what is lost loudly."""

from math import inf

import pytest
from hypothesis import given
from hypothesis import strategies as st
from trunkline.mux.event_log import EPOCH, MAX_EMPTY, Budget, EventLog, Overflow, Position, Stream, Trimmed
from trunkline.mux.limits import EventLogLimits


def log(events: int = 100, size: int = 1000, total: int = 10_000) -> tuple[EventLog, Budget]:
    budget = Budget(total)
    return EventLog(EventLogLimits(events=events, bytes=size, total_bytes=total), budget), budget


def fill(made: EventLog, stream: Stream, *messages: bytes, at: float = 0.0) -> None:
    for message in messages:
        made.append(stream, message, at)


def test_t9_a_position_is_spelled_and_read_back() -> None:
    position = Position("a" * 32, 3, 0, 17)
    assert Position.read(position.spell()) == position
    for wrong in (
        "",
        "x",
        "a" * 32,
        "a" * 32 + "-1-2",
        "g" * 32 + "-1-0-1",
        position.spell() + " ",
        "a" * 32 + "-1-0--1",
    ):
        assert Position.read(wrong) is None


def test_t9_only_the_stream_asked_for_is_replayed() -> None:
    made, _ = log()
    one, two = made.open(), made.open()
    fill(made, one, b"a1")
    fill(made, two, b"b1")
    fill(made, one, b"a2")
    assert [event.message for event in one.after(0)] == [b"a1", b"a2"]
    assert [event.message for event in one.after(1)] == [b"a2"]
    assert one.after(2) == []
    assert made.find(two.number) is two
    assert made.find(0) is made.standalone()


def test_the_oldest_of_all_streams_events_is_told() -> None:
    made, _ = log()
    assert made.oldest == inf
    fill(made, made.open(), b"a", at=7.0)
    fill(made, made.open(), b"b", at=3.0)
    assert made.oldest == 7.0


def test_a_position_that_is_not_held_is_told() -> None:
    made, _ = log(events=2)
    stream = made.open()
    fill(made, stream, b"1", b"2")
    stream.sent = 2
    fill(made, stream, b"3")
    assert [event.n for event in stream.after(1)] == [2, 3]
    for wrong in (0, 4):
        with pytest.raises(Trimmed):
            stream.after(wrong)
    with pytest.raises(Trimmed):
        made.find(99)


def test_what_was_delivered_is_trimmed_in_silence_and_what_was_not_is_an_overflow() -> None:
    made, _ = log(events=3)
    stream = made.open()
    fill(made, stream, b"1", b"2", b"3")
    stream.sent = 1
    fill(made, stream, b"4")
    with pytest.raises(Overflow):
        made.append(stream, b"5", 0)
    assert stream.last == 5, "it was appended all the same"


def test_a_stream_that_no_client_opened_forgets_its_oldest() -> None:
    made, _ = log(events=2)
    fill(made, made.standalone(), b"1", b"2", b"3")
    assert [event.n for event in made.standalone().after(1)] == [2, 3]


def test_bytes_are_bounded_for_one_log_and_for_all() -> None:
    made, budget = log(size=10)
    stream = made.open()
    stream.sent = 10**6
    fill(made, stream, b"x" * 6, b"y" * 6)
    assert (made.bytes, len(made), budget.held) == (6, 1, 6)
    other = EventLog(EventLogLimits(), budget)
    budget.limit = 8
    crowded = other.open()
    crowded.sent = 10**6
    fill(other, crowded, b"z" * 4, b"w" * 4)
    assert (len(made), len(other), budget.held) == (0, 2, 8)


class House:
    """The logs of one process, whose clients have gone: nothing was delivered unless it is `taken`."""

    def __init__(self, total: int) -> None:
        self.budget = Budget(total)
        self.overflowed: list[str] = []
        self.logs: dict[str, EventLog] = {}

    def hold(self, name: str, *sizes: int, taken: bool = False) -> EventLog:
        made = self.logs[name] = EventLog(EventLogLimits(bytes=100, total_bytes=self.budget.limit), self.budget)

        def overflow() -> None:
            self.overflowed.append(name)
            made.clear()

        made.on_overflow = overflow
        stream = made.open()
        for size in sizes:
            made.append(stream, b"x" * size, 0.0)
            stream.sent = stream.last if taken else 0
        return made

    @property
    def held(self) -> dict[str, int]:
        return {name: one.bytes for name, one in self.logs.items()}


def test_g10_where_all_hold_too_much_it_is_not_paid_by_who_comes_next() -> None:
    house = House(200)
    for name in ("a", "b"):
        house.hold(name, 50, 50)
    small = house.hold("small", 5, 5)
    assert house.overflowed == ["a"]
    assert house.held == {"a": 0, "b": 100, "small": 10}
    assert len(small) == 2, "what its client was not sent yet"


def test_g10_one_event_of_each_is_no_way_round_the_bound_of_all() -> None:
    house = House(200)
    for number in range(4):
        house.hold(f"{number}", 90)
    assert house.budget.held == 180
    assert house.overflowed == ["0", "1"]
    house.hold("large", 300)
    assert house.held["large"] == house.budget.held == 300, "what comes is delivered live, whatever its size"


def test_g10_who_loses_nothing_by_it_gives_way_before_who_does() -> None:
    house = House(200)
    house.hold("away", 80)
    house.hold("there", *[10] * 8, taken=True)
    house.hold("next", 70)
    assert house.overflowed == []
    assert house.held == {"away": 80, "there": 40, "next": 70}


def test_g10_who_gives_way_does_not_lose_where_others_would_not() -> None:
    house = House(200)
    half = house.hold("half", 10, taken=True)
    half.append(half.find(1), b"x" * 80, 0.0)
    house.hold("there", *[5] * 17, taken=True)
    house.hold("next", 70)
    assert house.overflowed == []
    assert house.held == {"half": 80, "there": 45, "next": 70}


def test_g10_nobody_keeps_what_was_delivered_to_others_from_them_by_what_he_does_not_take() -> None:
    house = House(200)
    house.hold("there", 30, 10, taken=True)
    house.hold("away", 100)
    house.hold("next", 70)
    assert house.overflowed == ["away"]
    assert house.held == {"there": 40, "away": 0, "next": 70}


def test_g10_who_comes_next_gives_way_itself_where_it_holds_most() -> None:
    house = House(100)
    house.hold("small", 20)
    with pytest.raises(Overflow):
        house.hold("much", 50, 40)
    assert house.overflowed == []
    assert house.held == {"small": 20, "much": 40}
    crowd = House(100)
    crowd.hold("taken", 50, 40, 30, taken=True)
    assert crowd.held == {"taken": 70}


def test_g10_what_is_said_of_a_loss_takes_no_room_from_others() -> None:
    house = House(200)
    ends = house.hold("ends", 50, 50)

    def overflow() -> None:
        house.overflowed.append("ends")
        for _ in range(2):
            ends.append(ends.open(), b"lost", 0.0, last=True)

    ends.on_overflow = overflow
    house.hold("large", 300)
    assert house.overflowed == ["ends"]
    assert house.held == {"ends": 8, "large": 300}
    house.hold("next", 10)
    assert house.overflowed == ["ends", "large"], "of what has ended nothing can be lost"
    assert house.held == {"ends": 0, "large": 0, "next": 10}


def test_what_only_primes_a_stream_is_no_room_to_be_won() -> None:
    house = House(10)
    house.hold("primed", 0)
    house.hold("large", 50)
    assert house.held == {"primed": 0, "large": 50}
    assert house.overflowed == []


def test_an_event_larger_than_the_log_is_delivered_live_and_goes_with_the_next() -> None:
    made, _ = log(size=10)
    stream = made.open()
    fill(made, stream, b"x" * 50)
    assert [event.n for event in stream.after(0)] == [1]
    stream.sent = 1
    fill(made, stream, b"y")
    assert (made.bytes, [event.n for event in stream.after(1)]) == (1, [2])


def test_time_takes_what_is_old_and_forgets_streams_that_ended() -> None:
    made, budget = log()
    ended, live = made.open(), made.open()
    made.append(ended, b"1", 1.0, last=True)
    made.append(live, b"2", 5.0)
    made.expire(5.0)
    assert budget.held == 1
    assert ended.ended
    with pytest.raises(Trimmed):
        made.find(ended.number)
    made.expire(6.0)
    assert made.find(live.number) is live, "a stream that goes on is not forgotten"
    assert live.trimmed == 1
    assert budget.held == 0


def test_clear_gives_everything_back() -> None:
    made, budget = log()
    fill(made, made.open(), b"abc", b"d")
    made.clear()
    assert (budget.held, len(made), made.bytes) == (0, 0, 0)


@given(
    st.lists(st.tuples(st.integers(0, 3), st.integers(0, 30), st.booleans()), max_size=60),
    st.integers(1, 12),
    st.integers(1, 120),
)
def test_the_ring_never_loses_in_silence_and_never_holds_too_much(
    steps: list[tuple[int, int, bool]], events: int, size: int
) -> None:
    made, budget = log(events=events, size=size)
    streams = [made.open() for _ in range(4)]
    sent: dict[int, list[int]] = {stream.number: [] for stream in streams}
    got: dict[int, list[int]] = {stream.number: [] for stream in streams}
    overflowed = False
    for index, length, deliver in steps:
        stream = streams[index]
        try:
            event = made.append(stream, b"x" * length, 0)
            sent[stream.number].append(event.n)
        except Overflow:
            overflowed = True
            break
        if deliver:
            got[stream.number] += [e.n for e in stream.after(stream.sent)]
            stream.sent = stream.last
    assert len(made) <= max(events, 1)
    assert made.bytes <= size or len(made) == 1
    assert budget.held == made.bytes == sum(len(e.message) for s in streams for e in s.events)
    if not overflowed:
        for stream in streams:
            got[stream.number] += [e.n for e in stream.after(stream.sent)]
            assert got[stream.number] == sent[stream.number]


def test_places_of_a_later_writer_are_greater() -> None:
    position = Position.at("a" * 32, 3, EPOCH * 2 + 5)
    assert (position.epoch, position.n) == (2, 5)
    assert Position.read(position.spell()) == position
    assert position.place == EPOCH * 2 + 5
    assert Position("a" * 32, 3, 1, 10**14).place < EPOCH * 2


def test_g5_what_a_client_that_is_there_was_not_sent_yet_is_kept_however_old_it_is() -> None:
    made, _ = log()
    slow, other = made.open(), made.open()
    slow.is_read = True
    fill(made, slow, b"a", b"b", at=1.0)
    fill(made, other, b"c", at=1.0)
    slow.sent = 1
    made.expire(10.0)
    assert [event.message for event in slow.after(1)] == [b"b"]
    slow.sent = 2
    made.expire(10.0)
    assert len(made) == 0


def test_g10_of_streams_of_which_nothing_is_left_the_last_ones_are_kept() -> None:
    made, _ = log()
    held = made.restore(1, [(1, b"a")], trimmed=0, last=EPOCH, now=0.0)
    empty = [made.restore(number, [], trimmed=0, last=EPOCH, now=0.0) for number in range(2, MAX_EMPTY + 4)]
    for stream in (held, *empty):
        stream.ended = True
    made.forget_empty()
    assert made.knows(held.number)
    assert [stream.number for stream in empty if made.knows(stream.number)] == [*range(4, MAX_EMPTY + 4)]
    made.forget_empty()
    assert made.knows(4)


def test_a_stream_that_was_restored_waits_for_its_client() -> None:
    made, _ = log()
    stream = made.restore(7, [], trimmed=2, last=EPOCH, now=10.0)
    stream.ended = True
    made.expire(9.9)
    assert made.find(7) is stream, "though it has ended, and nothing of it is left"
    assert made.oldest == 10.0
    made.restore(8, [], trimmed=0, last=EPOCH, now=11.0).ended = True
    assert made.oldest == 10.0, "of several, the first that came back"
    made.expire(10.1)
    assert not made.knows(7)
    assert made.oldest == 11.0
    made.expire(11.1)
    assert made.oldest == inf


def test_what_another_writer_began_goes_on_after_all_that_it_may_have_written() -> None:
    made, budget = log()
    stream = made.restore(7, [(3, b"c"), (4, b"d")], trimmed=2, last=EPOCH, now=0.0)
    assert made.knows(7)
    assert not made.knows(8)
    assert (len(made), budget.held) == (2, 2)
    fill(made, stream, b"new")
    assert [event.message for event in stream.after(3)] == [b"d", b"new"]
    assert [event.message for event in stream.after(1000)] == [b"new"]
    with pytest.raises(Trimmed):
        stream.after(1)


def test_g5_where_another_writer_goes_on_places_leap() -> None:
    made, _ = log()
    stream = made.restore(7, [(3, b"c"), (4, b"d"), (EPOCH + 1, b"e")], trimmed=2, last=2 * EPOCH, now=0.0)
    assert stream.leaps_after(2) == [(2, EPOCH), (3, 2 * EPOCH)]
    assert stream.leaps_after(4) == [(0, EPOCH), (1, 2 * EPOCH)]
    assert stream.leaps_after(6) == [(0, EPOCH), (1, 2 * EPOCH)], "it may have been sent more than was kept"
    assert stream.leaps_after(2 * EPOCH) == []
    fill(made, stream, b"new")
    assert stream.leaps_after(EPOCH) == [(1, 2 * EPOCH)]
    with pytest.raises(Trimmed):
        stream.leaps_after(1)


def test_who_does_not_come_back_to_a_stream_is_waited_for_no_longer() -> None:
    made, _ = log(events=2)
    left, read, never = made.open(), made.open(), made.open()
    left.left, read.left, read.is_read = 5.0, 1.0, True
    fill(made, left, b"a", at=6.0)
    assert made.oldest == 5.0
    assert made.give_up(4.9) == []
    assert not made.is_out_of_reach(left.number, left.last)
    assert made.give_up(5.0) == [left]
    assert made.is_out_of_reach(left.number, left.last)
    assert not made.is_out_of_reach(left.number, left.sent)
    left.is_wire = True
    assert made.is_out_of_reach(left.number, left.sent)
    assert not made.is_out_of_reach(99, 1)
    assert [made.last_of(number) for number in (left.number, never.number, 99)] == [1, 0, 0]
    assert made.oldest == 6.0, "what is kept"
    fill(made, read, b"b", b"c")
    assert not made.has_lost, "though the oldest had to go"
