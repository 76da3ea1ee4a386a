"""Suites of users, checked where they enter: what they say about themselves once, their tasks whenever they are listed.

Everything else then relies on what `prefopt.agents.environment.Suite` promises. What environments do is checked in the
worker (`prefopt.agents.worker`). Workers unpickle this; it imports little.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import NoReturn, TypeVar, cast

from prefopt.agents.environment import Environment, Suite, Task
from prefopt.errors import ConfigError, PrefoptError

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class OwnSuite:
    """A user's suite that keeps its promises, or says in one line which one it breaks."""

    suite: Suite
    called: str
    """What the recipe calls it."""
    name: str
    identity: str
    instruction: str
    splits: tuple[str, ...]
    per_worker: int
    start_seconds: float

    def tasks(self, split: str, count: int | None = None) -> list[Task]:
        """The first `count` tasks of a split; None: all.

        Raises:
            ConfigError: no such split, not so many tasks, or things that are no tasks of this split.
        """
        if split not in self.splits:
            _refuse(self.called, f"no split {split!r}; it has {', '.join(self.splits)}")
        where = f"tasks({split!r})" if count is None else f"tasks({split!r}, {count})"
        found = _asked(self.called, where, lambda: self.suite.tasks(split, count))
        given = _listed(found, self.called, where)
        if count is not None and len(given) != count:
            _refuse(self.called, f"{where} returns {len(given)} tasks; ask for fewer, or mend it")
        tasks = [_task(task, split, f"{where}[{n}]", self.called) for n, task in enumerate(given)]
        twice = [name for name, times in Counter(t.id for t in tasks).items() if times > 1]
        if twice:
            _refuse(self.called, f"{where} returns task {twice[0]!r} twice; ids must be unique")
        return tasks

    def open(self) -> Environment:
        """A running environment of the suite."""
        return self.suite.open()


def checked_suite(suite: Suite, called: str) -> Suite:
    """The suite, with every promise checked that can be.

    Args:
        suite: of a user; has all parts of `Suite`.
        called: what the recipe calls it, for messages.

    Raises:
        ConfigError: a part fails, or is of another type or size than `Suite` says.
    """

    def part(key: str) -> object:
        return _asked(called, key, lambda: getattr(suite, key))

    return OwnSuite(
        suite,
        called,
        name=_text(part("name"), "name", called),
        identity=_text(part("identity"), "identity", called),
        instruction=_text(part("instruction"), "instruction", called, empty=True),
        splits=_splits(part("splits"), called),
        per_worker=_count(part("per_worker"), "per_worker", called),
        start_seconds=_seconds(part("start_seconds"), called),
    )


def _refuse(called: str, what: str) -> NoReturn:
    raise ConfigError(f"environment {called}: {what}")


def _asked(called: str, what: str, ask: Callable[[], T]) -> T:
    """What the user's code says."""
    try:
        return ask()
    except PrefoptError:
        raise
    except Exception as error:
        said = str(error).strip().partition("\n")[0]
        why = f"{type(error).__name__}: {said}" if said else type(error).__name__
        raise ConfigError(f"environment {called}: {what} fails ({why}); mend its class") from error


def _shown(value: object) -> str:
    simple = value is None or isinstance(value, str | int | float)
    return f"{value!r}"[:60] if simple else f"a {type(value).__name__}"


def _text(value: object, what: str, called: str, *, empty: bool = False) -> str:
    if not isinstance(value, str) or not (value or empty):
        _refuse(called, f"{what} is {_shown(value)}; it has to be a text")
    return value


def _count(value: object, what: str, called: str) -> int:
    if not isinstance(value, int) or isinstance(value, bool) or value < 1:
        _refuse(called, f"{what} is {_shown(value)}; use a whole number, 1 or more")
    return value


def _seconds(value: object, called: str) -> float:
    """Without end where the suite says so, but not NaN, with which no deadline ever comes."""
    if not isinstance(value, int | float) or isinstance(value, bool) or not value > 0:
        _refuse(called, f"start_seconds is {_shown(value)}; use a number of seconds above 0")
    return float(value)


def _listed(value: object, called: str, what: str) -> Sequence[object]:
    if not isinstance(value, list | tuple):
        _refuse(called, f"{what} is {_shown(value)}; it has to be a list")
    return cast("Sequence[object]", value)


def _splits(value: object, called: str) -> tuple[str, ...]:
    names = tuple(_text(n, "one of splits", called) for n in _listed(value, called, "splits"))
    if not names or len(set(names)) < len(names):
        _refuse(
            called, f"splits is {list(names)}; give each split once, the one for training first"
        )
    return names


def _task(task: object, split: str, where: str, called: str) -> Task:
    """The task, its `meta` as JSON has it, which is what environments are handed."""
    if not isinstance(task, Task):
        _refuse(called, f"{where} is {_shown(task)}; return prefopt.agents.environment.Task")
    _text(task.id, f"{where}.id", called)
    _text(task.kind, f"{where}.kind", called, empty=True)
    _count(task.max_turns, f"{where}.max_turns", called)
    if task.split != split:
        _refuse(called, f"{where}.split is {_shown(task.split)}; it has to be {split!r}")
    if not isinstance(cast("object", task.meta), Mapping):
        _refuse(called, f"{where}.meta is {_shown(task.meta)}; it has to be a mapping")
    try:
        return replace(task, meta=json.loads(json.dumps(dict(task.meta), allow_nan=False)))
    except (TypeError, ValueError) as error:
        _refuse(called, f"{where}.meta holds what JSON cannot ({error}); use texts, numbers, lists")
