"""A workflow survives its connections and its transport: every message once, every call executed once (G5, G6)."""

import json
import random
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Any, Literal

import pytest
from aiohttp import ClientError
from harness.cutter import Connection, Cutter
from harness.duplex_clients import ConnectionCut, DuplexClient, SocketClient, SSEClient
from harness.gateways import Gateway, until
from harness.upstreams import Upstream
from harness.wire import Answer, Wire, text_of

pytestmark = pytest.mark.anyio

Mode = Literal["sse", "websocket", "websocket without a count", "http"]
Moment = Literal["before the request is read", "while the call runs", "after the response", "in the middle"]
MODES: tuple[Mode, ...] = ("sse", "websocket", "websocket without a count", "http")
MOMENTS: tuple[Moment, ...] = (
    "before the request is read",
    "while the call runs",
    "after the response",
    "in the middle",
)
STEPS = 3
REQUEST = 100
"""No request is as short as this, so that less of it is never read."""
PIECE = 700
"""What comes of one call is longer than this, so that a cut within is somewhere in its messages."""


def base(port: int) -> str:
    return f"http://127.0.0.1:{port}/servers/up"


class Caller(ABC):
    """A client that is cut again and again, and comes back each time."""

    def __init__(self, dice: random.Random, gateway: Gateway) -> None:
        self.dice = dice
        self.gateway = gateway
        self.cuts = 0
        self.pings = 0

    @property
    @abstractmethod
    def heard(self) -> list[dict[str, Any]]:
        """Every message that has come."""

    @property
    @abstractmethod
    def carrier(self) -> Connection:
        """What carries the answer to the call under way."""

    @abstractmethod
    async def begin(self) -> None:
        """Connect, and do the handshake."""

    @abstractmethod
    async def call(self, number: int, gate: str, *, cut_after: int | None = None) -> None:
        """Send a call; with `cut_after`, no more of it than so many bytes, and then come back."""

    @abstractmethod
    async def finish(self, number: int) -> None:
        """Read until the answer, coming back as often as it takes."""


def arguments(gate: str) -> dict[str, Any]:
    return {"steps": STEPS, "gate": gate}


class DuplexCaller(Caller):
    """One that has everything on one connection."""

    def __init__(
        self, dice: random.Random, gateway: Gateway, client: DuplexClient, streams: Cutter, posts: Cutter | None
    ) -> None:
        super().__init__(dice, gateway)
        self.client = client
        self.streams = streams
        self.posts = posts

    @property
    def heard(self) -> list[dict[str, Any]]:
        return self.client.heard

    @property
    def carrier(self) -> Connection:
        return self.streams.newest

    async def begin(self) -> None:
        await self.client.open()

    async def call(self, number: int, gate: str, *, cut_after: int | None = None) -> None:
        await self.settle()
        if cut_after is not None:
            if self.posts is not None:
                self.posts.limit_next(up=cut_after)
            else:
                self.carrier.limit(up=cut_after)
            try:
                await self.client.call("slow", arguments(gate), id=number, token=f"t{number}")
                await self.client.answer(number)
                raise AssertionError("the request was read")
            except ConnectionCut:
                self.cuts += 1
            if self.posts is None:
                await self.come_back()
            await self.settle()
        await self.client.call("slow", arguments(gate), id=number, token=f"t{number}")

    async def settle(self) -> None:
        """Have a connection for which no cut is planned."""
        while True:
            self.carrier.limit()
            self.pings += 1
            try:
                await self.client.send({"jsonrpc": "2.0", "id": f"ping {self.pings}", "method": "ping"})
                await self.client.answer(f"ping {self.pings}")
            except ConnectionCut:
                self.cuts += 1
                await self.come_back()
            else:
                return

    async def finish(self, number: int) -> None:
        while True:
            try:
                await self.client.answer(number)
            except ConnectionCut:
                self.cuts += 1
                await self.come_back()
            else:
                return

    async def come_back(self) -> None:
        """Connect again; sometimes that is cut, too."""
        while True:
            if isinstance(self.client, SocketClient) and not self.client.counts:
                # Who does not say what it has is only known to come back once the old connection is known to be gone.
                await until(lambda: not self.gateway.metric("trunkline_workflows", state="attached"))
            planned = self.dice.random() < 0.3
            if planned:
                self.streams.limit_next(down=self.dice.randrange(PIECE))
            try:
                await self.client.resume()
                if isinstance(self.client, SocketClient) and not self.client.counts:
                    await self.client.send({"jsonrpc": "2.0", "method": "notifications/here"})
            except ConnectionCut:
                self.cuts += 1
            else:
                return


