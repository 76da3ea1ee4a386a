"""All stages of a recipe: make data, train, evaluate, and that as many rounds as the recipe says.

A round starts from the model of the one before it, which is its reference too, and makes its data with that model.
Every stage is resumable, so the same call goes on where it stopped: what is finished is found again, by its identity.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from prefopt.build.settings import BuildSection
from prefopt.config import RunConfig, parse
from prefopt.errors import ConfigError, RecordError
from prefopt.progress import say
from prefopt.report.page import write_report
from prefopt.runs.chain import going_on, written
from prefopt.runs.method import Method, RunResult
from prefopt.runs.preconditions import (
    require_evaluation_data,
    require_measurable,
    require_models,
    require_own_data,
)
from prefopt.runs.same_data import (
    edited_files,
    is_settled,
    is_trained_on,
    require_same_data,
    settings_of_run,
    trained_files,
)
from prefopt.runs.setup import input_paths
from prefopt.runs.train import train_method
from prefopt.train.folder import RunFolder, open_folder
from prefopt.train.runtime import Runtime
from prefopt.values import JsonValue


class RoundResult(NamedTuple):
    """One finished round."""

    number: int
    """From 1."""
    data: Path | None
    """The file of the build that it was trained on, the first of several; None where the recipe has no section."""
    run: RunResult


def section_of_build(config: RunConfig) -> BuildSection | None:
    """The recipe's section `build`, whatever its method."""
    section = getattr(config, "build", None)
    return section if isinstance(section, BuildSection) else None


def require_single(config: RunConfig, verb: str) -> None:
    """Nothing for a recipe of one round; several are the business of `prefopt run`.

    Raises:
        ConfigError: the recipe has more.
    """
    section = section_of_build(config)
    if section is not None and section.rounds > 1:
        raise ConfigError(
            f"build.rounds is {section.rounds}, and `prefopt {verb}` is a stage of one round: use `prefopt run`, or "
            "build.rounds=1"
        )


def run_recipe(config: RunConfig, method: Method[RunConfig]) -> list[RoundResult]:
    """Every round of the recipe: built, trained, evaluated and reported.

    Processes that a launcher started share the training; data are made and models evaluated by the main one.

    Raises:
        PrefoptError: anything a user can cause, one line each.
    """
    section = section_of_build(config)
    count = 1 if section is None else section.rounds
    runtime = Runtime()
    stale = _stale_rounds(config, count)
    runtime.on_main(lambda: _require_sound(config, method, section, stale))
    done: list[RoundResult] = []
    starts = [config.model_name_or_path]
    for number in range(1, count + 1):
        if count > 1 and runtime.is_main:
            say(f"\nround {number} of {count}")
        previous = done[-1].run.model if done else None
        own = config_of_round(config, method, number, previous, starts=starts)
        done.append(_round(own, method, number, runtime, stale=() if done else stale))
        starts.append(str(done[-1].run.model))
    if count > 1:
        runtime.on_main(lambda: _report(config, done))
    return done


def _require_sound(
    config: RunConfig,
    method: Method[RunConfig],
    section: BuildSection | None,
    stale: Sequence[RunFolder],
) -> None:
    """Mistakes that can be seen now are found before anything is made."""
    require_own_data(config, section)
    if section is not None and section.rounds > 1:
        model = Path(config.output_dir) / "round-1" / "model"
        later = config_of_round(config, method, 2, model, starts=[config.model_name_or_path])
        require_measurable(later, section)
        require_evaluation_data(later, section)
    require_measurable(config, section)
    require_models(config)
    require_evaluation_data(config, section)
    of_build = [] if section is None else [*section.inputs(), *section.models(config)]
    for folder in stale:
        inputs = [*input_paths(config), *of_build]
        open_folder(folder, resume=False, overwrite=True, inputs=inputs)


def _stale_rounds(config: RunConfig, count: int) -> list[RunFolder]:
    """The runs of later rounds that `--overwrite` removes once the data of the first one are made.

    They went on from a model that is trained anew, and the rounds of this run, if it is killed, have to be told from
    them.
    """
    if count == 1 or not config.overwrite_output_dir:
        return []
    there = Path(config.output_dir).glob("round-*")
    return [RunFolder(path) for path in sorted(there) if _LATER.fullmatch(path.name)]


_LATER = re.compile(r"round-([2-9]|[1-9]\d+)")


def _report(config: RunConfig, done: Sequence[RoundResult]) -> None:
    page = write_report([each.run.folder for each in done], Path(config.output_dir) / "report.html")
    say(f"all rounds: {page}")


def config_of_round(
    config: RunConfig,
    method: Method[RunConfig],
    number: int,
    previous: Path | None,
    *,
    starts: Sequence[str],
) -> RunConfig:
    """The recipe of round `number`, from 1, which starts from the model in `previous`; None: the recipe's own.

    With several rounds each has folders of its own, `round-1` and so on, in those that the recipe names. `starts` are
    the models that the rounds began with, from the first on; those of this round and later ones are not looked at.

    Raises:
        ConfigError: `later_rounds` has a mistake, or names what every round decides for itself.
    """
    section = section_of_build(config)
    if section is None or section.rounds == 1:
        return config
    made: list[RunConfig] = []
    for k in range(1, number + 1):
        start = previous if k == number else Path(starts[k - 1]) if k > 1 else None
        made.append(_following(made, start, config, section, method))
    return made[-1]


