"""ScienceWorld: experiments in a simulated house, in text. Extra `agents`, and a Java runtime.

The simulator runs in a Java virtual machine of its own, which ends with the process that opened it.

Source: Wang et al. 2022 (arXiv 2203.07540), package `scienceworld`. The selection of tasks and the limits on turns are
those of ETO (arXiv 2403.02502), which DMPO (arXiv 2406.14868) took over.
"""

from __future__ import annotations

import fnmatch
import hashlib
import importlib.metadata
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, cast, get_args

from prefopt.agents.environment import Move, Outcome, Task
from prefopt.agents.java import Machine, Program, require_java
from prefopt.agents.scienceworld_tasks import KINDS, SPLITS, Kind, task_id, variations
from prefopt.config import unknown_name
from prefopt.errors import AgentError, ConfigError, MissingExtraError

OnFatal = Literal["keep_best", "zero", "minus_one"]
SIMPLIFICATIONS = (
    "easy",
    "teleportAction",
    "openDoors",
    "openContainers",
    "selfWateringFlowerPots",
    "noElectricalAction",
)
_EDITION = 1
"""Raised when equal options begin to mean other episodes."""
_ENTRY = "scienceworld.runtime.pythonapi.PythonInterface"
_POSITIVE = (
    "train_per_kind",
    "test_per_kind",
    "max_turns",
    "step_limit",
    "memory",
    "start_seconds",
)
_INSTRUCTION = """\
You are doing science experiments in a house. Its places are: kitchen, foundry, workshop, bathroom, outside, living \
room, bedroom, greenhouse, art studio, hallway.
In each turn you give one action and are told what comes of it. OBJ stands for a thing that you can see or carry.
Actions:
look around: describe the place you are in
look at OBJ, look in OBJ, examine OBJ: describe a thing
inventory: list what you carry
task: repeat the task
{moving}
open OBJ, close OBJ
pick up OBJ, put down OBJ
move OBJ to OBJ: put a thing into a container or onto another thing
pour OBJ into OBJ, dunk OBJ into OBJ, mix OBJ
activate OBJ, deactivate OBJ: switch a device on or off
use OBJ on OBJ: use a tool
connect OBJ to OBJ, disconnect OBJ: only in tasks about electricity
read OBJ, eat OBJ, flush OBJ
focus on OBJ: say that this is the thing the task is about; focusing on a wrong thing ends the experiment
wait: let ten steps pass; wait1: let one step pass
If you are asked which of several things you mean, answer with the number as your action."""
_TELEPORT = "teleport to PLACE: go to any place at once"
_WALK = "go to PLACE: walk through an open door"


