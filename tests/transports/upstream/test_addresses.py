"""Where a server is: each name is looked up by itself, however long another one takes."""

import asyncio
import errno
import gc
import socket
import ssl
import threading
import weakref
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from harness.certificates import certificate
from harness.gateways import until
from harness.ports import free_port
from harness.raw_http import PATIENCE, Hearer, Peer, serving
from trunkline.transports.upstream import http1
from trunkline.transports.upstream.addresses import Addresses
from trunkline.transports.upstream.http import HeaderBlock
from trunkline.transports.upstream.http1 import HTTP1Client
from trunkline.transports.upstream.upgrade import SUBPROTOCOL, Upgrade
from websockets.asyncio.client import ClientConnection
from websockets.asyncio.server import ServerConnection
from websockets.asyncio.server import serve as ws_serve

pytestmark = pytest.mark.anyio

EMPTY = b"HTTP/1.1 202 Accepted\r\nContent-Length: 0\r\n\r\n"


class Resolver:
    """Asks for names in place of the system; those in `slow` are answered once `go` is set."""

    def __init__(self, names: dict[str, list[str]]) -> None:
        self.names = names
        self.slow: set[str] = set()
        self.go = threading.Event()
        self.asked: list[str] = []
        self._real = socket.getaddrinfo

    def __call__(self, host: str, port: int, *arguments: Any, **options: Any) -> list[Any]:
        self.asked.append(host)
        if host in self.slow:
            assert self.go.wait(2 * PATIENCE)
        if host not in self.names:
            raise socket.gaierror(socket.EAI_NONAME, "no such name")
        return [one for address in self.names[host] for one in self._real(address, port, *arguments, **options)]


@pytest.fixture
def resolver(monkeypatch: pytest.MonkeyPatch) -> Iterator[Resolver]:
    made = Resolver({"slow.test": ["127.0.0.1"], "good.test": ["127.0.0.1"]})
    monkeypatch.setattr(socket, "getaddrinfo", made)
    yield made
    made.go.set()


async def serve(peer: Peer) -> None:
    while True:
        await peer.request()
        await peer.say(EMPTY)


def post(client: HTTP1Client) -> Hearer:
    hearer = Hearer()
    client.send("POST", HeaderBlock({}), b"{}", hearer)
    return hearer


async def test_g9_a_name_that_is_not_answered_keeps_nobody_from_another_server(resolver: Resolver) -> None:
    resolver.slow.add("slow.test")
    async with serving(serve) as server:
        away, good = (
            HTTP1Client(server.url.replace("127.0.0.1", name), ssl.create_default_context())
            for name in ("slow.test", "good.test")
        )
        waiting = [post(away) for _ in range(50)]
        assert await post(good).outcome() is None
        assert resolver.asked == ["slow.test", "good.test"], "once for all who wait"
        resolver.go.set()
        assert [await hearer.outcome() for hearer in waiting] == [None] * 50
        await good.close()
        await away.close()


async def test_g9_the_same_for_websockets(resolver: Resolver) -> None:
    resolver.slow.add("slow.test")
    resolver.names["good.test"] = ["127.0.0.2", "127.0.0.1"]

    async def handle(connection: ServerConnection) -> None:
        await connection.wait_closed()

    async def dial(name: str, port: int) -> None:
        upgrade = Upgrade(f"ws://{name}:{port}/", ssl.create_default_context)
        opening = upgrade.open(HeaderBlock({}), ClientConnection, patience=PATIENCE, ping_seconds=None)
        await (await opening).close()

    async with ws_serve(handle, "127.0.0.1", 0, subprotocols=[SUBPROTOCOL]) as server:
        port = server.sockets[0].getsockname()[1]
        waiting = [asyncio.ensure_future(dial("slow.test", port)) for _ in range(50)]
        await until(lambda: len(resolver.asked) == len(waiting))
        await dial("good.test", port)
        assert not any(one.done() for one in waiting)
        resolver.go.set()
        await asyncio.gather(*waiting)
        with pytest.raises(ConnectionRefusedError):
            await dial("good.test", free_port())


