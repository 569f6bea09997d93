"""The contract of `trunkline.mux.ports.Connector` and `Wire`: run it on any transport to a server.

    async def test_my_wire() -> None:
        await check_wire(my_maker)

A maker returns an async context manager with a connector, and the server that it connects to as `Server` describes it:
what the tests need to play the other end of any transport. Single checks can be run by themselves: `CHECKS`.
"""

import json
from collections.abc import Awaitable, Callable, Sequence
from contextlib import AbstractAsyncContextManager
from typing import Final

import anyio
import pytest
from trunkline.mux.errors import SessionLost, TrunklineError
from trunkline.mux.ports import Connector
from trunkline.mux.request import Request

from contract.session import INITIALIZED, Incoming, Server, answer, connected, id_of, opened, settle, told

GOODBYE: Final = 10.0
"""Seconds within which leaving the context ends, whatever the server does."""


Maker = Callable[[], AbstractAsyncContextManager[tuple[Connector, Server]]]
Check = Callable[[Connector, Server], Awaitable[None]]


async def a_handshake_arrives_in_order(connector: Connector, server: Server) -> None:
    async with connected(connector, listen=False) as session:
        await session.shake_hands()
        if not server.acknowledges:
            await server.got("notifications/initialized")
        assert (server.came("initialize"), server.came("notifications/initialized")) == (1, 1)
        assert (await server.got("notifications/initialized")).text == INITIALIZED
    assert (server.came("initialize"), server.came("notifications/initialized")) == (1, 1)


async def a_handshake_that_is_refused_raises(connector: Connector, server: Server) -> None:
    server.refuse_initialized()
    if not server.acknowledges:
        async with opened(connector) as session:
            await session.receiver.until(lambda: session.receiver.of("lost"))
        return
    with pytest.raises(TrunklineError):
        async with opened(connector):
            pass


async def messages_arrive_byte_for_byte_and_once(connector: Connector, server: Server) -> None:
    params = b'{"n":123456789012345678901234567890,"\xc3\xbc":1e400}'
    odd = b'{"jsonrpc":"2.0","method":"notifications/x","params":%s,"y":1}' % params
    async with opened(connector) as session:
        session.send(odd)
        assert (await server.got("notifications/x")).text == odd
        session.send(b'{"jsonrpc":"2.0","id":"s-1","result":{}}', kind="response")
        assert json.loads((await server.got("response")).text)["id"] == "s-1"
        request = session.request("tools/call", {"name": "ü"})
        incoming = await server.got("tools/call")
        assert json.loads(incoming.text)["params"] == {"name": "ü"}
        incoming.finish(answer(request))
        await session.answered(request)
        assert [server.came(kind) for kind in ("notifications/x", "response", "tools/call")] == [1, 1, 1]


async def headers_of_the_session_and_of_the_call(connector: Connector, server: Server) -> None:
    async with opened(connector, {"X-Tenant": "acme"}) as session:
        first = session.request(headers={"X-Request-Class": "batch"})
        incoming = await server.got("tools/call")
        if incoming.headers:
            assert (incoming.headers.get("x-tenant"), incoming.headers.get("x-request-class")) == ("acme", "batch")
        incoming.finish(answer(first))
        await session.answered(first)
        second = session.request()
        incoming = await server.got("tools/call", 2)
        if incoming.headers:
            assert incoming.headers.get("x-tenant") == "acme", "fixed for the session"
            assert "x-request-class" not in incoming.headers, "those of one call are those of one call"
        incoming.finish(answer(second))
        await session.answered(second)


async def messages_are_bound_to_the_request_on_whose_stream_they_came(connector: Connector, server: Server) -> None:
    async with opened(connector) as session:
        requests = [session.request() for _ in range(3)]
        incoming = [await _incoming(server, request, len(requests)) for request in requests]
        for n in (2, 0, 1):
            incoming[n].say(told(n))
        for n in (1, 2, 0):
            incoming[n].finish(answer(requests[n]))
            report = await session.answered(requests[n])
            assert report.request is (requests[n] if server.binds else None)
        for n in range(3):
            reports = [report for report in session.receiver.of("received") if report.text == told(n)]
            assert len(reports) == 1
            assert reports[0].request is (requests[n] if server.binds else None)
        assert not session.receiver.of("failed")


