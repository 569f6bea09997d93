"""The circuit of a server and a tenant, and its back-off."""

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, consumes, invariant, multiple, rule
from trunkline.mux import breaker
from trunkline.mux.breaker import (
    FIRST_SECONDS,
    FORGET_SECONDS,
    LAST_SECONDS,
    MAX_FAILURES,
    SOUND_SECONDS,
    Backoff,
    Breakers,
    Circuit,
    Permit,
    verdict,
)
from trunkline.mux.errors import (
    CircuitOpen,
    Overloaded,
    RevisionNotServed,
    SessionLost,
    TimedOut,
    TrunklineError,
    UpstreamFault,
    UpstreamRefused,
    UpstreamUnreachable,
    WorkflowEnded,
)
from trunkline.mux.principal import Principal

ALICE, BOB, CAROL = (Principal("i", tenant, name) for tenant, name in (("a", "alice"), ("a", "bob"), ("c", "carol")))
DOWN = UpstreamUnreachable("connection refused", executed="no")


def made(draw: float = 1.0) -> Breakers:
    return Breakers(lambda: draw)


def fail(breakers: Breakers, times: int, now: float = 0.0, principal: Principal = ALICE) -> None:
    for _ in range(times):
        breakers.admit("x", principal, now).failed(DOWN, now)


def is_refused(breakers: Breakers, now: float, principal: Principal = ALICE) -> bool:
    """True where an opening is refused at this moment; where it is not, it is given up at once."""
    try:
        breakers.admit("x", principal, now).failed(None, now)
    except CircuitOpen:
        return True
    return False


def test_failures_in_a_row_open_it_for_the_tenant_alone() -> None:
    breakers = made()
    fail(breakers, MAX_FAILURES - 1)
    assert breakers.is_closed("x", ALICE)
    fail(breakers, 1)
    assert not breakers.is_closed("x", BOB), "the tenant's circuit, not the user's"
    assert breakers.is_closed("x", CAROL)
    assert breakers.is_closed("y", ALICE)
    with pytest.raises(CircuitOpen) as refused:
        breakers.admit("x", BOB, 0.2)
    assert refused.value.code == -31001
    assert refused.value.data == {"executed": "no", "retry_after": 0.3}
    assert "circuit is open" in refused.value.message
    assert list(breakers) == [Circuit("x", "open", 3, FIRST_SECONDS)]


def test_a_success_that_lasts_lets_it_count_anew() -> None:
    breakers = made()
    fail(breakers, MAX_FAILURES - 1)
    breakers.admit("x", ALICE, 1.0).opened(1.0)
    fail(breakers, MAX_FAILURES - 1, 1.0 + SOUND_SECONDS)
    assert breakers.is_closed("x", ALICE)
    fail(breakers, 1, 1.0 + SOUND_SECONDS)
    assert not breakers.is_closed("x", ALICE)


def test_a_server_that_takes_no_more_says_nothing_of_how_it_is() -> None:
    breakers = made()
    fail(breakers, MAX_FAILURES - 1)
    full = UpstreamUnreachable("the server answered HTTP 429", status=429, executed="no")
    breakers.admit("x", ALICE, 0.0).failed(full, 0.0)
    fail(breakers, 1)
    assert not breakers.is_closed("x", ALICE)
    breakers.admit("x", ALICE, FIRST_SECONDS).failed(full, FIRST_SECONDS)
    assert not breakers.is_closed("x", ALICE), "the next one tries"


def test_one_probe_at_a_time_and_its_success_closes_it() -> None:
    breakers = made()
    fail(breakers, MAX_FAILURES)
    probe = breakers.admit("x", ALICE, FIRST_SECONDS)
    with pytest.raises(CircuitOpen) as refused:
        breakers.admit("x", BOB, FIRST_SECONDS + 10)
    assert refused.value.data["retry_after"] == FIRST_SECONDS
    assert [circuit.state for circuit in breakers] == ["half_open"]
    probe.opened(20.0)
    assert not is_refused(breakers, 20.0)


