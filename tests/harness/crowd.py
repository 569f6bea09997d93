"""A crowd of clients that reconnect and go on while a test breaks what is behind them, and count what becomes of it.

    crowd = Crowd(server, first.url(), second.url())
    async with crowd.living(callers=6, followers=2):
        ...  # break something, and mend it
    crowd.check()
    crowd.figures()

Each call has a number of its own, is sent once, and the server keeps the numbers that come to it. A caller makes one
call after the other, each at the next of the URLs. A follower's calls are streams which it cuts in the middle, and goes
on with at the next URL. When `living` is left, each client goes on until one more call of it has been answered.
"""

import json
import random
import time
from collections import Counter
from collections.abc import AsyncIterator, Iterator, Mapping
from contextlib import asynccontextmanager, contextmanager
from itertools import count, cycle
from typing import Any, Final

import anyio
from aiohttp import ClientError

from harness.raw_upstreams import RawUpstream
from harness.wire import Answer, Wire

PAUSE_SECONDS: Final = 0.02
"""What a client lets pass between two calls, where nothing else is said: what is started meanwhile needs the cores."""

PATIENCE: Final = 15.0
"""Seconds without a word after which a client goes on elsewhere. Nobody should have to."""

QUIET_SECONDS: Final = 2.0
"""How long a stream that was resumed may say nothing before its client tells the call once more to go on."""

END_SECONDS: Final = 60.0
"""A bound for a stream that was cut to be resumed, and for the crowd to come to its end."""

STEPS: Final = 4
"""The progress reports of a call that is followed. Half of them come before the cut."""


