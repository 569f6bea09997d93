"""What a worker process gets of its parent, and what they say to each other."""

import os
import socket
from pathlib import Path

import anyio
import pytest
from trunkline.gateway.workers.place import VARIABLE, Child, Command, Place

pytestmark = pytest.mark.anyio


@pytest.fixture
def listener():
    with socket.create_server(("127.0.0.1", 0)) as made:
        yield made


def inherited(child: Child) -> Place:
    """The place of a process that has inherited it, and its environment after that."""
    descriptors = [os.dup(descriptor) for descriptor in child.inherited]
    environment = dict(child.environment, HOME="/")
    told = environment[VARIABLE]
    for before, after in zip(child.inherited, descriptors, strict=True):
        told = told.replace(f":{before},", f":{after},")
    environment[VARIABLE] = told
    place = Place.take(environment)
    assert environment == {"HOME": "/"}, "what the worker starts must not take itself for a worker"
    assert place is not None
    child.has_begun()
    return place


async def test_a_worker_has_its_parents_socket_and_directory(listener: socket.socket, tmp_path: Path) -> None:
    child = Child(listener, tmp_path, "http://demo")
    place = inherited(child)
    assert place.listener.getsockname() == listener.getsockname()
    assert (place.runtime, place.demo) == (tmp_path, "http://demo")
    assert not place.listener.get_inheritable()
    place.close()
    child.close()


async def test_what_each_says_is_heard(listener: socket.socket, tmp_path: Path) -> None:
    child = Child(listener, tmp_path, "")
    place = inherited(child)
    said: list[Command] = ["reload", "drain", "leave"]
    heard: list[Command] = []
    with anyio.fail_after(10):
        place.tell_listening("http://h")
        async for _ in child.hear():
            assert child.is_listening
            for command in said:
                child.tell(command)
            commands = place.commands()
            heard += [await anext(commands) for _ in said]
            await commands.aclose()  # the worker ends
    place.close()
    assert heard == said
    assert not child.is_listening
    child.tell("drain")


async def test_a_worker_whose_parent_dies_drains(listener: socket.socket, tmp_path: Path) -> None:
    child = Child(listener, tmp_path, "")
    place = inherited(child)
    hearing = child.hear()
    place.tell_listening("http://h")
    await anext(hearing)
    await hearing.aclose()
    with anyio.fail_after(10):
        assert [command async for command in place.commands()] == ["drain"]
    place.close()


def test_a_process_without_a_parent_has_no_place() -> None:
    assert Place.take({"HOME": "/"}) is None