def _following(
    before: Sequence[RunConfig],
    start: Path | None,
    config: RunConfig,
    section: BuildSection,
    method: Method[RunConfig],
) -> RunConfig:
    """The recipe of the round after those of the recipes `before`, all from `config`; it starts from `start`."""
    raw = written(config)
    build: dict[str, JsonValue] = {**_object(raw["build"]), "rounds": 1}
    build.pop("later_rounds", None)
    folder = f"round-{len(before) + 1}"
    build["output_dir"] = str(section.folder(config.method) / folder)
    if start is not None:
        later = _later_rounds(section)
        own = section.later(before)
        inner = _object(later.pop("build", {}))
        _refuse(inner, own, "build.")
        raw.pop(
            "reference_model", None
        )  # that of the first round; the later ones are against their own start
        raw = going_on({**raw, **later}, start)
        build = _merged({**build, **own}, inner)
    places: dict[str, JsonValue] = {
        "build": build,
        "output_dir": str(Path(config.output_dir) / folder),
    }
    return parse({**raw, **places}, method.config, origin="" if start is None else "later_rounds")


_OF_EVERY_ROUND = ("method", "model_name_or_path", "reference_model", "output_dir")
"""What a round decides for itself, or has in common with all others."""


def _later_rounds(section: BuildSection) -> dict[str, JsonValue]:
    later = dict(section.later_rounds)
    _refuse(later, _OF_EVERY_ROUND)
    build = later.get("build", {})
    if not isinstance(build, dict):
        raise ConfigError(
            f"build.later_rounds.build is {build!r}; give keys of the section `build`, such as gamma: 0.25"
        )
    _refuse(build, ("rounds", "later_rounds", "output_dir"), "build.")
    return later


def _refuse(given: Mapping[str, JsonValue], decided: Collection[str], where: str = "") -> None:
    for key in given:
        if key in decided:
            raise ConfigError(
                f"build.later_rounds.{where}{key} would have no effect: rounds decide it themselves; remove it"
            )


def _merged(under: Mapping[str, JsonValue], over: Mapping[str, JsonValue]) -> dict[str, JsonValue]:
    """Both, sections key by key; what is in both is from `over`."""
    found = dict(under)
    for key, value in over.items():
        earlier = found.get(key)
        if isinstance(value, dict) and isinstance(earlier, dict):
            found[key] = _merged(earlier, value)
        else:
            found[key] = value
    return found


def _object(value: JsonValue) -> dict[str, JsonValue]:
    return dict(value) if isinstance(value, dict) else {}


def _round(
    config: RunConfig,
    method: Method[RunConfig],
    number: int,
    runtime: Runtime,
    *,
    stale: Sequence[RunFolder],
) -> RoundResult:
    data, changes = runtime.on_main(lambda: _prepared(config, method))
    runtime.on_main(lambda: _remove(stale))
    result = train_method(config.model_copy(update=changes), method)
    runtime.on_main(lambda: _measure(config, method, result))
    return RoundResult(number, data, result)


def _remove(runs: Sequence[RunFolder]) -> None:
    for folder in runs:
        folder.acquire()
        try:
            folder.clear()
        finally:
            folder.release()


def _prepared(
    config: RunConfig, method: Method[RunConfig]
) -> tuple[Path | None, dict[str, object]]:
    """As `_unlocked` finds them, while no other process runs in output_dir: its data are not replaced under it."""
    folder = RunFolder(Path(config.output_dir))
    if not folder.path.exists():
        return _unlocked(config, method)
    folder.acquire()
    try:
        return _unlocked(config, method)
    finally:
        folder.release()


def _unlocked(
    config: RunConfig, method: Method[RunConfig]
) -> tuple[Path | None, dict[str, object]]:
    """The data of a round, and the settings with which its training goes on where it was begun before.

    A run with a checkpoint is resumed, a finished one is returned; `--overwrite` starts it anew.
    """
    section = section_of_build(config)
    begun = Path(config.output_dir).exists() and not config.overwrite_output_dir
    changes: dict[str, object] = {}
    if begun and not config.resume_from_checkpoint:
        changes["resume_from_checkpoint"] = True
    if section is None or method.build is None:
        return None, changes
    if begun and is_settled(RunFolder(Path(config.output_dir))):
        require_same_data(config, section)
        changes |= settings_of_run(config, section)
        if is_trained_on(config, section):
            files = trained_files(config, section)
            say(
                f"data: {', '.join(map(str, files))}, on which the run in {config.output_dir} was begun"
            )
            for file in edited_files(config, section):
                say(f"note: {file} has changed since it was built; without it, it is made again")
            return files[0], changes
    made = method.build(config)
    missing = [file for file in trained_files(config, section) if not file.exists()]
    if missing:
        raise RecordError(
            f"{missing[0]}: the build has made no such file to train on; what it waits for, see {made}, comes first, "
            "and the same command then goes on"
        )
    return trained_files(config, section)[0], changes


def _measure(config: RunConfig, method: Method[RunConfig], result: RunResult) -> None:
    if method.measure is not None:
        method.measure(config, result.folder)
        write_report([result.folder], result.report)
