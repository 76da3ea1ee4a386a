"""A farm of worker processes that hold environments: episodes in parallel, and no environment can hang the program.

An episode (its *owner* is task id and sample) has a place in a worker from its first action to `release`, and its
environment there is used again for later episodes. A worker that ends, or a step that takes too long, costs only the
action that was being taken: the worker is killed with the programs it has started, and the other episodes in it are
played again from their start in its successor. No models and no journal here; see `prefopt.agents.rollouts`.
"""

from __future__ import annotations

import selectors
import time
from collections import Counter, deque
from collections.abc import Collection, Generator, Iterable
from dataclasses import dataclass, field
from typing import Any, Self, cast

import prefopt.errors
from prefopt.agents.environment import Move, Outcome, Suite
from prefopt.agents.plays import Order, Owner, Place, Play, Played, order_to_json
from prefopt.agents.worker import packed
from prefopt.agents.worker_process import WorkerProcess
from prefopt.errors import AgentError, ConfigError, PrefoptError
from prefopt.values import JsonValue

_STARTING = 60.0
"""Seconds that the start of a worker may take on a busy machine, with the import of the suite's module; it may take
`Suite.start_seconds` where that is more."""
_CLOSING = 2.0
"""Seconds that a worker has for closing its environments."""
_MOST_SECONDS = 7 * 24 * 3600.0
"""Most that a step may take: a week."""
_NAP = 3600.0
"""Seconds after which it is looked again whether a deadline has come; systems cannot wait for any length of time."""
_FIRST_STARTS = 3
"""Failed attempts to open an environment, none having ever been opened, after which there is no point in going on."""


@dataclass(slots=True)
class _Worker:
    """A worker process, its places, and what it has been told to do."""

    places: list[Place]
    process: WorkerProcess | None = None
    ready: bool = False
    orders: deque[Order] = field(default_factory=deque)
    unsent: list[Order] = field(default_factory=list)
    heard: float = 0.0
    """When it last said something, or was given something to do."""


_Finished = list[tuple[int, Played]]


