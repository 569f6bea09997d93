"""Who asks, for which server, and what became of it, while a service of ContextForge runs."""

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any, TypeVar

import pytest
from trunkline.compat.contextforge.asked import Asked, Incoming, carried_by, incoming, principal_of
from trunkline.compat.contextforge.invocations import (
    Invocation,
    Outcome,
    identified,
    invocation,
    noting_gateway,
    outcome,
)

pytestmark = pytest.mark.anyio

SPAN = {"tool.gateway_id": "g1"}

T = TypeVar("T")


@contextmanager
def where(variable: ContextVar[T], value: T) -> Iterator[T]:
    token = variable.set(value)
    try:
        yield value
    finally:
        variable.reset(token)


class Tools:
    """A service, with what it found while it ran."""

    def __init__(self) -> None:
        self.called: list[Invocation | None] = []

    @identified
    async def invoke_tool(
        self,
        db: object,
        name: str,
        request_headers: object = None,
        app_user_email: str = "",
        token_teams: object = None,
    ) -> str:
        self.called.append(invocation.get())
        if name == "fails":
            raise LookupError(name)
        return name

    @identified
    async def read_resource(self, db: object, user: str, inner: str) -> str:
        try:
            return await self.invoke_tool(db, inner)
        except LookupError:
            return "read all the same"


async def holding(db: object) -> Invocation | None:
    return invocation.get()


async def test_who_asks_is_noted_for_as_long_as_it_runs() -> None:
    tools = Tools()
    headers = {"Mcp-Session-Id": "s1"}
    told: dict[str, Any] = {"request_headers": headers, "app_user_email": "alice@x", "token_teams": ["a"]}
    assert await tools.invoke_tool(object(), "echo", **told) == "echo"
    (called,) = tools.called
    assert called is not None
    assert called.asked == (principal_of("alice@x", ["a"], headers), "s1", False)
    assert called.database is None
    assert invocation.get() is None


async def test_a_message_that_a_stream_carries_is_told_from_one_of_a_session() -> None:
    tools = Tools()
    with where(carried_by, "stream"):
        await tools.invoke_tool(object(), "echo", app_user_email="alice@x", token_teams=["a"])
    (called,) = tools.called
    assert called is not None
    assert called.asked == (principal_of("alice@x", ["a"], None), "stream", True)
    assert called.asked.session_id == ""


async def test_without_headers_of_its_own_those_of_the_message_count() -> None:
    tools = Tools()
    with where(incoming, Incoming({}, {"mcp-session-id": "s2"})):
        await tools.read_resource(object(), "bob@x", "echo")
    (called,) = tools.called
    assert called is not None
    assert called.asked.session == "s2"


async def test_the_database_is_noted_where_it_would_be_held() -> None:
    database = object()
    called = await identified(holding, holds_database=True)(db=database)
    assert called.database is database
    assert (await identified(holding)(database)).database is None


async def test_what_became_of_the_outermost_call_is_told() -> None:
    tools = Tools()
    with where(outcome, Outcome()) as became:
        with pytest.raises(LookupError) as caught:
            await tools.invoke_tool(object(), "fails")
        assert became.error is caught.value
        assert await tools.read_resource(object(), "bob@x", "fails") == "read all the same"
        assert became.error is None
    assert invocation.get() is None


async def test_the_gateway_record_is_learned_from_the_span_of_the_call() -> None:
    def stock(name: str, attributes: object = None) -> tuple[str, object]:
        return name, attributes

    create_span = noting_gateway(stock)
    assert create_span("tool.invoke", SPAN) == ("tool.invoke", SPAN)  # nothing runs
    with where(invocation, Invocation(Asked(principal_of("alice@x", [], None), "s1"))) as called:
        assert called is not None
        create_span("tool.list", SPAN)
        assert called.gateway_id == ""
        assert create_span("tool.invoke", SPAN) == ("tool.invoke", SPAN)
        assert called.gateway_id == "g1"
        create_span("tool.invoke", {"tool.gateway_id": None})
        assert called.gateway_id == ""
