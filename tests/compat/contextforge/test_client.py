"""What stands where ContextForge's services open an upstream session, and the connection with the database of each."""

from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from harness.upstreams import Upstream, upstream
from sqlalchemy import create_engine, event
from sqlalchemy.orm import DeclarativeBase, Mapped, Session, mapped_column
from trunkline.compat.contextforge.asked import Asked, principal_of
from trunkline.compat.contextforge.client import KnownSchemas, leasing
from trunkline.compat.contextforge.gateways import GatewayRecord
from trunkline.compat.contextforge.invocations import Invocation, invocation
from trunkline.compat.contextforge.reuse import Lease, Reuse
from trunkline.compat.contextforge.settings import ContextForgeSettings

pytestmark = pytest.mark.anyio

TYPES = ModuleType("types")
TYPES.LATEST_PROTOCOL_VERSION = "2025-06-18"  # type: ignore[attr-defined]


class Base(DeclarativeBase):
    pass


class Tool(Base):
    __tablename__ = "tools"

    id: Mapped[int] = mapped_column(primary_key=True)
    name: Mapped[str]


@pytest.fixture(scope="module")
def server() -> Iterator[Upstream]:
    with upstream("sdk2") as server:
        yield server


class Service:
    """A call of a tool, from what was read of it on, with a database of its own."""

    def __init__(self, url: str, place: Path) -> None:
        self.url = url
        self.engine = create_engine(f"sqlite:///{place / 'tools.db'}")
        Base.metadata.create_all(self.engine)
        with Session(self.engine) as session:
            session.add(Tool(id=1, name="counter"))
            session.commit()
        self.database = Session(self.engine)
        self.tool = self.database.get_one(Tool, 1)

    @property
    def connections(self) -> int:
        """Those with the database that are in use."""
        used: int = self.engine.pool.checkedout()  # type: ignore[attr-defined]
        return used

    @asynccontextmanager
    async def calling(self, session: str) -> AsyncIterator[Any]:
        """The streams that the service has for its call."""

        @asynccontextmanager
        async def stock(*args: Any, **kwargs: Any) -> AsyncIterator[Any]:
            yield "the stock ones"

        record = GatewayRecord("gateway1", "up", "STREAMABLEHTTP", {"url": self.url})
        reuse = Reuse(ContextForgeSettings(), lambda gateway_id: record, verifies_tls=True)
        called = Invocation(Asked(principal_of("alice@x", [], None), session), "gateway1", self.database)
        token = invocation.set(called)
        await reuse.start()
        try:
            async with leasing(reuse, stock, TYPES, sse=False)(self.url) as streams:
                yield streams[0] if isinstance(streams, tuple) else streams
        finally:
            invocation.reset(token)
            await reuse.stop()


@pytest.fixture
def service(server: Upstream, tmp_path: Path) -> Iterator[Service]:
    made = Service(server.url, tmp_path)
    yield made
    made.database.close()
    made.engine.dispose()


async def test_a_call_that_trunkline_takes_holds_no_connection_with_the_database(service: Service) -> None:
    assert service.connections == 1
    async with service.calling("a") as streams:
        assert isinstance(streams, Lease)
        assert service.connections == 0
        assert service.tool.name == "counter"
        assert service.connections == 0


async def test_g11_a_call_that_goes_the_old_path_has_its_database_as_it_was(service: Service) -> None:
    async with service.calling("") as streams:
        assert streams == "the stock ones"
        assert service.connections == 1
        assert service.database.in_transaction()


async def test_what_is_to_be_stored_yet_is_not_stored_early(service: Service) -> None:
    service.tool.name = "renamed"
    async with service.calling("a") as streams:
        assert isinstance(streams, Lease)
        service.database.rollback()
        assert service.tool.name == "counter"


async def test_a_call_does_not_fail_for_a_database_that_is_away(
    service: Service, caplog: pytest.LogCaptureFixture
) -> None:
    def fail(connection: object) -> None:
        raise OSError("the database is away")

    event.listen(service.engine, "commit", fail)
    async with service.calling("a") as streams:
        assert isinstance(streams, Lease)
        assert service.connections == 0
        assert service.tool.name == "counter"
    assert [record.levelname for record in caplog.records if "database" in record.getMessage()] == ["ERROR"]
    event.remove(service.engine, "commit", fail)
    service.database.add(Tool(id=2, name="metric"))
    service.database.commit()


def test_g10_of_the_schemas_that_a_server_lists_the_last_ones_are_kept_alone() -> None:
    known = KnownSchemas(1)
    assert not known.tells_of("called")
    for number in range(100):
        known.learn("called", {f"tool {number}": {"type": "object"}})
    assert known.listed == {"tool 99": {"type": "object"}}
    assert [known.tells_of(name) for name in ("called", "tool 99", "tool 98")] == [True, True, False]


def test_a_tool_that_is_listed_for_some_alone_is_asked_for_again_where_others_had_another_list() -> None:
    known = KnownSchemas(1)
    known.learn("hers", {"hers": {"type": "object"}})
    known.learn("unlisted", {"hers": {"type": "object"}})
    assert [known.tells_of(name) for name in ("hers", "unlisted")] == [True, True]
    known.learn("his", {"his": None})
    assert [known.tells_of(name) for name in ("hers", "unlisted", "his")] == [False, False, True]