def test_a_probe_that_fails_makes_it_wait_longer_and_one_that_says_nothing_lets_the_next_try() -> None:
    breakers = made()
    fail(breakers, MAX_FAILURES)
    fail(breakers, 1, FIRST_SECONDS)
    assert is_refused(breakers, FIRST_SECONDS * 2.9)
    now = FIRST_SECONDS * 3
    breakers.admit("x", ALICE, now).failed(WorkflowEnded("deleted"), now)
    breakers.admit("x", ALICE, now).failed(None, now)
    breakers.admit("x", ALICE, now).failed(UpstreamRefused(b"{}"), now)
    assert breakers.is_closed("x", ALICE), "a server that refuses is there"


def test_a_server_that_loses_its_sessions_at_once_is_as_good_as_away() -> None:
    breakers = made()
    for n in range(MAX_FAILURES):
        permit = breakers.admit("x", ALICE, n * 0.2)
        permit.opened(n * 0.2)
        permit.lost(n * 0.2 + 0.1)
    assert is_refused(breakers, 0.6)
    probe = breakers.admit("x", ALICE, 10.0)
    probe.opened(10.0)
    probe.lost(10.2)
    assert is_refused(breakers, 10.3), "the first loss after the probe opens it again"
    breakers.admit("x", ALICE, 20.0).opened(20.0)
    lasting = breakers.admit("x", ALICE, 21.5)
    lasting.opened(21.5)
    lasting.lost(21.5 + SOUND_SECONDS)
    fail(breakers, MAX_FAILURES - 1, 30.0)
    assert breakers.is_closed("x", ALICE)


def test_what_began_before_it_opened_says_nothing_new_when_it_fails_and_closes_it_when_it_succeeds() -> None:
    breakers = made()
    early = [breakers.admit("x", ALICE, 0.0) for _ in range(MAX_FAILURES + 4)]
    for permit in early[:-2]:
        permit.failed(DOWN, 0.1)
    assert [circuit.failures for circuit in breakers] == [MAX_FAILURES]
    early[-2].failed(None, 0.1)
    breakers.admit("x", ALICE, 1.0)
    early[-2].failed(DOWN, 1.0)
    assert [circuit.state for circuit in breakers] == ["half_open"], "only the probe's own outcome ends it"
    early[-1].opened(1.0)
    assert breakers.is_closed("x", ALICE)


def test_what_is_in_order_and_what_nobody_tries_takes_no_place() -> None:
    breakers = made()
    fail(breakers, 1)
    fail(breakers, MAX_FAILURES, principal=CAROL)
    breakers.admit("x", ALICE, 1.0).opened(1.0)
    breakers.expire(1.5)
    assert len(list(breakers)) == 2
    breakers.expire(1.0 + SOUND_SECONDS)
    assert [circuit.failures for circuit in breakers] == [MAX_FAILURES]
    probe = breakers.admit("x", CAROL, 2.0)
    breakers.expire(FORGET_SECONDS * 2)
    assert len(list(breakers)) == 1, "a probe is waited for"
    probe.failed(DOWN, 2.0)
    breakers.expire(FORGET_SECONDS * 2)
    assert list(breakers) == []
    permit = Permit(breakers, ("x", "i", "a"))
    permit.opened(0.0)
    permit.failed(None, 0.0)
    assert list(breakers) == []


def test_what_failed_elsewhere_is_forgotten_where_a_server_was_moved() -> None:
    breakers = made()
    fail(breakers, MAX_FAILURES)
    breakers.keep({"x", "y"})
    assert is_refused(breakers, 0.1)
    under_way = breakers.admit("x", CAROL, 0.1)
    breakers.keep({"y"})
    assert list(breakers) == []
    under_way.opened(0.1)
    assert not is_refused(breakers, 0.1)


def test_g10_the_circuits_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(breaker, "MAX_CIRCUITS", 2)
    breakers = made()
    for name in ("a", "b", "a", "c"):
        breakers.admit(name, ALICE, 0.0).failed(DOWN, 0.0)
    assert [circuit.server for circuit in breakers] == ["a", "c"]


