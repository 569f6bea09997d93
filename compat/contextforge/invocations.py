"""Calls on their way through ContextForge's services: who asks, for which server, and what became of it."""

import functools
import inspect
import logging
from collections.abc import Awaitable, Callable, Mapping
from contextlib import suppress
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any

from .asked import Asked, carried_by, incoming, principal_of, session_of

logger = logging.getLogger(__name__)


@dataclass(slots=True)
class Invocation:
    """One invocation of a service: `asked` is known when it begins, the gateway record a little later.

    `database` is the session with the database that ContextForge holds for it; None where that lets go of it itself.
    """

    asked: Asked
    gateway_id: str = ""
    database: Any = None

    def let_go_of_database(self) -> None:
        """Give its connection back before a server is waited for: those who wait would take all that there are.

        What was read stays as it is. What is read or stored afterwards takes a connection again. Where something is to
        be stored yet, the connection is kept. A failure is logged: the call may need no database any more.
        """
        database = self.database
        if database is None or database.new or database.dirty or database.deleted:
            return
        try:
            database.expire_on_commit = False
            database.commit()
        except Exception:
            logger.exception("a connection with the database was not given back in order")
            with suppress(Exception):
                database.close()


@dataclass(slots=True)
class Outcome:
    """What became of the call of a tool that a message asked for; of the outermost, where one calls another."""

    error: Exception | None = None


invocation: ContextVar[Invocation | None] = ContextVar("trunkline.contextforge.invocation", default=None)
outcome: ContextVar[Outcome | None] = ContextVar("trunkline.contextforge.outcome", default=None)


def identified(method: Callable[..., Awaitable[Any]], *, holds_database: bool = False) -> Callable[..., Awaitable[Any]]:
    """A service's method, which notes who asks and in which session for as long as it runs, and how it ended.

    With `holds_database`, it would hold a connection with the database while a server is waited for.
    """
    signature = inspect.signature(method)

    @functools.wraps(method)
    async def invoke(*args: Any, **kwargs: Any) -> Any:
        given = signature.bind_partial(*args, **kwargs).arguments
        came = incoming.get()
        headers = given.get("request_headers") or (came.headers if came is not None else None)
        user = given.get("app_user_email") or given.get("user_email") or given.get("user")
        principal = principal_of(user, given.get("token_teams"), headers)
        asked = Asked(principal, session_of(headers), bool(carried_by.get()))
        token = invocation.set(Invocation(asked, database=given.get("db") if holds_database else None))
        became = outcome.get() or Outcome()
        try:
            result = await method(*args, **kwargs)
        except Exception as error:
            became.error = error
            raise
        else:
            became.error = None
            return result
        finally:
            invocation.reset(token)

    return invoke


def noting_gateway(stock: Callable[..., Any]) -> Callable[..., Any]:
    """ContextForge opens this span with the gateway record's id, before it connects."""

    @functools.wraps(stock)
    def create_span(name: str, attributes: Mapping[str, Any] | None = None, *args: Any, **kwargs: Any) -> Any:
        called = invocation.get()
        if name == "tool.invoke" and called is not None and attributes:
            called.gateway_id = str(attributes.get("tool.gateway_id") or "")
        return stock(name, attributes, *args, **kwargs)

    return create_span
