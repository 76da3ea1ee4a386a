"""Any environment of Gymnasium that can be played in text: text spaces, or named discrete actions. Extra `gymnasium`.

Observations: texts as they are; otherwise the `ansi` rendering, where there is one, with its colours in words, since
they may be all that shows where one stands; otherwise the observation as JSON.
"""

from __future__ import annotations

import hashlib
import importlib
import importlib.metadata
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, cast

from prefopt.agents.environment import Move, Outcome, Task
from prefopt.config import unknown_name
from prefopt.errors import AgentError, ConfigError, MissingExtraError
from prefopt.values import JsonValue

if TYPE_CHECKING:
    import gymnasium

SPLITS = ("train", "test")
_FIRST_TEST_SEED = 1_000_000
_EDITION = 1
"""Raised when equal options begin to mean other episodes."""
_COLOURS = ("black", "red", "green", "yellow", "blue", "magenta", "cyan", "white")
_COLOURED = re.compile("\x1b\\[([0-9;]+)m(.*?)\x1b\\[0?m", re.DOTALL)
_ESCAPE = re.compile("\x1b\\[[0-9;]*m")
_SUCCESS_KEYS = ("is_success", "success", "won")


@dataclass(frozen=True, slots=True)
class Gymnasium:
    """Episodes of one Gymnasium environment; a task is a seed.

    Rewards: the sum of the environment's rewards so far, as they are. Success: the sum has reached `success_at`, or the
    environment's `info` says so (`is_success`, `success` or `won`).
    """

    id: str
    """What `gymnasium.make` takes: `FrozenLake-v1`."""
    modules: Sequence[str] | str = ()
    """Modules to import first, those that register the environment."""
    arguments: Mapping[str, JsonValue] = field(default_factory=dict)
    """Further arguments of `gymnasium.make`."""
    actions: Sequence[str] | Mapping[str, JsonValue] = ()
    """What the agent can say. A list of names for the actions 0, 1, ...; or an object of names and actions; none: text
    where the environment takes text, else the numbers."""
    setting: str = ""
    """What the agent is told first; the names of the actions follow."""
    success_at: float = 1.0
    """Sum of rewards from which an episode is a success."""
    train_tasks: int = 1000
    """Tasks of the split `train`: the seeds from 0."""
    test_tasks: int = 100
    """Tasks of the split `test`: the seeds from 1,000,000."""
    max_turns: int = 40
    """Turns after which an episode ends."""
    per_worker: int = 8
    """Environments that a worker process may keep open."""
    start_seconds: float = 60.0
    """Time that making or resetting an environment may take."""

    def __post_init__(self) -> None:
        modules = (self.modules,) if isinstance(self.modules, str) else tuple(self.modules)
        object.__setattr__(self, "modules", modules)
        if not isinstance(self.actions, Mapping):
            given = self.actions.split(",") if isinstance(self.actions, str) else self.actions
            object.__setattr__(self, "actions", tuple(str(name).strip() for name in given))
        for key in ("train_tasks", "max_turns", "per_worker", "start_seconds"):
            if not getattr(self, key) > 0:
                raise ConfigError(f"gymnasium: {key} is {getattr(self, key)}; use more than 0")
        if not 0 < self.train_tasks <= _FIRST_TEST_SEED:
            raise ConfigError(
                f"gymnasium: train_tasks is {self.train_tasks}; use at most {_FIRST_TEST_SEED}"
            )

    @property
    def name(self) -> str:
        """What recipes call it."""
        return "gymnasium"

    @property
    def identity(self) -> str:
        """Digest of environment, arguments, actions and version of Gymnasium.

        A change in the package that the environment comes from does not show in it.

        Raises:
            MissingExtraError: the package is not installed.
        """
        try:
            version = importlib.metadata.version("gymnasium")
        except importlib.metadata.PackageNotFoundError as error:
            raise _missing() from error
        facts = [_EDITION, version, self.id, self.modules, dict(self.arguments), self.success_at]
        text = json.dumps([*facts, list(self.named().items())], sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()[:16]

    @property
    def instruction(self) -> str:
        """The setting and the names of the actions."""
        names = ", ".join(self.named())
        told = self.setting or f"You act in the environment {self.id}."
        return f"{told}\nActions: {names}" if names else told

    @property
    def splits(self) -> Sequence[str]:
        """`train` and `test`."""
        return SPLITS

    def named(self) -> dict[str, JsonValue]:
        """The actions by name; empty where the agent's text or number is taken."""
        if isinstance(self.actions, Mapping):
            return dict(self.actions)
        return {name: number for number, name in enumerate(self.actions)}

    def tasks(self, split: str, count: int | None = None) -> list[Task]:
        """The first tasks of a split, one for each seed.

        Raises:
            ConfigError: no such split, or fewer tasks than asked for.
        """
        if split not in SPLITS:
            raise unknown_name("split of gymnasium", split, SPLITS)
        there = self.train_tasks if split == "train" else self.test_tasks
        if count is not None and count > there:
            raise ConfigError(
                f"gymnasium: split {split} has {there} tasks, not {count}; ask for fewer, or raise {split}_tasks"
            )
        first = 0 if split == "train" else _FIRST_TEST_SEED
        seeds = range(first, first + (there if count is None else count))
        return [
            Task(f"{self.id}:{seed}", split, self.id, self.max_turns, {"seed": seed})
            for seed in seeds
        ]

    def open(self) -> Episodes:
        """The environment.

        Raises:
            MissingExtraError: Gymnasium is not installed.
            AgentError: it does not know the environment, or a module cannot be imported.
        """
        try:
            import gymnasium
        except ImportError as error:
            raise _missing() from error
        try:
            for module in self.modules:
                importlib.import_module(module)
            return Episodes(self, _make(self))
        except (ImportError, TypeError, ValueError, gymnasium.error.Error) as error:
            words = _ESCAPE.sub("", " ".join(str(error).split()))
            raise AgentError(
                f"gymnasium cannot make {self.id}: {words}; check id, modules and arguments"
            ) from error


class Episodes:
    """One environment, one episode at a time."""

    def __init__(self, suite: Gymnasium, environment: gymnasium.Env[Any, Any]) -> None:
        import gymnasium

        self._suite = suite
        self._environment = environment
        self._named = suite.named()
        space = environment.action_space
        if not self._named and isinstance(space, gymnasium.spaces.Discrete):
            numbers = range(int(space.start), int(space.start + space.n))
            self._named = {str(number): number for number in numbers}
        elif not self._named and not isinstance(space, gymnasium.spaces.Text):
            raise AgentError(
                f"gymnasium: {suite.id} takes {space}, which is neither text nor one of a few actions; name what an "
                "agent can do in `actions`"
            )
        self._sum = 0.0
        self._success = False

    def reset(self, task: Task) -> Outcome:
        """The start of the episode of a seed."""
        seed = task.meta.get("seed")
        if not isinstance(seed, int):
            raise AgentError(f"task {task.id} has no seed; use tasks of this suite")
        observation, _ = self._environment.reset(seed=seed)
        self._sum, self._success = 0.0, False
        return Outcome(self._shown(observation), 0.0)

    def step(self, action: str) -> Outcome:
        """What an action does; a name that is none is answered with the list of names, and nothing happens."""
        if not self._named:
            return self._act(action)
        said = action.strip()
        folded = {name.casefold(): value for name, value in self._named.items()}
        if said not in self._named and said.casefold() not in folded:
            answer = f"That is no action here. Actions: {', '.join(self._named)}"
            return Outcome(answer, self._sum, success=self._success)
        return self._act(self._named[said] if said in self._named else folded[said.casefold()])

    def _act(self, action: JsonValue) -> Outcome:
        observation, reward, terminated, truncated, info = self._environment.step(action)
        self._sum += float(reward)
        told = any(bool(info.get(key)) for key in _SUCCESS_KEYS)
        self._success = self._success or told or self._sum >= self._suite.success_at
        ended = bool(terminated) or bool(truncated)
        return Outcome(self._shown(observation), self._sum, done=ended, success=self._success)

    def expert(self, task: Task) -> Sequence[Move]:
        """None: Gymnasium knows no experts."""
        del task
        return ()

    def close(self) -> None:
        """Free what the environment holds."""
        self._environment.close()

    def _shown(self, observation: object) -> str:
        if isinstance(observation, str):
            return observation
        if self._environment.render_mode == "ansi":
            return uncoloured(str(cast("object", self._environment.render()))).strip("\n")
        return json.dumps(observation, default=_plain)


def _make(suite: Gymnasium) -> gymnasium.Env[Any, Any]:
    """The environment; rendered as text where its observations are not text and it can be."""
    import gymnasium

    arguments = cast("dict[str, Any]", dict(suite.arguments))
    # The checker refuses texts with characters that a text space did not declare.
    arguments.setdefault("disable_env_checker", True)
    made = gymnasium.make(suite.id, **arguments)
    modes = made.metadata.get("render_modes") or ()
    text = isinstance(made.observation_space, gymnasium.spaces.Text)
    if text or "render_mode" in arguments or "ansi" not in modes:
        return made
    made.close()
    return gymnasium.make(suite.id, render_mode="ansi", **arguments)


def uncoloured(text: str) -> str:
    """The text with the colours of a terminal in words: `<red:S>FFF` where S is red or on red."""

    def named(match: re.Match[str]) -> str:
        codes = [int(code) for code in match[1].split(";") if code]
        colour = next(
            (_COLOURS[code % 10] for code in codes if 30 <= code % 100 < 48 and code % 10 < 8), ""
        )
        return f"<{colour}:{match[2]}>" if colour else match[2]

    return _ESCAPE.sub("", _COLOURED.sub(named, text))


def _plain(value: object) -> object:
    """What numpy's arrays and numbers hold."""
    for method in ("tolist", "item"):
        if hasattr(value, method):
            return getattr(value, method)()
    return str(value)


def _missing() -> MissingExtraError:
    return MissingExtraError("Gymnasium is not installed: pip install 'prefopt[gymnasium]'")


SUITE = Gymnasium
