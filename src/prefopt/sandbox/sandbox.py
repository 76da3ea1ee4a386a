"""A pool of isolated interpreters for model-written Python."""

from __future__ import annotations

import hashlib
import json
import os
import platform
import shutil
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import asdict
from functools import cache, partial
from importlib.metadata import packages_distributions, version
from types import TracebackType
from typing import Self

from prefopt.errors import SandboxError
from prefopt.progress import say
from prefopt.sandbox.base import CellResult, Interpreter, Limits
from prefopt.sandbox.command import Launch, isolated, plain, shown_packages, unused_users
from prefopt.sandbox.folders import remove_left_folders
from prefopt.sandbox.isolation import isolation
from prefopt.sandbox.session import Session

WATCH_SECONDS = 0.1
"""Between two looks at what all processes of a solution use together."""
WARNING = (
    "WARNING: unsafe local execution: model-written code runs without isolation, with your files, your network and "
    "your environment in its reach"
)


class Sandbox:
    """Runs untrusted Python programs, each in an interpreter of its own, at most `workers` at once.

    `packages` are importable names that programs may import, with all they require; the standard library is always
    there. Raises SandboxError if isolation does not work here and `unsafe_local_execution` is not set. Every closed
    interpreter is replaced by a fresh one at once, so that the next `open` need not wait for its start.
    """

    def __init__(
        self,
        limits: Limits = Limits(),  # noqa: B008 - frozen
        *,
        workers: int | None = None,
        unsafe_local_execution: bool = False,
        packages: Sequence[str] = (),
    ) -> None:
        self.limits = limits
        self.workers = len(os.sched_getaffinity(0)) if workers is None else workers
        self.isolated = not unsafe_local_execution
        if self.workers < 1:
            raise SandboxError(f"sandbox: workers={workers} must be at least 1")
        require_isolation() if self.isolated else prepare_unsafe_execution()
        self._names = sorted(packages)
        self._packages = shown_packages(packages)
        self._bwrap = shutil.which("bwrap") or "bwrap"
        self._users = unused_users(self.workers)
        self._changed = threading.Condition()
        self._free = list(range(self.workers))
        self._spares: dict[int, Session] = {}
        self._live: dict[Session, int] = {}
        self._launcher: ThreadPoolExecutor | None = None
        self._stopped = threading.Event()

    @property
    def identity(self) -> str:
        """Digest of everything that can change a result: limits, mode, Python, packages; 16 hex digits."""
        owners = packages_distributions() if self._names else {}
        packages = {
            n: [version(owner) for owner in sorted(set(owners.get(n, [])))] for n in self._names
        }
        mode = "isolated" if self.isolated else "unsafe"
        facts = [asdict(self.limits), mode, platform.python_version(), packages]
        return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()[:16]

    def open(self) -> Interpreter:
        """A fresh interpreter; waits until fewer than `workers` are open. Raises SandboxError if none starts."""
        with self._changed:
            self._changed.wait_for(lambda: self._free or self._stopped.is_set())
            if self._stopped.is_set():
                raise SandboxError("sandbox: it is closed; make a new one")
            slot = self._free.pop()
            spare = self._spares.pop(slot, None)
        if spare is not None and spare.process.poll() is not None:  # ended while it waited
            spare.close()
            spare = None
        try:
            session = spare or self._start(slot)
        except BaseException:
            self._give_back(slot)
            raise
        with self._changed:
            self._live[session] = slot
        try:
            session.greet()
        except BaseException:
            session.close()
            raise
        return session

    def run_all(
        self,
        programs: Sequence[Sequence[str]],
        *,
        progress: Callable[[int, int], None] | None = None,
    ) -> list[list[CellResult]]:
        """The results of all cells of all programs, in order; `progress` is told (done, total) after each program.

        Each program has a fresh interpreter. A cell after its interpreter's death is not run and has the status of
        the death and no output.
        """
        given_up = threading.Event()
        with ThreadPoolExecutor(self.workers) as pool:
            try:
                running = [pool.submit(self._run_program, cells, given_up) for cells in programs]
                for done, finished in enumerate(as_completed(running), 1):
                    finished.result()
                    if progress is not None:
                        progress(done, len(running))
                return [future.result() for future in running]
            except BaseException:
                # Leaving the block waits for what runs, so it has to end at once.
                pool.shutdown(wait=False, cancel_futures=True)
                given_up.set()
                self._interrupt()
                raise

    def _interrupt(self) -> None:
        """End the processes of all open interpreters; whoever uses one is told that it is gone."""
        with self._changed:
            sessions = list(self._live)
        for session in sessions:
            session.kill("the work was given up")

    def _run_program(self, cells: Sequence[str], given_up: threading.Event) -> list[CellResult]:
        results: list[CellResult] = []
        with self.open() as interpreter:
            for cell in cells:
                if given_up.is_set():
                    break
                death = interpreter.death
                if death is None:
                    results.append(interpreter.run(cell))
                else:
                    results.append(CellResult("", death.status, 0.0, False))
        return results

    def _start(self, slot: int) -> Session:
        """Start an interpreter in the one thread that lives as long as the pool: the process dies with its thread."""
        user = self._users[slot] if self._users else 0
        launch: Callable[[int], Launch] = (
            partial(isolated, self._bwrap, limits=self.limits, packages=self._packages, user=user)
            if self.isolated
            else partial(plain, limits=self.limits, packages=self._packages)
        )
        with self._changed:
            if self._stopped.is_set():
                raise SandboxError("sandbox: it is closed; make a new one")
            if self._launcher is None:
                self._launcher = ThreadPoolExecutor(1, thread_name_prefix="prefopt-sandbox")
                threading.Thread(
                    target=self._watch, name="prefopt-sandbox-watch", daemon=True
                ).start()
            start = partial(
                Session, launch, self.limits, isolated=self.isolated, closed=self._closed
            )
            starting = self._launcher.submit(start)
        return starting.result()

    def _closed(self, session: Session) -> None:
        """Put a fresh interpreter in the place of one that a user has closed."""
        with self._changed:
            slot = self._live.pop(session, None)
            stopped = self._stopped.is_set()
        if slot is None:  # a spare
            return
        if not stopped and session.channel is not None:
            try:
                spare = self._start(slot)
            except (SandboxError, RuntimeError):  # whoever opens next is told why
                spare = None
            if spare is not None:
                with self._changed:
                    self._spares[slot] = spare
        self._give_back(slot)

    def _give_back(self, slot: int) -> None:
        with self._changed:
            self._free.append(slot)
            self._changed.notify()

    def _watch(self) -> None:
        """Look at all open interpreters again and again, between cells too."""
        while not self._stopped.wait(WATCH_SECONDS):
            with self._changed:
                sessions = list(self._live)
            for session in sessions:
                session.check()

    def close(self) -> None:
        """End all interpreters; nothing can be opened after."""
        with self._changed:
            self._stopped.set()
            self._changed.notify_all()
        if self._launcher is not None:
            self._launcher.shutdown()
        with self._changed:
            sessions = [*self._live, *self._spares.values()]
            self._spares.clear()
        for session in sessions:
            session.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()


def require_isolation() -> None:
    """Raise SandboxError with what was tried and what to do if model-written code cannot be isolated here."""
    found = isolation()
    if not found.works:
        raise SandboxError(
            f"model-written code cannot be isolated here: {found.reason}. Nothing was run. Without isolation such code "
            "can read and delete your files: only if you accept that, say `eval --unsafe-local-execution`, in recipes "
            "build.code.unsafe_local_execution=true, in Python unsafe_local_execution=True"
        )


@cache
def prepare_unsafe_execution() -> None:
    """Say once per process that nothing is isolated, and remove what killed processes have left."""
    say(WARNING)
    remove_left_folders()
