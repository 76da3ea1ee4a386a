"""Tasks of lm-evaluation-harness (package lm-eval, extra `harness`) on a trained model, in this process.

The model is loaded by our own door (folders and adapters are checked as everywhere else) and handed to the harness's
transformers back end, so that what it evaluates is what was trained. Prompts, metrics and data are the tasks' own.
"""

from __future__ import annotations

import importlib
import json
import logging
from collections.abc import Generator as Steps
from collections.abc import Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from types import ModuleType
from typing import NamedTuple, cast

from prefopt.config.mistakes import unknown_name
from prefopt.errors import ConfigError, MissingExtraError
from prefopt.evals.earlier import require_replaceable
from prefopt.evals.files import write_whole
from prefopt.evals.target import find_device, find_target
from prefopt.models.digest import model_digest
from prefopt.models.load import LoadedModel, ModelSettings, load_model
from prefopt.values import JsonValue

RESULT_FILE = "harness.json"
SAMPLES_FILE = "harness-samples-{task}.jsonl"
_PACKAGED = frozenset({"arrow", "csv", "json", "parquet", "text"})
"""Readers of local files in `datasets`; any other dataset_path is a hub id or a folder."""
_OBVIOUS = "`pretrained` model kwarg is not of type `str`"
"""A warning of the harness about models that are handed over loaded, as here."""


@dataclass(frozen=True, slots=True)
class HarnessSettings:
    """How tasks are run."""

    include_path: Path | None = None
    """Folder of the user's own task files (YAML), beside those of the package."""
    limit: int | None = None
    """Only the first problems of each task."""
    num_fewshot: int | None = None
    """Examples in the prompt; None: as the task says."""
    apply_chat_template: bool = False
    """Put each prompt into the model's chat template as a user message."""
    batch_size: int = 64
    device: str = "auto"
    dtype: str = "auto"

    def __post_init__(self) -> None:
        for name, value, least in (
            ("limit", self.limit, 1),
            ("num_fewshot", self.num_fewshot, 0),
            ("batch_size", self.batch_size, 1),
        ):
            if value is not None and value < least:
                raise ConfigError(f"{name} is {value}; use {least} or more")
        if self.include_path is not None and not self.include_path.is_dir():
            raise ConfigError(f"--include-path {self.include_path}: no such folder; check the path")


class Score(NamedTuple):
    """One number of a task or group."""

    task: str
    metric: str
    filter: str
    """How answers were taken from the outputs, such as `strict-match`; `none` where they were used as they are."""
    value: float
    stderr: float | None
    """Standard error; None where the harness gives none."""
    problems: int
    """0 for groups, which hold none of their own."""


class HarnessResult(NamedTuple):
    """What the harness found."""

    scores: tuple[Score, ...]
    folder: Path
    """Holds `harness.json` and `harness-samples-<task>.jsonl`."""


def run_harness(
    target: str,
    tasks: Sequence[str],
    settings: HarnessSettings,
    *,
    output: Path | None = None,
    name: str | None = None,
    overwrite: bool = False,
) -> HarnessResult:
    """The scores of a model on tasks of lm-evaluation-harness, written to a folder.

    The network is used only for tasks whose data are on the hub: where every task reads local files, the hub is
    switched off for the time of the run, so that nothing is asked there and no waiting for it can happen.

    Args:
        target: a run folder, a model or adapter folder, or a hub id.
        tasks: names of tasks, groups or tags.
        settings: how they are run.
        output: folder for the results; by default `harness` in a run folder, else `evaluations/<name>`.
        name: of the model, for the folder.
        overwrite: whether results of other tasks, settings or models may be replaced.

    Raises:
        MissingExtraError: lm-eval is not installed.
        ConfigError: an unknown task, or one that cannot be set up; the message names it. Or the folder holds results
            with other settings.
        ModelError: the target cannot be loaded.
    """
    manager = _task_manager(settings.include_path)
    for task in tasks:
        if task not in manager.all_tasks:
            raise _unknown(task, manager.all_tasks)
    found = find_target(target)
    label = name or found.name
    own = Path("evaluations") / label
    folder = output or (found.run / "harness" if found.run is not None else own)
    loaded = load_model(
        found.model, ModelSettings(dtype=settings.dtype, device=find_device(settings.device))
    )
    if settings.apply_chat_template and not loaded.tokenizer.chat_template:
        raise ConfigError(
            f"{found.model}: --apply-chat-template, but the tokenizer has no chat template; leave the option out"
        )
    facts = _settings(settings, tasks, found.model, model_digest(loaded.model))
    require_replaceable(folder, facts, overwrite=overwrite, file=RESULT_FILE)
    with _quiet(), _offline(active=all(_is_local(manager.task_index[task]) for task in tasks)):
        result = _evaluate(loaded, tasks, settings, manager)
    scores = _scores(result)
    head = {"name": label, "model": found.model, "settings": facts}
    _write(result, scores, folder, head)
    return HarnessResult(scores, folder)


def _settings(
    settings: HarnessSettings, tasks: Sequence[str], model: str, digest: str
) -> dict[str, JsonValue]:
    """What decided the numbers, for `prefopt.evals.earlier`."""
    return {
        "target": model,
        "generator": digest,
        "dtype": settings.dtype,
        "tasks": ",".join(tasks),
        "include_path": None if settings.include_path is None else str(settings.include_path),
        "num_fewshot": settings.num_fewshot,
        "apply_chat_template": settings.apply_chat_template,
        "limit": settings.limit,
    }


