"""Processes that grade, each replaceable at any moment: no comparison can hang, exhaust or crash the program.

A *keeper* is a Python process of its own, started afresh (no fork of a process that holds torch or threads). It forks
a *child*, which reads batches of items as JSON lines from a pipe and answers one line per item. The kernel kills a
child whose comparison passes its limit, by interval timers whose signals have no handler, so that nothing inside C code
can delay it; the keeper reports the death and forks the next child, with everything still imported. All of them
end when the pipe closes, also if the main process is killed.
"""

from __future__ import annotations

import json
import os
import resource
import selectors
import signal
import subprocess
import sys
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from typing import NamedTuple

from prefopt.errors import MissingExtraError, StorageError

Answer = tuple[bool, str | None, str]
"""(correct, extracted, reason) as it travels."""

MEMORY = 2 << 30
"""Address space of a child in bytes."""

_WALL = 4
"""The limit counts processor time: a busy machine changes no verdict; wall time may be as many times as long."""

_BATCH = 32
_LOAD_STATUS, _MEMORY_STATUS = 75, 76
_STATUSES = {_LOAD_STATUS: "load", _MEMORY_STATUS: "memory limit"}
ENDED = ("time limit", "memory limit", "crashed")
"""Why a child's comparison has no verdict."""
FAILED = "failed: "
"""Begins the reason of a comparison that raised an exception, whose name follows."""
_TIMERS = (signal.SIGPROF, signal.SIGALRM)
_START = """\
import json, sys
sys.path[:] = json.loads(sys.argv[1])
from prefopt.grade.workers import keep
keep(sys.argv[2], float(sys.argv[3]))
"""


class EngineNeededError(Exception):
    """An engine has to be imported first; raised in a child, which ends so that the keeper imports it once for all."""


class Engine(NamedTuple):
    """What a worker runs."""

    grade: Callable[[str, str, str], Answer]
    """(problem, answer, output) -> verdict; may raise `EngineNeededError` until `load` has been called."""
    load: Callable[[], None]
    """Imports what takes long."""
    gold: Callable[[str, Sequence[str]], str]
    """(problem, its answers as files give them) -> the gold answer that `grade` takes."""


class Worker:
    """The main process's side of a keeper."""

    def __init__(self, engine: str, seconds: float) -> None:
        command = [sys.executable, "-c", _START, json.dumps(sys.path), engine, str(seconds)]
        try:
            # A session of its own: Ctrl-C reaches the main process alone, which then closes the pipe.
            self.process = subprocess.Popen(  # noqa: S603 - our own interpreter and code
                command,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                start_new_session=True,
                bufsize=0,
                env={**os.environ, "PYTHONWARNINGS": "ignore", "PYTHONHASHSEED": "0"},
            )
        except OSError as error:
            raise StorageError(
                f"a grading process cannot be started ({error.strerror}); lower the number of workers"
            ) from error
        assert self.process.stdin is not None and self.process.stdout is not None  # noqa: PT018, S101
        self.input, self.output = self.process.stdin, self.process.stdout
        self.waiting: deque[int] = deque()
        self.second = False
        """Whether the first waiting item has already ended a child for no known reason."""
        self.answered = False
        """Whether it has ever said anything."""
        self._pending = b""

    def send(self, indices: Sequence[int], items: Sequence[Sequence[str]]) -> None:
        """Hand over a batch; the one before must be done."""
        self.waiting = deque(indices)
        data = json.dumps(list(items)).encode() + b"\n"
        # A dead keeper shows as the end of its output.
        with suppress(BrokenPipeError):
            view = memoryview(data)
            while view:
                view = view[self.input.write(view) or 0 :]

    def receive(self) -> Iterator[str]:
        """The lines that have arrived.

        Raises:
            EOFError: the keeper has ended.
        """
        data = os.read(self.output.fileno(), 1 << 16)
        if not data:
            raise EOFError
        self.answered = True
        *lines, self._pending = (self._pending + data).split(b"\n")
        return iter([line.decode() for line in lines])

    def close(self) -> None:
        """End the keeper and its child."""
        with suppress(BrokenPipeError):
            self.input.close()
        # The child's group: whatever it is in the middle of.
        with suppress(ProcessLookupError, PermissionError):
            os.killpg(self.process.pid, signal.SIGKILL)
        self.output.close()
        self.process.wait()