class HTTPCaller(Caller):
    """One on Streamable HTTP, that takes its calls' streams up by a GET."""

    def __init__(self, dice: random.Random, gateway: Gateway, wire: Wire, relay: Cutter) -> None:
        super().__init__(dice, gateway)
        self.wire = wire
        self.relay = relay
        self._heard: list[dict[str, Any]] = []
        self._answer: Answer

    @property
    def heard(self) -> list[dict[str, Any]]:
        return self._heard

    @property
    def carrier(self) -> Connection:
        return self.relay.newest

    async def begin(self) -> None:
        await self.wire.open("2025-11-25")

    async def call(self, number: int, gate: str, *, cut_after: int | None = None) -> None:
        sent = {"id": str(number).encode(), "meta": {"progressToken": f"t{number}"}}
        if cut_after is not None:
            self.relay.limit_next(up=cut_after)
            with pytest.raises(ClientError):
                await self.wire.call("slow", arguments(gate), **sent)  # type: ignore[arg-type]
            self.cuts += 1
        self._answer = await self.wire.call("slow", arguments(gate), **sent)  # type: ignore[arg-type]
        priming = await self._answer.next_event()
        assert priming is not None
        assert (priming.data, bool(priming.id)) == ("", True)

    async def finish(self, number: int) -> None:
        last = self._answer.last_event_id
        while True:
            try:
                while (event := await self._answer.next_event()) is not None:
                    last = event.id or last
                    if event.data:
                        self._heard.append(json.loads(event.data))
                        if self._heard[-1].get("id") == number:
                            return
                raise AssertionError("the stream ended without the answer")
            except ClientError:
                self.cuts += 1
            while True:
                if self.dice.random() < 0.3:
                    self.relay.limit_next(down=self.dice.randrange(PIECE))
                try:
                    self._answer = await self.wire.get(last)
                except ClientError:
                    self.cuts += 1
                else:
                    assert self._answer.status == 200, await self._answer.body()
                    break


@asynccontextmanager
async def caller(mode: Mode, gateway: Gateway, seed: int) -> AsyncIterator[Caller]:
    """A client of that mode, with its session."""
    async with AsyncExitStack() as stack:
        streams = await stack.enter_async_context(Cutter(gateway.port))
        dice = random.Random(seed)
        made: Caller
        if mode == "sse":
            posts = await stack.enter_async_context(Cutter(gateway.port))
            client: DuplexClient = SSEClient(base(streams.port), posts_to=f"http://127.0.0.1:{posts.port}")
            made = DuplexCaller(dice, gateway, await stack.enter_async_context(client), streams, posts)
        elif mode == "http":
            # Each request has a connection of its own, so that what is cut is the one that is meant.
            wire = await stack.enter_async_context(Wire(f"{base(streams.port)}/mcp", {"Connection": "close"}))
            made = HTTPCaller(dice, gateway, wire, streams)
        else:
            client = SocketClient(base(streams.port), counts=mode == "websocket")
            made = DuplexCaller(dice, gateway, await stack.enter_async_context(client), streams, None)
        await made.begin()
        yield made


async def one_call(made: Caller, upstream: Upstream, number: int, gate: str, moment: Moment) -> None:
    """A call whose connection is cut at this moment."""
    dice = made.dice
    await made.call(number, gate, cut_after=dice.randrange(REQUEST) if moment == MOMENTS[0] else None)
    for step in range(2, STEPS + 1):
        upstream.open(f"{gate}.{step}")
    await upstream.saw("mark:waiting", STEPS * number + 1)
    if moment == "while the call runs":
        made.carrier.cut()
    elif moment == "after the response":
        made.carrier.limit(down=0)
    elif moment == "in the middle":
        made.carrier.limit(down=dice.randrange(1, PIECE))
    upstream.open(f"{gate}.1")
    await made.finish(number)


def messages_of(heard: list[dict[str, Any]], calls: int) -> Counter[tuple[str, int, int]]:
    """How often each message of the calls came; what belongs to none is left out."""
    found: Counter[tuple[str, int, int]] = Counter()
    for message in heard:
        if message.get("method") == "notifications/progress":
            params = message["params"]
            found["progress", int(params["progressToken"][1:]), int(params["progress"])] += 1
        elif message.get("id") in range(calls):
            assert text_of(message) == f"{STEPS} steps"
            found["answer", message["id"], 0] += 1
    return found


