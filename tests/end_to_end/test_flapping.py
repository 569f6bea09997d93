"""A server that dies every 200 ms under fifty calls at once: each has an outcome, and none runs twice (G6, G9)."""

import json
import random
import signal
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import count
from pathlib import Path
from typing import Any

import anyio
import pytest
from anyio.abc import TaskStatus
from harness.gateways import Gateway, until
from harness.gateways import gateway as running_gateway
from harness.ports import free_port
from harness.processes import HARNESS_PARENT, ServerProcess, module_command, wait_for_status
from harness.wire import Wire, text_of

pytestmark = pytest.mark.anyio

SERVERS = 5
CALLERS = 50
DEATHS = 25

RECOVERY = 40.0
"""Within so many seconds after it has stopped everybody is served again: the longest back-off is 30."""


class Flapping:
    """The server that dies, and its record."""

    def __init__(self, process: ServerProcess, record: Path) -> None:
        self.process = process
        self._record = record

    def start(self) -> None:
        """Let it die from now on."""
        self.process.send_signal(signal.SIGUSR1)

    def stop(self) -> None:
        """Let it live."""
        self.process.send_signal(signal.SIGUSR2)

    def record(self, what: str) -> list[dict[str, Any]]:
        """What was written down of this kind."""
        return [entry for line in self._record.read_text().splitlines() if (entry := json.loads(line))["what"] == what]


@contextmanager
def flapping(folder: Path, seed: int, reuse: str) -> Iterator[tuple[Flapping, Gateway]]:
    """The server, alive for now, and a gateway that knows it by several names."""
    port, record = free_port(), folder / "record"
    text = f'[pooling]\nreuse = "{reuse}"\n'
    for n in range(SERVERS):
        text += f'[servers.s{n}]\nurl = "http://127.0.0.1:{port}/mcp"\neras = ["legacy"]\nstateless = true\n'
        # What shares a session has one key: for `user` the server's name, for `workflow` each client's own.
        text += f'headers = {{ X-Key = "s{n}" }}\n' if reuse == "user" else 'session_headers = ["X-Key"]\n'
    settings = folder / "flapping.toml"
    settings.write_text(text)
    command = module_command("harness.flapping", "--port", str(port), "--record", str(record), "--seed", str(seed))
    process = ServerProcess(command, env={"PYTHONPATH": str(HARNESS_PARENT)})
    try:
        wait_for_status(process, port, "/mcp", status=405)
        with running_gateway("--log-level", "error", toml=settings) as gateway:
            yield Flapping(process, record), gateway
    finally:
        process.kill()


class Callers:
    """Clients that call without a pause; every call has a number of its own."""

    def __init__(self, gateway: Gateway) -> None:
        self._gateway = gateway
        self._numbers = count()
        self.outcomes: dict[int, str] = {}
        """For each call `result`, or what its error says of whether it ran."""
        self.held_back = 0
        """Calls that were told when the server would be tried again."""
        self.flaps = True

    async def run(self, n: int, *, task_status: TaskStatus[None]) -> None:
        """One client, until the server has come to rest, and then until a call is answered."""
        async with Wire(self._gateway.url(f"s{n % SERVERS}"), {"X-Key": f"client-{n}"}) as wire:
            await wire.open("2025-06-18")
            task_status.started()
            answered = False
            while self.flaps or not answered:
                answered = await self._call(wire)
                if not answered:
                    await anyio.sleep(0.02)  # an error that comes at once is no reason to flood

    async def _call(self, wire: Wire) -> bool:
        number = next(self._numbers)
        answer = await wire.call("count", {"n": number}, id=b"1")
        message = await answer.response()
        assert answer.status == 200, (answer.status, message)
        assert message["id"] == 1
        if "result" in message:
            assert text_of(message) == str(number)
            self.outcomes[number] = "result"
            return True
        error = message["error"]
        assert error["message"]
        assert error["code"] in (-31001, -31002, -31003), error
        assert error["code"] == -31003 or error["data"]["executed"] in ("no", "unknown"), error
        self.outcomes[number] = error["data"].get("executed", "no")
        self.held_back += "retry_after" in error["data"]
        return False


@pytest.mark.parametrize("reuse", ["user", "workflow"])
async def test_g6_g9_every_call_has_an_outcome_and_none_runs_twice_while_the_server_dies_again_and_again(
    tmp_path: Path, reuse: str
) -> None:
    seed = random.randrange(2**32)
    print(f"seed {seed}")  # shown where the test fails
    with flapping(tmp_path, seed, reuse) as (server, gateway):
        callers = Callers(gateway)
        async with anyio.create_task_group() as tasks:
            with anyio.fail_after(RECOVERY):
                for n in range(CALLERS):
                    await tasks.start(callers.run, n)
            server.start()
            await until(lambda: len(server.record("born")) > DEATHS, timeout=RECOVERY)
            server.stop()
            callers.flaps = False
            tasks.cancel_scope.deadline = anyio.current_time() + RECOVERY
        assert not tasks.cancel_scope.cancel_called, "some were not served again"
        assert gateway.metric("trunkline_refused_total", reason="circuit_open") >= callers.held_back > 0

    outcomes = Counter(callers.outcomes.values())
    assert sum(outcomes.values()) == max(callers.outcomes) + 1, "a call has no outcome"
    assert outcomes["result"] > CALLERS
    assert outcomes["no"] > 0 < outcomes["unknown"], "else the test would prove little"
    ran = Counter(call["n"] for call in server.record("call"))
    assert set(ran.values()) == {1}, "a call ran twice"
    told = {said: {n for n, outcome in callers.outcomes.items() if outcome == said} for said in outcomes}
    assert told["result"] <= ran.keys()
    assert not told["no"] & ran.keys(), "a call ran that is said not to have run"
    handshakes = server.record("initialize")
    assert len(handshakes) > SERVERS
    assert {handshake["inside"] for handshake in handshakes} == {1}, "two handshakes for one key at once"
