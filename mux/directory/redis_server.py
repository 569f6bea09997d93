"""The ways to a redis: stand-alone, behind Sentinel, or a cluster; by URL.

    redis://[user:password@]host[:port][/db]           one server; rediss:// with TLS, unix:///path for a socket
    redis+sentinel://[user:password@]host[:port],host[:port]/service[/db]
    redis+cluster://[user:password@]host[:port],host[:port]

The last two with `rediss+` use TLS. The user and password of redis+sentinel are the redis server's;
`?sentinel_username=` and `?sentinel_password=` are the sentinels' own.
"""

import random
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from typing import Any, Final
from urllib.parse import parse_qs, unquote, urlsplit

import msgspec
import redis.asyncio
from redis.asyncio.cluster import ClusterNode
from redis.asyncio.retry import Retry
from redis.asyncio.sentinel import Sentinel
from redis.backoff import NoBackoff
from redis.exceptions import (
    AuthenticationError,
    BusyLoadingError,
    NoPermissionError,
    OutOfMemoryError,
    ReadOnlyError,
    RedisClusterException,
)

from ..errors import DirectoryUnavailable
from .names import UNREADABLE

CONNECT_SECONDS: Final = 1.0
SOCKET_SECONDS: Final = 1.0
MAX_CONNECTIONS: Final = 64

BROKEN: Final = (redis.RedisError, RedisClusterException, OSError, TimeoutError)
"""What redis, and the way to it, fail with."""

REMEDIES: Final[Mapping[type[Exception], str]] = {
    AuthenticationError: "correct user and password in the URL",
    NoPermissionError: "give its user ~trunkline1:* and &trunkline1:*, and the commands of scripts",
    OutOfMemoryError: "it is full: raise maxmemory, or make room in it",
    ReadOnlyError: "it is a replica, which takes no writes: name the primary",
    BusyLoadingError: "it reads its data: try again in a moment",
    msgspec.DecodeError: UNREADABLE,
    msgspec.ValidationError: UNREADABLE,
}
"""What to do about some of that."""

_PLAIN = ("redis", "rediss", "unix")
_PORTS = {"sentinel": 26379, "cluster": 6379}


@dataclass(frozen=True)
class Address:
    """A URL of redis, taken apart."""

    kind: str
    """`plain`, `sentinel` or `cluster`."""
    url: str = field(default="", repr=False)
    hosts: tuple[tuple[str, int], ...] = ()
    service: str = ""
    db: int = 0
    tls: bool = False
    username: str | None = None
    password: str | None = field(default=None, repr=False)
    sentinel_username: str | None = None
    sentinel_password: str | None = field(default=None, repr=False)


@contextmanager
def reaching() -> Iterator[None]:
    """Errors of redis and of the way to it become `DirectoryUnavailable`, and so does what cannot be read there."""
    try:
        yield
    except (*BROKEN, msgspec.DecodeError) as error:
        raise unavailable(error) from error


def unavailable(error: Exception) -> DirectoryUnavailable:
    """What redis failed with, without its text: that may hold secrets."""
    word = str(error).partition(" ")[0]
    is_code = isinstance(error, redis.ResponseError) and word.isascii() and word.isupper() and len(word) <= 16
    why = f"{type(error).__name__} {word}" if is_code else type(error).__name__
    kind = ReadOnlyError if takes_no_writes(error) else type(error)
    return DirectoryUnavailable(f"redis does not serve: {why}", remedy=REMEDIES.get(kind))


def takes_no_writes(error: BaseException | None) -> bool:
    """Whether redis failed with this for being a replica. Before redis 7, a script has its own words around it."""
    return isinstance(error, ReadOnlyError) or (isinstance(error, redis.ResponseError) and "-READONLY " in str(error))


def parse_address(url: str) -> Address:
    """Take a URL apart.

    Raises:
        ValueError: what is wrong with it; never with the password.
    """
    scheme, _, rest = url.partition("://")
    if scheme in _PLAIN:
        try:
            parts = urlsplit(url)
            host, _ = parts.hostname, parts.port
            pool = redis.asyncio.ConnectionPool.from_url(url)
            pool.make_connection()  # type: ignore[no-untyped-call]  # it reads the options, and connects later
        except (ValueError, TypeError):
            raise ValueError("the port, database or an option of the redis URL is not valid") from None
        if scheme == "unix" and not parts.path:
            raise ValueError("unix:// needs the path of a socket: unix:///run/redis/redis.sock")
        if scheme != "unix" and not host:
            raise ValueError(f"{scheme}:// needs a host: {scheme}://127.0.0.1:6379/0")
        return Address("plain", url)
    transport, _, kind = scheme.partition("+")
    if transport not in ("redis", "rediss") or kind not in _PORTS or not rest:
        raise ValueError(
            "the URL must begin with redis://, rediss://, unix://, redis+sentinel://, rediss+sentinel://, "
            "redis+cluster:// or rediss+cluster://"
        )
    authority = re.split("[/?#]", rest, maxsplit=1)[0]
    parts = urlsplit(f"{scheme}://hosts{rest[len(authority) :]}")  # no URL has a list of hosts: those are read here
    identity, _, hosts = authority.rpartition("@")
    username, _, password = identity.partition(":")
    options = {name: values[-1] for name, values in parse_qs(parts.query).items()}
    unknown = set(options) - ({"sentinel_username", "sentinel_password"} if kind == "sentinel" else set())
    if unknown:
        raise ValueError(f"redis+{kind}:// has no option {min(unknown)}")
    path = [unquote(part) for part in parts.path.split("/") if part]
    if kind == "sentinel" and not 1 <= len(path) <= 2:
        raise ValueError("redis+sentinel:// needs the name of the service: redis+sentinel://host:26379/mymaster/0")
    if kind == "cluster" and path:
        raise ValueError("a cluster has no databases: redis+cluster://host:6379")
    if len(path) == 2 and not path[1].isdecimal():
        raise ValueError("the database of redis+sentinel:// is a number: redis+sentinel://host:26379/mymaster/0")
    return Address(
        kind,
        hosts=tuple(_host(host, _PORTS[kind]) for host in hosts.split(",")),
        service=path[0] if path else "",
        db=int(path[1]) if len(path) == 2 else 0,
        tls=transport == "rediss",
        username=unquote(username) or None,
        password=unquote(password) or None,
        sentinel_username=options.get("sentinel_username"),
        sentinel_password=options.get("sentinel_password"),
    )