def check(made: Caller, upstream: Upstream, mode: Mode, calls: int) -> None:
    """Every message has come once, or in a mode that cannot tell at least once; every call was executed once."""
    expected = {("answer", n, 0) for n in range(calls)}
    expected |= {("progress", n, step) for n in range(calls) for step in range(1, STEPS + 1)}
    found = messages_of(made.heard, calls)
    assert set(found) == expected
    if mode != "websocket without a count":
        assert {message: count for message, count in found.items() if count > 1} == {}
        order = [n for kind, n, _ in found if kind == "answer"]
        assert order == sorted(order)
    report = upstream.report()
    gates = Counter(mark["gate"] for mark in report["marks"] if mark["name"] == "waiting")
    assert set(gates.values()) == {1}
    assert len(gates) == calls * STEPS
    assert (report["counts"]["method:tools/call"], report["counts"]["initialize"]) == (calls, 1)


@pytest.mark.parametrize("moment", MOMENTS)
@pytest.mark.parametrize("mode", MODES)
async def test_g5_a_cut_at_any_moment_loses_nothing(
    gateway: Gateway, upstream: Upstream, key: str, mode: Mode, moment: Moment
) -> None:
    async with caller(mode, gateway, seed=1) as made:
        for number in range(3):
            await one_call(made, upstream, number, f"{key}-{number}", moment)
        assert made.cuts >= 3
        check(made, upstream, mode, 3)


async def many_cuts(gateway: Gateway, upstream: Upstream, key: str, mode: Mode, calls: int, seed: int) -> None:
    async with caller(mode, gateway, seed) as made:
        for number in range(calls):
            await one_call(made, upstream, number, f"{key}-{number}", made.dice.choice(MOMENTS))
        assert made.cuts >= calls
        check(made, upstream, mode, calls)


@pytest.mark.parametrize("mode", MODES)
async def test_g5_two_hundred_random_cuts_lose_nothing(
    gateway: Gateway, upstream: Upstream, key: str, mode: Mode
) -> None:
    await many_cuts(gateway, upstream, key, mode, 200 // len(MODES), seed=7)


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize("mode", MODES)
async def test_g5_a_thousand_random_cuts_lose_nothing(
    gateway: Gateway, upstream: Upstream, key: str, mode: Mode
) -> None:
    await many_cuts(gateway, upstream, key, mode, 1000 // len(MODES), seed=11)


async def test_a_workflow_begins_on_sse_goes_on_on_websocket_and_ends_on_http(
    gateway: Gateway, upstream: Upstream, key: str
) -> None:
    async with SSEClient(base(gateway.port)) as stream, SocketClient(base(gateway.port)) as socket:
        await stream.open()
        await stream.call("counter", id=1)
        assert text_of(await stream.answer(1)) == "1"
        await stream.call("hold", {"gate": key}, id=2)
        await upstream.saw("mark:holding")
        stream.cut()
        upstream.open(key)

        await socket.connect(f"?session_id={stream.session_id}&last_event_id={stream.last_event_id}")
        assert text_of(await socket.answer(2)) == f"{key} is open", "what ran when the stream was cut"
        await socket.call("counter", id=3)
        assert text_of(await socket.answer(3)) == "2"
        socket.cut()

        async with Wire(gateway.url(), {"Mcp-Session-Id": stream.session_id}) as wire:
            assert text_of(await (await wire.call("counter")).response()) == "3"
            assert (await wire.delete()).status == 200
            assert (await wire.call("counter")).status == 404
    counts = (await upstream.saw("delete"))["counts"]
    assert (counts["initialize"], counts["delete"], counts["method:tools/call"]) == (1, 1, 4)


async def test_what_an_http_call_has_left_is_taken_up_on_sse_and_on_websocket(
    gateway: Gateway, upstream: Upstream, key: str
) -> None:
    for number, client in enumerate((SSEClient(base(gateway.port)), SocketClient(base(gateway.port))), 1):
        async with Wire(gateway.url()) as wire, client:
            await wire.open()
            answer = await wire.call("hold", {"gate": f"{key}-{number}"}, id=b'"http"')
            await answer.next_event()
            await upstream.saw("mark:holding", number)
            answer.cut()
            session = {"Mcp-Session-Id": wire.session_id or "", "Last-Event-ID": answer.last_event_id or ""}
            await client.connect(headers=session)
            upstream.open(f"{key}-{number}")
            assert text_of(await client.answer("http")) == f"{key}-{number} is open"
            await client.call("counter", id=1)
            assert text_of(await client.answer(1)) == "1"
