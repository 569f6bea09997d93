"""A request that another worker serves: what its client sees, and what is done once."""

import json
from functools import partial
from pathlib import Path
from typing import Any

import anyio
import pytest
from harness.muxing import ALICE
from harness.shared_memory import SharedMemoryDirectory
from harness.worker_house import CALL, Client, House, answer, post, unknown_to
from trunkline.gateway.workers import forwarding
from trunkline.gateway.workers.forwarding import Forwarder, Tape
from trunkline.gateway.workers.member import Member
from trunkline.mux.directory import Worker
from trunkline.mux.errors import Elsewhere
from trunkline.mux.membership import Membership
from trunkline.mux.statistics import Statistics
from trunkline.transports.asgi import GRANT, IDENTITY, Grant, Receive, Scope, Send, headers_of
from trunkline.transports.websocket import PING

pytestmark = pytest.mark.anyio

ANSWER = b'{"jsonrpc":"2.0","id":4294967297,"result":{"action":"accept"}}'


async def test_g7_the_whole_request_arrives_and_the_whole_answer_returns(house: House) -> None:
    scopes: list[Scope] = []

    async def serve(scope: Scope, receive: Receive, send: Send) -> None:
        scopes.append(scope)
        await answer(send, b"echo " + (await receive())["body"])

    await house.begins("b", serve)
    client = post()
    await house.request(client, query_string=b"q=1", client=("9.9.9.9", 1))
    assert client.body == b"echo " + CALL
    start = await client.got("http.response.start")
    assert (start["status"], [tuple(header) for header in start["headers"]]) == (200, [(b"x", b"y")])
    [scope] = scopes
    assert (scope["query_string"], scope["client"][0], [tuple(header) for header in scope["headers"]]) == (
        b"q=1",
        "9.9.9.9",
        [(b"a", b"1")],
    )
    assert scope[IDENTITY] == (ALICE, 12.5)
    assert house.statistics.counts["forwards", "done"] == 1


async def test_a_stream_comes_as_it_is_sent_and_ends_when_its_client_leaves(house: House) -> None:
    left = anyio.Event()

    async def serve(scope: Scope, receive: Receive, send: Send) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b"one", "more_body": True})
        while (await receive())["type"] != "http.disconnect":
            pass
        left.set()

    await house.begins("b", serve)
    client = Client()
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(lambda: house.request(client, method="GET"))
        await client.got("http.response.body")
        client.does({"type": "http.disconnect"})
        with anyio.fail_after(10):
            await left.wait()
    assert client.body == b"one"


async def test_a_credential_that_is_withdrawn_here_ends_what_is_open_by_it_there(house: House) -> None:
    async def serve(scope: Scope, receive: Receive, send: Send) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": []})
        with headers_of(scope).held():
            await anyio.sleep_forever()
        await send({"type": "http.response.body", "body": b"the end"})

    await house.begins("b", serve)
    client, grant, other = Client(), Grant(), Grant()
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(lambda: house.request(client, method="GET", **{GRANT: grant}))
        await client.got("http.response.start")
        other.withdraw()
        assert client.body == b""
        grant.withdraw()
    assert client.body == b"the end"
    assert house.statistics.counts["forwards", "done"] == 1
    late = Client()
    await house.request(late, method="GET", **{GRANT: grant})
    assert late.body == b"the end", "it was withdrawn before"


async def test_who_was_verified_is_not_asked_again_when_the_worker_it_was_sent_to_has_gone(house: House) -> None:
    """A ticket is good for one connection, however many workers that asks for."""
    asked: list[Any] = []

    async def here(scope: Scope, receive: Receive, send: Send) -> None:
        asked.append(scope.get(IDENTITY))
        if len(asked) == 1:
            elsewhere = Elsewhere("gone")
            elsewhere.identity = ALICE, 12.5
            raise elsewhere
        await answer(send, b"here")

    client = Client()
    forwarder = Forwarder(here, house.member, house.opened, house.statistics)
    scope = {"type": "http", "method": "GET", "path": "/servers/x/sse", "headers": []}
    await forwarder(scope, client.receive, client.send)
    assert client.body == b"here"
    assert asked == [None, (ALICE, 12.5)]


