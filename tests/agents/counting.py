"""Small environments that behave, or misbehave on demand, and agents for them. Workers import this module."""

from __future__ import annotations

import importlib
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import NamedTuple

from prefopt.agents.environment import Move, Outcome, Task
from prefopt.errors import AgentError
from prefopt.generate.base import Completion, Request, Sampling


@dataclass(frozen=True)
class Counting:
    """Say `up` until the goal is reached. The reward is the part of the way that is done."""

    goal: int = 4
    folder: str = ""
    """Where environments leave marks: `opened-...` for each one opened, `started-...` with ids of child processes."""
    places: int = 1
    start: float = 10.0
    trouble: str = ""
    """What opening does: `refuse`, `crash`, `hang`, `die`."""
    name: str = "counting"
    instruction: str = "Count up to the goal."
    splits: tuple[str, ...] = ("train", "test")

    @property
    def identity(self) -> str:
        return f"counting {self.goal}"

    @property
    def per_worker(self) -> int:
        return self.places

    @property
    def start_seconds(self) -> float:
        return self.start

    def tasks(self, split: str, count: int | None = None) -> list[Task]:
        return [Task(f"{split}-{n}", split, max_turns=8) for n in range(count or 8)]

    def open(self) -> CountingEnvironment:
        if self.trouble == "refuse":
            raise AgentError("there is no abacus; install one")
        _misbehave(self.trouble)
        if self.folder:
            Path(self.folder, f"opened-{os.getpid()}-{time.monotonic_ns()}").touch()
        return CountingEnvironment(self.goal, self.folder)


@dataclass(frozen=True)
class Planned(Counting):
    """Its planner is broken for the tasks `broken`, and does not know those of `unknown`; `closed` ones crash."""

    broken: tuple[int, ...] = ()
    unknown: tuple[int, ...] = ()
    closed: tuple[int, ...] = ()

    def tasks(self, split: str, count: int | None = None) -> list[Task]:
        return [self.marked(task, n) for n, task in enumerate(super().tasks(split, count))]

    def marked(self, task: Task, number: int) -> Task:
        lost = "none" if number in self.unknown else "broken" if number in self.broken else "there"
        start = "crash" if number in self.closed else ""
        return replace(task, meta={"expert": lost, "start": start})


@dataclass
class CountingEnvironment:
    """Actions: `up`; those that misbehave; everything else does nothing."""

    goal: int
    folder: str = ""
    at: int = 0
    task: Task = field(default_factory=lambda: Task("", ""))

    def reset(self, task: Task) -> Outcome:
        assert "torch" not in sys.modules and "transformers" not in sys.modules
        self.at, self.task = 0, task
        mended = bool(self.folder) and Path(self.folder, "mended").exists()
        if "start" in task.meta and not mended:
            _misbehave(str(task.meta["start"]))
        return self._seen(f"You are at 0 in {task.id}.")

    def step(self, action: str) -> Outcome:
        if action == "up":
            self.at += 1
            return self._seen(f"You are at {self.at}.")
        if action == "clock":
            return self._seen(f"It is {time.monotonic_ns()}.")
        if action == "nap":
            time.sleep(0.5)
        if action == "nonsense":
            return Outcome(3, 0.0)  # type: ignore[arg-type]
        if action == "infinite":
            return Outcome("far", float("inf"))
        if action == "wordy":
            return Outcome("far", 0.0, "False")  # type: ignore[arg-type]
        if action == "boxed":
            numpy = importlib.import_module("numpy")
            return Outcome("far", 0.5, numpy.bool_(1), numpy.bool_(0))
        if action == "child":
            self._start_child()
        if action == "once":
            self._misbehave_once()
        _misbehave(action)
        return self._seen(f"Nothing comes of {action}.")

    def _seen(self, text: str) -> Outcome:
        return Outcome(text, self.at / self.goal, self.at >= self.goal, self.at >= self.goal)

    def _start_child(self) -> None:
        child = subprocess.Popen(["sleep", "1000"], stdin=subprocess.DEVNULL)
        Path(self.folder, f"started-{child.pid}").touch()
        Path(self.folder, f"started-{os.getpid()}").touch()

    def _misbehave_once(self) -> None:
        """Dies the first time that it is asked to in this task."""
        mark = Path(self.folder, f"died-in-{self.task.id}")
        if not mark.exists():
            mark.touch()
            os.kill(os.getpid(), signal.SIGKILL)

    def expert(self, task: Task) -> Sequence[Move]:
        if task.meta.get("expert") == "none":
            return ()
        if task.meta.get("expert") == "broken":
            raise RuntimeError("no planner binary")
        count = int(str(task.meta.get("moves", self.goal + 2)))
        return [Move("up", f"after {n} comes {n + 1}") for n in range(count)]

    def close(self) -> None:
        if self.folder:
            Path(self.folder, f"closed-{os.getpid()}-{time.monotonic_ns()}").touch()


