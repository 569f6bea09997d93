"""A process that counts what it is told to, and keeps its figures where the others find them.

Run: `python -m harness.counting_worker DIRECTORY NAME`. It takes a command a line, `count N` (calls that end, each in
0.02 s), `hold N` (calls in flight), `publish`, `publish-last`, and answers each with a line once it is done; it leaves
at the end of its input, and publishes then.
"""

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from subprocess import PIPE, Popen

from harness.processes import HARNESS_PARENT


class Worker:
    """Such a process, as a test holds it."""

    def __init__(self, directory: Path, name: str) -> None:
        self._process = Popen(
            [sys.executable, "-m", __name__, str(directory), name],
            stdin=PIPE,
            stdout=PIPE,
            text=True,
            bufsize=1,
            cwd=HARNESS_PARENT,
        )
        assert self._answer() == "ready"

    @property
    def pid(self) -> int:
        return self._process.pid

    def do(self, *commands: str) -> None:
        """Give it commands, one after the other, and wait until each is done."""
        assert self._process.stdin is not None
        for command in commands:
            self._process.stdin.write(f"{command}\n")
            assert self._answer() == command

    def kill(self, *, reap: bool = True) -> None:
        """End it as the kernel does; not reaped, it stays in the table of processes as one that has ended."""
        self._process.kill()
        if reap:
            self._process.wait()
        else:
            os.waitid(os.P_PID, self.pid, os.WEXITED | os.WNOWAIT)

    def leave(self) -> None:
        """Let it come to its end."""
        self._process.communicate(timeout=20)

    def close(self) -> None:
        """Leave nothing behind."""
        self._process.kill()
        self._process.communicate()

    def _answer(self) -> str:
        assert self._process.stdout is not None
        return self._process.stdout.readline().strip()


@contextmanager
def workers(directory: Path, count: int) -> Iterator[list[Worker]]:
    """So many of them, named 1, 2, …, for as long as this is entered."""
    made: list[Worker] = []
    try:
        for number in range(1, count + 1):
            made.append(Worker(directory, str(number)))  # noqa: PERF401 - those that are there end also if one does not come
        yield made
    finally:
        for worker in made:
            worker.close()


def main(directory: Path, name: str) -> None:
    from trunkline.gateway.worker_metrics import WorkerMetrics
    from trunkline.mux.statistics import Statistics

    metrics, statistics, held = WorkerMetrics(directory, name), Statistics(), {("inflight", "x"): 0.0}
    print("ready", flush=True)
    for line in sys.stdin:
        match line.split():
            case ["count", number]:
                for _ in range(int(number)):
                    statistics.count("calls", "x", "tools/call", "ok")
                    statistics.observe("call_seconds", 0.02, "x")
            case ["hold", number]:
                held["inflight", "x"] = float(number)
            case ["publish"]:
                metrics.publish(statistics, held)
            case ["publish-last"]:
                metrics.publish(statistics, held, last=True)
        print(line.strip(), flush=True)
    metrics.publish(statistics, held, last=True)


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2])
