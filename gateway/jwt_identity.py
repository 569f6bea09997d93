"""Identities from JSON Web Tokens: issuer, audience and times checked; tenant and subject taken from claims.

Keys come from a secret, a file, or a URL that is read in the background: no request waits for it. A token that was
verified is remembered by its hash until it expires, so that a session's calls do not pay for cryptography again.
"""

import json
import logging
import time
from collections import OrderedDict
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Final, NamedTuple

import aiohttp
import anyio
import jwt
from aiohttp.http import HttpProcessingError
from jwt.types import Options
from yarl import URL

from ..mux.errors import Overloaded
from ..mux.principal import Principal
from ..transports.status import INVALID_CREDENTIAL, Unauthorized
from .settings import AuthSection, is_loopback

logger = logging.getLogger(__name__)

MAX_TOKEN: Final = 16_384
"""Of characters, in a token: taking a longer one apart costs milliseconds, before anybody knows who sent it."""

REMEMBERED: Final = 10_000
"""Verified tokens that are remembered; the longest unused one goes."""

RECHECK_SECONDS: Final = 300.0
"""A remembered token is verified again after this, so that a key that was withdrawn stops counting."""

REFRESH_SECONDS: Final = 300.0
HASTE_SECONDS: Final = 10.0
RETRY_SECONDS: Final = 1.0
"""Keys are read again this often; at an unknown one, at most this often; while there are none, this often."""

FETCH_SECONDS: Final = 10.0
MAX_KEYS_BYTES: Final = 262_144
LEEWAY_SECONDS: Final = 10
_OPTIONS: Final[Options] = {"require": ["exp", "iss", "aud"]}


class KeySource:
    """The keys that tokens may be signed with, by their `kid`. `run` keeps those of a URL fresh."""

    def __init__(self, auth: AuthSection) -> None:
        self._secret = auth.secret
        self._url = auth.jwks if auth.jwks.startswith(("http://", "https://")) else ""
        self._keys: dict[str, Any] = {}
        self._hurry = anyio.Event()
        if not self._secret and not self._url:
            self._keys = read_keys(Path(auth.jwks).read_text())

    def follow(self, before: "KeySource") -> None:
        """Begin with the keys of the one that this replaces, where they are of the same URL."""
        if self._url and self._url == before._url:
            self._keys = before._keys

    @property
    def is_file(self) -> bool:
        """True for the keys of a file, which only another source of the same reads again."""
        return not self._url and not self._secret

    def find(self, kid: str | None) -> Any:
        """The key of that name, or the only one there is. Where it is not known, they are read anew."""
        if self._secret:
            return self._secret
        if kid is None and len(self._keys) == 1:
            return next(iter(self._keys.values()))
        key = None if kid is None else self._keys.get(kid)
        if key is None:
            self._hurry.set()
        return key

    @property
    def are_away(self) -> bool:
        """True while none of a URL could be read."""
        return bool(self._url) and not self._keys

    async def run(self) -> None:
        """Read the keys of a URL now and again, for as long as this runs; `refresh` them before."""
        while self._url:
            with anyio.move_on_after(REFRESH_SECONDS if self._keys else RETRY_SECONDS):
                await anyio.sleep(HASTE_SECONDS)
                await self._hurry.wait()
            self._hurry = anyio.Event()
            await self.refresh()

    async def refresh(self) -> None:
        """Read the keys of a URL now; where that fails, those that are known go on to count."""
        if not self._url:
            return
        try:
            self._keys = read_keys(await self._fetch())
        except Exception as error:  # whatever it is
            logger.warning("the keys of auth.jwks could not be read: %s", _why(error))

    async def _fetch(self) -> str:
        with anyio.fail_after(FETCH_SECONDS):
            async with (
                aiohttp.ClientSession(auto_decompress=False) as session,
                session.get(self._url, headers={"Accept-Encoding": "identity"}) as answer,
            ):
                answer.raise_for_status()
                for hop in (*answer.history, answer):
                    if not self._may_be_read(hop.url):
                        raise ValueError("it leads to an address that is neither https nor this machine's")
                body = bytearray()
                async for chunk in answer.content.iter_any():
                    body += chunk
                    if len(body) > MAX_KEYS_BYTES:
                        raise ValueError("the key set is too large")
        return body.decode()

    def _may_be_read(self, url: URL) -> bool:
        """Whether keys from there count: a redirect must not take them out of https."""
        is_local = self._url.startswith("http://") and is_loopback(url.host or "")
        return url.scheme == "https" or (url.scheme == "http" and is_local)