async def test_a_socket_goes_both_ways_with_its_pings(house: House) -> None:
    async def serve(scope: Scope, receive: Receive, send: Send) -> None:
        assert (await receive())["type"] == "websocket.connect"
        await send({"type": "websocket.accept"})
        said = (await receive())["text"]
        await scope["extensions"][PING]()
        await send({"type": "websocket.send", "text": said.upper()})
        await send({"type": "websocket.close", "code": 1000, "reason": ""})

    await house.begins("b", serve)
    pings: list[str] = []

    async def ping() -> None:
        pings.append("ping")

    client = Client({"type": "websocket.connect"}, {"type": "websocket.receive", "text": "hello"})
    await house.request(client, type="websocket", method="", extensions={PING: ping})
    assert [message["type"] for message in client.sent] == ["websocket.accept", "websocket.send", "websocket.close"]
    assert (client.sent[1]["text"], pings) == ("HELLO", ["ping"])


@pytest.mark.parametrize("kind", ["http", "websocket"])
async def test_one_that_dies_when_its_answer_is_complete_is_no_failure(house: House, kind: str) -> None:
    last = {
        "http": {"type": "http.response.body", "body": b"all"},
        "websocket": {"type": "websocket.close", "code": 1000, "reason": ""},
    }[kind]

    async def serve(scope: Scope, receive: Receive, send: Send) -> None:
        if kind == "http":
            await send({"type": "http.response.start", "status": 200, "headers": []})
        await send(last)
        raise ConnectionAbortedError("killed")

    await house.begins("b", serve)
    client = post()
    await house.request(client, type=kind)
    assert [message["type"] for message in client.sent].count(last["type"]) == 1
    assert client.sent[-1] == last
    assert house.statistics.counts == {("forwards", "done"): 1}


async def dies(scope: Scope, receive: Receive, send: Send) -> None:
    """As a worker that is killed looks to others."""
    raise ConnectionAbortedError("killed")


@pytest.mark.parametrize(
    ("body", "expected"),
    [
        (CALL, {"id": "mine", "code": -31002}),
        (b"[%b]" % CALL, [{"id": "mine", "code": -31002}]),
        (b'{"jsonrpc":"2.0","method":"notifications/cancelled"}', None),
        (b"no json", None),
    ],
)
async def test_g6_a_worker_that_dies_over_a_call_is_told_at_once(
    house: House, body: bytes, expected: Any, caplog: pytest.LogCaptureFixture
) -> None:
    await house.begins("b", dies)
    client = post(body)
    await house.request(client)
    if expected is None:
        assert (client.sent[0]["status"], client.body) == (202, b"")
    else:
        told = json.loads(client.body)
        errors = told if isinstance(told, list) else [told]
        assert [{"id": one["id"], "code": one["error"]["code"]} for one in errors] == (
            expected if isinstance(expected, list) else [expected]
        )
        assert errors[0]["error"]["data"] == {"executed": "unknown"}
    assert house.statistics.counts["forwards", "broken"] == 1
    assert house.asked == 1, "it may have been executed"


async def test_a_worker_that_dies_over_a_call_of_http_sse_is_told_by_the_status(house: House) -> None:
    await house.begins("b", dies)
    client = post()
    await house.request(client, path="/servers/x/message")
    assert client.sent[0]["status"] == 502, "its client reads no body: the answer would come on its stream"
    assert json.loads(client.body)["error"]["data"] == {"executed": "unknown"}


@pytest.mark.parametrize("body", [ANSWER, b"[%b,%b]" % (ANSWER, ANSWER)])
async def test_r4_what_a_client_answers_to_a_server_is_handed_on_again(house: House, body: bytes) -> None:
    heard: list[bytes] = []

    async def serve(scope: Scope, receive: Receive, send: Send) -> None:
        heard.append((await receive())["body"])
        if len(heard) == 1:
            raise ConnectionAbortedError("killed")
        await answer(send, b"now")

    await house.begins("b", serve)
    client = post(body)
    await house.request(client)
    assert (heard, client.body) == ([body, body], b"now")


