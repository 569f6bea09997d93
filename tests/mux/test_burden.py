"""How much of clients' large messages is held here: of each user, and of all."""

import pytest
from trunkline.mux.burden import Burden
from trunkline.mux.errors import Overloaded
from trunkline.mux.principal import Principal

ALICE, BOB, CAROL = (Principal("issuer", "acme", name) for name in ("alice", "bob", "carol"))


def refused(burden: Burden, principal: Principal, size: int, server: str = "x") -> str:
    with pytest.raises(Overloaded) as caught:
        burden.take_up(principal, server, size)
    return caught.value.limit


def test_g10_no_user_has_more_than_its_part_and_none_more_than_all() -> None:
    burden = Burden(total=10, per_user=6)
    burden.take_up(ALICE, "x", 6)
    assert refused(burden, ALICE, 1) == "max_large_bytes_per_user"
    burden.take_up(BOB, "x", 4)
    assert refused(burden, BOB, 1) == "max_large_bytes"
    assert refused(burden, CAROL, 1) == "max_large_bytes"
    assert repr(burden) == "Burden(10 bytes of 2 users)"
    burden.lay_down(ALICE, "x", 2)
    burden.take_up(CAROL, "x", 2)
    assert burden.held == 10
    assert refused(burden, ALICE, 3) == "max_large_bytes_per_user", "what was not laid down counts"


def test_g9_of_one_server_is_not_more_than_its_part_whoever_asks_it() -> None:
    burden = Burden(total=10, per_user=6, per_server=8)
    burden.take_up(ALICE, "x", 4)
    burden.take_up(BOB, "x", 4)
    assert refused(burden, CAROL, 1) == "max_large_bytes_per_server"
    assert refused(burden, CAROL, 3, "y") == "max_large_bytes"
    burden.take_up(CAROL, "y", 2)
    burden.lay_down(BOB, "x", 1)
    burden.take_up(CAROL, "x", 1)
    assert burden.held == 10
    assert refused(burden, CAROL, 1) == "max_large_bytes_per_server", "what was not laid down counts"


def test_of_who_has_nothing_nothing_is_kept() -> None:
    burden = Burden(total=10, per_user=6)
    burden.take_up(ALICE, "x", 6)
    burden.lay_down(ALICE, "x", 6)
    assert refused(burden, BOB, 7) == "max_large_bytes_per_user"
    assert repr(burden) == "Burden(0 bytes of 0 users)"