async def an_answer_may_come_at_once(connector: Connector, server: Server) -> None:
    async with opened(connector) as session:
        for n in range(1, 21):
            request = session.request()
            (await server.got("tools/call", n)).finish(answer(request, {"n": n}))
            assert json.loads((await session.answered(request)).text)["result"] == {"n": n}


async def an_exchange_that_breaks_fails_once_and_alone(connector: Connector, server: Server) -> None:
    if not server.binds:
        return  # one stream carries all: where it breaks, the session is lost
    async with opened(connector) as session:
        broken, silent, fine = (session.request() for _ in range(3))
        (await _incoming(server, broken, 3)).cut()
        other = await _incoming(server, silent, 3)
        other.say(told(1))
        other.cut()
        await session.receiver.until(lambda: len(session.receiver.of("failed")) == 2)
        assert {report.request for report in session.receiver.of("failed")} == {broken, silent}
        for report in session.receiver.of("failed"):
            assert report.error is not None
            assert report.error.data.get("executed") == "unknown", "it may have run"
        (await _incoming(server, fine, 3)).finish(answer(fine))
        await session.answered(fine)
        await settle()
        assert len(session.receiver.of("failed")) == 2
        assert not session.receiver.of("lost"), "the session lives on"


async def an_exchange_that_breaks_after_its_answer_is_fine(connector: Connector, server: Server) -> None:
    async with opened(connector) as session:
        request = session.request()
        incoming = await server.got("tools/call")
        incoming.say(answer(request))
        await session.answered(request)
        if server.binds:
            incoming.cut()
        await session.call(server, 2)
        assert not session.receiver.of("failed")


async def an_abandoned_exchange_is_cut_and_tells_nothing_more(connector: Connector, server: Server) -> None:
    async with opened(connector) as session:
        gone, fine = session.request(), session.request()
        incoming = await _incoming(server, gone, 2)
        session.wire.abandon(gone)
        if server.binds:
            await server.until(lambda: incoming.is_cut)
        session.wire.abandon(gone)
        (await _incoming(server, fine, 2)).finish(answer(fine))
        await session.answered(fine)
        session.wire.abandon(fine)
        assert [report for report in session.receiver.reports if report.request is gone] == []


async def unasked_messages_come_without_a_request(connector: Connector, server: Server) -> None:
    async with opened(connector) as session:
        await server.until(lambda: server.listens)
        request = session.request()
        incoming = await server.got("tools/call")
        for n in (1, 2, 3):
            server.tell(told(n))
        await session.receiver.until(lambda: any(report.text == told(3) for report in session.receiver.reports))
        heard = [report for report in session.receiver.of("received") if b"notifications/message" in report.text]
        assert [(report.text, report.request) for report in heard] == [(told(n), None) for n in (1, 2, 3)]
        incoming.finish(answer(request))
        await session.answered(request)


async def unasked_messages_are_not_fetched_where_nobody_wants_them(connector: Connector, server: Server) -> None:
    async with opened(connector, listen=False) as session:
        await session.call(server)
        assert not (server.binds and server.listens)


async def a_session_that_the_server_forgot_is_lost_once(connector: Connector, server: Server) -> None:
    async with opened(connector) as session:
        waiting = session.request()
        await server.got("tools/call")
        server.forget()
        refused = [session.request() for _ in range(3)]
        receiver = session.receiver
        await receiver.until(lambda: receiver.of("lost"))
        (lost,) = receiver.of("lost")
        assert isinstance(lost.error, SessionLost)
        if server.acknowledges:
            assert set(lost.refused) == set(refused), "exactly what surely did not run"
        else:
            assert set(lost.refused) <= set(refused), "what is not known to have been left out may have run"
        assert waiting.state == "pending", "it may have run: the channel tells its caller"
        session.request()
        session.send(told(1))
        await settle()
        assert len(receiver.of("lost")) == 1
        assert not receiver.of("failed")


