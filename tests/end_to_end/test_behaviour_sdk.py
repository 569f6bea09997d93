"""Clients and servers of both lines of the SDK, on the transports that are not Streamable HTTP."""

import json
import sys
from collections.abc import Iterator
from typing import Final

import pytest
from harness.clients import Call, Kind, Scenario, Transport, peer, play, texts
from harness.gateways import Gateway
from harness.gateways import gateway as running_gateway
from harness.processes import HARNESS_PARENT
from harness.upstreams import Line, upstream

pytestmark = pytest.mark.anyio

CLIENTS: Final[tuple[Kind, ...]] = ("sdk2", "sdk1")
DOWNSTREAM: Final[tuple[Transport, ...]] = ("http", "sse")
SERVERS: Final[tuple[Line, ...]] = ("sdk2", "sdk1")
UPSTREAM: Final = ("stdio", "sse")
ENDPOINTS: Final = {"http": "mcp", "sse": "sse"}


def stdio_command(line: Line) -> list[str]:
    """What runs a server of this line on standard input and output."""
    python = str(peer("TRUNKLINE_SDK1_PYTHON")) if line == "sdk1" else sys.executable
    # What a server's process inherits of the environment is the gateway's to decide: the path is given here.
    run = ["/usr/bin/env", f"PYTHONPATH={HARNESS_PARENT}", python, "-m"]
    return [*run, f"harness.upstream_{line}", "--transport", "stdio"]


@pytest.fixture(scope="module", params=SERVERS)
def sdk_gateway(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Gateway]:
    """A gateway in front of a server of this line on each transport."""
    line: Line = request.param
    toml = tmp_path_factory.mktemp("settings") / "trunkline.toml"
    with upstream(line, "--transport", "sse") as sse:
        toml.write_text(
            f"[servers.stdio]\ncommand = {json.dumps(stdio_command(line))}\n"
            f'[servers.sse]\nurl = "sse+http://127.0.0.1:{sse.port}/sse"\n'
        )
        with running_gateway(toml=toml) as gateway:
            yield gateway


@pytest.fixture(params=UPSTREAM)
def server(request: pytest.FixtureRequest, sdk_gateway: Gateway) -> Iterator[str]:
    """The URL of one of them, without the path of the client's transport."""
    yield sdk_gateway.server_url(request.param)
    if sdk_gateway.process.returncode is not None:
        raise sdk_gateway.process.fail("the gateway ended during a test")


def scenario_of(server: str, transport: Transport) -> Scenario:
    """A client on this transport."""
    return {"url": f"{server}/{ENDPOINTS[transport]}", "transport": transport}


@pytest.mark.parametrize("transport", DOWNSTREAM)
@pytest.mark.parametrize("kind", CLIENTS)
async def test_what_a_server_asks_and_tells_reaches_the_client(server: str, kind: Kind, transport: Transport) -> None:
    scenario = scenario_of(server, transport)
    scenario["answers"] = {"elicitation": {"colour": "red"}, "sampling": "hello", "roots": ["file:///project"]}
    scenario["subscribe"] = ["test://watched"]
    scenario["calls"] = [
        {"tool": "ask"},
        {"tool": "sample", "arguments": {"prompt": "a"}},
        {"tool": "roots"},
        {"tool": "slow"},
        {"tool": "log", "arguments": {"text": "told", "times": 2}},
        {"tool": "notify", "arguments": {"what": "tools"}},
        {"tool": "touch"},
        {"tool": "counter", "times": 3},
    ]
    scenario["await_notifications"] = 4

    outcome = await play(kind, scenario)

    assert texts(outcome)[:3] == ["accept red", "hello", "file:///project"]
    assert texts(outcome)[-3:] == ["1", "2", "3"]
    assert outcome["asked"] == [
        ["elicitation/create", "Which colour?"],
        ["sampling/createMessage", "a"],
        ["roots/list", None],
    ]
    assert outcome["progress"] == [[1, 3, "step 1"], [2, 3, "step 2"], [3, 3, "step 3"]]
    told = sorted([method, (params or {}).get("data")] for method, params in outcome["notifications"])
    assert told == [
        ["notifications/message", "told 1"],
        ["notifications/message", "told 2"],
        ["notifications/resources/updated", None],
        ["notifications/tools/list_changed", None],
    ]


@pytest.mark.parametrize("transport", DOWNSTREAM)
async def test_concurrent_calls_get_each_its_own_answer(server: str, transport: Transport, key: str) -> None:
    def barrier(n: int) -> Call:
        return {"tool": "barrier", "arguments": {"name": key, "parties": 16, "tag": f"call {n}", "place": 15 - n}}

    scenario = scenario_of(server, transport)
    scenario["calls"] = [barrier(n) for n in range(16)]
    scenario["concurrent"] = True

    outcome = await play("sdk2", scenario)

    assert [result["structured"] for result in outcome["results"]] == [
        {"tag": f"call {n}", "peak": 16} for n in range(16)
    ]
