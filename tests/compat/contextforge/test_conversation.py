"""The messages of one stream or socket, against an application that stands where `/rpc` is."""

import asyncio
import json
from typing import Any

import anyio
import pytest
from trunkline.compat.contextforge.asked import Incoming, carried_by
from trunkline.compat.contextforge.conversation import Conversation
from trunkline.compat.contextforge.rpc import RPC

pytestmark = pytest.mark.anyio

SENT_BY = Incoming({"type": "http", "scheme": "http", "client": ("127.0.0.1", 1)}, {"authorization": "Bearer alice"})


class Gateway:
    """Answers `/rpc`: `hold` when the gate is open, `fail` with an error, `break` not at all in JSON."""

    def __init__(self) -> None:
        self.seen: list[dict[str, Any]] = []
        self.cancelled: list[Any] = []
        self.gate = asyncio.Event()
        self.inside = asyncio.Event()

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        message = json.loads((await receive())["body"])
        headers = {name.decode(): value.decode() for name, value in scope["headers"]}
        self.seen.append({**message, "path": scope["path"], "headers": headers, "carried_by": carried_by.get()})
        status, body = 200, {"jsonrpc": "2.0", "id": message.get("id"), "result": {"method": message["method"]}}
        if message["method"] == "hold":
            self.inside.set()
            try:
                await self.gate.wait()
            except asyncio.CancelledError:
                self.cancelled.append(message["id"])
                raise
        elif message["method"] == "fail":
            body = {"jsonrpc": "2.0", "id": "other", "error": {"code": -32602, "message": "no"}}
        elif message["method"] == "refuse":
            status, body = 403, {"detail": "no"}
        elif message["method"] == "crash":
            raise ValueError("a defect")
        await send({"type": "http.response.start", "status": status, "headers": []})
        await send({"type": "http.response.body", "body": json.dumps(body).encode()})


class Bench:
    """One conversation, and what its client is sent."""

    def __init__(self, **options: Any) -> None:
        self.gateway = Gateway()
        self.answers: asyncio.Queue[dict[str, Any]] = asyncio.Queue()
        self.conversation = Conversation(
            RPC(self.gateway, "/root"), "stream", self.answers.put, **{"max_inflight": 4, **options}
        )

    async def ask(self, method: str, id: object = 1, **more: Any) -> None:
        await self.conversation.take({"jsonrpc": "2.0", "id": id, "method": method, **more}, SENT_BY)

    async def answer(self) -> dict[str, Any]:
        return await asyncio.wait_for(self.answers.get(), 10)


async def test_a_request_is_answered_as_whom_it_was_sent_by_and_in_its_session() -> None:
    bench = Bench(server_id="virtual")
    await bench.ask("tools/list", id="x", params=None)
    assert await bench.answer() == {"jsonrpc": "2.0", "id": "x", "result": {"method": "tools/list"}}
    (seen,) = bench.gateway.seen
    assert seen["path"] == "/root/rpc"
    assert seen["headers"]["authorization"] == "Bearer alice"
    assert seen["carried_by"] == "stream"
    assert seen["params"] == {"server_id": "virtual"}
    assert carried_by.get() == ""


@pytest.mark.parametrize(("method", "code"), [("fail", -32602), ("refuse", -32001), ("crash", -32603)])
async def test_an_error_comes_through_as_an_error_under_the_clients_id(method: str, code: int) -> None:
    bench = Bench()
    await bench.ask(method, id=7)
    answer = await bench.answer()
    assert answer["id"] == 7
    assert answer["error"]["code"] == code
    assert "result" not in answer


async def test_a_notification_has_no_answer() -> None:
    bench = Bench()
    await bench.conversation.take({"jsonrpc": "2.0", "method": "notifications/initialized"}, SENT_BY)
    await bench.ask("ping")
    assert (await bench.answer())["id"] == 1
    assert bench.answers.empty()
    assert {seen["method"] for seen in bench.gateway.seen} == {"notifications/initialized", "ping"}


async def test_calls_run_side_by_side() -> None:
    bench = Bench()
    await bench.ask("hold", id=1)
    await bench.ask("ping", id=2)
    assert (await bench.answer())["id"] == 2
    bench.gateway.gate.set()
    assert (await bench.answer())["id"] == 1
    await anyio.wait_all_tasks_blocked()
    assert bench.conversation.inflight == 0


async def test_a_cancelled_call_is_cancelled_and_not_answered() -> None:
    bench = Bench()
    await bench.ask("hold", id=1)
    await bench.gateway.inside.wait()
    params = {"requestId": 1}
    message = {"jsonrpc": "2.0", "method": "notifications/cancelled", "params": params}
    await bench.conversation.take(message, SENT_BY)
    await bench.ask("ping", id=2)
    assert (await bench.answer())["id"] == 2
    assert bench.gateway.cancelled == [1]
    assert bench.answers.empty()


async def test_the_end_cancels_what_is_under_way_and_takes_nothing_more() -> None:
    bench = Bench()
    await bench.ask("hold", id=1)
    await bench.gateway.inside.wait()
    await bench.conversation.close()
    await bench.conversation.close()
    assert bench.gateway.cancelled == [1]
    await bench.ask("ping")
    assert len(bench.gateway.seen) == 1


async def test_an_id_that_is_in_flight_is_refused_and_the_first_goes_on() -> None:
    bench = Bench()
    await bench.ask("hold", id=1)
    await bench.ask("ping", id=1)
    assert (await bench.answer())["error"]["code"] == -32600
    bench.gateway.gate.set()
    assert (await bench.answer())["result"] == {"method": "hold"}


async def test_more_than_may_be_in_flight_are_refused_with_the_limit() -> None:
    bench = Bench(max_inflight=1)
    await bench.ask("hold", id=1)
    await bench.ask("ping", id=2)
    refused = await bench.answer()
    assert refused["error"]["code"] == -31003
    assert refused["error"]["data"] == {"limit": "max_inflight_per_workflow"}
    await bench.conversation.close()


@pytest.mark.parametrize("message", [[], "text", {"id": 1}, {"method": 5}])
async def test_what_is_no_message_is_refused(message: Any) -> None:
    bench = Bench()
    await bench.conversation.take(message, SENT_BY)
    assert (await bench.answer())["error"]["code"] == -32600


async def test_an_answer_of_the_client_is_taken_without_a_word() -> None:
    bench = Bench()
    await bench.conversation.take({"jsonrpc": "2.0", "id": 1, "result": {}}, SENT_BY)
    await bench.ask("ping", id=2)
    assert (await bench.answer())["id"] == 2
