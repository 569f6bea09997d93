"""Workers that share a redis directory, simulated operation by operation: what happens when some die at once.

Constants are the program's own. Times are seconds. What it leaves out: calls of clients whose workers live are a steady
share of the time of each node and of each worker's core; whatever travels takes `TRAVEL_SECONDS`; and an operation that
takes longer than a worker would wait for it is only counted (`slow`), and does not fail.
"""

import random
from collections import deque
from collections.abc import Callable, Generator
from dataclasses import dataclass
from heapq import heappop, heappush
from typing import Final, NamedTuple

from trunkline.gateway.workers.forwarding import PATIENCE_SECONDS, RETRY_SECONDS
from trunkline.mux.directory import LEASE_SECONDS
from trunkline.mux.directory.redis import MAX_CONCURRENCY
from trunkline.mux.directory.redis_server import SOCKET_SECONDS
from trunkline.mux.membership import BEAT_SECONDS, DOUBT_SECONDS
from trunkline.transports.event_stream import RECONNECT

RECONNECT_SECONDS: Final = int(RECONNECT.split()[1]) / 1000
"""After which clients come back, as the gateway's streams tell them."""

SPREAD_SECONDS: Final = 0.25
"""By how much clients differ in it."""

TRAVEL_SECONDS: Final = 0.0005
LOCK_SECONDS: Final = 0.02
"""How often who waits for the list to be read looks whether it is."""

WARM_UP_SECONDS: Final = 3.0
"""Before workers die."""

WATCHED_SECONDS: Final = 5.0
"""After that, at least."""

HORIZON_SECONDS: Final = 60.0
"""And at most."""

WORKERS_NODE: Final = 0
"""The node of the slot in which the workers are noted."""

SLOTS: Final = 10
"""Of a second, in which operations are counted."""


@dataclass(frozen=True)
class Scenario:
    """What is simulated."""

    name: str
    dying: int
    """Workers that are killed at the same moment."""
    workflows: int = 1_000_000
    workers: int = 200
    workers_a_host: int = 8
    """These reach each other by Unix sockets, others by the directory."""
    attached: float = 0.3
    """Of the workflows, those whose client holds a stream."""
    nodes: int = 16
    operations: float = 50_000
    """Reads that a node performs each second; others in proportion to what they cost it."""
    node_load: float = 0.25
    """Of a node's time, for what goes on as before."""
    look_load: float = 0.25
    """Of the time of the node that knows who lives: for calls that look that up; none where they are `listed`."""
    worker_load: float = 0.15
    """Of a worker's core, for what goes on as before."""
    told_to_all: bool = True
    """Every worker hears every change of a record."""
    listed: bool = True
    """Workers read who lives once for each heartbeat, instead of asking for each other one by one."""
    own_lane: bool = True
    """Heartbeats do not wait for other operations of their worker."""


class Cost(NamedTuple):
    """Of one operation, or of one message."""

    node: float
    worker: float


class Operation(NamedTuple):
    """One that a worker asks for."""

    name: str
    node: int


WAIT: Final = None
Steps = Generator[float | Operation | None, None, None]
"""A process of a worker: it sleeps, performs an operation, or waits until it is woken."""

Answer = Generator[float | Operation | None, None, bool]
"""A part of one, which has an outcome."""

Costs = dict[str, Cost]


class Worker:
    """One that lives or was killed."""

    def __init__(self, number: int) -> None:
        self.number = number
        self.is_killed = False
        self.core_free = 0.0
        """When its core has done what it has to."""
        self.under_way = 0
        """Operations that wait for an answer."""
        self.waiting: deque[tuple[Steps, Operation]] = deque()
        self.alive_until = 0.0
        """By the directory's clock."""
        self.known: dict[int, float] = {}
        """Until when it believes others to live, by their numbers."""
        self.gone: set[int] = set()
        """Those that are not in the list."""
        self.read_at = 0.0
        """When the list was asked for."""
        self.is_reading = False
        self.waited_for: dict[int, list[Steps]] = {}
        """Requests that wait for another to answer, or to be known as dead."""
        self.heard = 0
        """Changes that it has heard, of all there were."""


