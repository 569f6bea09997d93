"""What a client counts on a connection, and that it means the same to another worker."""

from trunkline.mux.tally import MAX_OTHERS, Tally


def test_a_tally_leaves_out_what_is_not_the_wires() -> None:
    tally = Tally(10)
    assert [tally.position(count) for count in (0, 1, 2)] == [10, 11, 12]
    tally.skip(2)
    tally.add_other(4)
    assert [tally.position(count) for count in range(7)] == [10, 10, 10, 11, 11, 12, 13]


def test_a_tally_that_has_forgotten_places_leads_back_and_never_ahead() -> None:
    noted: list[bytes] = []
    tally = Tally(0, 1, lambda kind, n, text: noted.append(text))
    for ordinal in range(1, 2 * MAX_OTHERS, 2):
        tally.add_other(ordinal)
    exact = [tally.position(count) for count in range(2 * MAX_OTHERS)]
    for ordinal in range(2 * MAX_OTHERS + 1, 3 * MAX_OTHERS, 2):
        tally.add_other(ordinal)
    assert all(tally.position(count) <= exact[count] for count in range(2 * MAX_OTHERS))
    assert tally.position(3 * MAX_OTHERS) == 3 * MAX_OTHERS // 2
    tally.tell()
    assert noted[-1].count(b",") == MAX_OTHERS + 4, "no more places are kept"


def test_g5_where_another_worker_goes_on_places_leap_and_counts_do_not() -> None:
    noted: list[bytes] = []
    tally = Tally(10, 1, lambda kind, n, text: noted.append(text), leaps=[(2, 100), (3, 200)])
    tally.skip(1)
    places = [10, 10, 11, 12, 101, 201, 202]
    assert [tally.position(count) for count in range(7)] == places
    assert [Tally.read(1, noted[-1]).position(count) for count in range(7)] == places
    assert Tally.read(1, b"[10,0,[],true]").position(3) == 13, "what was noted by those who did not know of leaps"


def test_all_that_changes_is_noted_and_read_again() -> None:
    noted: list[tuple[str, int, bytes]] = []

    def note(kind: str, n: int, text: bytes) -> None:
        noted.append((kind, n, text))

    tally = Tally(10, 3, note)
    tally.tell()
    tally.skip(0)
    tally.skip(2)
    tally.add_other(4)
    tally.name = "it"
    tally.meet()
    tally.meet()
    assert [(kind, n) for kind, n, _ in noted] == [("tally", 3), ("tally", 3), ("other", 4), ("tally", 3)]
    assert noted[2][2] == b"3"
    early, late = Tally.read(3, noted[1][2]), Tally.read(3, noted[3][2])
    assert (early.began, early.connection, early.is_met, late.is_met) == (10, 3, False, True)
    assert (early.name, late.name) == ("", "it")
    early.add_other(4)
    for count in range(8):
        assert tally.position(count) == early.position(count) == late.position(count)