async def test_the_first_address_that_takes_a_connection_is_used(resolver: Resolver) -> None:
    async with serving(serve) as server:
        port = int(server.url.split(":")[2].split("/")[0])
        resolver.names["two.test"] = ["127.0.0.2", "127.0.0.1"]
        resolver.names["none.test"] = ["127.0.0.2", "127.0.0.3"]
        client = HTTP1Client(f"http://two.test:{port}/mcp", ssl.create_default_context())
        assert await post(client).outcome() is None
        await client.close()
        client = HTTP1Client(f"http://none.test:{port}/mcp", ssl.create_default_context())
        error = await post(client).outcome()
        assert error is not None
        assert (str(error), error.sent) == ("Connection refused", False)
        await client.close()


@pytest.mark.parametrize("reached", ["127.0.0.2 127.0.0.1", "127.0.0.1 127.0.0.2"])
async def test_a_server_that_cannot_be_trusted_is_told_and_not_an_address_that_takes_no_connection(
    resolver: Resolver, tmp_path: Path, reached: str
) -> None:
    async def never(connection: ServerConnection) -> None:
        raise AssertionError("nobody comes so far")

    resolver.names["two.test"] = reached.split()
    async with ws_serve(never, "127.0.0.1", 0, ssl=certificate(tmp_path).showing()) as server:
        at = f"two.test:{server.sockets[0].getsockname()[1]}/"
        client = HTTP1Client(f"https://{at}", ssl.create_default_context())
        error = await post(client).outcome()
        assert error is not None
        assert (str(error), error.sent) == ("its certificate is not trusted here", False)
        await client.close()
        upgrade = Upgrade(f"wss://{at}", ssl.create_default_context)
        with pytest.raises(ssl.SSLCertVerificationError):
            await upgrade.open(HeaderBlock({}), ClientConnection, patience=PATIENCE, ping_seconds=None)


@pytest.mark.parametrize(
    ("name", "since", "until", "words"),
    [
        ("localhost", -9, -1, "its certificate has expired"),
        ("localhost", 1, 9, "its certificate is not valid yet, by the clock here"),
        ("two.test", -1, 1, "its certificate is for another name"),
        ("127.0.0.2", -1, 1, "its certificate is for another name"),
    ],
)
async def test_what_is_wrong_with_a_certificate_is_told_without_its_server(
    resolver: Resolver, tmp_path: Path, name: str, since: int, until: int, words: str
) -> None:
    async def never(connection: ServerConnection) -> None:
        raise AssertionError("nobody comes so far")

    resolver.names["two.test"] = resolver.names["localhost"] = ["127.0.0.1"]
    shown = certificate(tmp_path, since=since, until=until)
    async with ws_serve(never, "127.0.0.1" if name != "127.0.0.2" else name, 0, ssl=shown.showing()) as server:
        client = HTTP1Client(f"https://{name}:{server.sockets[0].getsockname()[1]}/", shown.trusting())
        error = await post(client).outcome()
        assert error is not None
        assert (str(error), error.sent) == (words, False)
        await client.close()


async def test_a_name_without_an_address_is_told_and_asked_for_anew(resolver: Resolver) -> None:
    made = Addresses("nowhere.test", 80)
    for _ in range(2):
        with pytest.raises(socket.gaierror):
            await made.find()
    assert resolver.asked == ["nowhere.test"] * 2


async def test_an_address_needs_no_look_up(resolver: Resolver) -> None:
    for literal in ("127.0.0.1", "::1", "fe80::1%lo"):
        assert await Addresses(literal, 80).find() == [literal]
    assert resolver.asked == []


