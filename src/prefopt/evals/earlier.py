"""Earlier evaluations: in what a new one differs, whether it may take their place, whether the two can be compared."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from prefopt.errors import ConfigError, RecordError
from prefopt.evals.files import RESULT_FILE, read_evaluation, read_facts
from prefopt.evals.outcome import Evaluation
from prefopt.progress import say
from prefopt.text.problems import Problem
from prefopt.values import JsonValue

Settings = Mapping[str, JsonValue]

_NAMES = frozenset({"target", "server", "problems"})
"""Settings that only name what a digest beside them decides."""


class Earlier(NamedTuple):
    """An evaluation on disk."""

    folder: Path
    evaluation: Evaluation


class Held(NamedTuple):
    """The number that a folder holds."""

    correct: JsonValue
    total: JsonValue


def differences(before: Settings, after: Settings) -> dict[str, str]:
    """The settings in which two evaluations differ, each with `before / after`; empty where they agree.

    Models and files are compared by their digests: one that was moved or renamed is the same.
    """
    keys = [*after, *(key for key in before if key not in after)]
    changed = [k for k in keys if k not in _NAMES and before.get(k) != after.get(k)]
    found: dict[str, str] = {}
    for key in changed:
        if key == "generator":
            found["model"] = _both(_model(before), _model(after))
        elif key == "problems_sha256":
            found["problems"] = _both(_shown(before.get("problems")), _shown(after.get("problems")))
        else:
            found[key] = _both(_shown(before.get(key)), _shown(after.get(key)))
    return found


def _both(before: str, after: str) -> str:
    return f"{before} / {after}" if before != after else f"{before}, with other content"


def _model(settings: Settings) -> str:
    server = settings.get("server")
    return _shown(settings.get("target")) + (f" at {server}" if server else "")


def _shown(value: JsonValue) -> str:
    if isinstance(value, dict):
        return ",".join(f"{k}={v}" for k, v in value.items()) or "none"
    if isinstance(value, bool):
        return "yes" if value else "no"
    return "none" if value is None else str(value)


def require_replaceable(
    folder: Path, settings: Settings, *, overwrite: bool, file: str = RESULT_FILE
) -> Held | None:
    """The number that an evaluation with these settings will replace; None where the folder holds none.

    One that was made with the same settings is replaced as it is; others only with `overwrite`, and with a line that
    says what they were.

    Raises:
        ConfigError: the folder holds an evaluation with other settings, and `overwrite` is not set.
        RecordError: its file is broken, and `overwrite` is not set.
    """
    if not (folder / file).is_file():
        return None
    try:
        facts = read_facts(folder, file)
    except RecordError as error:
        if not overwrite:
            raise
        say(f"{error}: replaced")
        return None
    held = Held(facts.get("correct"), facts.get("total"))
    before = facts.get("settings")
    changed = differences(before, settings) if isinstance(before, dict) else None
    if changed is not None and not changed:
        return held
    what = (
        "settings that it does not say"
        if changed is None
        else "other settings (then / now: "
        + "; ".join(f"{k} {v}" for k, v in changed.items())
        + ")"
    )
    of = " on ".join(str(facts[key]) for key in ("name", "split") if key in facts)
    which = f"an evaluation of {of} with {what}"
    if not overwrite:
        raise ConfigError(
            f"{folder}: holds {which}; give this one a folder of its own with --output, or replace it with --overwrite"
        )
    say(f"{folder}: replaces {which}")
    return held


def read_earlier(folder: Path, names: Sequence[str]) -> list[Earlier]:
    """The evaluations of files of these names: the folder itself for one, a sub-folder each for several.

    Raises:
        StorageError, RecordError: as `read_evaluation`.
    """
    if len(names) == 1:
        return [Earlier(folder, read_evaluation(folder))]
    of_run = folder / "evaluations"
    root = of_run if of_run.is_dir() else folder
    return [Earlier(root / name, read_evaluation(root / name)) for name in names]


def require_comparable(earlier: Earlier, problems: Sequence[Problem], source: str) -> None:
    """Nothing, where an earlier evaluation is about exactly these problems.

    Raises:
        ConfigError: other problems, or other right answers; the message names folder and file.
    """
    before = {output.id: output.answer for output in earlier.evaluation.outputs}
    after = {problem.id: problem.answer for problem in problems}
    require_same_problems(before, after, names=(str(earlier.folder), source))


def require_same_problems(
    before: Mapping[str, str], after: Mapping[str, str], *, names: tuple[str, str]
) -> None:
    """Nothing, where two sets of problems, id -> right answer, are the same.

    Raises:
        ConfigError: they are not, or there are none; the message calls them by `names`.
    """
    first, second = names
    if before.keys() != after.keys() or not before:
        raise ConfigError(
            f"{first} and {second} share {len(before.keys() & after.keys())} of their "
            f"{len(before)} and {len(after)} problems; evaluate both on the same ones"
        )
    for key, answer in before.items():
        if answer != after[key]:
            raise ConfigError(
                f"{first} and {second} differ in the right answer to '{key}' ({answer!r}, {after[key]!r}); "
                "evaluate both on the same file"
            )
