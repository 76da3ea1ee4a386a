"""The code blocks of many solutions run in one sandbox: results found again, interpreters kept or replayed.

A result belongs to the code of its solution so far and is looked up by that. What has to run runs in the solution's
own interpreter, which holds the state of its earlier blocks. There are never more interpreters than the sandbox has
workers; a solution whose interpreter had to make room, or which began with finished blocks, gets a fresh one in which
its earlier code is run again.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Collection, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass, field
from threading import Lock
from typing import NamedTuple, Self

from prefopt.generate.base import Completion
from prefopt.generate.journal import Journal, Series
from prefopt.sandbox.base import CellResult, Interpreter
from prefopt.sandbox.sandbox import Sandbox
from prefopt.text.blocks import EMPTY_EXECUTION, SPECIAL_TOKENS, Block

Owner = tuple[str, int]
"""Id and sample of a solution."""

_ESCAPES = re.compile(r"\x1b(?:\[[0-?]*[ -/]*[@-~]|\][^\x07\x1b]*(?:\x07|\x1b\\)?|[@-Z\\^_])")
"""ANSI control sequences: colours, cursor movements, window titles."""
_CUT = "[output cut]"
"""What ends an output that was too long."""
_STOPPED = {
    "timeout": "TimeoutError: the code ran into the time limit",
    "memory": "MemoryError: the code ran into the memory limit",
    "crashed": "SystemError: the code ended the interpreter",
}
"""What the model is shown where the code was stopped from outside."""


class Execution(NamedTuple):
    """What running the last code block of a solution gave."""

    output: str
    """Content of the execution block; empty where nothing ran."""
    reason: str
    """Why nothing ran: an earlier block has ended the interpreter. Empty where it ran."""
    drift: int = 0
    """Earlier blocks that gave another output when they were run again: code that depends on time or chance."""
    death: str = ""
    """Why the interpreter was gone afterwards; empty while it lived on."""


class Job(NamedTuple):
    """A solution whose last block is code."""

    owner: Owner
    blocks: Sequence[Block]


@dataclass(slots=True)
class _Live:
    """An interpreter and what it has seen."""

    interpreter: Interpreter
    done: int = 0
    """Code blocks that have run in it."""
    drift: int = 0
    broken: bool = False
    """Something that the code is not to blame for went wrong with it."""


@dataclass(slots=True)
class _Cells:
    """The code of a solution and the outputs that it shows."""

    codes: list[str] = field(default_factory=list)
    outputs: list[str | None] = field(default_factory=list)
    """Of each code; None where no execution block follows."""


class Executions:
    """Runs code blocks for `solve`. A context manager: leaving it closes every interpreter."""

    def __init__(self, sandbox: Sandbox, journal: Journal | None) -> None:
        """Take up a sandbox, which must not be used for anything else meanwhile.

        Args:
            sandbox: where code runs.
            journal: keeps every result; what it holds is not run again.
        """
        self._sandbox = sandbox
        self._journal = journal
        self._series = Series(sandbox.identity, "execution", "")
        self._held: dict[str, Execution] = {}
        if journal is not None:
            for (digest, _, _), found in journal.series(self._series).items():
                self._held[digest] = Execution(*json.loads(found.text))
        self._idle: dict[Owner, _Live] = {}
        self._busy = 0
        self._lock = Lock()
        # One pool for all calls: an isolated process may be tied to the life of the thread that started it.
        self._threads = ThreadPoolExecutor(sandbox.workers, thread_name_prefix="sandbox")
        self.cells_run = 0
        """Code blocks that were really run, replays included."""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._threads.shutdown(cancel_futures=True)
        self.keep_only(())

    def keep_only(self, owners: Collection[Owner]) -> None:
        """Close the interpreters of all other solutions."""
        for owner in [owner for owner in self._idle if owner not in owners]:
            self._idle.pop(owner).interpreter.close()

    def run(self, jobs: Sequence[Job]) -> list[Execution]:
        """The result of the last block of each job, in order.

        Raises:
            SandboxError: an interpreter cannot be started or broke without the code being to blame.
            StorageError: the journal cannot be written.
        """
        digests = [_digest(_cells(job.blocks).codes) for job in jobs]
        missing: dict[str, Job] = {}
        for digest, job in zip(digests, jobs, strict=True):
            if digest in self._held or digest in missing:
                continue
            death = self._earlier_death(_cells(job.blocks).codes)
            if death:
                self._keep(digest, _not_run(death))
            else:
                missing[digest] = job
        # Those with an interpreter first: the others will take it away.
        waiting = sorted(missing.items(), key=lambda item: item[1].owner not in self._idle)
        running = {self._threads.submit(self._execute, job): digest for digest, job in waiting}
        try:
            for future in as_completed(running):
                self._keep(running[future], future.result())
        finally:
            for future in running:
                future.cancel()
        return [self._held[digest] for digest in digests]

    def _earlier_death(self, codes: Sequence[str]) -> str:
        """Why the code before the last block has ended its interpreter, as far as is known; else empty."""
        before = (self._held.get(_digest(codes[:count])) for count in range(1, len(codes)))
        return next((found.death for found in before if found is not None and found.death), "")

    def _keep(self, digest: str, execution: Execution) -> None:
        self._held[digest] = execution
        if self._journal is not None:
            text = json.dumps(list(execution), ensure_ascii=True)
            self._journal.append(self._series, Completion(digest, 0, text, "stop", 0), digest)

    def _execute(self, job: Job) -> Execution:
        """Run what the solution's interpreter has not seen yet; in a thread of the pool."""
        live = self._take(job.owner)
        try:
            return self._catch_up(live, _cells(job.blocks))
        except BaseException:
            live.broken = True
            raise
        finally:
            self._give_back(job.owner, live)

    def _catch_up(self, live: _Live, cells: _Cells) -> Execution:
        output = ""
        for number in range(live.done, len(cells.codes)):
            if live.interpreter.death is not None:
                return _not_run(live.interpreter.death.reason)
            output = shown(live.interpreter.run(cells.codes[number]))
            live.done += 1
            with self._lock:
                self.cells_run += 1
            if cells.outputs[number] not in (None, output):
                live.drift += 1
        death = live.interpreter.death
        return Execution(output, "", live.drift, "" if death is None else death.reason)

    def _take(self, owner: Owner) -> _Live:
        """The solution's interpreter, or a fresh one, for which an idle one may have to go."""
        room: _Live | None = None
        with self._lock:
            live = self._idle.pop(owner, None)
            if live is None and len(self._idle) + self._busy >= self._sandbox.workers:
                # Solutions take turns in the same order, so the last one served waits longest for its next turn.
                room = self._idle.popitem()[1]
            self._busy += 1
        if live is not None:
            return live
        try:
            if room is not None:
                room.interpreter.close()
            return _Live(self._sandbox.open())
        except BaseException:
            with self._lock:
                self._busy -= 1
            raise

    def _give_back(self, owner: Owner, live: _Live) -> None:
        gone = live.broken or live.interpreter.death is not None
        if gone:
            live.interpreter.close()
        with self._lock:
            self._busy -= 1
            if not gone:
                self._idle[owner] = live


