"""Tokens with requests, on real sockets: when one is asked for, who waits for it, and what a 401 costs."""

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

import pytest
from harness.ports import free_port
from harness.raw_http import PATIENCE, Hearer, Peer, serving
from trunkline.mux.statistics import Statistics
from trunkline.transports.upstream import credentials
from trunkline.transports.upstream.credentials import REFUSED, AuthorizedClient, Credential, NotIssued, Token
from trunkline.transports.upstream.http import CredentialFailed, HeaderBlock
from trunkline.transports.upstream.http_client import http_client

pytestmark = pytest.mark.anyio

NONE = HeaderBlock({})
OK = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n{}"
REFUSAL = (
    b"HTTP/1.1 401 Unauthorized\r\nWWW-Authenticate: Bearer x\r\nContent-Length: 4\r\n"
    b"Content-Type: application/json\r\n\r\nnope"
)


class Issuer:
    """A source of tokens `t1`, `t2`, …; `fault` is raised instead while it is set."""

    def __init__(self, lifetime: float | None = None) -> None:
        self.lifetime = lifetime
        self.issued = 0
        self.challenges: list[str] = []
        self.fault: Exception | None = None
        self.open = asyncio.Event()
        self.open.set()
        self.asked = asyncio.Event()

    async def fetch(self, challenge: str) -> Token:
        self.challenges.append(challenge)
        self.asked.set()
        await self.open.wait()
        if self.fault is not None:
            raise self.fault
        self.issued += 1
        return Token(f"t{self.issued}", self.lifetime)


class Bench:
    """A client with a credential, a server that takes some tokens, and what it saw."""

    def __init__(self, issuer: Issuer) -> None:
        self.issuer = issuer
        self.valid = {f"t{n}" for n in range(1, 100)}
        self.seen: list[str | None] = []
        self.met = asyncio.Event()
        self.statistics = Statistics()
        self.credential = Credential("x", issuer, self.statistics)
        self.client: AuthorizedClient

    async def serve(self, peer: Peer) -> None:
        while True:
            _, headers, _ = await peer.request()
            token = headers.get("authorization", "").removeprefix("Bearer ")
            self.seen.append(token)
            self.met.set()
            await peer.say(OK if token in self.valid else REFUSAL)

    def counted(self, outcome: str) -> int:
        return self.statistics.total("upstream_credentials", "x", outcome)

    def post(self, headers: HeaderBlock = NONE) -> Hearer:
        hearer = Hearer()
        self.client.send("POST", headers, b"{}", hearer)
        return hearer

    async def good(self) -> None:
        hearer = self.post()
        assert await hearer.outcome() is None
        assert (hearer.status, hearer.body) == (200, b"{}")

    async def failed(self) -> str:
        hearer = self.post()
        error = await hearer.outcome()
        assert isinstance(error, CredentialFailed)
        assert not error.sent
        assert not hearer.status
        return str(error)


@asynccontextmanager
async def bench(lifetime: float | None = None) -> AsyncIterator[Bench]:
    made = Bench(Issuer(lifetime))
    async with serving(made.serve) as server:
        made.client = AuthorizedClient(http_client(server.url), made.credential)
        try:
            yield made
        finally:
            await made.client.close()
            await made.client.close()


async def until(condition: Callable[[], object]) -> None:
    async with asyncio.timeout(PATIENCE):
        while not condition():  # noqa: ASYNC110 - a timer of the loop has no event for us
            await asyncio.sleep(0.001)


async def test_a_token_is_asked_for_once_and_goes_with_every_request_over_what_it_says_itself() -> None:
    async with bench() as made:
        hearers = [made.post(HeaderBlock({"Authorization": "Basic x", "A": "b"})) for _ in range(50)]
        for hearer in hearers:
            assert await hearer.outcome() is None
        await made.good()
        assert made.seen == ["t1"] * 51
        assert (made.issuer.challenges, made.counted("issued")) == ([""], 1)
        assert repr(made.credential) == "Credential(x, valid)"


