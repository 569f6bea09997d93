"""Tickets for browsers: one connection, one server, half a minute."""

import tracemalloc

import pytest
from trunkline.gateway import tickets as tickets_module
from trunkline.gateway.auth import Authenticator
from trunkline.gateway.settings import AuthSection, Settings, TokenEntry
from trunkline.gateway.tickets import TICKET_SECONDS, Tickets
from trunkline.mux.errors import Overloaded
from trunkline.mux.principal import Principal
from trunkline.transports.asgi import UNBOUND, Grant, headers_of
from trunkline.transports.status import Unauthorized

ALICE = Principal("tokens", "acme", "alice")
BOB = Principal("tokens", "acme", "bob")


FAR = 4_000_000_000.0
"""When an identity ends that lasts longer than any test, by the wall clock."""


class Clock:
    now = 1000.0

    def __call__(self) -> float:
        return self.now


def test_a_ticket_is_good_for_one_connection_to_its_server() -> None:
    tickets = Tickets(clock=Clock())
    ticket = tickets.give(ALICE, "up", 5000.0)
    assert len(ticket) >= 32
    assert tickets.take(ticket, "up") == (ALICE, 5000.0, UNBOUND)
    assert tickets.take(ticket, "up") is None
    other = tickets.give(ALICE, "up", 5000.0)
    assert tickets.take(other, "elsewhere") is None
    assert tickets.take(other, "up") is None, "whoever tried it elsewhere has spent it"
    assert tickets.take("never given", "up") is None


def test_a_ticket_of_one_of_several_workers_says_whose_it_is() -> None:
    tickets = Tickets(clock=Clock())
    tickets.worker = 27
    ticket = tickets.give(ALICE, "up", 5000.0)
    assert ticket.startswith("1b.")
    assert tickets.take(ticket.removeprefix("1b."), "up") is None
    assert tickets.take(ticket, "up") == (ALICE, 5000.0, UNBOUND)


def test_g10_nothing_is_kept_of_who_has_no_ticket_any_longer() -> None:
    tickets = Tickets(clock=Clock())
    tracemalloc.start()
    try:
        for n in range(1000):
            tickets.take(tickets.give(Principal("tokens", "acme", f"{n}"), "up", 5000.0), "up")
        assert tracemalloc.get_traced_memory()[0] < 8192
    finally:
        tracemalloc.stop()


def test_a_ticket_ends_by_itself() -> None:
    clock = Clock()
    tickets = Tickets(clock=clock)
    ticket = tickets.give(ALICE, "up", 5000.0)
    clock.now += TICKET_SECONDS
    assert tickets.take(ticket, "up") is None


def test_a_ticket_is_worth_nothing_once_the_token_has_expired_that_it_was_given_for() -> None:
    clock = Clock()
    tickets = Tickets(clock=clock)
    ticket = tickets.give(ALICE, "up", clock.now + 1)
    clock.now += 1
    assert tickets.take(ticket, "up") is None


def test_a_ticket_ends_with_the_token_that_it_was_given_for() -> None:
    tickets, grant = Tickets(clock=Clock()), Grant()
    ticket = tickets.give(ALICE, "up", 5000.0, grant)
    grant.withdraw()
    assert tickets.take(ticket, "up") is None


def test_g10_only_so_many_wait_to_be_used(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tickets_module, "MAX_TICKETS", 2)
    clock = Clock()
    tickets = Tickets(clock=clock)
    for _ in range(2):
        tickets.give(ALICE, "up", 5000.0)
    with pytest.raises(Overloaded):
        tickets.give(ALICE, "up", 5000.0)
    clock.now += TICKET_SECONDS
    tickets.give(ALICE, "up", 5000.0)
    assert len(tickets) == 1


def test_g10_one_user_cannot_take_them_all(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tickets_module, "MAX_TICKETS_PER_USER", 2)
    clock = Clock()
    tickets = Tickets(clock=clock)
    first, _ = tickets.give(ALICE, "up", 5000.0), tickets.give(ALICE, "elsewhere", 5000.0)
    with pytest.raises(Overloaded) as refused:
        tickets.give(ALICE, "up", 5000.0)
    assert refused.value.limit == "tickets_per_user"
    tickets.give(BOB, "up", 5000.0)
    assert tickets.take(first, "up") is not None
    tickets.give(ALICE, "up", 5000.0)
    with pytest.raises(Overloaded):
        tickets.give(ALICE, "up", 5000.0)
    clock.now += TICKET_SECONDS
    for _ in range(2):
        tickets.give(ALICE, "up", 5000.0)


def test_a_ticket_stands_for_its_token_only_where_tickets_are_taken() -> None:
    auth = AuthSection(mode="tokens", tokens=(TokenEntry("a" * 64, "acme", "alice"),))
    authenticator = Authenticator(Settings(auth=auth))
    ticket = authenticator.tickets.give(ALICE, "up", FAR)
    headers = headers_of({"headers": [], "query_string": b"workflow=x&ticket=" + ticket.encode()})
    with pytest.raises(Unauthorized):
        authenticator.authenticate(headers, server="up")
    assert authenticator.authenticate(headers, server="up", tickets=True) == ALICE
    assert headers.expires == FAR
    with pytest.raises(Unauthorized):
        authenticator.authenticate(headers, server="up", tickets=True)
    twice = authenticator.tickets.give(ALICE, "up", FAR)
    doubled = headers_of({"headers": [], "query_string": f"ticket={twice}&ticket=x".encode()})
    with pytest.raises(Unauthorized):
        authenticator.authenticate(doubled, server="up", tickets=True)


def test_where_nobody_has_to_say_who_it_is_no_ticket_is_asked_for() -> None:
    headers = headers_of({"headers": [], "query_string": b"ticket=unknown"})
    assert Authenticator(Settings()).authenticate(headers, server="up", tickets=True).is_anonymous


def test_g10_a_ticket_is_looked_for_among_few_values_of_a_query() -> None:
    """Nobody knows yet who sends it."""
    authenticator = Authenticator(Settings(auth=AuthSection(mode="tokens")))
    for more, is_taken in ((b"&a=b" * 31, True), (b"&a=b" * 32, False)):
        ticket = authenticator.tickets.give(ALICE, "up", FAR)
        headers = headers_of({"headers": [], "query_string": b"ticket=" + ticket.encode() + more})
        if is_taken:
            assert authenticator.authenticate(headers, server="up", tickets=True) == ALICE
        else:
            with pytest.raises(Unauthorized):
                authenticator.authenticate(headers, server="up", tickets=True)
