"""What a request over Streamable HTTP asks of its session, and streams whose client is slow or gone."""

from typing import Any

import pytest
from harness.duplex_clients import initialize
from harness.endpoint_bench import call, front, opened
from harness.memory_wire import echo
from harness.muxing import patience, settle
from trunkline.transports import http_endpoint, streamable_request

pytestmark = pytest.mark.anyio

SESSION, KEY = "mcp-session-id", "trunkline-workflow"
NOTE = {"jsonrpc": "2.0", "method": "notifications/roots/list_changed"}


@pytest.mark.parametrize("headers", [{KEY: "another"}, {"mcp-protocol-version": "2025-06-18"}])
async def test_headers_that_disagree_with_the_session_are_refused(headers: dict[str, str | None]) -> None:
    async with opened() as here:
        for method in ("POST", "DELETE"):
            answer = await here.client.ask(method, call(9), headers)
            assert answer.status == 400
            assert (await answer.json())["id"] == (9 if method == "POST" else None)
        assert not here.server.of("tools/call")
        assert (await here.client.post(NOTE, {"mcp-protocol-version": "2025-11-25"})).status == 202


@pytest.mark.parametrize("capabilities", [{}, {"roots": {}}], ids=["the same", "another"])
async def test_an_initialize_whose_key_is_not_that_of_its_session_is_refused_and_ends_nothing(
    capabilities: dict[str, Any],
) -> None:
    async with opened() as here:
        other = (await here.client.post(initialize(), {SESSION: None, KEY: "chat"})).headers[SESSION]
        for headers in ({KEY: "chat"}, {SESSION: other, KEY: "another"}):
            answer = await here.client.post(initialize(capabilities=capabilities), headers)
            assert (answer.status, (await answer.json())["id"]) == (400, 0)
        assert here.counts["refused", "disagree"] == 2
        assert len(here.bench.pool.workflows) == 2
        answer = await here.client.post(initialize(), {SESSION: other, KEY: "chat"})
        assert (answer.status, answer.headers["trunkline-workflow-state"]) == (200, "resumed")


@pytest.mark.parametrize(("end", "status"), [(None, 200), ("stream", 200), ("workflow", 404), (" Workflow ", 404)])
async def test_delete_ends_a_keyed_workflow_only_where_that_is_asked_for(end: str | None, status: int) -> None:
    async with front() as here:
        here.server.on_request = echo
        session_id = (await here.client.post(initialize(), {KEY: "chat-1"})).headers[SESSION]
        assert (await here.client.delete({SESSION: session_id, "trunkline-end": end})).status == 200
        assert (await here.client.post(call(), {SESSION: session_id})).status == status
        assert len(here.server.live) == (status == 200)


async def test_a_quiet_stream_is_kept_alive(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(streamable_request, "KEEP_ALIVE_SECONDS", 0.01)
    async with opened() as here:
        answer = await here.client.post(call())
        await answer.came(b": keep-alive\n\n: keep-alive\n\n")
        (await here.server.got("tools/call")).answer()
        assert len(await answer.messages()) == 1


async def test_a_client_that_takes_nothing_is_given_up_and_may_come_back(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(http_endpoint, "SEND_SECONDS", 0.01)
    async with opened() as here:
        answer = await here.client.post(call())
        first = await answer.event()
        assert first is not None
        answer.stalled = True
        (await here.server.got("tools/call")).answer({"n": 1})
        async with patience():
            while not here.counts["slow_clients", "x"]:
                await settle()
        (again,) = await (await here.client.get(first.id)).messages()
        assert again["result"] == {"n": 1}


async def test_a_client_that_takes_nothing_is_gone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(http_endpoint, "SEND_SECONDS", 0.01)
    async with opened() as here:
        answer = await here.client.post(call())
        await answer.event()
        answer.stalled = True
        (await here.server.got("tools/call")).answer({"n": 1})
        await answer.over()
        assert not any(workflow.is_attached for workflow in here.bench.pool.workflows)
