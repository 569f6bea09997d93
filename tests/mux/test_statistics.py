"""Counting by fixed words."""

from trunkline.mux.statistics import BUCKETS, Histogram, Statistics, method_label


def test_counts_add_up_by_their_labels() -> None:
    made = Statistics()
    made.count("calls", "s", "tools/call", "ok")
    made.count("calls", "s", "ping", "ok", by=2)
    made.count("callsign")
    assert made.total("calls") == 3
    assert made.total("calls", "s", "ping") == 2
    assert made.total("none") == 0


def test_durations_fall_into_their_buckets() -> None:
    made = Statistics()
    for seconds in (0.0, BUCKETS[0], 0.02, 10_000.0):
        made.observe("call_seconds", seconds, "s")
    histogram: Histogram = made.seconds["call_seconds", "s"]
    assert histogram.counts[0] == 2
    assert histogram.counts[-1] == 1
    assert sum(histogram.counts) == 4
    assert histogram.total == 10_000.0 + 0.02 + BUCKETS[0]


def test_what_two_have_counted_adds_up() -> None:
    ours, theirs = Statistics(), Statistics()
    for made in (ours, theirs):
        made.count("calls", "s", "ping", "ok")
        made.observe("call_seconds", 0.02, "s")
    theirs.count("refused", "host")
    theirs.observe("call_seconds", 10_000.0, "t")
    ours.add(theirs)
    assert ours.counts == {("calls", "s", "ping", "ok"): 2, ("refused", "host"): 1}
    assert [sum(ours.seconds["call_seconds", server].counts) for server in "st"] == [2, 1]
    assert ours.seconds["call_seconds", "s"].total == 0.04
    assert theirs.counts["calls", "s", "ping", "ok"] == sum(theirs.seconds["call_seconds", "s"].counts) == 1


def test_g12_no_label_is_a_clients_text() -> None:
    assert method_label("tools/call") == "tools/call"
    assert method_label("my/secret") == "other"
