"""What operators ask one worker, answered for all: two pools, one directory."""

from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import anyio
import httpx2
import pytest
from harness.memory_wire import MemoryServer
from harness.muxing import ALICE, begin
from harness.shared_memory import SharedMemoryDirectory
from trunkline.gateway.auth import Authenticator
from trunkline.gateway.events import Events
from trunkline.gateway.operations import Operations
from trunkline.gateway.settings import GatewaySection, Settings
from trunkline.gateway.trends import Trends
from trunkline.gateway.workers.conversation import Frame, SocketConversation
from trunkline.gateway.workers.member import Answer, Member
from trunkline.gateway.workers.overview import Overview
from trunkline.mux.directory import Worker
from trunkline.mux.directory.memory import MemoryDirectory
from trunkline.mux.limits import Pooling
from trunkline.mux.pool import Pool
from trunkline.mux.statistics import Statistics
from trunkline.mux.upstream import Upstream
from trunkline.transports.asgi import HOPS, Scope
from trunkline.transports.guard import Guard

pytestmark = pytest.mark.anyio

ADMIN = "token-of-an-operator"
EACH = 5
"""Workflows of each worker."""


class House:
    """Two workers, with pools that know nothing of each other."""

    def __init__(self) -> None:
        self.directory = SharedMemoryDirectory()
        self.pools: list[Pool] = []
        self.members: list[Member] = []
        self.apps: list[Any] = []

    async def joins(self, path: Path, stack: AsyncExitStack) -> None:
        """One more worker."""
        await anyio.Path(path).mkdir()
        server = await stack.enter_async_context(MemoryServer().running())
        pool = Pool({"x": Upstream("x", server, Pooling())}, MemoryDirectory(), pooling=Pooling())
        member = Member(
            lambda *asgi: app(*asgi),
            self.directory,
            path,
            Statistics(),
            identify=lambda scope: None,
            on_lapse=lambda since: None,
        )
        settings = Settings(gateway=GatewaySection(admin_token=ADMIN))
        events = Events(pool, Overview(pool, Trends(pool.statistics), member))
        app = Operations(pool, settings, Guard(loopback=True), Authenticator(settings), events, member=member)
        await stack.enter_async_context(member.running())
        await stack.enter_async_context(pool.running())
        self.pools.append(pool)
        self.members.append(member)
        self.apps.append(app)

    async def get(self, path: str, status: int = 200, **headers: str) -> Any:
        """What the first worker answers."""
        transport = httpx2.ASGITransport(app=self.apps[0], client=("127.0.0.1", 4711))
        async with httpx2.AsyncClient(transport=transport, base_url="http://127.0.0.1:8920") as http:
            answer = await http.get(path, headers=headers)
        assert answer.status_code == status, answer.text
        return answer.json() if "json" in answer.headers["content-type"] else answer.text


@pytest.fixture
async def house(tmp_path: Path) -> AsyncIterator[House]:
    made = House()
    async with AsyncExitStack() as stack:
        for name in ("a", "b"):
            await made.joins(tmp_path / name, stack)
        for pool in made.pools:
            for _ in range(EACH):
                await begin(pool, ALICE)
        yield made


async def test_all_workflows_are_told_with_their_workers(house: House) -> None:
    rows = await house.get("/api/sessions")
    assert [row["worker"] for row in rows] == [1] * EACH + [2] * EACH
    assert {row["workflow"] for row in rows} == {w.handle for pool in house.pools for w in pool.workflows}
    [server] = await house.get("/api/servers")
    assert (server["workflows"], server["channels"]) == (2 * EACH, 2 * EACH)


async def test_g12_the_others_answer_without_the_token_of_whom_the_first_let_in(
    house: House, monkeypatch: pytest.MonkeyPatch
) -> None:
    sent: list[Any] = []
    send = SocketConversation.send

    async def note(conversation: SocketConversation, frame: Frame) -> None:
        sent.append(frame)
        await send(conversation, frame)

    monkeypatch.setattr(SocketConversation, "send", note)
    by_proxy = {"X-Forwarded-For": "192.0.2.1"}
    await house.get("/api/sessions", 401, **by_proxy)
    rows = await house.get("/api/sessions", **by_proxy, Authorization=f"Bearer {ADMIN}")
    assert [row["worker"] for row in rows] == [1] * EACH + [2] * EACH
    assert sent
    assert ADMIN not in str(sent)


