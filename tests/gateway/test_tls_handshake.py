"""TLS on the listener: who is in a handshake counts as a connection, and has so long."""

import asyncio
import socket
import ssl
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path

import pytest
from harness.certificates import Certificate, certificate
from harness.gateways import until
from harness.http_serving import GET, PATIENCE, Connected, echo, said, serving
from trunkline.gateway import http_connection, http_listening, tls_handshake
from trunkline.gateway.http_listening import HTTPListening
from trunkline.gateway.settings import TLS
from trunkline.gateway.tls_handshake import TLSHandshake, server_context
from trunkline.mux.statistics import Statistics

pytestmark = pytest.mark.anyio


@pytest.fixture(scope="module", params=[False, True], ids=["asyncio", "uvloop"])
def anyio_backend(request: pytest.FixtureRequest) -> tuple[str, dict[str, bool]]:
    """Both event loops: each has TLS of its own."""
    return "asyncio", {"use_uvloop": request.param}


@pytest.fixture(scope="module")
def certified(tmp_path_factory: pytest.TempPathFactory) -> Certificate:
    return certificate(tmp_path_factory.mktemp("certificate"))


class Secured:
    """A listener that speaks TLS."""

    def __init__(self, certified: Certificate) -> None:
        self.statistics = Statistics()
        self.listening = HTTPListening(
            self.statistics, tls=server_context(TLS(str(certified.cert), str(certified.key)))
        )
        self.port = 0
        self.trusting = certified.trusting()

    @property
    def held(self) -> int:
        """How many connections count."""
        return len(self.listening.state.connections) if hasattr(self.listening, "state") else 0

    @asynccontextmanager
    async def connected(self) -> AsyncIterator[Connected]:
        """A client whose handshake is done."""
        reader, writer = await asyncio.open_connection("127.0.0.1", self.port, ssl=self.trusting)
        try:
            yield reader, writer
        finally:
            writer.close()

    @asynccontextmanager
    async def bare(self) -> AsyncIterator[Connected]:
        """A client that does not speak TLS, or not yet."""
        reader, writer = await asyncio.open_connection("127.0.0.1", self.port)
        try:
            yield reader, writer
        finally:
            writer.close()

    def client_side(self) -> tuple[ssl.MemoryBIO, ssl.MemoryBIO, ssl.SSLObject]:
        """A client's TLS without a connection: what comes, what is to be sent, and what it is about."""
        came, due = ssl.MemoryBIO(), ssl.MemoryBIO()
        return came, due, self.trusting.wrap_bio(came, due, server_hostname="127.0.0.1")


@pytest.fixture
async def secured(certified: Certificate) -> AsyncIterator[Secured]:
    at = Secured(certified)
    async with serving(echo, at.listening) as port, asyncio.timeout(PATIENCE):
        at.port = port
        yield at


async def test_requests_are_answered_one_after_the_other(secured: Secured) -> None:
    async with secured.connected() as (reader, writer):
        for number in range(3):
            writer.write(GET % number)
            assert await said(reader) == b"GET /%d " % number
        assert secured.held == 1
    await until(lambda: secured.held == 0)
    assert not secured.statistics.counts


@pytest.mark.parametrize("step", [1, 100_000], ids=["byte by byte", "at once"])
async def test_what_comes_with_the_end_of_the_handshake_is_read(secured: Secured, step: int) -> None:
    came, due, tls = secured.client_side()
    async with secured.bare() as (reader, writer):
        is_done = False
        while not is_done:
            try:
                tls.do_handshake()
                is_done = True
                tls.write(GET % 1)
            except ssl.SSLWantReadError:
                pass
            data = due.read()
            for at in range(0, len(data), step):
                writer.write(data[at : at + step])
                await asyncio.sleep(0)
            if not is_done:
                came.write(await reader.read(65_536))
        answer = b""
        while not answer.endswith(b"GET /1 "):
            came.write(await reader.read(65_536))
            try:
                answer += tls.read(65_536)
            except ssl.SSLWantReadError:
                continue


async def test_g10_a_connection_in_its_handshake_counts_to_the_limit(secured: Secured) -> None:
    secured.listening.max_connections = 2
    async with secured.bare(), secured.bare():
        await until(lambda: secured.held == 2)
        async with secured.bare() as (reader, _):
            assert await reader.read() == b""
        assert secured.statistics.counts == {("refused", "connections"): 1}
        assert secured.held == 2
    await until(lambda: secured.held == 0)
    async with secured.connected() as (reader, writer):
        writer.write(GET % 1)
        assert await said(reader) == b"GET /1 "


