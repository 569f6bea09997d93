"""The demultiplexer against a naive model: many callers, colliding ids, every order, a clock that the test turns."""

import json

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, invariant, multiple, rule
from trunkline.mux.demux import (
    TOMBSTONE_SECONDS,
    Abandon,
    Answered,
    Asked,
    Demux,
    Due,
    Failed,
    Ignored,
    Progressed,
    Retracted,
    ToServer,
)
from trunkline.mux.envelope import parse
from trunkline.mux.errors import Cancelled, Overloaded, SessionLost, TimedOut, TrunklineError
from trunkline.mux.request import EXTENSIONS, Request, ServerRequest

TIMEOUT = 10.0
MAX = 12
CLIENT_IDS = ["1", '"1"', "0", "-1", str(2**60), "9" * 30, '"ü"']
TOKENS = ["", "0", '""', '"0"', "1"]


class Client:
    """A caller as the model sees it: what it asked, and the one outcome that it got."""

    def __init__(self, client_id: str, token: str, now: float, *, is_own: bool) -> None:
        self.is_own = is_own
        self.client_id = client_id
        self.token = token
        self.outcome: str | None = None
        self.tombstone_until: float | None = None
        self.deadline = now + TIMEOUT
        self.latest = now + TIMEOUT * EXTENSIONS
        self.paused = 0
        self.owner = self