class Crowd:
    """Clients of one server, at any of several gateways."""

    def __init__(
        self,
        server: RawUpstream,
        *urls: str,
        headers: Mapping[str, str] | None = None,
        patience: float = PATIENCE,
        pause: float = PAUSE_SECONDS,
    ) -> None:
        self.outcomes: dict[int, str] = {}
        """What became of each call: `result`, a code with what it says of execution, an HTTP status, `cut`, or `lost`
        where its session was gone when its stream was to be resumed."""
        self.slowest = 0.0
        """Seconds until the slowest call of a caller had its outcome."""
        self.slowest_answer = 0.0
        self.lost = 0
        """Sessions that were unknown when their clients came back."""
        self.slowest_opening = 0.0
        """Seconds until a client whose session was lost had another one, from the first `note_break` that it can be
        lost to."""
        self.resumed = 0
        self.missed = 0
        self.twice = 0
        """Of followed calls: streams that were resumed, events that did not come, events that came again."""
        self.given_up = 0
        """How often a client heard nothing for so long (`patience`, in seconds) that it went on elsewhere."""
        self.names: list[str] = []
        self._server = server
        self._urls = urls
        self._patience = patience
        self._pause = pause
        self._headers = {"Connection": "close", **(headers or {})}
        self._numbers = count(1)
        self._goes_on = True
        self._breaks: list[float] = []

    def note_break(self) -> None:
        """Something is broken now that may cost sessions: from now on those who lose one wait for another one."""
        self._breaks.append(time.monotonic())

    @asynccontextmanager
    async def living(self, callers: int, followers: int = 0) -> AsyncIterator[None]:
        """So many clients live, each with an answer. When this is left they come to an end, within `END_SECONDS`."""
        async with anyio.create_task_group() as tasks:
            self.names = [f"{'caller' if n < callers else 'follower'}-{n}" for n in range(callers + followers)]
            with anyio.fail_after(END_SECONDS):
                async with anyio.create_task_group() as beginning:
                    for name in self.names:
                        answered = anyio.Event()
                        tasks.start_soon(self._live, name, answered)
                        beginning.start_soon(answered.wait)
            yield
            self._goes_on = False
            tasks.cancel_scope.deadline = anyio.current_time() + END_SECONDS
        assert not tasks.cancel_scope.cancelled_caught, f"no answers for {END_SECONDS} s: {self.figures()}"

    def executed(self) -> Counter[int]:
        """How often each number came to the server."""
        return Counter(n for name in self.names for n in arrived(self._server, name))

    def figures(self) -> dict[str, object]:
        """What to tell of it."""
        return {
            "calls": len(self.outcomes),
            "outcomes": dict(Counter(self.outcomes.values())),
            "slowest answer, s": round(self.slowest_answer, 2),
            "slowest outcome, s": round(self.slowest, 2),
            "sessions lost": self.lost,
            "slowest opening, s": round(self.slowest_opening, 2),
            "executed twice": sum(times > 1 for times in self.executed().values()),
            "streams resumed": self.resumed,
            "events missed": self.missed,
            "events twice": self.twice,
            "given up": self.given_up,
        }

    def check(self) -> None:
        """What must hold whatever was broken: G5 for who follows a stream, G6 for every call."""
        executed = self.executed()
        assert [n for n, times in executed.items() if times > 1] == []
        told = {
            outcome: {n for n, one in self.outcomes.items() if one == outcome}
            for outcome in set(self.outcomes.values())
        }
        assert told.get("result", set()) <= executed.keys(), "an answer to what was not executed"
        for outcome, numbers in told.items():
            if outcome.endswith(" no") or outcome in ("404", "503"):
                assert not numbers & executed.keys(), f"executed, and told {outcome}"
        assert (self.missed, self.twice) == (0, 0)

    async def _live(self, name: str, answered: anyio.Event) -> None:
        urls, is_answered, begins, lived = cycle(self._urls), False, True, time.monotonic()
        act = self._call if name.startswith("caller") else self._follow
        async with Wire(next(urls)) as wire:
            while self._goes_on or not is_answered:
                if begins:
                    await self._open(wire, urls, name)
                    self._note_opening(lived)
                    lived = time.monotonic()
                began = time.monotonic()
                outcome = await act(wire, urls)
                is_answered, begins = outcome == "result", outcome in ("404", "lost")
                self.lost += begins
                if is_answered:
                    lived = began
                    answered.set()
                wire.url = next(urls)
                await anyio.sleep(self._pause)

    def _note_opening(self, lived: float) -> None:
        """A client has another session; its last one lived at that time, and has been lost to the first break since."""
        broken = next((at for at in self._breaks if at > lived), None)
        if broken is not None:
            self.slowest_opening = max(self.slowest_opening, time.monotonic() - broken)

    async def _open(self, wire: Wire, urls: "cycle[str]", name: str) -> None:
        revision = "2025-06-18" if name.startswith("caller") else "2025-11-25"  # whose calls may become streams
        wire.headers = dict(self._headers)
        while True:
            with self._going_on():
                await wire.open(revision, name=name)
                return
            wire.url = next(urls)
            await anyio.sleep(self._pause)

    async def _call(self, wire: Wire, _: object) -> str:
        number, began, outcome = next(self._numbers), time.monotonic(), "cut"
        with self._going_on():
            answer = await wire.call("numbered", {"n": number}, id=b"%d" % number)
            outcome = told_of(await answer.response()) if answer.status == 200 else str(answer.status)
        took = time.monotonic() - began
        self.slowest = max(self.slowest, took)
        if outcome == "result":
            self.slowest_answer = max(self.slowest_answer, took)
        self.outcomes[number] = outcome
        return outcome

    @contextmanager
    def _going_on(self) -> Iterator[None]:
        """Whatever ends here is no reason to stop: the stream ended, the connection was cut, nothing was heard."""
        try:
            with anyio.fail_after(self._patience):
                yield
        except (AssertionError, ClientError):
            pass
        except TimeoutError:
            self.given_up += 1

    # Followed calls.

    async def _follow(self, wire: Wire, urls: "cycle[str]") -> str:
        number = next(self._numbers)
        followed = Followed()
        with self._going_on():
            answer = await wire.post(_stream(number))
            if answer.status != 200:
                self.outcomes[number] = str(answer.status)
                return self.outcomes[number]
            await followed.read(answer, random.randint(0, STEPS // 2))
            answer.cut()
        if followed.outcome == "" and followed.last_event_id is None:
            followed.outcome = "cut"  # before there was anything to go on with
        with anyio.fail_after(END_SECONDS):
            await self._go_on(wire, urls, followed, number)
        self.missed += followed.missed()
        self.twice += followed.twice()
        self.outcomes[number] = followed.outcome
        return followed.outcome

    async def _go_on(self, wire: Wire, urls: "cycle[str]", followed: "Followed", number: int) -> None:
        """Let the call go on, and hear the rest of it, wherever that is possible."""
        while not followed.outcome:
            wire.url = next(urls)
            with self._going_on():
                opened = await wire.post(_opening(number))  # again, as a notification may be lost
                answer = await wire.get(followed.last_event_id)
                if answer.status == 200:
                    self.resumed += 1
                    with anyio.move_on_after(QUIET_SECONDS):
                        await followed.read(answer)
                elif answer.status == 404:
                    followed.outcome = "lost"
                answer.cut()
                opened.cut()
            await anyio.sleep(self._pause)


class Followed:
    """What has come of one call that is a stream, over all the connections that it took."""

    def __init__(self) -> None:
        self.outcome = ""
        self.last_event_id: str | None = None
        self._heard: list[int] = []

    async def read(self, answer: Answer, count: int | None = None) -> None:
        """Read until the answer, the end of the stream, or so many reports and the event that lets one go on."""
        if not answer.is_stream:
            self.outcome = told_of(await answer.json())
        while not self.outcome and (count is None or len(self._heard) < count or self.last_event_id is None):
            event = await answer.next_event()
            if event is None:
                return
            self.last_event_id = answer.last_event_id or self.last_event_id
            if event.data:
                message = json.loads(event.data)
                if "method" in message:
                    self._heard.append(message["params"]["progress"])
                else:
                    self.outcome = told_of(message)

    def missed(self) -> int:
        """Reports that did not come: all do before a result, and before an error none is left out."""
        due = STEPS if self.outcome == "result" else max(self._heard, default=0)
        return due - len(set(self._heard))

    def twice(self) -> int:
        """Reports that came again, or out of order."""
        return sum(later <= earlier for earlier, later in zip(self._heard, self._heard[1:], strict=False))


def arrived(server: RawUpstream, client: str) -> list[int]:
    """The numbers of the calls that came to the server."""
    return [json.loads(text)["params"]["arguments"]["n"] for text in server.received(client, "tools/call")]


def _stream(number: int) -> dict[str, Any]:
    """A call with reports on its way, which waits in the middle until it is told to go on."""
    reports: list[dict[str, Any]] = [
        {
            "say": {
                "jsonrpc": "2.0",
                "method": "notifications/progress",
                "params": {"progressToken": "$TOKEN", "progress": step},
            }
        }
        for step in range(1, STEPS + 1)
    ]
    script = [*reports[: STEPS // 2], {"pass": f"gate-{number}"}, *reports[STEPS // 2 :], {"reply": {"result": {}}}]
    params = {"name": "numbered", "arguments": {"n": number}, "_meta": {"progressToken": number}, "script": script}
    return {"jsonrpc": "2.0", "id": number, "method": "tools/call", "params": params}


def _opening(number: int) -> dict[str, Any]:
    """What tells it to go on."""
    return {"jsonrpc": "2.0", "method": "notifications/go_on", "params": {"script": [{"open": f"gate-{number}"}]}}


def told_of(message: dict[str, Any]) -> str:
    """What an answer says: `result`, or a code and whether the call was executed."""
    if "result" in message:
        return "result"
    return f"{message['error']['code']} {message['error'].get('data', {}).get('executed', 'no')}"