async def test_g10_who_is_longest_in_its_handshake_gives_way(secured: Secured, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(http_listening, "GIVE_WAY_SECONDS", 0.0)
    secured.listening.max_connections = 2
    async with secured.bare() as (first, _):
        await until(lambda: secured.held == 1)
        async with secured.bare():
            await until(lambda: secured.held == 2)
            async with secured.connected() as (reader, writer):
                writer.write(GET % 1)
                assert await said(reader) == b"GET /1 "
                assert await first.read() == b""
                assert secured.statistics.counts == {("refused", "gave_way"): 1}
                assert secured.held == 2


async def test_g10_who_was_let_in_is_not_refused_once_its_handshake_is_done(secured: Secured) -> None:
    async with secured.bare() as (reader, writer), secured.connected():
        await until(lambda: secured.held == 2)
        secured.listening.max_connections = 1
        await writer.start_tls(secured.trusting, server_hostname="127.0.0.1")
        writer.write(GET % 1)
        assert await said(reader) == b"GET /1 "
        assert not secured.statistics.counts


async def test_g10_over_the_limit_of_secured_ones_is_told_nothing(secured: Secured) -> None:
    secured.listening.max_connections = 1
    async with secured.connected() as (reader, writer):
        async with secured.bare() as (other, _):
            assert await other.read() == b""
        writer.write(GET % 1)
        assert await said(reader) == b"GET /1 "


@pytest.mark.parametrize("begun", [b"", b"\x16\x03\x01\x02\x00\x01"], ids=["nothing said", "begun"])
async def test_g10_a_handshake_has_so_long(secured: Secured, monkeypatch: pytest.MonkeyPatch, begun: bytes) -> None:
    monkeypatch.setattr(tls_handshake, "HANDSHAKE_SECONDS", 0.05)
    async with secured.bare() as (reader, writer):
        writer.write(begun)
        assert await reader.read() == b""
    await until(lambda: secured.held == 0)
    assert secured.statistics.counts == {("refused", "tls"): 1}


async def test_what_is_no_tls_is_cut_and_counted(secured: Secured, caplog: pytest.LogCaptureFixture) -> None:
    async with secured.bare() as (reader, writer):
        writer.write(GET % 1)
        assert b"HTTP" not in await reader.read()
    await until(lambda: secured.held == 0)
    assert secured.statistics.counts == {("refused", "tls"): 1}
    assert not caplog.records


async def test_who_leaves_before_it_said_anything_is_nothing_to_count(secured: Secured) -> None:
    """So do those who only look whether somebody listens."""
    async with secured.bare():
        await until(lambda: secured.held == 1)
    await until(lambda: secured.held == 0)
    assert not secured.statistics.counts


@pytest.mark.parametrize("asks", [True, False], ids=["asks", "asks nothing"])
async def test_g8_who_is_in_its_handshake_as_the_server_ends_has_the_time_to_ask(
    secured: Secured, asks: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    if not asks:
        monkeypatch.setattr(http_connection, "LAST_SECONDS", 0.05)
    async with secured.bare() as (reader, writer):
        await until(lambda: secured.held == 1)
        secured.listening.end()
        for connection in list(secured.listening.state.connections):
            connection.shutdown()
        await writer.start_tls(secured.trusting, server_hostname="127.0.0.1")
        if asks:
            writer.write(GET % 1)
        answer = await reader.read()
    assert answer.endswith(b"GET /1 " if asks else b"")
    assert (b"connection: close" in answer) is asks


async def test_g8_the_end_waits_for_who_is_in_its_handshake_and_for_nobody_who_has_left(
    secured: Secured, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(http_listening, "LAST_SECONDS", 3600)
    async with secured.bare() as (reader, writer):
        await until(lambda: secured.held == 1)
        secured.listening.end()
        ended = asyncio.create_task(secured.listening.ended())
        await writer.start_tls(secured.trusting, server_hostname="127.0.0.1")
        assert not ended.done()
        writer.write(GET % 1)
        assert (await reader.read()).endswith(b"GET /1 ")
    await ended


async def test_a_server_that_ends_does_not_wait_for_handshakes(
    certified: Certificate, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tls_handshake, "LAST_SECONDS", 0.05)
    at = Secured(certified)
    async with asyncio.timeout(PATIENCE):
        async with serving(echo, at.listening) as at.port:
            reader, writer = await asyncio.open_connection("127.0.0.1", at.port)
            await until(lambda: at.held == 1)
        assert at.held == 0
        with suppress(ConnectionResetError):  # either is an end
            assert await reader.read() == b""
        writer.close()


async def test_a_handshake_that_is_given_up_before_it_began_leaves_nothing(certified: Certificate) -> None:
    at = Secured(certified)
    ours, theirs = socket.socketpair()
    async with serving(echo, at.listening) as port:
        async with asyncio.timeout(PATIENCE):
            (await asyncio.open_connection("127.0.0.1", port))[1].close()  # from then on it knows its loop
            await until(lambda: at.held == 0)
        handshake = TLSHandshake(at.listening)
        handshake.begin(theirs, server_context(TLS(str(certified.cert), str(certified.key))))
        assert at.held == 1
        handshake.cut("gave_way")
        await until(lambda: at.held == 0)
        assert theirs.fileno() == -1
    ours.close()


def test_the_key_of_another_certificate_is_refused(certified: Certificate, tmp_path: Path) -> None:
    other = certificate(tmp_path)
    with pytest.raises(ssl.SSLError, match="mismatch"):
        server_context(TLS(str(certified.cert), str(other.key)))