class DemuxMachine(RuleBasedStateMachine):
    requests = Bundle("requests")
    questions = Bundle("questions")

    def __init__(self) -> None:
        super().__init__()
        self.demux = Demux(max_inflight=MAX, timeout=TIMEOUT)
        self.demux.feed(range(1, 1_000_000))
        self.now = 0.0
        self.used: set[int] = set()
        self.live: dict[Request, Client] = {}
        self.open_questions: dict[ServerRequest, Client | None] = {}
        self.next_server_id = 0
        self.closed = False

    def read(self, text: str):
        return parse(text.encode(), limit=1 << 20)

    @property
    def waiting(self) -> list[Request]:
        return [r for r, c in self.live.items() if c.outcome is None]

    @rule(target=requests, id=st.sampled_from(CLIENT_IDS), token=st.sampled_from(TOKENS), is_own=st.booleans())
    def ask(self, id: str, token: str, is_own: bool):
        client = Client(id, token, self.now, is_own=is_own)
        is_full = sum(one.is_own == is_own for one in self.live.values()) >= MAX + is_own
        meta = f'{{"_meta":{{"progressToken":{token}}}}}' if token else "{}"
        message = self.read(f'{{"jsonrpc":"2.0","id":{id},"method":"tools/call","params":{meta}}}')
        try:
            request, text = self.demux.open(message, client, self.now)  # type: ignore[arg-type]
        except Overloaded:
            assert is_full
            assert not self.closed
            return multiple()
        except TrunklineError:
            assert self.closed
            return multiple()
        assert not self.closed
        assert not is_full
        sent = json.loads(text)
        assert sent["id"] == request.id
        assert request.id not in self.used
        if token:
            assert sent["params"]["_meta"]["progressToken"] == request.id
        self.used.add(request.id)
        self.live[request] = client
        return request

    @rule(request=requests, spelled=st.sampled_from(["{}", '"{}"']))
    def answer(self, request: Request, spelled: str) -> None:
        client = self.live.get(request)
        upstream_id = spelled.replace("{}", str(request.id))
        answer = self.read(f'{{"jsonrpc":"2.0","id":{upstream_id},"result":{{"n":{request.id}}}}}')
        event = self.demux.receive(answer, None, self.now)
        if client is None:
            assert event == Ignored("unknown_response")
        elif client.outcome is not None:
            assert event == Ignored("late_response", request)
            del self.live[request]
        else:
            assert isinstance(event, Answered)
            assert event.request is request
            text = event.message.decode()
            assert f'"id":{client.client_id},' in text
            assert f'"n":{request.id}' in text
            client.outcome = "answered"
            del self.live[request]

    @rule(request=requests)
    def progress(self, request: Request) -> None:
        client = self.live.get(request)
        message = self.read(
            f'{{"jsonrpc":"2.0","method":"notifications/progress","params":{{"progressToken":{request.id},"progress":1}}}}'
        )
        event = self.demux.receive(message, None, self.now)
        if client is None or client.outcome is not None or not client.token:
            assert event == Ignored("unknown_progress")
        else:
            assert isinstance(event, Progressed)
            assert event.request is request
            assert f'"progressToken":{client.token}'.encode() in event.message
            client.deadline = min(self.now + TIMEOUT, client.latest)

    @rule(request=requests)
    def cancel(self, request: Request) -> None:
        client = self.live.get(request)
        due = self.demux.cancel(request, None, self.now)
        if client is None or client.outcome is not None:
            assert due == []
        else:
            self.take(due)
            assert client.outcome == "Cancelled"

    @rule(request=requests)
    def break_exchange(self, request: Request) -> None:
        client = self.live.get(request)
        due = self.demux.fail(request, SessionLost("broken", executed="unknown"))
        if client is None or client.outcome is not None:
            assert due == []
            self.live.pop(request, None)
        else:
            self.take(due)
            assert client.outcome == "SessionLost"

    @rule(target=questions, request=st.one_of(st.none(), requests))
    def server_asks(self, request: Request | None):
        self.next_server_id += 1
        message = self.read(f'{{"jsonrpc":"2.0","id":{self.next_server_id},"method":"roots/list"}}')
        event = self.demux.receive(message, request, self.now)
        assert isinstance(event, Asked)
        client = self.live.get(request) if request is not None else None
        origin = client if client is not None and client.outcome is None else None
        assert event.request.origin is (request if origin is not None else None)
        self.open_questions[event.request] = origin
        if origin is not None:
            origin.paused += 1
        return event.request

    @rule(question=questions, how=st.sampled_from(["respond", "refuse", "retract"]))
    def settle_question(self, question: ServerRequest, how: str) -> None:
        was_open = question in self.open_questions
        if how == "respond":
            due = self.demux.respond(question, self.read('{"jsonrpc":"2.0","id":1,"result":{}}'), self.now)
        elif how == "refuse":
            due = self.demux.refuse(question, Cancelled("no"), self.now)
        else:
            params = f'{{"requestId":{question.id.decode()}}}'
            text = f'{{"jsonrpc":"2.0","method":"notifications/cancelled","params":{params}}}'
            event = self.demux.receive(self.read(text), None, self.now)
            assert isinstance(event, Retracted) if was_open else event == Ignored("unknown_cancel")
            due = []
        assert len(due) == (was_open and how != "retract")
        if was_open:
            self.close_question(question)

    @rule(seconds=st.sampled_from([0.5, 3.0, 9.0, 11.0, 40.0]))
    def time_passes(self, seconds: float) -> None:
        self.now += seconds
        unbound = any(origin is None for origin in self.open_questions.values())
        expected = {
            request
            for request, client in self.live.items()
            if client.outcome is None
            and (client.latest <= self.now or (client.deadline <= self.now and not client.paused and not unbound))
        }
        gone = {
            request
            for request, client in self.live.items()
            if client.tombstone_until is not None and client.tombstone_until <= self.now
        }
        late = [question for question in self.open_questions if question.deadline <= self.now]
        due = self.demux.expire(self.now)
        assert {e.request for e in due if isinstance(e, Failed)} == expected
        assert {e.request for e in due if isinstance(e, Abandon)} == gone
        self.take(due)
        for request in gone:
            del self.live[request]
        for question in late:
            self.close_question(question)

    @rule()
    def server_talks_nonsense(self) -> None:
        for text in ('{"jsonrpc":"2.0","id":999999999,"result":{}}', '{"jsonrpc":"2.0","error":{"code":1}}'):
            assert self.demux.receive(self.read(text), None, self.now) == Ignored("unknown_response")

    def close_question(self, question: ServerRequest) -> None:
        origin = self.open_questions.pop(question)
        resumed = [client for client in self.live.values() if client.outcome is None] if origin is None else [origin]
        if origin is not None:
            origin.paused = max(0, origin.paused - 1)
        for client in resumed:
            if client.outcome is None:
                client.deadline = min(max(client.deadline, self.now + TIMEOUT), client.latest)

    def take(self, due: list[Due]) -> None:
        """Give each failure to its caller; nobody may get a second outcome."""
        told = [json.loads(e.message) for e in due if isinstance(e, ToServer)]
        for event in due:
            if isinstance(event, Failed):
                client = self.live[event.request]
                assert client.outcome is None
                client.outcome = type(event.error).__name__
                client.paused = 0
                if isinstance(event.error, Cancelled | TimedOut):
                    client.tombstone_until = self.now + TOMBSTONE_SECONDS
                    assert {"requestId": event.request.id} in [t.get("params") for t in told]
                else:
                    del self.live[event.request]

    @invariant()
    def counts_agree(self) -> None:
        assert self.demux.inflight == len(self.waiting)
        assert self.demux.load == sum(not client.is_own for client in self.live.values())
        assert self.demux.is_idle == (not self.live and not self.open_questions)

    def teardown(self) -> None:
        waiting = set(self.waiting)
        assert {event.request for event in self.demux.close(SessionLost("end", executed="no"))} == waiting
        assert self.demux.is_idle
        assert self.demux.inflight == 0
        assert self.demux.close(SessionLost("again", executed="no")) == []


TestDemux = DemuxMachine.TestCase
TestDemux.settings = settings(max_examples=150, stateful_step_count=40, deadline=None)