async def leaving_ends_the_session(connector: Connector, server: Server) -> None:
    async with opened(connector) as session:
        session.request()
        await server.got("tools/call")
        assert not server.ended
    await server.until(lambda: server.ended)


async def leaving_cuts_what_is_under_way(connector: Connector, server: Server) -> None:
    async with opened(connector) as session:
        session.request()
        incoming = await server.got("tools/call")
        incoming.say(told(1))
        await session.receiver.until(lambda: any(report.text == told(1) for report in session.receiver.reports))
    if server.binds:
        await server.until(lambda: incoming.is_cut)


async def leaving_is_bounded(connector: Connector, server: Server) -> None:
    server.stall()
    with anyio.fail_after(GOODBYE):
        async with opened(connector) as session:
            session.request()
            await server.got("tools/call")


async def leaving_by_cancellation_ends_the_session(connector: Connector, server: Server) -> None:
    with anyio.fail_after(GOODBYE):
        async with anyio.create_task_group() as tasks:

            async def own() -> None:
                async with opened(connector) as session:
                    session.request()
                    await anyio.sleep_forever()

            tasks.start_soon(own)
            await server.got("tools/call")
            tasks.cancel_scope.cancel()
    await server.until(lambda: server.ended)


async def an_error_inside_comes_out_as_it_is(connector: Connector, server: Server) -> None:
    error = SessionLost("inside", executed="no")
    with pytest.raises(SessionLost) as raised:
        async with opened(connector):
            raise error
    assert raised.value is error
    await server.until(lambda: server.ended)


async def two_sessions_are_two(connector: Connector, server: Server) -> None:
    async with opened(connector) as first, opened(connector) as second:
        one, two = first.request(params={"n": 1}), second.request(params={"n": 2})
        await server.got("tools/call", 2)
        for n in (1, 2):
            incoming = await server.got("tools/call", n)
            incoming.finish(answer(one, json.loads(incoming.text)["params"]))
        assert json.loads((await first.answered(one)).text)["result"] == {"n": 1}
        assert json.loads((await second.answered(two)).text)["result"] == {"n": 2}


CHECKS: Final[Sequence[Check]] = (
    a_handshake_arrives_in_order,
    a_handshake_that_is_refused_raises,
    messages_arrive_byte_for_byte_and_once,
    headers_of_the_session_and_of_the_call,
    messages_are_bound_to_the_request_on_whose_stream_they_came,
    an_answer_may_come_at_once,
    an_exchange_that_breaks_fails_once_and_alone,
    an_exchange_that_breaks_after_its_answer_is_fine,
    an_abandoned_exchange_is_cut_and_tells_nothing_more,
    unasked_messages_come_without_a_request,
    unasked_messages_are_not_fetched_where_nobody_wants_them,
    a_session_that_the_server_forgot_is_lost_once,
    leaving_ends_the_session,
    leaving_cuts_what_is_under_way,
    leaving_is_bounded,
    leaving_by_cancellation_ends_the_session,
    an_error_inside_comes_out_as_it_is,
    two_sessions_are_two,
)


async def check_wire(maker: Maker) -> None:
    """Run every check, each against a server of its own.

    Raises:
        AssertionError: a promise was broken; a note on it says which.
        TimeoutError: a message did not arrive, or the end of a session was not bounded.
    """
    for check in CHECKS:
        async with maker() as (connector, server):
            try:
                await check(connector, server)
            except BaseException as error:
                error.add_note(f"broken: {check.__name__.replace('_', ' ')}")
                raise


async def _incoming(server: Server, request: Request, count: int) -> Incoming:
    """The message of this request, among so many: they may arrive in any order."""
    for n in range(1, count + 1):
        incoming = await server.got("tools/call", n)
        if id_of(incoming.text) == request.id:
            return incoming
    raise AssertionError(f"{request} did not arrive")