async def test_50_requests_that_meet_an_expired_token_cost_one_new_one() -> None:
    async with bench(lifetime=0) as made:
        await made.good()
        await until(lambda: "none" in repr(made.credential))
        made.issuer.lifetime = None
        hearers = [made.post() for _ in range(50)]
        assert [await hearer.outcome() for hearer in hearers] == [None] * 50
        assert (made.issuer.issued, made.seen[1:]) == (2, ["t2"] * 50)
        assert made.counted("refused") == 0


async def test_a_token_about_to_expire_is_carried_while_the_next_one_is_on_its_way(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(credentials, "EARLY_SECONDS", 3600.0)
    async with bench(lifetime=4000.0) as made:  # a quarter of it is less: the last 1,000 s
        await made.good()
        made.credential._age(3600.0)  # what its timer does, 3,000 s early
        made.issuer.open.clear()
        await made.good()
        assert made.seen == ["t1", "t1"]
        await made.issuer.asked.wait()
        made.issuer.open.set()
        await until(lambda: made.issuer.issued == 2)
        await made.good()
        assert made.seen == ["t1", "t1", "t2"]


async def test_an_issuer_that_is_down_costs_nothing_while_the_token_lives() -> None:
    async with bench(lifetime=4000.0) as made:
        await made.good()
        made.credential._age(3600.0)
        made.issuer.fault = NotIssued("it is down")
        for _ in range(3):
            await made.good()
        await until(lambda: made.counted("not_issued"))
        assert made.seen == ["t1"] * 4


async def test_a_401_is_mended_by_a_new_token_once_for_all_who_met_it() -> None:
    async with bench() as made:
        await made.good()
        made.valid = {"t2"}
        hearers = [made.post() for _ in range(50)]
        assert [await hearer.outcome() for hearer in hearers] == [None] * 50
        assert {hearer.status for hearer in hearers} == {200}
        assert made.issuer.issued == 2
        assert made.issuer.challenges == ["", "Bearer x"]
        assert made.counted("refused") == 1
        assert made.seen.count("t2") == 50, "each was run once"


async def test_a_second_401_is_told_and_so_are_those_that_follow_without_a_flood_of_tokens() -> None:
    async with bench() as made:
        made.valid = set()
        assert await made.failed() == REFUSED
        assert (made.seen, made.counted("rejected")) == (["t1", "t2"], 1)
        for _ in range(20):
            assert await made.failed() == REFUSED
        assert made.issuer.issued <= 4
        # Others are not harmed by a call that is refused whatever it carries.
        made.valid = {f"t{made.issuer.issued}"}
        await made.good()


async def test_once_a_token_is_taken_again_a_refusal_is_mended_at_once() -> None:
    async with bench() as made:
        for n in range(1, 6):
            made.valid = {f"t{n}"}
            await made.good()
        assert (made.issuer.issued, made.counted("refused"), made.counted("rejected")) == (5, 4, 0)


class Once(set[str]):
    """Holds whatever it was not asked for before."""

    def __contains__(self, token: object) -> bool:
        is_new = not super().__contains__(token)
        self.add(str(token))
        return is_new


async def test_g9_a_server_that_takes_each_token_once_floods_no_issuer_that_others_need(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async with bench() as made:
        made.valid = Once()
        outcomes = [await made.post().outcome() for _ in range(4 * credentials.RENEWALS)]
        assert outcomes[: credentials.RENEWALS + 1] == [None] * (credentials.RENEWALS + 1)
        assert {str(error) for error in outcomes[credentials.RENEWALS + 1 :]} == {REFUSED}
        assert made.issuer.issued == credentials.RENEWALS + 1
        monkeypatch.setattr(credentials, "RENEWALS_SECONDS", 0.0)
        await made.good()


async def test_another_source_is_asked_however_many_tokens_of_the_one_before_were_refused() -> None:
    async with bench() as made:
        made.valid = Once()
        for _ in range(credentials.RENEWALS + 1):
            await made.good()
        assert await made.failed() == REFUSED
        other = Issuer()
        other.issued = made.issuer.issued  # what it issues is new
        made.credential.rotate(other)
        await made.good()
        assert len(other.challenges) == 1


FAULTS: dict[str, tuple[Exception, str]] = {
    "refused": (NotIssued("the issuer said no"), "the issuer said no"),
    "silent": (TimeoutError(), f"no token was issued within {credentials.FETCH_SECONDS:g} s"),
    "a defect": (RuntimeError("s3cret"), "no token could be fetched"),
}


@pytest.mark.parametrize("name", FAULTS)
async def test_without_a_token_nothing_is_sent_and_the_reason_is_told(
    name: str, caplog: pytest.LogCaptureFixture
) -> None:
    fault, told = FAULTS[name]
    async with bench() as made:
        made.issuer.fault = fault
        assert await made.failed() == told
        assert not made.seen
        assert made.counted("not_issued") == 1
        made.issuer.fault = None
        await made.good()
    assert "s3cret" not in caplog.text


async def test_an_issuer_that_keeps_failing_is_not_asked_for_each_request() -> None:
    async with bench() as made:
        made.issuer.fault = NotIssued("down")
        assert [await made.failed() for _ in range(20)] == ["down"] * 20
        assert len(made.issuer.challenges) == 2


async def test_a_token_that_cannot_stand_in_a_header_is_none() -> None:
    class Odd(Issuer):
        async def fetch(self, challenge: str) -> Token:
            return Token("a\r\nX-Other: b", None)

    made = Bench(Odd())
    async with serving(made.serve) as server:
        made.client = AuthorizedClient(http_client(server.url), made.credential)
        assert "cannot be sent" in await made.failed()
        await made.client.close()


async def test_another_source_is_asked_at_once_and_what_was_issued_goes_on() -> None:
    async with bench() as made:
        await made.good()
        made.valid, made.issuer.fault = set(), NotIssued("a secret that no longer counts")
        for _ in range(5):
            await made.failed()
        made.valid = {"t1"}
        made.credential.rotate(other := Issuer())
        await made.good()
        assert not other.challenges
        made.valid = {"other"}
        assert await made.failed() == REFUSED
        assert other.challenges == ["Bearer x"]


async def test_an_exchange_is_cut_wherever_it_stands() -> None:
    async with bench() as made:
        made.issuer.open.clear()
        waiting = Hearer()
        cut = made.client.send("POST", NONE, b"{}", waiting)
        await made.issuer.asked.wait()
        assert repr(made.credential) == "Credential(x, renewing)"
        cut()
        made.issuer.open.set()
        await made.good()
        assert made.seen == ["t1"]
        made.met.clear()
        sent = Hearer()
        cut = made.client.send("POST", NONE, b"{}", sent)
        cut()
        await made.good()
        assert not waiting.over.done()
        assert not sent.over.done()


async def test_who_waits_for_a_token_when_the_gateway_stops_is_told() -> None:
    async with bench() as made:
        made.issuer.open.clear()
        hearer = made.post()
        early = made.post()
        await made.issuer.asked.wait()
        await made.client.close()
        for one in (hearer, early):
            assert str(await one.outcome()) == "the gateway stopped"
        assert await made.failed() == "the gateway stopped"
        assert made.counted("not_issued") == 0


async def test_a_renewal_that_has_not_begun_when_the_gateway_stops_leaves_nobody_waiting() -> None:
    async with bench() as made:
        hearer = made.post()
        await made.client.close()
        assert str(await hearer.outcome()) == "the gateway stopped"


async def test_a_server_that_is_away_is_no_matter_of_credentials() -> None:
    credential = Credential("x", Issuer(), Statistics())
    client = AuthorizedClient(http_client(f"http://127.0.0.1:{free_port()}/mcp"), credential)
    hearer = Hearer()
    client.send("POST", NONE, b"{}", hearer)
    error = await hearer.outcome()
    assert error is not None
    assert not isinstance(error, CredentialFailed)
    assert not error.sent
    await client.close()
