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


def test_g12_no_label_is_a_clients_text() -> None:
    assert method_label("tools/call") == "tools/call"
    assert method_label("my/secret") == "other"