class Pool:
    """Workers that share a list of items. Not for use by several threads at once."""

    def __init__(self, engine: str, workers: int, seconds: float) -> None:
        self.engine, self.size, self.seconds = engine, workers, seconds
        self.workers: list[Worker] = []

    def map(
        self, items: Sequence[Sequence[str]], progress: Callable[[int, int], None] | None = None
    ) -> list[Answer]:
        """The verdicts, in order.

        Raises:
            MissingExtraError: the engine is not installed.
            StorageError: no process can be started.
        """
        results: list[Answer | None] = [None] * len(items)
        todo = deque(range(len(items)))
        batch = max(1, min(_BATCH, len(items) // (4 * self.size)))
        while len(self.workers) < min(self.size, -(-len(items) // batch)):
            self.workers.append(Worker(self.engine, self.seconds))
        done = 0
        try:
            while done < len(items):
                for worker in self.workers:
                    if not worker.waiting and todo:
                        indices = [todo.popleft() for _ in range(min(batch, len(todo)))]
                        worker.send(indices, [items[i] for i in indices])
                before, done = done, done + self._collect(items, results)
                if progress is not None and done > before:
                    progress(done, len(items))
        except BaseException:
            self.close()
            raise
        return [result for result in results if result is not None]

    def close(self) -> None:
        """End all processes."""
        for worker in self.workers:
            worker.close()
        self.workers.clear()

    def _collect(self, items: Sequence[Sequence[str]], results: list[Answer | None]) -> int:
        """Wait for at least one worker to say something; returns how many items were decided."""
        done = 0
        with selectors.DefaultSelector() as selector:
            for place, worker in enumerate(self.workers):
                if worker.waiting:
                    selector.register(worker.output, selectors.EVENT_READ, place)
            for key, _ in selector.select():
                place = int(key.data)
                worker = self.workers[place]
                try:
                    lines = worker.receive()
                except EOFError:
                    done += self._revive(place, items, results)
                    continue
                for line in lines:
                    done += _take(worker, line, items, results)
        return done

    def _revive(
        self, place: int, items: Sequence[Sequence[str]], results: list[Answer | None]
    ) -> int:
        """Replace a keeper that has ended, which only outside causes do."""
        old = self.workers[place]
        if not old.answered:
            code = old.process.wait()
            raise StorageError(
                f"a grading process ends at once (exit code {code}); see above for why, or lower the number of workers"
            )
        old.close()
        new = self.workers[place] = Worker(self.engine, self.seconds)
        new.waiting, new.second = old.waiting, old.second
        return _died(new, "crashed", items, results)


def keep(name: str, seconds: float) -> None:
    """The keeper: forks children until the main process has closed the pipe."""
    import logging

    from prefopt.grade.maths import find_engine

    logging.disable(logging.CRITICAL)
    sys.setrecursionlimit(4000)
    engine = find_engine(name)
    # Libraries print; only answers may go to the pipe.
    answers = os.dup(1)
    silence = os.open(os.devnull, os.O_WRONLY)
    os.dup2(silence, 1)
    while True:
        child = os.fork()
        if child == 0:
            _limit_memory()
            try:
                _serve(engine, answers, seconds)
            except (BrokenPipeError, KeyboardInterrupt):
                os._exit(0)
            except MemoryError:
                os._exit(_MEMORY_STATUS)
            os._exit(0)
        code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        if code == 0:
            return
        report = _report(code)
        try:
            if report == "load":
                engine.load()
        except MissingExtraError as error:
            report = f"missing {error}"
        try:
            _write(answers, json.dumps(report))
        except BrokenPipeError:
            return


def _report(code: int) -> str:
    if -code in _TIMERS:
        return "time limit"
    return _STATUSES.get(code, "crashed")


def _serve(engine: Engine, answers: int, seconds: float) -> None:
    """The child: grades until the pipe closes."""
    for timer in _TIMERS:
        signal.signal(timer, signal.SIG_DFL)
    while (line := _read_line()) is not None:
        for problem, answer, output in json.loads(line):
            signal.setitimer(signal.ITIMER_PROF, seconds)
            signal.setitimer(signal.ITIMER_REAL, _WALL * seconds)
            try:
                verdict = engine.grade(problem, answer, output)
            except EngineNeededError:
                os._exit(_LOAD_STATUS)
            except MemoryError:
                raise
            except Exception as error:  # noqa: BLE001 - of libraries, on texts that nobody has seen before
                verdict = (False, None, f"{FAILED}{type(error).__name__}")
            signal.setitimer(signal.ITIMER_PROF, 0)
            signal.setitimer(signal.ITIMER_REAL, 0)
            _write(answers, json.dumps(verdict))


def _limit_memory() -> None:
    _, hard = resource.getrlimit(resource.RLIMIT_AS)
    limit = MEMORY if hard == resource.RLIM_INFINITY else min(MEMORY, hard)
    # Systems without this limit refuse it.
    with suppress(ValueError, OSError):
        resource.setrlimit(resource.RLIMIT_AS, (limit, hard))
    resource.setrlimit(resource.RLIMIT_CORE, (0, resource.getrlimit(resource.RLIMIT_CORE)[1]))


def _read_line() -> bytes | None:
    """One batch; None at the end. Nothing is read ahead, so that the next child finds the pipe empty."""
    parts: list[bytes] = []
    while data := os.read(0, 1 << 16):
        parts.append(data)
        if data.endswith(b"\n"):
            return b"".join(parts)
    return None


def _write(descriptor: int, line: str) -> None:
    data = line.encode() + b"\n"
    while data:
        data = data[os.write(descriptor, data) :]


def _take(
    worker: Worker, line: str, items: Sequence[Sequence[str]], results: list[Answer | None]
) -> int:
    """Use a line of a worker: a verdict or the report of a death; returns how many items it decided."""
    said = json.loads(line)
    if isinstance(said, str):
        if said.startswith("missing "):
            raise MissingExtraError(said.removeprefix("missing "))
        return _died(worker, said, items, results)
    correct, extracted, reason = said
    results[worker.waiting.popleft()] = (bool(correct), extracted, str(reason))
    worker.second = False
    return 1


def _died(
    worker: Worker, why: str, items: Sequence[Sequence[str]], results: list[Answer | None]
) -> int:
    """Go on after the death of a child: the item it was at is decided, or tried once more in a fresh child."""
    decided = 0
    # Memory and crashes may be what earlier items left behind.
    if why == "time limit" or (why != "load" and worker.second):
        results[worker.waiting.popleft()] = (False, None, why)
        decided = 1
        worker.second = False
    elif why != "load":
        worker.second = True
    if worker.waiting:
        remaining = list(worker.waiting)
        worker.send(remaining, [items[i] for i in remaining])
    return decided