async def test_a_zone_belongs_to_an_address(resolver: Resolver, monkeypatch: pytest.MonkeyPatch) -> None:
    def told(*_: Any, **__: Any) -> list[Any]:
        return [
            (socket.AF_INET6, socket.SOCK_STREAM, 6, "", ("fe80::1", 80, 0, 2)),
            (socket.AF_INET6, socket.SOCK_STREAM, 6, "", ("2001:db8::1", 80, 0, 0)),
        ]

    monkeypatch.setattr(socket, "getaddrinfo", told)
    assert await Addresses("good.test", 80).find() == ["fe80::1%2", "2001:db8::1"]


async def test_who_leaves_takes_nothing_from_those_who_wait(resolver: Resolver) -> None:
    resolver.slow.add("slow.test")
    made = Addresses("slow.test", 80)
    leaving, staying = (asyncio.ensure_future(made.find()) for _ in range(2))
    await asyncio.sleep(0)
    leaving.cancel()
    await asyncio.wait([leaving])
    resolver.go.set()
    async with asyncio.timeout(PATIENCE):
        assert await staying == ["127.0.0.1"]
    assert resolver.asked == ["slow.test"]


async def test_what_is_told_to_a_loop_that_has_ended_is_dropped(
    resolver: Resolver, monkeypatch: pytest.MonkeyPatch
) -> None:
    failed: list[threading.ExceptHookArgs] = []
    monkeypatch.setattr(threading, "excepthook", failed.append)
    resolver.slow.add("slow.test")

    async def ask() -> None:
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.01):
                await Addresses("slow.test", 80).find()

    await asyncio.get_running_loop().run_in_executor(None, asyncio.run, ask())
    resolver.go.set()
    for thread in [thread for thread in threading.enumerate() if thread.name.endswith("(_ask)")]:
        thread.join(PATIENCE)
        assert not thread.is_alive()
    assert failed == []


async def speak_no_tls(peer: Peer) -> None:
    await peer.say(EMPTY)


@pytest.mark.parametrize("how", ["refused", "unknown", "slow", "no TLS"])
async def test_g10_of_what_could_not_be_sent_nothing_waits_for_the_garbage_collector(
    how: str, resolver: Resolver, monkeypatch: pytest.MonkeyPatch
) -> None:
    resolver.names["two.test"] = ["127.0.0.1", "127.0.0.2"]
    url = {
        "refused": f"http://two.test:{free_port()}/",
        "unknown": "http://none.test/",
        "slow": "http://slow.test/",
        "no TLS": "https://two.test:{}/",
    }[how]
    if how == "slow":
        resolver.slow.add("slow.test")
        monkeypatch.setattr(http1, "CONNECT_SECONDS", 0.05)
    async with serving(speak_no_tls) as server:
        client = HTTP1Client(
            url.format(server.url.rpartition(":")[2].removesuffix("/mcp")), ssl.create_default_context()
        )
        gc.collect()
        gc.disable()
        try:
            hearer = Hearer()
            known = weakref.ref(hearer)
            cut = client.send("POST", HeaderBlock({}), b"{}", hearer)
            assert await hearer.outcome() is not None
            del hearer, cut
            await until(lambda: known() is None)
        finally:
            gc.enable()
            resolver.go.set()
            await client.close()


async def test_g10_what_no_address_took_waits_for_no_garbage_collector(resolver: Resolver) -> None:
    class Refused(ConnectionRefusedError):
        """One that can be referred to weakly."""

    known: list[weakref.ref[Refused]] = []

    def refused(address: str) -> Refused:
        made = Refused(errno.ECONNREFUSED, address)
        known.append(weakref.ref(made))
        return made

    async def refuse(address: str) -> None:
        raise refused(address)

    resolver.names["two.test"] = ["127.0.0.1", "127.0.0.2"]
    gc.collect()
    gc.disable()
    try:
        with suppress(Refused):
            await Addresses("two.test", 80).first(refuse)
        assert [one() for one in known] == [None, None]
    finally:
        gc.enable()