@dataclass(frozen=True, slots=True)
class ScienceWorld:
    """Tasks of ScienceWorld.

    Splits: `train`, `seen` and `unseen` are the package's training, development and test variations. With the options
    as they are, `unseen` is exactly the published list of 211 tasks. The published lists for training (1,483) and for
    `seen` (194) are random draws, and the former reaches into the development variations: 54 tasks are in both. Here
    the splits are apart.

    Rewards: the best score so far / 100, over the agent's actions; so 0 before the first one, though some tasks start
    with half of the score. Text that is no action leaves it as it is. In the published code a reply without an action
    sets it to 0.

    Success: the score is 100. The published code counts every episode that the environment ended as a success, also one
    that a wrong focus ended.
    """

    kinds: Sequence[str] | str = ()
    """Types of tasks, by name or pattern (`find-*`); none: the 24 published ones."""
    train_per_kind: int | None = 120
    """At most so many training variations of a type, spread evenly (the published list has 4 to 120); null: all."""
    test_per_kind: int | None = 10
    """The same for `seen` (spread evenly) and for `unseen` (the first ones, as published); null: all."""
    simplification: str = "easy"
    """`easy` as published: teleporting, open doors, pots that water themselves, and `connect` in electrical tasks only.
    Or any of `SIMPLIFICATIONS`, with commas between; empty: none."""
    on_fatal: OnFatal = "keep_best"
    """What an episode is worth after focusing on a wrong thing, which ends it. `keep_best`: the best score before. So
    does the published code, except that there a fatal first action is worth -1; here 0, so that rewards stay between 0
    and 1. `zero`: 0. `minus_one`: -1, the simulator's own score."""
    describe_place: bool = False
    """Whether the first observation describes the place too, besides the task; the published ones do not."""
    max_turns: int | None = None
    """One limit on turns for all tasks; null: the published ones, by type."""
    step_limit: int = 200
    """Steps of the simulator after which an episode ends, as published. `wait` takes ten."""
    memory: int = 2048
    """MiB that a virtual machine may use for its heap."""
    start_seconds: float = 240.0
    """Time for starting a machine or setting up a task; an expert's path through a long task is what takes long."""

    def __post_init__(self) -> None:
        given = (self.kinds,) if isinstance(self.kinds, str) else tuple(self.kinds)
        object.__setattr__(self, "kinds", given)
        for key in _POSITIVE:
            value = getattr(self, key)
            if value is not None and not value > 0:
                raise ConfigError(f"scienceworld: {key} is {value}; use more than 0")
        if self.on_fatal not in get_args(OnFatal):
            raise unknown_name("on_fatal of scienceworld", str(self.on_fatal), get_args(OnFatal))
        for name in self._simplifications():
            if name not in SIMPLIFICATIONS:
                raise unknown_name("simplification of scienceworld", name, SIMPLIFICATIONS)
        wired = next((kind.name for kind in self.selected() if kind.electrical), None)
        if wired and "noElectricalAction" in self._simplifications():
            raise ConfigError(
                f"scienceworld: {wired} cannot be done with the simplification noElectricalAction; use easy, which "
                "keeps `connect` in electrical tasks"
            )

    def _simplifications(self) -> list[str]:
        return [name for name in self.simplification.split(",") if name]

    def selected(self) -> list[Kind]:
        """The types of tasks that `kinds` names."""
        if not self.kinds:
            return [kind for kind in KINDS if kind.published]
        names = [kind.name for kind in KINDS]
        for pattern in self.kinds:
            if not fnmatch.filter(names, pattern):
                raise unknown_name("type of scienceworld tasks", str(pattern), names)
        return [k for k in KINDS if any(fnmatch.fnmatchcase(k.name, p) for p in self.kinds)]

    @property
    def name(self) -> str:
        """What recipes call it."""
        return "scienceworld"

    @property
    def identity(self) -> str:
        """Digest of the options that decide what happens in an episode, and of the package's version.

        Raises:
            MissingExtraError: the package is not installed.
        """
        options = [self.simplification, self.on_fatal, self.describe_place, self.step_limit]
        facts = json.dumps([_EDITION, _version(), *options])
        return hashlib.sha256(facts.encode()).hexdigest()[:16]

    @property
    def instruction(self) -> str:
        """What an agent is told first."""
        teleports = {"easy", "teleportAction"} & set(self._simplifications())
        return _INSTRUCTION.format(moving=f"{_TELEPORT}\n{_WALK}" if teleports else _WALK)

    @property
    def splits(self) -> Sequence[str]:
        """`train`, `seen`, `unseen`."""
        return SPLITS

    @property
    def per_worker(self) -> int:
        """One: each starts a virtual machine."""
        return 1

    def tasks(self, split: str, count: int | None = None) -> list[Task]:
        """The first tasks of a split; the types take turns. No simulator is started.

        Raises:
            ConfigError: no such split, or fewer tasks than asked for.
        """
        if split not in SPLITS:
            raise unknown_name("split of scienceworld", split, SPLITS)
        lists = [[self._task(k, split, n) for n in self._chosen(k, split)] for k in self.selected()]
        longest = max(len(tasks) for tasks in lists)
        found = [tasks[i] for i in range(longest) for tasks in lists if i < len(tasks)]
        if count is not None and count > len(found):
            raise ConfigError(
                f"scienceworld: split {split} has {len(found)} tasks, not {count}; ask for fewer, name more kinds, or "
                "raise train_per_kind or test_per_kind"
            )
        return found[:count]

    def _chosen(self, kind: Kind, split: str) -> list[int]:
        there = variations(kind, split)
        limit = self.train_per_kind if split == "train" else self.test_per_kind
        if limit is None or limit >= len(there):
            return list(there)
        if split == "unseen":
            return list(there[:limit])
        return [there[i * len(there) // limit] for i in range(limit)]

    def _task(self, kind: Kind, split: str, variation: int) -> Task:
        return Task(
            id=task_id(kind, variation),
            split=split,
            kind=kind.name,
            max_turns=self.max_turns or kind.turns,
            meta={"task": kind.name, "variation": variation},
        )

    def open(self) -> Simulator:
        """A running simulator; takes 2 to 15 seconds.

        Raises:
            MissingExtraError: the package is not installed.
            AgentError: there is no Java runtime, or the virtual machine does not start.
        """
        try:
            import py4j  # noqa: F401 # pyright: ignore[reportUnusedImport]
            from scienceworld.constants import JAR_PATH
        except ImportError as error:
            raise _missing() from error
        require_java("ScienceWorld")
        archive = Path(JAR_PATH)
        return Simulator(self, Machine(Program("ScienceWorld", archive, _ENTRY, self.memory)))


class Simulator:
    """A virtual machine with the simulator, for one episode at a time.

    It asks for observation, score and end only. `ScienceWorldEnv.step` of the package asks for all valid actions as
    well, which takes most of its time; observations and scores are the same.
    """

    def __init__(self, suite: ScienceWorld, machine: Machine) -> None:
        self._suite = suite
        self._machine = machine
        self._best = 0.0

    def reset(self, task: Task) -> Outcome:
        """The start of a task: its description, and the place if the suite's options say so."""
        self._load(task, gold=False)
        self._machine.ask("reset")
        # The package begins every episode with this step, so published ones did.
        place = str(self._machine.ask("step", "look around"))
        self._best = 0.0
        told = str(self._machine.ask("getTaskDescription")).strip()
        return Outcome(f"{told}\n\n{place}" if self._suite.describe_place else told, 0.0)

    def step(self, action: str) -> Outcome:
        """What an action does; text that is no action is answered by the simulator."""
        ask = self._machine.ask
        observation = str(ask("step", action))
        score = round(100 * cast("float", ask("getScore")))
        moves = cast("int", ask("getNumMoves"))
        ended = bool(ask("getCompleted")) or moves > self._suite.step_limit or score < 0
        self._best = self._worth(score)
        return Outcome(observation, self._best, done=ended, success=score >= 100)

    def _worth(self, score: int) -> float:
        if score < 0 and self._suite.on_fatal != "keep_best":
            return 0.0 if self._suite.on_fatal == "zero" else -1.0
        return max(self._best, score / 100)

    def expert(self, task: Task) -> Sequence[Move]:
        """The simulator's own path to the score of 100: no thoughts, and not the shortest.

        Where it knows several paths, which one it gives depends on how many it was asked for before.
        """
        self._load(task, gold=True)
        actions = cast("Sequence[object]", self._machine.ask("getGoldActionSequence"))
        return [Move(str(action)) for action in actions]

    def close(self) -> None:
        """End the virtual machine."""
        self._machine.close()

    def _load(self, task: Task, *, gold: bool) -> None:
        name, number = task.meta.get("task"), task.meta.get("variation")
        kind = next((kind for kind in KINDS if kind.name == name), None)
        if kind is None or not isinstance(number, int) or not 0 <= number < kind.variations:
            raise AgentError(
                f"task {task.id}: ScienceWorld has no variation {number} of {name}; use tasks of this suite"
            )
        self._machine.ask("load", name, number, self._suite.simplification, gold)


def _version() -> str:
    try:
        return importlib.metadata.version("scienceworld")
    except importlib.metadata.PackageNotFoundError as error:
        raise _missing() from error


def _missing() -> MissingExtraError:
    return MissingExtraError("ScienceWorld is not installed: pip install 'prefopt[agents]'")


SUITE = ScienceWorld
