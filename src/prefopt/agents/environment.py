"""What an agent acts in: tasks, text environments, suites of them. No models, no processes, no files.

A suite knows the tasks of an environment and starts it; it is small and picklable, since roll-outs open environments in
worker processes (`prefopt.agents.farm`). Suites live in `prefopt.agents.environments`, one module each.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple, Protocol

from prefopt.values import JsonValue


@dataclass(frozen=True, slots=True)
class Task:
    """One thing to do in an environment."""

    id: str
    """Unique within the environment, over all splits."""
    split: str
    kind: str = ""
    """Type of task, for tables; empty where there are no types."""
    max_turns: int = 40
    """Turns of the agent after which an episode ends."""
    meta: Mapping[str, JsonValue] = field(default_factory=dict)
    """What the environment needs to set the task up; of JSON values, so that tasks can be stored."""


class Outcome(NamedTuple):
    """What the environment says after a reset or a step."""

    observation: str
    reward: float
    """What the episode is worth if it ended now, mostly 0 to 1; not the gain of this step."""
    done: bool = False
    success: bool = False
    """Whether the task is solved, which `done` alone does not say."""


class Move(NamedTuple):
    """What an expert does in one turn."""

    action: str
    thought: str = ""


class Environment(Protocol):
    """A running environment; one episode at a time. It lives in one process and is used by one thread."""

    def reset(self, task: Task) -> Outcome:
        """The start of an episode; equal tasks start equally."""
        ...

    def step(self, action: str) -> Outcome:
        """What an action does. Text that is no action of the environment gets an answer too, not an exception."""
        ...

    def expert(self, task: Task) -> Sequence[Move]:
        """An expert's moves from the start of the task; none where there is no expert. Ends the current episode."""
        ...

    def close(self) -> None:
        """Free what it holds; closing twice is allowed."""
        ...


class Suite(Protocol):
    """Tasks of an environment, and how it is started; picklable."""

    @property
    def name(self) -> str:
        """What recipes call it."""
        ...

    @property
    def identity(self) -> str:
        """Digest of everything that decides what happens in an episode: options, version of the package."""
        ...

    @property
    def instruction(self) -> str:
        """What an agent is told first: the setting and the actions there are; not the form of its replies."""
        ...

    @property
    def splits(self) -> Sequence[str]:
        """Names of the splits; the first one is for training."""
        ...

    @property
    def per_worker(self) -> int:
        """How many environments a worker process may keep open: 1 for those that start a virtual machine."""
        ...

    @property
    def start_seconds(self) -> float:
        """Time that opening an environment, or resetting it, may take on a busy machine.

        The start of a worker process, with the import of the suite's module, may take a minute, or this if it is more.
        """
        ...

    def tasks(self, split: str, count: int | None = None) -> list[Task]:
        """The first `count` tasks of a split, always in the same order; None: all.

        Raises:
            ConfigError: no such split, or fewer tasks than asked for.
        """
        ...

    def open(self) -> Environment:
        """A running environment.

        Raises:
            MissingExtraError: a package is missing; names the extra.
            AgentError: a program is missing (with what to install), or it does not start.
        """
        ...
