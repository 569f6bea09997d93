"""Credentials that are issued for a while: a token goes with every request to a server, and is renewed beside them.

While a token is valid, a request pays for it with one look at an attribute. Where it has expired, all requests wait for
one renewal. Where the server answers 401, which it does before it runs anything, the token is renewed and the request
sent once more; a second 401 is told. Sessions know nothing of all this: their next request carries the new token.
"""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import Callable
from typing import Final, Literal, NamedTuple, Protocol

from ...mux.statistics import Statistics
from .answers import nothing
from .backoff import Backoff
from .http import Answer, CredentialFailed, ExchangeBroken, Fence, HeaderBlock, Headers, HTTPClient, Method

logger = logging.getLogger(__name__)

Outcome = Literal["issued", "not_issued", "refused", "rejected"]
"""What is counted: a token was issued or not; a server refused one, which was renewed; it refused that as well."""

FETCH_SECONDS: Final = 20.0
"""How long the issuer may take for a token, discovery included."""

EARLY_SECONDS: Final = 30.0
"""So long before its end a token is renewed, while requests still carry it; a short-lived one in its last quarter."""

LONGEST_SECONDS: Final = 86_400.0
"""No token is kept for longer, whatever its issuer says."""

RENEWALS: Final = 10
RENEWALS_SECONDS: Final = 60.0
"""So many tokens within this time are renewed because a server refused them, whether it takes the next ones or not."""

UNAUTHORIZED: Final = 401
STOPPED: Final = "the gateway stopped"
REFUSED: Final = "the server does not accept the gateway's token (HTTP 401)"


class Token(NamedTuple):
    """What an issuer gave, and for how many seconds; None where it did not say."""

    text: str
    lifetime: float | None


class NotIssued(Exception):
    """The issuer gave no token. The text says why, without a secret and without what the issuer wrote."""


Send = Callable[[HeaderBlock, Answer], Callable[[], None]]
"""Sends a request with this proof, and returns what cuts it."""


class TokenSource(Protocol):
    """Where tokens come from."""

    async def fetch(self, challenge: str) -> Token:
        """A new token. `challenge` is what the server said with its 401 (`WWW-Authenticate`), empty before any.

        Raises:
            NotIssued: there is none.
        """


class Credential:
    """The token for one server: issued when it is first needed, and again before it expires or when it is refused."""

    def __init__(self, server: str, source: TokenSource, statistics: Statistics) -> None:
        self.server = server
        self.current: HeaderBlock | None = None
        """What proves who the gateway is, while nothing has to be done about it."""
        self._source = source
        self._statistics = statistics
        self._ageing: HeaderBlock | None = None
        """What is about to expire: it is still carried while the next one is on its way."""
        self._renewal: asyncio.Future[HeaderBlock] | None = None
        self._task: asyncio.Task[None] | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._outages = Backoff()
        self._refusals = Backoff()
        self._refused: deque[float] = deque()
        """When tokens were refused, and renewed for that, of late."""
        self._failure = ""
        self._is_closed = False

    def __repr__(self) -> str:
        return f"Credential({self.server}, {'valid' if self.current else 'renewing' if self._renewal else 'none'})"

    def take(self) -> HeaderBlock | asyncio.Future[HeaderBlock]:
        """What the next request carries, or the renewal that it waits for; that may fail with `CredentialFailed`."""
        if self.current is not None:
            return self.current
        renewal = self._renew("")
        return self._ageing or renewal

    def refused(self, proof: HeaderBlock, challenge: str) -> HeaderBlock | asyncio.Future[HeaderBlock] | None:
        """The server answered 401 to this: what to try instead, as `take`; None where nothing better can be had now."""
        if self.current is not None and self.current is not proof:
            return self.current
        if self._renewal is None:
            now = _now()
            while self._refused and self._refused[0] <= now - RENEWALS_SECONDS:
                self._refused.popleft()
            if self._refusals.wait(now) > 0 or len(self._refused) >= RENEWALS:
                return None
            self._refused.append(now)
            self.count("refused")
        return self._renew(challenge)

    def settle(self, *, accepted: bool) -> None:
        """Whether the server took a token that was renewed because it had refused the one before."""
        if accepted:
            self._refusals = Backoff()
        else:
            self.count("rejected")
            self._refusals.failed(_now(), _now())

    def rotate(self, source: TokenSource) -> None:
        """Ask this source from now on, for the same identity; the token that is there goes on to be carried."""
        self._source = source
        self._outages, self._refusals = Backoff(), Backoff()
        self._refused.clear()

    def count(self, outcome: Outcome) -> None:
        """Something became of a token."""
        self._statistics.count("upstream_credentials", self.server, outcome)

    async def close(self) -> None:
        """Forget the token; who waits for one is told. Idempotent."""
        self._is_closed = True
        self._forget()
        task, renewal = self._task, self._renewal
        if task is not None and renewal is not None:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)
            if not renewal.done():
                _fail(renewal, STOPPED)

    def _renew(self, challenge: str) -> asyncio.Future[HeaderBlock]:
        """The renewal that is under way, once for all who wait; a new one unless the last ones failed."""
        if self._renewal is not None:
            return self._renewal
        loop = asyncio.get_running_loop()
        renewal: asyncio.Future[HeaderBlock] = loop.create_future()
        if self._is_closed or self._outages.wait(loop.time()) > 0:
            _fail(renewal, STOPPED if self._is_closed else self._failure)
            return renewal
        self._renewal = renewal
        self._task = loop.create_task(self._fetch(challenge, renewal))
        return renewal

    async def _fetch(self, challenge: str, renewal: asyncio.Future[HeaderBlock]) -> None:
        started = _now()
        try:
            async with asyncio.timeout(FETCH_SECONDS):
                token = await self._source.fetch(challenge)
            proof = HeaderBlock({"Authorization": f"Bearer {token.text}"})
        except NotIssued as error:
            self._fail(renewal, str(error), started)
        except TimeoutError:
            self._fail(renewal, f"no token was issued within {FETCH_SECONDS:g} s", started)
        except ValueError:
            self._fail(renewal, "the token that was issued cannot be sent in a header", started)
        except Exception as error:  # whatever it is, who waits must hear of it
            logger.error("no token could be fetched: %s", type(error).__name__, extra={"server": self.server})
            self._fail(renewal, "no token could be fetched", started)
        else:
            self._keep(proof, token.lifetime)
            renewal.set_result(proof)

    def _keep(self, proof: HeaderBlock, lifetime: float | None) -> None:
        self._forget()
        self._renewal = self._task = None
        self._outages = Backoff()
        self.count("issued")
        self.current = proof
        whole = max(0.0, min(lifetime if lifetime is not None else LONGEST_SECONDS, LONGEST_SECONDS))
        early = min(EARLY_SECONDS, whole / 4)
        self._timer = asyncio.get_running_loop().call_later(whole - early, self._age, early)

    def _age(self, left: float) -> None:
        self._ageing, self.current = self.current, None
        self._timer = asyncio.get_running_loop().call_later(left, self._forget)

    def _forget(self) -> None:
        self.current = self._ageing = None
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _fail(self, renewal: asyncio.Future[HeaderBlock], why: str, started: float) -> None:
        self._renewal = self._task = None
        self._failure = why
        self._outages.failed(started, _now())
        self.count("not_issued")
        logger.warning("no credential: %s", why, extra={"server": self.server})
        _fail(renewal, why)