def _host(text: str, port: int) -> tuple[str, int]:
    try:
        parts = urlsplit(f"//{text}")
        host, port = parts.hostname or "", parts.port or port
    except ValueError:
        host = ""
    if not host:
        raise ValueError("each host of the URL is host:port, separated by commas")
    return host, port


def _options(**more: Any) -> dict[str, Any]:
    """What all connections have in common: bounds, and no repetition of what may have been done."""
    return {
        "socket_connect_timeout": CONNECT_SECONDS,
        "socket_timeout": SOCKET_SECONDS,
        "socket_keepalive": True,
        "protocol": 2,
        **more,
    }


class Server:
    """Clients for one address: for commands, and for the connection that listens."""

    def __init__(self, address: Address) -> None:
        self.address = address
        self.is_cluster = address.kind == "cluster"
        self.departures = 0
        """How often all connections were given up."""
        self._sentinel: Sentinel | None = None
        self.client: redis.asyncio.Redis | redis.asyncio.RedisCluster = self._client()

    def _client(self) -> redis.asyncio.Redis | redis.asyncio.RedisCluster:
        address = self.address
        if address.kind == "plain":
            options = _options(max_connections=MAX_CONNECTIONS, retry=Retry(NoBackoff(), 0))
            if address.url.startswith("unix"):
                del options["socket_keepalive"]
            return redis.asyncio.Redis.from_url(address.url, **options)
        identity = {"username": address.username, "password": address.password}
        if address.kind == "cluster":
            nodes = [ClusterNode(host, port) for host, port in address.hosts]
            return redis.asyncio.RedisCluster(
                startup_nodes=nodes,
                require_full_coverage=False,
                ssl=address.tls,
                retry=Retry(NoBackoff(), 0),
                **_options(max_connections=MAX_CONNECTIONS, **identity),
            )
        own = {"username": address.sentinel_username, "password": address.sentinel_password}
        self._sentinel = Sentinel(  # type: ignore[no-untyped-call]
            address.hosts, sentinel_kwargs=_options(retry=Retry(NoBackoff(), 0), ssl=address.tls, **own)
        )
        client: redis.asyncio.Redis = self._sentinel.master_for(
            address.service,
            **_options(
                db=address.db, ssl=address.tls, max_connections=MAX_CONNECTIONS, retry=Retry(NoBackoff(), 0), **identity
            ),
        )
        return client

    async def leave_replica(self, since: int) -> None:
        """Connect anew, those who listen as well: this one takes no writes, and its name may lead elsewhere by now.

        Nothing where that was done since `departures` was so many.
        """
        if since == self.departures and not isinstance(self.client, redis.asyncio.RedisCluster):
            self.departures += 1
            with suppress(*BROKEN):
                await self.client.connection_pool.disconnect(inuse_connections=True)

    async def listening(self) -> redis.asyncio.Redis:
        """A client whose connections can subscribe. The caller closes it.

        Raises:
            redis.RedisError, OSError: no node of the cluster is known.
        """
        if isinstance(self.client, redis.asyncio.RedisCluster):
            await self.client.initialize()
            node = random.choice(self.client.get_primaries())
            return redis.asyncio.Redis(
                host=str(node.host),
                port=int(node.port),
                ssl=self.address.tls,
                retry=Retry(NoBackoff(), 0),
                **_options(username=self.address.username, password=self.address.password),
            )
        return redis.asyncio.Redis(connection_pool=self.client.connection_pool)

    async def aclose(self) -> None:
        """Close all connections."""
        with suppress(redis.RedisError, OSError):
            await self.client.aclose()
        if self._sentinel is not None:
            for sentinel in self._sentinel.sentinels:
                with suppress(redis.RedisError, OSError):
                    await sentinel.aclose()