@pytest.mark.parametrize("method", ["GET", "DELETE"])
async def test_a_request_without_messages_is_sent_again(house: House, method: str) -> None:
    served = 0

    async def serve(scope: Scope, receive: Receive, send: Send) -> None:
        nonlocal served
        served += 1
        if served == 1:
            raise ConnectionAbortedError("killed")
        await answer(send, b"now")

    await house.begins("b", serve)
    client = Client()
    await house.request(client, method=method)
    assert (client.body, house.statistics.counts["forwards", "retried"]) == (b"now", 1)


async def test_a_stream_whose_worker_dies_ends_so_that_its_client_comes_back(house: House) -> None:
    async def serve(scope: Scope, receive: Receive, send: Send) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b"one", "more_body": True})
        raise ConnectionAbortedError("killed")

    await house.begins("b", serve)
    client = Client()
    await house.request(client, method="GET")
    assert client.body == b"one"
    assert not client.sent[-1].get("more_body")


STREAM = {"type": "http.response.start", "status": 200, "headers": [(b"content-type", b"text/event-stream")]}


@pytest.mark.parametrize(
    ("body", "answered", "told"),
    [
        (CALL, [], ["mine"]),
        (CALL, [b'{"jsonrpc":"2.0","method":"notifications/progress","params":{}}'], ["mine"]),
        (CALL, [b'{"jsonrpc":"2.0","id":"mine","method":"sampling/createMessage"}'], ["mine"]),
        (CALL, [b'{"jsonrpc":"2.0","id":"mine","result":{}}'], []),
        (
            b"[%b,%b]" % (CALL, CALL.replace(b"mine", b"other")),
            [b'{"jsonrpc":"2.0","id":"mine","result":{}}'],
            ["other"],
        ),
    ],
)
async def test_g7_a_call_that_became_a_stream_is_told_at_once_that_its_worker_died(
    house: House, body: bytes, answered: list[bytes], told: list[str]
) -> None:
    async def serve(scope: Scope, receive: Receive, send: Send) -> None:
        await receive()
        await send(STREAM)
        text = b"id: 1\ndata: \n\n" + b"".join(b"event: message\ndata: %b\n\n" % one for one in answered)
        for start in range(0, len(text), 7):
            await send({"type": "http.response.body", "body": text[start : start + 7], "more_body": True})
        raise ConnectionAbortedError("killed")

    await house.begins("b", serve)
    client = post(body)
    await house.request(client)
    last = [line for line in client.sent[-1]["body"].split(b"\n") if line.startswith(b"data: ")]
    errors = [json.loads(line.removeprefix(b"data: ")) for line in last]
    assert [error["id"] for error in errors] == told
    assert all(error["error"]["code"] == -31002 for error in errors)
    assert not client.sent[-1].get("more_body")


async def test_a_socket_whose_worker_dies_is_closed_with_a_reason(house: House) -> None:
    async def serve(scope: Scope, receive: Receive, send: Send) -> None:
        await send({"type": "websocket.accept"})
        raise ConnectionAbortedError("killed")

    await house.begins("b", serve)
    client = Client({"type": "websocket.connect"})
    await house.request(client, type="websocket", method="")
    assert (client.sent[-1]["type"], client.sent[-1]["code"]) == ("websocket.close", 1012)


