"""What a worker process gets of its parent, and what they say to each other."""

import fcntl
import os
import socket
from pathlib import Path

import anyio
import anyio.to_thread
import msgspec
import pytest
from harness.muxing import settle
from trunkline.gateway.settings import AuthSection, DirectorySection, NotStarted, Server, Settings, SettingsError
from trunkline.gateway.workers.place import VARIABLE, Child, Command, Place, Reading

pytestmark = pytest.mark.anyio

SETTINGS = Settings(
    directory=DirectorySection("redis", "redis://h"),
    servers={"up": Server(url="http://h/", headers={"Authorization": "Bearer s3cret " + "x" * 500_000})},
)
"""More than a socket takes at once."""


@pytest.fixture
def listener():
    with socket.create_server(("127.0.0.1", 0)) as made:
        yield made


async def inherited(child: Child, *, is_orphan: bool = False) -> Place:
    """The place of a process that has inherited it, and its environment after that."""
    descriptors = [os.dup(descriptor) for descriptor in child.inherited]
    child.close() if is_orphan else child.has_begun()
    environment = dict(child.environment, HOME="/")
    told = environment[VARIABLE]
    assert "s3cret" not in told
    for before, after in zip(child.inherited, descriptors, strict=True):
        told = told.replace(f":{before},", f":{after},")
    environment[VARIABLE] = told
    place = await anyio.to_thread.run_sync(Place.take, environment)
    assert environment == {"HOME": "/"}, "what the worker starts must not take itself for a worker"
    assert place is not None
    return place


async def heard_to_the_end(child: Child) -> None:
    async for _ in child.hear():
        pass


async def test_a_worker_has_its_parents_socket_settings_and_directory(listener: socket.socket, tmp_path: Path) -> None:
    child = Child(listener, tmp_path, "http://demo", SETTINGS)
    with anyio.fail_after(10):
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(heard_to_the_end, child)
            place = await inherited(child)
            assert place.listener.getsockname() == listener.getsockname()
            assert (place.runtime, place.demo, place.settings) == (tmp_path, "http://demo", SETTINGS)
            assert not place.listener.get_inheritable()
            place.close()
    child.close()


async def test_what_each_says_is_heard_in_order_from_the_beginning_on(listener: socket.socket, tmp_path: Path) -> None:
    child = Child(listener, tmp_path, "", SETTINGS)
    said: list[Command] = ["reload", "drain", "leave"]
    child.tell("reload")
    heard: list[Command] = []

    async def say() -> None:
        async for _ in child.hear():
            assert child.is_listening
            for command in said[1:]:
                child.tell(command)

    with anyio.fail_after(10):
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(say)
            place = await inherited(child)
            place.tell_listening("http://h")
            commands = place.commands()
            heard += [await anext(commands) for _ in said]
            await commands.aclose()  # the worker ends
            place.close()
    assert heard == said
    assert not child.is_listening
    child.tell("drain")


async def test_what_the_parent_has_read_again_is_what_its_worker_reads_then(
    listener: socket.socket, tmp_path: Path
) -> None:
    def wrong() -> Settings:
        raise SettingsError("servers.up", "no such \udcff")

    def defect() -> Settings:
        raise RecursionError

    child, own = Child(listener, tmp_path, "", SETTINGS), Settings()
    for read in (lambda: SETTINGS, wrong, defect):
        await child.reload(Reading.of(read))
    child.tell("reload")
    with anyio.fail_after(10):
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(heard_to_the_end, child)
            place = await inherited(child)
            commands = place.commands()
            assert await anext(commands) == "reload"
            assert [place.read(Settings), place.read(Settings)] == [SETTINGS, own]
            for said in ("servers.up: no such ?", "they could not be read: RecursionError"):
                assert await anext(commands) == "reload"
                with pytest.raises(SettingsError) as told:
                    place.read(Settings)
                assert str(told.value) == said
            assert await anext(commands) == "reload"
            assert place.read(Settings) == own
            await commands.aclose()
            place.close()
    child.close()