def _module(name: str) -> ModuleType:
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise MissingExtraError(
            f"--harness needs lm-evaluation-harness ({error}); pip install 'prefopt[harness]'"
        ) from error


def _task_manager(include_path: Path | None) -> ModuleType:
    """The harness's index of tasks; typed as a module, since the package has no usable types."""
    tasks = _module("lm_eval.tasks")
    with _quiet():
        return tasks.TaskManager(include_path=None if include_path is None else str(include_path))


def _unknown(task: str, known: Sequence[str]) -> ConfigError:
    """The error for a name that is no task; the thousands of names that are none of its like are not listed."""
    line = str(unknown_name("task", task, known)).partition(" Known:")[0].rstrip(".")
    return ConfigError(
        f"{line}{'' if line.endswith('?') else ':'} `lm-eval ls tasks` lists the {len(known)} known ones; your own are "
        "found with --include-path"
    )


def _evaluate(
    loaded: LoadedModel, tasks: Sequence[str], settings: HarnessSettings, manager: ModuleType
) -> Mapping[str, JsonValue]:
    backend = _module("lm_eval.models.huggingface")
    evaluator = _module("lm_eval.evaluator")
    model = backend.HFLM(
        pretrained=loaded.model, tokenizer=loaded.tokenizer, batch_size=settings.batch_size
    )
    try:
        return evaluator.simple_evaluate(
            model=model,
            tasks=list(tasks),
            num_fewshot=settings.num_fewshot,
            limit=settings.limit,
            batch_size=settings.batch_size,
            task_manager=manager,
            apply_chat_template=settings.apply_chat_template,
            log_samples=True,
        )
    except (OSError, ValueError, KeyError, ImportError) as error:
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise ConfigError(
            f"--harness {','.join(tasks)}: lm-evaluation-harness cannot run this ({reason}); check the task's files, "
            "and the network where its data are on the hub"
        ) from error


def _is_local(entry: object) -> bool:
    """Whether a task of the index reads nothing but local files; groups and tags are taken to need the hub."""
    config = getattr(entry, "cfg", None)
    if not isinstance(config, dict):
        return False
    fields = cast("dict[str, object]", config)
    path = fields.get("dataset_path")
    if not isinstance(path, str):
        return False
    return (path in _PACKAGED and "://" not in str(fields.get("dataset_kwargs"))) or Path(
        path
    ).is_dir()


@contextmanager
def _offline(*, active: bool) -> Steps[None]:
    """Switches the hub off while it is `active`."""
    # Both libraries read HF_HUB_OFFLINE once, when they are imported (huggingface_hub 2.4, datasets 5.2), so the values
    # that they keep are set.
    if not active:
        yield
        return
    switches = [
        (_module("huggingface_hub.constants"), "HF_HUB_OFFLINE"),
        (_module("datasets.config"), "HF_HUB_OFFLINE"),
    ]
    before = [(module, name, getattr(module, name)) for module, name in switches]
    try:
        for module, name in switches:
            setattr(module, name, True)
        yield
    finally:
        for module, name, value in before:
            setattr(module, name, value)


@contextmanager
def _quiet() -> Steps[None]:
    """Lets the harness's warnings through and nothing below them, nor the one about loaded models."""
    logger = logging.getLogger("lm_eval.models.huggingface")
    root = logging.getLogger("lm_eval")
    level = root.level

    def is_news(record: logging.LogRecord) -> bool:
        return not record.getMessage().startswith(_OBVIOUS)

    root.setLevel(logging.WARNING)
    logger.addFilter(is_news)
    try:
        yield
    finally:
        root.setLevel(level)
        logger.removeFilter(is_news)


def _scores(result: Mapping[str, JsonValue]) -> tuple[Score, ...]:
    """The numbers of a result; its keys are `metric,filter` and `metric_stderr,filter`."""
    counts = cast("Mapping[str, Mapping[str, int]]", result.get("n-samples", {}))
    results = cast("Mapping[str, Mapping[str, JsonValue]]", result["results"])
    scores: list[Score] = []
    for task, values in results.items():
        for key, value in values.items():
            metric, comma, name = key.partition(",")
            if not comma or metric.endswith("_stderr") or not isinstance(value, int | float):
                continue
            error = values.get(f"{metric}_stderr,{name}")
            stderr = float(error) if isinstance(error, int | float) else None
            problems = counts.get(task, {}).get("effective", 0)
            scores.append(Score(task, metric, name, float(value), stderr, problems))
    return tuple(scores)


def _write(
    result: Mapping[str, JsonValue],
    scores: Sequence[Score],
    folder: Path,
    head: Mapping[str, JsonValue],
) -> None:
    samples = cast("Mapping[str, Sequence[JsonValue]]", result.get("samples", {}))
    for task, rows in samples.items():
        text = "".join(json.dumps(row, ensure_ascii=False, default=str) + "\n" for row in rows)
        write_whole(folder / SAMPLES_FILE.format(task=task.replace("/", "_")), text)
    packages = ("lm-eval", "transformers", "torch", "datasets", "prefopt")
    facts = {
        **head,
        "scores": [score._asdict() for score in scores],
        "packages": {name: metadata.version(name) for name in packages},
        **{k: v for k, v in result.items() if k not in ("samples", *head)},
    }
    write_whole(
        folder / RESULT_FILE, json.dumps(facts, indent=1, ensure_ascii=False, default=str) + "\n"
    )