class Farm:
    """Worker processes with environments. A context manager: leaving it leaves no process behind.

    Not for use by several threads at once. Processes are started when they are first needed.
    """

    def __init__(self, suite: Suite, *, workers: int = 4, step_seconds: float = 60.0) -> None:
        """Set up a farm; nothing is started yet.

        Args:
            suite: whose environments.
            workers: processes.
            step_seconds: what a step may take; beyond it, the worker is killed. For all else `Suite.start_seconds`
                holds.

        Raises:
            ConfigError: no worker, or no time, or more than a week; or a suite with no room in a worker.
            AgentError: the suite cannot be sent to another process.
        """
        if workers < 1:
            raise ConfigError(f"agents: workers is {workers}; use 1 or more")
        if not 0 < step_seconds <= _MOST_SECONDS:
            remedy = "use at most 604800, a week" if step_seconds > 0 else "use more than 0"
            raise ConfigError(f"agents: step_seconds is {step_seconds:g}; {remedy}")
        if suite.per_worker < 1:
            raise ConfigError(
                f"environment {suite.name}: per_worker is {suite.per_worker}; use 1 or more"
            )
        self.suite = suite
        self.step_seconds = step_seconds
        self.capacity = workers * suite.per_worker
        """Episodes that can go on at once."""
        self.counts: Counter[str] = Counter()
        """`resets`, `steps`; `crashes` (exceptions of environments, ended processes), `time-outs`, `restarts` (of
        workers), `drift` (episodes that did not repeat themselves and started anew, see `prefopt.agents.rollouts`)."""
        self._first_line = packed(suite)
        self._workers = [
            _Worker([Place(slot) for slot in range(suite.per_worker)]) for _ in range(workers)
        ]
        self._opened = False
        self._failed_starts = 0

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if kind is None:
            self.close()
        else:
            self._kill()

    def close(self) -> None:
        """End all processes. The farm can be used again."""
        until = time.monotonic() + _CLOSING
        for worker in self._workers:
            if worker.process is not None:
                worker.process.dismiss()
        for worker in self._workers:
            if worker.process is not None:
                worker.process.await_end(until - time.monotonic())
        self._kill()

    def release(self, owners: Collection[Owner]) -> None:
        """Make room: these episodes have ended."""
        for worker in self._workers:
            for place in worker.places:
                if place.owner in owners:
                    place.owner, place.taken = None, -1

    def play(self, plays: Iterable[Play]) -> Generator[tuple[int, Played], None, None]:
        """What became of each play with its position, as they end; workers go on in parallel.

        Owners without a place get one, as soon as there is one: with more than `capacity` owners, all plays have to be
        their owners' last ones. An iterator that is left early ends all processes.

        Raises:
            MissingExtraError, AgentError: environments cannot be opened at all.
            StorageError: no process can be started.
        """
        waiting = deque(enumerate(plays))
        try:
            self._bury_the_dead()
            self._hand_out(waiting)
            while any(worker.orders for worker in self._workers):
                yield from self._collect()
                self._hand_out(waiting)
        except BaseException:
            self._kill()
            raise
        assert not waiting, "more episodes than the farm has room for"  # noqa: S101

    def _hand_out(self, waiting: deque[tuple[int, Play]]) -> None:
        """Give plays to the workers of their owners, and places to owners who have none."""
        later: list[tuple[int, Play]] = []
        while waiting:
            index, play = waiting.popleft()
            found = self._find(play.owner) or self._make_room(play.owner)
            if found is None:
                later.append((index, play))
                break
            worker, place = found
            worker.unsent.append(Order(index, play, place, place.taken + 1))
        waiting.extendleft(reversed(later))
        for worker in self._workers:
            self._send(worker)

    def _find(self, owner: Owner) -> tuple[_Worker, Place] | None:
        found = ((w, p) for w in self._workers for p in w.places if p.owner == owner)
        return next(found, None)

    def _make_room(self, owner: Owner) -> tuple[_Worker, Place] | None:
        """A place in the worker that has most room; in one that runs already, if there is a choice."""
        free = [(w, p) for w in self._workers for p in w.places if p.owner is None]
        if not free:
            return None
        worker, place = min(
            free, key=lambda f: (sum(p.owner is not None for p in f[0].places), not f[0].process)
        )
        place.owner, place.taken = owner, -1
        return worker, place

    def _send(self, worker: _Worker) -> None:
        """Tell a worker everything it does not know yet."""
        if not worker.unsent:
            return
        if worker.process is None:
            worker.process, worker.ready = WorkerProcess(self._first_line), False
        if not worker.orders:
            worker.heard = time.monotonic()
        worker.orders.extend(worker.unsent)
        told = [order_to_json(order) for order in worker.unsent]
        worker.unsent.clear()
        worker.process.send(told)

    def _collect(self) -> _Finished:
        """Wait until something has happened; returns the plays that have ended with it."""
        finished: _Finished = []
        with selectors.DefaultSelector() as selector:
            for worker in self._workers:
                if worker.process is not None and worker.orders:
                    selector.register(worker.process.answers, selectors.EVENT_READ, worker)
                    if worker.process.unsent:
                        selector.register(worker.process.orders, selectors.EVENT_WRITE, worker)
            left = self._next_deadline() - time.monotonic()
            ready = selector.select(min(max(0.0, left), _NAP))
        for key, events in ready:
            worker = cast("_Worker", key.data)
            if worker.process is None:
                continue
            if events & selectors.EVENT_WRITE:
                worker.process.flush()
            else:
                finished += self._listen(worker)
        now = time.monotonic()
        for worker in self._workers:
            if worker.orders and now > worker.heard + self._limit(worker):
                finished += self._overdue(worker)
        return finished

    def _next_deadline(self) -> float:
        return min(w.heard + self._limit(w) for w in self._workers if w.orders)

    def _limit(self, worker: _Worker) -> float:
        """What the worker may take for what it is doing now, in seconds."""
        if not worker.ready:
            return max(_STARTING, self.suite.start_seconds)
        return self.step_seconds if worker.orders[0].begun else self.suite.start_seconds

    def _listen(self, worker: _Worker) -> _Finished:
        """Take what a worker says."""
        assert worker.process is not None  # noqa: S101
        try:
            answers = worker.process.receive()
        except EOFError:
            why = worker.process.why()
            self.counts["crashes"] += 1
            return self._lost(worker, why)
        worker.heard = time.monotonic()
        return [done for answer in answers for done in self._take(worker, answer)]

    def _take(self, worker: _Worker, answer: list[JsonValue]) -> _Finished:
        """Take one answer to the worker's first order."""
        kind, *rest = cast("list[Any]", answer)
        if kind == "ready":
            worker.ready = True
            return []
        order = worker.orders[0]
        if kind == "opened":
            order.opened = self._opened = True
        elif kind == "outcome":
            self.counts["steps" if order.begun else "resets"] += 1
            order.outcomes.append(Outcome(*rest))
            order.place.taken += 1
            if order.complete:
                return self._end(worker, Played(tuple(order.outcomes), order.first))
        elif kind == "moves":
            return self._end(worker, Played(moves=tuple(Move(*move) for move in rest)))
        elif kind == "failed":
            self.counts["crashes"] += 1
            self._note_failed_start(order, rest[0])
            return self._end(worker, Played(failure=rest[0]))
        elif self._opened:
            # It could be opened before: this one is not to be blamed on how the machine is set up.
            self.counts["crashes"] += 1
            return self._end(worker, Played(failure=rest[1]))
        else:
            raise _error(*rest)
        return []

    def _end(self, worker: _Worker, played: Played) -> _Finished:
        """The worker's first order has ended."""
        order = worker.orders.popleft()
        # An expert has ended the episode that was going on.
        if order.play.last or played.failure or order.play.expert:
            order.place.owner, order.place.taken = None, -1
        return [(order.index, played)]

    def _overdue(self, worker: _Worker) -> _Finished:
        self.counts["time-outs"] += 1
        what = "to an action" if worker.orders[0].begun else "at the start of an episode"
        what = what if worker.ready else "at the start of the process"
        return self._lost(worker, f"no answer {what} within {self._limit(worker):g} s")

    def _lost(self, worker: _Worker, why: str) -> _Finished:
        """Replace a worker: its first order has failed, the others are carried out by its successor."""
        self.counts["restarts"] += 1
        culprit = worker.orders[0]
        self._note_failed_start(culprit, why)
        finished = self._end(worker, Played(failure=why))
        remaining = [order for order in worker.orders if order is not culprit]
        self._discard(worker)
        worker.unsent = [Order(o.index, o.play, o.place, 0) for o in remaining] + worker.unsent
        self._send(worker)
        return finished

    def _note_failed_start(self, order: Order, why: str) -> None:
        if self._opened or order.opened:
            return
        self._failed_starts += 1
        if self._failed_starts >= _FIRST_STARTS:
            raise AgentError(
                f"environment {self.suite.name} cannot be opened ({self._failed_starts} attempts): {why}"
            )

    def _bury_the_dead(self) -> None:
        """Notice workers that have ended while they had nothing to do."""
        for worker in self._workers:
            try:
                if worker.process is not None:
                    worker.process.receive()
            except EOFError:
                self.counts["restarts"] += 1
                self._discard(worker)

    def _discard(self, worker: _Worker) -> None:
        """End a worker's process; its owners keep their places, where they will be played from their start."""
        if worker.process is not None:
            worker.process.kill()
        worker.process, worker.ready = None, False
        worker.orders.clear()
        for place in worker.places:
            place.taken = -1

    def _kill(self) -> None:
        for worker in self._workers:
            self._discard(worker)
            worker.unsent.clear()


def _error(name: str, message: str) -> PrefoptError:
    """An error of the library that a worker has reported."""
    return cast("PrefoptError", getattr(prefopt.errors, name)(message))