async def test_of_what_is_read_while_a_worker_does_not_hear_the_newest_alone_is_kept(
    listener: socket.socket, tmp_path: Path
) -> None:
    def named(n: int) -> Reading:
        return Reading(msgspec.structs.replace(SETTINGS, auth=AuthSection(issuer=str(n))))

    child, last = Child(listener, tmp_path, "", SETTINGS), 20
    with anyio.fail_after(10):
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(heard_to_the_end, child)
            place = await inherited(child)
            for n in range(last + 1):
                tasks.start_soon(child.reload, named(n))
            await settle()
            heard = list[int]()
            async for _ in place.commands():
                heard.append(int(place.read(Settings).auth.issuer))
                if heard[-1] == last:
                    break
            place.close()
    child.close()
    assert len(heard) < 4, "what a socket takes, and one that waits"


async def test_what_was_read_is_told_to_nobody_once_the_worker_has_ended(
    listener: socket.socket, tmp_path: Path
) -> None:
    child = Child(listener, tmp_path, "", SETTINGS)
    with anyio.fail_after(10):
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(heard_to_the_end, child)
            place = await inherited(child)
            for _ in range(2):
                tasks.start_soon(child.reload, Reading(SETTINGS))
            await settle()
            await place.commands().aclose()
            place.close()
        await child.reload(Reading(SETTINGS))
    child.close()


async def test_a_worker_whose_parent_dies_hears_no_more(listener: socket.socket, tmp_path: Path) -> None:
    child = Child(listener, tmp_path, "", SETTINGS)

    async def die_once_it_listens() -> None:
        hearing = child.hear()
        await anext(hearing)
        await hearing.aclose()

    with anyio.fail_after(10):
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(die_once_it_listens)
            place = await inherited(child)
            place.tell_listening("http://h")
            assert [command async for command in place.commands()] == []
    place.close()


async def test_a_worker_whose_parent_dies_before_it_listens_hears_so_and_does_not_fail(
    listener: socket.socket, tmp_path: Path
) -> None:
    child = Child(listener, tmp_path, "", SETTINGS)
    with anyio.fail_after(10):
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(heard_to_the_end, child)
            place = await inherited(child)
            tasks.cancel_scope.cancel()
        child.close()
        place.tell_listening("http://h")
        assert [command async for command in place.commands()] == []
    place.close()


async def test_a_worker_whose_parent_dies_before_it_heard_all_hears_so(listener: socket.socket, tmp_path: Path) -> None:
    parents, control = socket.socketpair()
    place = Place(listener.dup(), control, tmp_path, "", SETTINGS)
    place.tell_listening("http://h")
    parents.close()
    with anyio.fail_after(10):
        assert [command async for command in place.commands()] == []
    place.close()


async def test_a_worker_whose_parent_died_before_does_not_start(listener: socket.socket, tmp_path: Path) -> None:
    child = Child(listener, tmp_path, "", SETTINGS)
    with anyio.fail_after(10):
        with pytest.raises(NotStarted):
            await inherited(child, is_orphan=True)


async def test_a_worker_whose_directory_was_swept_does_not_start(listener: socket.socket, tmp_path: Path) -> None:
    child = Child(listener, tmp_path / "swept", "", SETTINGS)
    with anyio.fail_after(10):
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(heard_to_the_end, child)
            with pytest.raises(NotStarted, match="parent of this worker has ended"):
                await inherited(child)
    child.close()


async def test_a_worker_keeps_its_directory_until_it_ends(listener: socket.socket, tmp_path: Path) -> None:
    child = Child(listener, tmp_path, "", SETTINGS)
    with anyio.fail_after(10):
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(heard_to_the_end, child)
            place = await inherited(child)
            lock = os.open(tmp_path, os.O_RDONLY)
            with pytest.raises(BlockingIOError):
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            place.close()
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            os.close(lock)
    child.close()


def test_a_process_without_a_parent_has_no_place() -> None:
    assert Place.take({"HOME": "/"}) is None
