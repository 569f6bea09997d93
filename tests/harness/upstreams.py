"""The stateful test servers as a test holds them: a process, its endpoint, and what its recorder saw."""

import contextlib
import json
import sys
import urllib.error
import urllib.request
from collections.abc import Iterator
from typing import Any, Literal

import anyio.to_thread

from harness.clients import peer
from harness.ports import bound_socket
from harness.processes import ServerProcess, served_on
from harness.recorder import PATH

Line = Literal["sdk2", "sdk1", "everything"]
PATIENCE = 15.0

# The machine may name a proxy for the outside world; these servers are on loopback.
_DIRECT = urllib.request.build_opener(urllib.request.ProxyHandler({}))


class Upstream:
    """A running test server."""

    def __init__(self, process: ServerProcess, port: int) -> None:
        self.process = process
        self.port = port
        self.url = f"http://127.0.0.1:{port}/mcp"

    def _control(self, method: str, query: str = "") -> dict[str, Any]:
        request = urllib.request.Request(f"http://127.0.0.1:{self.port}{PATH}{query}", method=method)
        try:
            with _DIRECT.open(request, timeout=PATIENCE + 5) as answer:
                report: dict[str, Any] = json.load(answer)
        except urllib.error.HTTPError as refused:
            with refused:
                raise AssertionError(f"{method} {query}: {refused.code}; {json.load(refused)['counts']}") from None
        return report

    def report(self) -> dict[str, Any]:
        """What the recorder saw (see `Recorder.report`)."""
        return self._control("GET")

    def counts(self) -> dict[str, int]:
        """What the recorder counted: 0 is left out."""
        counted: dict[str, int] = self.report()["counts"]
        return counted

    def reset(self) -> None:
        """Begin a new record; gates open for whoever still waits."""
        self._control("DELETE")

    def open(self, gate: str) -> None:
        """Open a gate that calls of `hold` or `slow` wait at."""
        self._control("POST", f"/open?gate={gate}")

    async def saw(self, kind: str, count: int = 1) -> dict[str, Any]:
        """Wait until the recorder counted a kind so often; its report.

        Raises:
            AssertionError: it did not within `PATIENCE` seconds.
        """
        query = f"?wait={kind}&count={count}&timeout={PATIENCE}"
        return await anyio.to_thread.run_sync(lambda: self._control("GET", query))


@contextlib.contextmanager
def upstream(line: Line = "sdk2", *options: str, port: int = 0) -> Iterator[Upstream]:
    """A server of that line of the SDK, for as long as this is entered. Options: `--events`, `--json`."""
    python = str(peer("TRUNKLINE_SDK1_PYTHON")) if line == "sdk1" else sys.executable
    if line == "everything":
        peer("TRUNKLINE_EVERYTHING_SERVER")
    module = "harness.everything" if line == "everything" else f"harness.upstream_{line}"
    listener = bound_socket(port)
    taken = listener.getsockname()[1]
    with served_on(listener, module, *options, python=python) as process:
        yield Upstream(process, taken)
