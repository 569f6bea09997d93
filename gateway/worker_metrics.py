"""The figures of a gateway of several processes: each keeps its own in a file, and whoever is asked adds them up.

The processes share a directory of their own, which their parent makes. Counts and histograms are added over all that
ever ran, gauges over those that live. What a process counted in its last second is lost where it was killed.
"""

import fcntl
import logging
import os
import re
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Final, NamedTuple, TypeVar

import anyio
import msgspec

from ..mux.statistics import BUCKETS, Gauges, Histogram, Statistics

logger = logging.getLogger(__name__)

PUBLISH_SECONDS: Final = 1.0
"""How often a process writes its file at most."""

ATTEMPTS: Final = 10
"""How often the files are read again because others were folding meanwhile."""

_NAME: Final = re.compile(r"worker-([A-Za-z0-9_.]{1,64})-(\d+)-(\d+)\.msgpack")
_ENDED: Final = "ended.msgpack"
_STAT: Final = "/proc/{}/stat"

S = TypeVar("S")


class Snapshot(msgspec.Struct, array_like=True):
    """What one process has counted and holds, or what all that ended have counted."""

    counts: dict[tuple[str, ...], int]
    seconds: dict[tuple[str, ...], tuple[list[int], float]]
    gauges: Gauges

    @classmethod
    def of(cls, statistics: Statistics, gauges: Gauges) -> "Snapshot":
        """What these hold."""
        seconds = {key: (histogram.counts, histogram.total) for key, histogram in statistics.seconds.items()}
        return cls(dict(statistics.counts), seconds, gauges)

    def statistics(self) -> Statistics:
        """The counts and histograms."""
        made = Statistics()
        made.counts.update(self.counts)
        for key, (counts, total) in self.seconds.items():
            if len(counts) == len(BUCKETS) + 1:
                made.seconds[key] = Histogram()
                made.seconds[key].add(counts, total)
        return made


class _Ended(msgspec.Struct, array_like=True):
    """What the processes that ended have counted: once for all, so that their files do not pile up."""

    generation: int
    """Counts the changes of this file, so that a reader notices one."""
    names: list[str]
    """Files that are contained, and may still be there."""
    snapshot: Snapshot


class _File(NamedTuple):
    """The file of a process."""

    path: Path
    is_alive: bool
    """Whether its process lived when the file was looked for, before it was read."""