async def test_who_is_dead_is_asked_for_again_until_patience_ends(
    house: House, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(forwarding, "PATIENCE_SECONDS", 1.0)
    monkeypatch.setattr(forwarding, "RETRY_SECONDS", 0.01)
    client = post()
    await house.request(client, holder="nobody")
    assert house.asked > 1
    assert (client.sent[0]["status"], json.loads(client.body)["error"]["data"]) == (503, {"limit": "worker"})


async def test_who_lives_and_cannot_be_reached_is_asked_for_until_patience_ends(
    house: House, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(forwarding, "PATIENCE_SECONDS", 0.3)
    monkeypatch.setattr(forwarding, "BEAT_SECONDS", 0.01)
    monkeypatch.setattr(forwarding, "RETRY_SECONDS", 0.01)
    deaf = Membership(house.directory, Worker("b", host="host", address="/nowhere"), on_lapse=lambda since: None)
    async with deaf.running():
        client = post()
        await house.request(client)
    assert house.asked > 1
    assert (client.sent[0]["status"], json.loads(client.body)["error"]["data"]) == (503, {"limit": "worker"})


async def test_an_event_source_without_a_worker_is_sent_away_to_come_back(
    house: House, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(forwarding, "PATIENCE_SECONDS", 0.0)
    client = Client()
    await house.request(client, holder="nobody", method="GET")
    assert (client.sent[0]["status"], client.body) == (200, b"retry: 1000\n\n")


async def test_an_upgrade_that_no_worker_takes_may_be_tried_again(house: House) -> None:
    """Without a status it would get 403, which says that it may not."""
    house.directory.is_away = True
    client = Client({"type": "websocket.connect"})
    await house.request(client, type="websocket", method="", extensions={"websocket.http.response": {}})
    start = await client.got("websocket.http.response.start")
    assert (start["status"], b"retry-after" in dict(start["headers"])) == (503, True)
    assert b'"error"' in client.body


async def test_g8_an_upgrade_that_a_drain_ends_may_be_tried_again(house: House) -> None:
    asked = anyio.Event()

    async def serve(scope: Scope, receive: Receive, send: Send) -> None:
        asked.set()
        await anyio.sleep_forever()

    await house.begins("b", serve)
    client = Client({"type": "websocket.connect"})
    async with anyio.create_task_group() as tasks:
        scope = {"type": "websocket", "method": "", "extensions": {"websocket.http.response": {}}}
        tasks.start_soon(partial(house.request, client, **scope))
        await asked.wait()
        house.forwarder.drain()
    assert [message.get("status") for message in client.sent] == [503, None]


async def test_a_worker_of_another_host_that_has_gone_is_asked_for_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(forwarding, "BEAT_SECONDS", 0.01)
    asked, directory = 0, SharedMemoryDirectory()

    async def serve(scope: Scope, receive: Receive, send: Send) -> None:
        nonlocal asked
        asked += 1
        if asked < 2:
            raise Elsewhere("gone")
        await answer(send, b"here")

    nobody, lapsed = (lambda scope: None), (lambda since: None)
    member = Member(serve, directory, tmp_path, Statistics(), identify=nobody, on_lapse=lapsed)
    app = member.forwarder
    async with member.running():
        await directory.enroll(Worker("gone", host="another host"))
        client = post()
        await app({"type": "http", "method": "POST", "path": "/", "headers": []}, client.receive, client.send)
    assert (asked, client.body) == (2, b"here")


async def test_a_request_does_not_wander_for_ever(house: House) -> None:
    client = post()
    await house.request(client, **{forwarding.HOPS: forwarding.MAX_HOPS})
    assert client.sent[0]["status"] == 503
    assert house.asked == 1


async def test_a_tape_plays_again_what_was_heard_until_the_answer_begins() -> None:
    client = post(b"1")
    client.does({"type": "http.request", "body": b"2"})
    tape = Tape(client.receive, client.send)
    first = await tape.receive()
    tape.rewind()
    assert await tape.receive() is first
    assert tape.body == b"1"
    await tape.send({"type": "http.response.start"})
    await tape.receive()
    assert tape.body == b""


async def test_g7_a_call_goes_on_while_nobody_can_tell_whether_its_worker_lives(
    house: House, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(forwarding, "BEAT_SECONDS", 0.01)
    unknown = unknown_to(house.member, monkeypatch)

    async def serve(scope: Scope, receive: Receive, send: Send) -> None:
        house.directory.is_away = True
        await unknown.wait()
        await answer(send, b"done")

    await house.begins("b", serve)
    client = post()
    await house.request(client)
    assert client.body == b"done"
    house.directory.is_away = False


async def test_g7_a_call_is_told_at_once_that_its_worker_was_taken_for_dead(
    house: House, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As one that is stopped, and whose socket therefore stays open."""
    hears = anyio.Event()

    async def serve(scope: Scope, receive: Receive, send: Send) -> None:
        await receive()
        hears.set()
        await anyio.sleep_forever()

    await house.begins("b", serve)
    client = post()

    async def missed(worker: Worker) -> bool:
        return True

    async def die() -> None:
        await hears.wait()
        worker = await house.directory.worker("b")
        assert worker is not None
        monkeypatch.setattr(house.directory, "beat", missed)
        await house.directory.retire(worker)

    with anyio.fail_after(5):
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(die)
            await house.request(client)
    assert b"-31002" in client.body