def _why(error: Exception) -> str:
    """What is wrong with a URL of keys, without the URL, which may hold a secret."""
    if isinstance(error, aiohttp.ClientResponseError) and not isinstance(error.__cause__, HttpProcessingError):
        return f"HTTP {error.status}"
    is_of_answer = isinstance(error, ValueError) and not isinstance(error, aiohttp.ClientError)
    return str(error) if is_of_answer else type(error).__name__


def read_keys(text: str) -> dict[str, Any]:
    """The keys of a JSON Web Key Set by their `kid`; those that cannot be used are left out.

    Raises:
        ValueError: it is no key set, or holds no key that can be used.
    """
    try:
        told = json.loads(text)
    except RecursionError:
        told = None
    listed = told.get("keys") if isinstance(told, dict) else None
    if not isinstance(listed, list):
        raise ValueError("it is no JSON Web Key Set")
    found: dict[str, Any] = {}
    for number, one in enumerate(listed):
        try:
            key = jwt.PyJWK.from_dict(one)
            found[key.key_id if isinstance(key.key_id, str) else f"#{number}"] = key.key
        except (jwt.PyJWTError, ValueError, TypeError, AttributeError, LookupError, NotImplementedError):
            continue  # whatever a key of another kind leads to
    if not found:
        raise ValueError("it holds no key that can be used")
    return found


class _Known(NamedTuple):
    principal: Principal
    expires: float
    recheck: float


class JWTIdentity:
    """Turns tokens into principals. `clock` is wall time."""

    def __init__(self, auth: AuthSection, *, clock: Callable[[], float] = time.time) -> None:
        self._auth = auth
        self._clock = clock
        self._known: OrderedDict[bytes, _Known] = OrderedDict()
        self.keys = KeySource(auth)

    def verify(self, token: str, digest: bytes) -> tuple[Principal, float]:
        """Whose token this is, and when it expires; `digest` is its hash.

        Raises:
            Unauthorized: it is not valid here. It is not told why: that is in the log.
            Overloaded: nobody can tell, since no keys could be read yet.
        """
        if self.keys.are_away:
            raise Overloaded("the keys of tokens cannot be read; try again", limit="issuer_keys")
        now = self._clock()
        known = self._known.get(digest)
        if known is None or now >= min(known.expires, known.recheck):
            self._known.pop(digest, None)
            known = self._verify(token, now)
            self._known[digest] = known
            if len(self._known) > REMEMBERED:
                self._known.popitem(last=False)
        else:
            self._known.move_to_end(digest)
        return known.principal, known.expires

    def _verify(self, token: str, now: float) -> _Known:
        auth = self._auth
        try:
            if len(token) > MAX_TOKEN:
                raise ValueError(f"it is longer than {MAX_TOKEN}")
            key = self.keys.find(jwt.get_unverified_header(token).get("kid"))
            if key is None:
                raise jwt.InvalidKeyError("no key of that name is known (yet)")
            claims = jwt.decode(
                token,
                key,
                algorithms=list(auth.algorithms),
                audience=auth.audience,
                issuer=auth.issuer,
                leeway=LEEWAY_SECONDS,
                options=_OPTIONS,
            )
            return _Known(self._principal(claims), float(claims["exp"]), now + RECHECK_SECONDS)
        except (jwt.PyJWTError, ValueError, TypeError, OverflowError, RecursionError) as error:
            logger.info("a token was refused: %.200s", error)  # some of its words are the token's
            raise Unauthorized("this token is not valid here", challenge=INVALID_CREDENTIAL) from None

    def _principal(self, claims: Mapping[str, Any]) -> Principal:
        subject, tenant = claims.get(self._auth.subject_claim), claims.get(self._auth.tenant_claim, "")
        if not isinstance(subject, str) or not subject:
            raise ValueError(f"no {self._auth.subject_claim}: a token without subject is nobody's")
        if not isinstance(tenant, str):
            raise ValueError(f"{self._auth.tenant_claim} is no text")
        for text in (subject, tenant):
            text.encode()  # JSON can spell what is no text: halves of a character
        return Principal(self._auth.issuer, tenant, subject)