class Simulation:
    """One run of a scenario; `run` it once."""

    def __init__(self, scenario: Scenario, costs: Costs, seed: int) -> None:
        self.scenario = scenario
        self.now = 0.0
        self.workers = [Worker(number) for number in range(scenario.workers)]
        self.living = list(self.workers)
        self.changes = 0
        self.performed: list[int] = []
        """Operations that were performed in each tenth of a second."""
        self.served: list[float] = []
        """When each broken stream was served again, counted from the deaths."""
        self.taken_over: list[float] = []
        """The same, of those whose workflow another worker holds now."""
        self.refused = 0
        """Requests that waited too long for a worker which did not answer."""
        self.lapsed = 0
        """Heartbeats that came after their worker had been taken for dead."""
        self.slow = 0
        """Operations that took longer than a worker waits for them."""
        self._random = random.Random(seed)
        pace = 1 / scenario.operations / costs["get"].node / (1 - scenario.node_load)
        self._costs = {name: Cost(cost.node * pace, cost.worker) for name, cost in costs.items()}
        self._node_free = [0.0] * scenario.nodes
        self._events: list[tuple[float, int, Callable[[], None]]] = []
        self._numbers = 0

    @property
    def streams_of_each(self) -> int:
        """Streams of the workflows that one worker holds."""
        return round(self.scenario.workflows * self.scenario.attached / self.scenario.workers)

    @property
    def broken(self) -> int:
        """Streams that the deaths break: of the workflows that the dead held, and of those that came by way of them."""
        living = self.scenario.workers - self.scenario.dying
        return self.streams_of_each * self.scenario.dying + self._passing() * living

    def run(self) -> "Simulation":
        """Simulate it, until all is served again."""
        for worker in self.workers:
            worker.alive_until = LEASE_SECONDS
            self._start(worker, self._beat_on(worker), self._random.random() * BEAT_SECONDS)
            self._start(worker, self._look_on(worker), self._random.random() * BEAT_SECONDS)
        self._at(WARM_UP_SECONDS, self._kill)
        while self.now < WARM_UP_SECONDS + HORIZON_SECONDS:
            if len(self.served) == self.broken and self.now > WARM_UP_SECONDS + WATCHED_SECONDS:
                break
            self.now, _, event = heappop(self._events)
            event()
        return self

    def per_second(self) -> list[int]:
        """Operations in each second."""
        return [sum(self.performed[first : first + SLOTS]) for first in range(0, len(self.performed), SLOTS)]

    # The deaths.

    def _passing(self) -> int:
        """Streams of one worker's workflows that come by way of those which die."""
        return round(self.streams_of_each * self.scenario.dying / self.scenario.workers)

    def _kill(self) -> None:
        for worker in self._random.sample(self.workers, self.scenario.dying):
            worker.is_killed = True
        self.living = [worker for worker in self.workers if not worker.is_killed]
        for holder in self.workers:
            for _ in range(self.streams_of_each if holder.is_killed else self._passing()):
                worker = self._random.choice(self.living)
                self._start(worker, self._come_back(worker, holder), self._pause())

    def _pause(self) -> float:
        return RECONNECT_SECONDS + self._random.random() * SPREAD_SECONDS

    # What workers do.

    def _beat_on(self, worker: Worker) -> Steps:
        """See `Membership`."""
        while not worker.is_killed:
            yield Operation("beat", WORKERS_NODE)
            performed = self.now - TRAVEL_SECONDS
            self.lapsed += performed > worker.alive_until
            worker.alive_until = performed + LEASE_SECONDS
            yield BEAT_SECONDS

    def _look_on(self, worker: Worker) -> Steps:
        """See `Mailboxes`: who waits for a worker that has died is told."""
        while not worker.is_killed:
            if self.scenario.listed:
                yield from self._read(worker)
                for peer in worker.gone & set(worker.waited_for):
                    self._wake(worker, peer)
            else:
                for peer in list(worker.waited_for):
                    if worker.known.get(peer, 0.0) <= self.now and not (yield from self._ask_for(worker, peer)):
                        self._wake(worker, peer)
            yield BEAT_SECONDS

    def _read(self, worker: Worker) -> Steps:
        """Read who lives; one does for all that ask meanwhile."""
        worker.read_at, worker.is_reading = self.now, True
        yield Operation("workers", WORKERS_NODE)
        worker.gone = {other.number for other in self.workers if not self._lives(other)}
        worker.is_reading = False

    def _reread(self, worker: Worker) -> Steps:
        """Who is missing is looked for in a list that is read from now on."""
        asked = self.now
        while worker.read_at < asked:
            if worker.is_reading:
                yield LOCK_SECONDS
            else:
                yield from self._read(worker)

    def _come_back(self, worker: Worker, holder: Worker) -> Steps:
        """A client comes back for its stream by way of `worker`; its workflow's record names `holder`."""
        node = self._random.randrange(self.scenario.nodes)
        came = self.now
        while True:
            self._spend(worker, self._costs["request"].worker)
            yield Operation("get", node)
            if not (yield from self._find(worker, holder.number)):
                if self.scenario.listed:
                    yield from self._reread(worker)
                break
            if not holder.is_killed:
                yield from self._hand_on(worker, holder, node)
                self.served.append(self.now - WARM_UP_SECONDS)
                return
            yield from self._find_nobody(worker, holder, node)
            if self.now - came > PATIENCE_SECONDS:
                self.refused += 1
                yield self._pause()
                came = self.now
        yield Operation("replace", node)
        self.changes += 1
        yield Operation("read", node)
        yield Operation("draw_ids", node)
        self.taken_over.append(self.now - WARM_UP_SECONDS)
        self.served.append(self.now - WARM_UP_SECONDS)

    def _hand_on(self, worker: Worker, holder: Worker, node: int) -> Steps:
        """A request goes to the worker that holds the workflow, its answer comes back."""
        self._spend(holder, self._costs["request"].worker)
        if not self._is_beside(worker, holder):
            yield Operation("send", node)
            self._spend(holder, self._costs["send"].worker)
            yield Operation("send", node)

    def _find_nobody(self, worker: Worker, holder: Worker, node: int) -> Steps:
        """A request goes to a worker that was killed but still counts as alive."""
        is_beside = self._is_beside(worker, holder)
        if not is_beside:
            yield Operation("send", node)
        if self.scenario.nodes > 1 and not is_beside:  # a node knows its own hearers alone: not whether there are any
            yield Operation("worker", WORKERS_NODE)
            yield from self._wait_for(worker, holder.number)
            return
        worker.known.pop(holder.number, None)
        for _ in range(round(BEAT_SECONDS / RETRY_SECONDS) if self.scenario.listed else 1):
            yield RETRY_SECONDS
            if self.scenario.listed and self.now - worker.read_at >= DOUBT_SECONDS and not worker.is_reading:
                yield from self._read(worker)
            if holder.number in worker.gone:
                return

    def _find(self, worker: Worker, peer: int) -> Answer:
        """See `Membership.find`."""
        if self.scenario.listed:
            return peer not in worker.gone
        return worker.known.get(peer, 0.0) > self.now or (yield from self._ask_for(worker, peer))

    def _ask_for(self, worker: Worker, peer: int) -> Answer:
        yield Operation("worker", WORKERS_NODE)
        lives = self._lives(self.workers[peer])
        if lives:
            worker.known[peer] = self.now + BEAT_SECONDS
        return lives

    def _lives(self, worker: Worker) -> bool:
        """What the directory has just said of a worker."""
        return worker.alive_until > self.now - TRAVEL_SECONDS

    def _is_beside(self, worker: Worker, other: Worker) -> bool:
        return worker.number // self.scenario.workers_a_host == other.number // self.scenario.workers_a_host

    # Processes, cores, connections and nodes.

    def _at(self, when: float, event: Callable[[], None]) -> None:
        self._numbers += 1
        heappush(self._events, (when, self._numbers, event))

    def _start(self, worker: Worker, steps: Steps, delay: float) -> None:
        self._at(self.now + delay, lambda: self._go_on(worker, steps))

    def _wait_for(self, worker: Worker, peer: int) -> Steps:
        """Wait until woken."""
        worker.waited_for.setdefault(peer, []).append(self._running)
        yield WAIT

    def _wake(self, worker: Worker, peer: int) -> None:
        for steps in worker.waited_for.pop(peer):
            self._start(worker, steps, 0.0)

    def _go_on(self, worker: Worker, steps: Steps) -> None:
        self._running = steps
        due = next(steps, StopIteration)
        if isinstance(due, Operation):
            ready = self._spend(worker, self._costs[due.name].worker)
            self._at(ready, lambda: self._ask(worker, steps, due))
        elif isinstance(due, float):
            self._start(worker, steps, due)

    def _spend(self, worker: Worker, seconds: float) -> float:
        """Use a worker's core, after what it has to do already; when that is done."""
        if self.scenario.told_to_all:
            seconds += (self.changes - worker.heard) * self._costs["hear"].worker
            worker.heard = self.changes
        worker.core_free = max(worker.core_free, self.now) + seconds / (1 - self.scenario.worker_load)
        return worker.core_free

    def _ask(self, worker: Worker, steps: Steps, operation: Operation) -> None:
        if operation.name == "beat" and self.scenario.own_lane:
            self._at(self._perform(operation), lambda: self._go_on(worker, steps))
        elif worker.under_way < MAX_CONCURRENCY:
            worker.under_way += 1
            self._at(self._perform(operation), lambda: self._answered(worker, steps))
        else:
            worker.waiting.append((steps, operation))

    def _answered(self, worker: Worker, steps: Steps) -> None:
        worker.under_way -= 1
        if worker.waiting:
            self._ask(worker, *worker.waiting.popleft())
        self._go_on(worker, steps)

    def _perform(self, operation: Operation) -> float:
        """When a node has answered."""
        node, seconds = operation.node, self._costs[operation.name].node
        if operation.name == "replace" and self.scenario.told_to_all:
            each = len(self.living) / self.scenario.nodes * self._costs["deliver"].node
            self._node_free = [max(free, self.now) + each for free in self._node_free]
        if node == WORKERS_NODE and not self.scenario.listed:
            free = 1 - self.scenario.node_load
            seconds *= free / (free - self.scenario.look_load)
        done = self._node_free[node] = max(self._node_free[node], self.now) + seconds
        slot = int(done * SLOTS)
        self.performed.extend([0] * (slot + 1 - len(self.performed)))
        self.performed[slot] += 1
        self.slow += done - self.now > SOCKET_SECONDS
        return done + TRAVEL_SECONDS