class WorkerMetrics:
    """The figures of one process, and its view of all of them.

    `directory` is there, writable by the gateway's processes and nobody else. `worker` is 1-64 of `A-Z a-z 0-9 _ .`,
    and different for processes that live at the same time.

    Made in the process that it speaks for, not before a fork.

    Raises:
        ValueError: the worker's id is none.
        OSError: the directory cannot be written to.
    """

    def __init__(self, directory: Path, worker: str) -> None:
        self._directory = directory
        self._name = f"worker-{worker}-{os.getpid()}-{_started(os.getpid())}.msgpack"
        if not _NAME.fullmatch(self._name):
            raise ValueError(f"a worker's id is 1-64 of A-Z a-z 0-9 _ . and not {worker[:64]!r}")
        self._written = b""
        self._due = 0.0
        self._fold()

    def publish(self, statistics: Statistics, gauges: Gauges, *, last: bool = False) -> None:
        """Write what this process has counted and holds, if it changed and the last time is a second ago, or `last`.

        A directory that cannot be written to is logged; the counts are not lost by that.
        """
        now = time.monotonic()
        if now < self._due and not last:
            return
        self._due = now + PUBLISH_SECONDS
        text = msgspec.msgpack.encode(Snapshot.of(statistics, gauges))
        if text != self._written:
            try:
                self._write(self._name, text)
                self._written = text
            except OSError as error:
                logger.warning("the metrics of this worker could not be written: %s", error.strerror)

    async def run(self, statistics: Statistics, gauges: Callable[[], Gauges]) -> None:
        """Publish once a second until this is cancelled, and a last time then."""
        try:
            while True:
                self.publish(statistics, gauges())
                await anyio.sleep(PUBLISH_SECONDS)
        finally:
            self.publish(statistics, gauges(), last=True)

    def merged(self, statistics: Statistics, gauges: Gauges) -> tuple[Statistics, Gauges]:
        """What all processes have counted, and what those that live hold; of this one, what is given here.

        Where the directory cannot be read, that is logged, and this process stands for itself.
        """
        try:
            self._fold()
            ended, others = self._read()
        except OSError as error:
            logger.warning("the metrics of the other workers could not be read: %s", error.strerror)
            return statistics, gauges
        counted = Statistics()
        for one in (statistics, ended.statistics(), *(snapshot.statistics() for snapshot, _ in others)):
            counted.add(one)
        held = Counter(gauges)
        for snapshot, is_alive in others:
            if is_alive:
                held.update(snapshot.gauges)
        return counted, dict(held)

    # Inside.

    def _files(self) -> Iterator[_File]:
        for path in self._directory.iterdir():
            matched = _NAME.fullmatch(path.name)
            if matched and path.name != self._name:
                yield _File(path, _started(int(matched[2])) == matched[3])

    def _read(self) -> tuple[Snapshot, list[tuple[Snapshot, bool]]]:
        """The file of those that ended, and those of the others, as they stood at one moment.

        No lock is taken, since a process may be stopped while it has it: if somebody folded meanwhile, once more.
        """
        for _ in range(ATTEMPTS):
            ended = self._load_ended()
            others = [
                (snapshot, file.is_alive)
                for file in self._files()
                if file.path.name not in ended.names and (snapshot := _load(file.path, Snapshot)) is not None
            ]
            if self._load_ended().generation == ended.generation:
                break
        return ended.snapshot, others

    def _fold(self) -> None:
        """Put the files of processes that ended into one; nothing where another process is at it."""
        with (self._directory / "lock").open("w") as lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError:
                return
            gone = [file.path for file in self._files() if not file.is_alive]
            if gone:
                ended = self._load_ended()
                counted = ended.snapshot.statistics()
                for path in gone:
                    snapshot = _load(path, Snapshot) if path.name not in ended.names else None
                    if snapshot is not None:
                        counted.add(snapshot.statistics())
                names = [path.name for path in gone]
                folded = _Ended(ended.generation + 1, names, Snapshot.of(counted, {}))
                self._write(_ENDED, msgspec.msgpack.encode(folded))
            for path in gone:
                path.unlink(missing_ok=True)
                path.with_suffix(".tmp").unlink(missing_ok=True)

    def _load_ended(self) -> _Ended:
        return _load(self._directory / _ENDED, _Ended) or _Ended(0, [], Snapshot({}, {}, {}))

    def _write(self, name: str, text: bytes) -> None:
        path = self._directory / name
        draft = path.with_suffix(".tmp")
        draft.write_bytes(text)
        draft.replace(path)


def _load(path: Path, kind: type[S]) -> S | None:
    try:
        return msgspec.msgpack.decode(path.read_bytes(), type=kind)
    except FileNotFoundError:
        return None
    except (OSError, msgspec.MsgspecError) as error:
        logger.warning("the metrics in %s cannot be read: %s", path.name, type(error).__name__)
        return None


def _started(pid: int) -> str:
    """When a process began, in ticks of the kernel, so that its number given again is not taken for it.

    Empty where it has ended, though its parent may not have heard; "0" where the system does not tell when it began.
    """
    try:
        fields = Path(_STAT.format(pid)).read_text().rpartition(")")[2].split()
    except OSError:
        return "" if Path(_STAT.format("self")).exists() or not _exists(pid) else "0"
    return "" if fields[0] in "ZX" else fields[19]


def _exists(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except OSError:
        return True
    return True
