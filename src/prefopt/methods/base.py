"""Methods are found by module, not by registry: each lives in one file here and exposes `METHOD`."""

from __future__ import annotations

import importlib
import pkgutil
from pathlib import Path
from typing import TYPE_CHECKING

import prefopt.methods
from prefopt.config import RunConfig, unknown_name
from prefopt.errors import ConfigError
from prefopt.progress import say
from prefopt.runs.method import Method, RunResult

if TYPE_CHECKING:
    from prefopt.runs.rounds import RoundResult


def find_method(name: str) -> Method[RunConfig]:
    """The method of that name; unknown names raise `ConfigError` with the nearest one."""
    names = method_names()
    if name not in names:
        raise unknown_name("method", name, names)
    return importlib.import_module(f"prefopt.methods.{name}").METHOD


def method_names() -> list[str]:
    """Names of all methods: every module of this package but this one."""
    return sorted(
        m.name for m in pkgutil.iter_modules(prefopt.methods.__path__) if m.name != "base"
    )


def train(config: RunConfig) -> RunResult:
    """Train as the recipe says and write its run folder.

    Raises:
        PrefoptError: anything a user can cause, one line each.
    """
    from prefopt.runs.rounds import require_single  # transformers is loaded only to train
    from prefopt.runs.train import train_method

    require_single(config, "train")
    return train_method(config, find_method(config.method))


def build(config: RunConfig) -> Path:
    """Make the preference data of the recipe and return their file.

    Raises:
        ConfigError: the method makes no data, or the recipe has no section `build`.
        PrefoptError: anything else a user can cause, one line each.
    """
    method = find_method(config.method)
    if method.build is None:
        able = [name for name in method_names() if find_method(name).build is not None]
        raise ConfigError(
            f"method {config.method} makes no data of its own; methods that do: {', '.join(able)}"
        )
    from prefopt.runs.rounds import require_single

    require_single(config, "build")
    return method.build(config)


def run(config: RunConfig) -> list[RoundResult]:
    """All stages of the recipe, round by round: data, training, evaluation, report.

    Raises:
        PrefoptError: anything a user can cause, one line each.
    """
    from prefopt.runs.rounds import run_recipe

    return run_recipe(config, find_method(config.method))


def plan(config: RunConfig) -> dict[str, object]:
    """What `train` would do: the facts of `plan.json`, without a training step."""
    from prefopt.runs.stage import plan_training  # transformers is loaded only to plan

    method = find_method(config.method)
    if method.train is not None:
        say(f"note: {method.name} trains in stages; this is one training on the data as they are")
    return plan_training(config, method)