async def test_the_gateway_is_told_as_a_whole(house: House) -> None:
    told = await house.get("/api/gateway")
    assert (told["workers"], told["state"], told["trends"]) == (2, "ready", {"x": {}})
    await house.directory.enroll(Worker("gone", house.members[0].membership.worker.host, "/nowhere"))
    assert len((await house.get("/api/gateway"))["missing_workers"]) == 1


@pytest.mark.parametrize("limit", [1, 2, 3, 5, 7, 9, 10, 100])
async def test_pages_go_over_all_workers_and_tell_each_workflow_once(house: House, limit: int) -> None:
    seen: list[str] = []
    after = ""
    while True:
        told = await house.get(f"/api/sessions?limit={limit}&after={after}")
        assert told["total"] == 2 * EACH
        assert len(told["sessions"]) <= limit
        seen += [row["workflow"] for row in told["sessions"]]
        if told["next"] is None:
            break
        assert len(told["sessions"]) == limit
        after = told["next"]
    assert seen == [workflow.handle for pool in house.pools for workflow in pool.workflows]


@pytest.mark.parametrize("is_known", [True, False])
async def test_a_worker_that_is_gone_in_the_middle_of_a_page_is_told(
    house: House, monkeypatch: pytest.MonkeyPatch, is_known: bool
) -> None:
    """One that answered with too much is asked once more for less."""
    ask, asked = Member.ask_others, 0

    async def ask_others(member: Member, scope: Scope, query: Callable[[int], bytes]) -> list[Answer]:
        nonlocal asked
        asked += not scope.get(HOPS)
        if asked < 2:
            return await ask(member, scope, query)
        return [Answer(2)] if is_known else []

    monkeypatch.setattr(Member, "ask_others", ask_others)
    told = await house.get("/api/sessions?limit=7")
    assert (asked, len(told["sessions"]), told["missing_workers"]) == (2, EACH, [2])


async def test_a_page_of_what_matches_nothing_is_empty(house: House) -> None:
    assert await house.get("/api/sessions?q=zzzz") == {"total": 0, "sessions": [], "next": None}
    await house.get("/api/sessions?after=7", 400)
    await house.get("/api/sessions?limit=0", 400)


async def test_a_workflow_is_explained_wherever_it_lives(house: House) -> None:
    for number, pool in enumerate(house.pools, 1):
        handle = pool.workflows[0].handle
        told = await house.get(f"/api/sessions/{handle}")
        assert (told["workflow"]["workflow"], told["workflow"]["worker"]) == (handle, number)
    await house.get("/api/sessions/zzzzzz", 404)
    await house.get("/api/sessions/z", 400)


async def test_a_worker_that_does_not_answer_is_told(house: House) -> None:
    gone = await house.directory.enroll(Worker("gone", house.members[0].membership.worker.host, "/nowhere"))
    rows = await house.get("/api/sessions")
    assert rows[-1] == {"worker": gone.number, "state": "missing"}
    assert (await house.get("/api/sessions?limit=3"))["missing_workers"] == [gone.number]
    told = await house.get("/api/sessions/zzzzzz", 503)
    assert (told["missing_workers"], f"worker {gone.number}" in told["error"]) == ([gone.number], True)
    handle = house.pools[1].workflows[0].handle
    assert (await house.get(f"/api/sessions/{handle}"))["missing_workers"] == [gone.number]
    await house.get("/api/sessions/z", 400)


async def test_without_the_directory_each_tells_its_own_and_is_not_ready(house: House) -> None:
    house.directory.is_away = True
    await house.members[0].membership.beat()
    assert len(await house.get("/api/sessions")) == EACH
    own, others = (pool.workflows[0].handle for pool in house.pools)
    assert (await house.get(f"/api/sessions/{own}"))["workflow"]["workflow"] == own
    assert "directory" in (await house.get(f"/api/sessions/{others}", 503))["error"]
    assert "directory" in await house.get("/readyz", 503)