def _misbehave(how: str) -> None:
    if how == "crash":
        raise ValueError("the abacus broke\nin two")
    if how == "hang":
        time.sleep(1000)
    if how == "grind":
        # One call into C that holds the interpreter lock for ages.
        re.match(r"(a|a)+$", "a" * 60 + "b")
    if how == "die":
        os.kill(os.getpid(), signal.SIGKILL)
    if how == "exit":
        sys.stderr.write("the beads are gone\n")
        os._exit(7)
    if how == "leave":
        sys.exit(3)
    if how == "babble":
        for _ in range(1000):
            sys.stdout.write('["outcome", "garbage", 1.0, true, true]\n')
            sys.stderr.write("garbage on stderr\n")
        os.write(1, b"\xff\x00 raw garbage\n")


Policy = Callable[[Request], str]

CUT = "<cut>"
"""A reply that ends with it was cut at its token limit."""
REFUSED = "<refused>"
"""A reply that begins with it stands for a server that refuses the request for good."""


def turn_of(request: Request) -> tuple[str, int]:
    """Task id and turn that a request is for."""
    task, _, turn = request.id.rpartition(", turn ")
    return task, int(turn)


class Agent:
    """A generator that says what a policy says; it notes what it was asked, and can end the program."""

    identity = "agent"

    def __init__(self, policy: Policy, *, limit: int | None = None) -> None:
        self.policy = policy
        self.limit = limit
        self.batches: list[list[Request]] = []
        self.samplings: list[Sampling] = []
        self.said = 0

    def generate(self, requests: Sequence[Request], sampling: Sampling) -> Iterator[Completion]:
        self.batches.append(list(requests))
        self.samplings.append(sampling)
        for request in requests:
            if self.said == self.limit:
                os.kill(os.getpid(), signal.SIGKILL)
            self.said += 1
            yield self._completion(request)

    def _completion(self, request: Request) -> Completion:
        text, name = self.policy(request), (request.id, request.sample)
        if text.startswith(REFUSED):
            return Completion(*name, text.removeprefix(REFUSED), "error", 0)
        if text.endswith(CUT):
            return Completion(*name, text.removesuffix(CUT), "length", 9)
        return Completion(*name, text, "stop", 9)


def acting(*actions: str, otherwise: str = "up", tasks: Mapping[str, Sequence[str]] = {}) -> Policy:
    """A policy of actions in turn, then always the same; `tasks` gives those of single tasks."""

    def say(request: Request) -> str:
        task, turn = turn_of(request)
        script = tasks.get(task, actions)
        return f"Thought: turn {turn}\nAction: {script[turn] if turn < len(script) else otherwise}"

    return say


class Process(NamedTuple):
    """A process as the system lists it."""

    number: int
    parent: int
    group: int
    program: str
    command: bytes


def processes() -> list[Process]:
    """All that are there, without those that only wait to be forgotten."""
    found: list[Process] = []
    for entry in Path("/proc").glob("[0-9]*"):
        try:
            head, _, tail = (entry / "stat").read_text(encoding="utf-8").rpartition(")")
            command = (entry / "cmdline").read_bytes()
        except (FileNotFoundError, ProcessLookupError):
            continue
        state, parent, group, *_ = tail.split()
        if state not in "ZX":
            program = head.partition("(")[2]
            found.append(Process(int(entry.name), int(parent), int(group), program, command))
    return found


def alive(numbers: Iterable[int]) -> list[int]:
    """Those that are still there."""
    there = {process.number for process in processes()}
    return [number for number in numbers if number in there]


def workers_of(number: int | None = None) -> list[int]:
    """Keepers that a process, or this one, has started."""
    parent = os.getpid() if number is None else number
    return [p.number for p in processes() if p.parent == parent and b"agents.worker" in p.command]


def group_of(keepers: Collection[int]) -> list[Process]:
    """The keepers and everything that runs in their groups."""
    return [process for process in processes() if process.group in keepers]


def wait_until_gone(numbers: Collection[int], seconds: float = 20.0) -> None:
    until = time.monotonic() + seconds
    while left := alive(numbers):
        assert time.monotonic() < until, f"still there: {left}"
        time.sleep(0.01)
