"""What a server has sent of large messages that are not complete is bounded, and counts for as long as it is kept."""

import pytest
from trunkline.mux.burden import LARGE_BYTES
from trunkline.mux.errors import UpstreamFault
from trunkline.transports.unfinished import Part, Unfinished


def test_g10_no_more_than_the_bound_is_held_and_what_nobody_keeps_is_given_back() -> None:
    unfinished = Unfinished(300_000)
    parts = [unfinished.hold(None, 100_000), unfinished.hold(None, 150_000)]
    assert unfinished.held == 250_000
    parts[0] = unfinished.hold(parts[0], 150_000)
    with pytest.raises(UpstreamFault, match="more than 300000 bytes") as caught:
        parts[1] = unfinished.hold(parts[1], 150_001)
    assert caught.value.data == {"limit": "max_unfinished_bytes"}
    with pytest.raises(UpstreamFault):
        unfinished.hold(None, LARGE_BYTES + 1)
    assert unfinished.held == 300_000
    parts[0] = unfinished.hold(parts[0], 10)
    assert unfinished.held == 150_000
    del caught, parts
    assert unfinished.held == 0


def test_small_messages_do_not_count() -> None:
    unfinished = Unfinished(0)
    assert unfinished.hold(None, LARGE_BYTES) is None
    assert Part(unfinished).size == unfinished.held == 0