def test_waits_grow_up_to_a_bound_and_are_drawn_from_their_upper_half() -> None:
    longest, shortest = Backoff(lambda: 1.0), Backoff(lambda: 0.0)
    waits = []
    for _ in range(20):
        longest.failed(100.0)
        shortest.failed(100.0)
        assert shortest.until - 100 == (longest.until - 100) / 2
        waits.append(longest.until - 100)
    assert waits[:3] == [FIRST_SECONDS, FIRST_SECONDS * 2, FIRST_SECONDS * 4]
    assert waits[-1] == LAST_SECONDS
    longest.failed(100.0, at_least=50.0)
    assert longest.until == 150.0
    longest.succeeded()
    assert (longest.failures, longest.until) == (0, float("-inf"))


@pytest.mark.parametrize(
    ("error", "says"),
    [
        (DOWN, "failed"),
        (UpstreamUnreachable("HTTP 503", status=503, executed="unknown"), "failed"),
        (UpstreamUnreachable("HTTP 408", status=408, executed="unknown"), "failed"),
        (UpstreamUnreachable("HTTP 401", status=401, executed="no"), "answered"),
        (UpstreamUnreachable("HTTP 400", status=400, executed="no"), "answered"),
        (UpstreamUnreachable("HTTP 429", status=429, executed="no"), "answered"),
        (UpstreamUnreachable("HTTP 500", status=500, executed="unknown"), "failed"),
        (UpstreamFault("no JSON"), "failed"),
        (SessionLost("gone", executed="unknown"), "failed"),
        (TimedOut("late"), "failed"),
        (UpstreamRefused(b"{}"), "answered"),
        (RevisionNotServed("1.0"), "answered"),
        (Overloaded("full", limit="directory"), "unknown"),
        (WorkflowEnded("deleted"), "unknown"),
        (None, "unknown"),
    ],
)
def test_what_a_failure_says_of_the_server(error: TrunklineError | None, says: str) -> None:
    assert verdict(error) == says


class Openings(RuleBasedStateMachine):
    """Openings of one tenant, in any order, against what has to hold whatever happens."""

    under_way = Bundle("under_way")
    living = Bundle("living")

    def __init__(self) -> None:
        super().__init__()
        self.breakers = made(0.5)
        self.now = 0.0
        self.probes = 0
        self.probe: Permit | None = None

    @property
    def state(self) -> str:
        return next((circuit.state for circuit in self.breakers), "closed")

    @rule(target=under_way)
    def admit(self):
        before, until = self.state, next((circuit.until for circuit in self.breakers), 0.0)
        try:
            permit = self.breakers.admit("x", ALICE, self.now)
        except CircuitOpen as refused:
            assert before == "half_open" or (before == "open" and until > self.now)
            seconds = refused.data["retry_after"]
            assert 0 <= seconds <= LAST_SECONDS
            return multiple()
        assert before == "closed" or (before == "open" and until <= self.now), "one probe at a time"
        if before == "open":
            assert self.state == "half_open"
            self.probe = permit
        return permit

    @rule(permit=consumes(under_way), error=st.sampled_from([DOWN, WorkflowEnded("deleted"), UpstreamRefused(b"{}")]))
    def fail(self, permit: Permit, error: TrunklineError) -> None:
        before = self.state
        permit.failed(error, self.now)
        if before == "half_open" and not isinstance(error, UpstreamRefused):
            assert (self.state == "half_open") == (permit is not self.probe)
        if isinstance(error, UpstreamRefused):
            assert self.state == "closed"

    @rule(target=living, permit=consumes(under_way))
    def succeed(self, permit: Permit):
        permit.opened(self.now)
        assert self.state == "closed"
        return permit

    @rule(permit=consumes(living))
    def lose(self, permit: Permit) -> None:
        permit.lost(self.now)

    @rule(seconds=st.sampled_from([0.1, 0.4, 1.0, 20.0]))
    def later(self, seconds: float) -> None:
        self.now += seconds

    @rule()
    def sweep(self) -> None:
        before = self.state
        self.breakers.expire(self.now)
        assert self.state == before or self.state == "closed"

    @invariant()
    def it_is_open_only_for_a_reason(self) -> None:
        for circuit in self.breakers:
            assert circuit.state == "closed" or circuit.failures >= MAX_FAILURES
            assert circuit.until - self.now <= LAST_SECONDS


TestOpenings = Openings.TestCase
TestOpenings.settings = settings(max_examples=150, stateful_step_count=40, deadline=None)