class AuthorizedClient:
    """An HTTP client whose requests carry a credential. Implements `HTTPClient`; both are its own to close."""

    def __init__(self, http: HTTPClient, credential: Credential) -> None:
        self._http = http
        self._credential = credential

    def send(
        self,
        method: Method,
        headers: HeaderBlock,
        body: bytes,
        answer: Answer,
        *,
        target: str | None = None,
        fence: Fence | None = None,
    ) -> Callable[[], None]:
        """See `HTTPClient.send`."""

        def sent(proof: HeaderBlock, answer: Answer) -> Callable[[], None]:
            return self._http.send(method, headers.signed(proof), body, answer, target=target, fence=fence)

        exchange = _Exchange(self._credential, sent, answer)
        exchange.begin(self._credential.current or self._credential.take())
        return exchange.stop

    async def close(self) -> None:
        """See `HTTPClient.close`."""
        await self._credential.close()
        await self._http.close()


class _Exchange:
    """A request that may have to wait for a token, and to be sent with another one. Implements `Answer`."""

    __slots__ = ("_answer", "_credential", "_cut", "_is_second", "_is_stopped", "_proof", "_send", "came")

    def __init__(self, credential: Credential, send: Send, answer: Answer) -> None:
        self._credential = credential
        self._send: Send | None = send
        """Sends it; None once the server has taken it."""
        self._answer = answer
        self._proof: HeaderBlock
        self._cut: Callable[[], None] = nothing
        self._is_second = False
        self._is_stopped = False
        self.came = answer.came

    def begin(self, proof: HeaderBlock | asyncio.Future[HeaderBlock]) -> None:
        """Send it with this, or when this is there."""
        if isinstance(proof, asyncio.Future):
            proof.add_done_callback(self._renewed)
            return
        assert self._send is not None, "it has not been taken yet"
        self._proof = proof
        self._cut = self._send(proof, self)

    def stop(self) -> None:
        """Cut it, wherever it stands."""
        self._is_stopped = True
        self._cut()

    def began(self, status: int, headers: Headers) -> None:
        """See `Answer.began`."""
        if status == UNAUTHORIZED:
            self._refused(headers.get("www-authenticate", ""))
            return
        if self._is_second:
            self._credential.settle(accepted=True)
        self._send = None
        self._answer.began(status, headers)

    def ended(self, error: ExchangeBroken | None) -> None:
        """See `Answer.ended`."""
        self._answer.ended(error)

    def _refused(self, challenge: str) -> None:
        self._cut()
        self._cut = nothing
        if self._is_second:
            self._credential.settle(accepted=False)
        else:
            self._is_second = True
            better = self._credential.refused(self._proof, challenge)
            if better is not None:
                self.begin(better)
                return
        self._answer.ended(CredentialFailed(REFUSED))

    def _renewed(self, renewal: asyncio.Future[HeaderBlock]) -> None:
        error = renewal.exception()
        if self._is_stopped:
            return
        if error is None:
            self.begin(renewal.result())
        else:
            assert isinstance(error, ExchangeBroken), "nothing else is told"
            self._answer.ended(error)


def _now() -> float:
    return asyncio.get_running_loop().time()


def _fail(renewal: asyncio.Future[HeaderBlock], why: str) -> None:
    renewal.set_exception(CredentialFailed(why))
    renewal.exception()  # nobody may be waiting