def _not_run(death: str) -> Execution:
    return Execution("", f"an earlier block had ended the interpreter: {death}", death=death)


def shown(result: CellResult) -> str:
    """What a cell printed as the content of an execution block.

    Without ANSI sequences, empty lines around it and white space at its end; `<empty_execution>` where nothing
    is left. Output that was cut, and code that was stopped from outside, say so in a last line. A marker of the
    format that the code printed gets a space after its first character, so that it cannot pass for structure.
    """
    text = _ESCAPES.sub("", result.output).strip("\r\n").rstrip()
    for marker in SPECIAL_TOKENS:
        text = text.replace(marker, f"< {marker[1:]}")
    lines = [text, _CUT if result.truncated else "", _STOPPED.get(result.status, "")]
    return "\n".join(filter(None, lines)) or EMPTY_EXECUTION


def _cells(blocks: Sequence[Block]) -> _Cells:
    cells = _Cells()
    for block, after in zip(blocks, [*blocks[1:], None], strict=True):
        if block.kind == "code":
            cells.codes.append(block.content)
            shown_after = None if after is None or after.kind != "execution" else after.content
            cells.outputs.append(shown_after)
    return cells


def _digest(codes: Sequence[str]) -> str:
    return hashlib.sha256(json.dumps(codes, ensure_ascii=True).encode()).hexdigest()[:32]
