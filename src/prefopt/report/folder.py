"""Reading a run folder: every file is optional, what cannot be read is said and left out, never a crash.

Holds no judgement (`health`, `verdict`) and no drawing (`plots`).
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import NamedTuple

import numpy as np
from ruamel.yaml import YAML
from ruamel.yaml.error import YAMLError

from prefopt.errors import ConfigError, StorageError
from prefopt.report.series import Series
from prefopt.values import JsonValue

JsonObject = Mapping[str, JsonValue]

RUN_FILES = (
    "run.yaml",
    "env.json",
    "data-ledger.json",
    "plan.json",
    "metrics.jsonl",
    "samples.jsonl",
    "evaluation.json",
    "agent-evaluation.json",
)


CHAIN = "chain.json"
"""In the folder of several trainings one after another: the names of their run folders, under "links"."""


class Evaluation(NamedTuple):
    """`evaluation.json`: one number about the finished model, with its 95% interval."""

    metric: str
    value: float
    low: float | None = None
    high: float | None = None
    correct: int | None = None
    total: int | None = None
    split: str = ""

    @property
    def proportion(self) -> bool:
        """Whether the value is a share of `total` items, to be shown as a percentage."""
        return self.total is not None and 0.0 <= self.value <= 1.0

    @property
    def subject(self) -> str:
        """What was measured where: `accuracy on test`."""
        return f"{self.metric} on {self.split}" if self.split else self.metric


class Sample(NamedTuple):
    """One line of `samples.jsonl`: a pair with the rewards that the trained policy gives it."""

    id: str
    prompt: str
    prefix: str
    chosen: str
    rejected: str
    reward_chosen: float | None
    reward_rejected: float | None
    margin: float | None


@dataclass(frozen=True)
class Run:
    """What is known about one run. Absent files leave their field empty."""

    name: str
    path: Path
    settings: JsonObject = field(default_factory=dict)
    environment: JsonObject = field(default_factory=dict)
    ledgers: Mapping[str, JsonObject] = field(default_factory=dict)
    """Split -> ledger."""
    plan: JsonObject = field(default_factory=dict)
    series: Mapping[str, Series] = field(default_factory=dict)
    """Column of `metrics.jsonl` -> logged values; evaluation columns start with `eval_`."""
    samples: Sequence[Sample] = ()
    evaluation: Evaluation | None = None
    agents: JsonObject = field(default_factory=dict)
    """`agent-evaluation.json`."""
    unread: Sequence[str] = ()
    """What was left out while reading and why, one sentence each."""

    @property
    def trained(self) -> bool:
        """Whether the folder holds the curves of a training run."""
        return bool(self.series)

    @property
    def saved(self) -> float | None:
        """Share of the tokens of separate rows that the trees do not store."""
        rows, tree = number(self.plan, "tokens_rows"), number(self.plan, "tokens_tree")
        return None if not rows or tree is None else 1 - tree / rows


def read_runs(paths: Sequence[Path]) -> list[Run]:
    """The runs of those folders in that order, each with a name of its own; of a chain, all of its trainings.

    The name is `run_name` of the recipe or the folder's; runs that would share one get their parent's in front.
    Raises `ConfigError` for no or repeated folders, `StorageError` for a folder that is no run.
    """
    if not paths:
        raise ConfigError(
            "no run folder given: name at least one folder that `prefopt train` wrote"
        )
    paths = [inner for path in paths for inner in chain_folders(path) or [path]]
    resolved = [path.resolve() for path in paths]
    for place, path in enumerate(resolved):
        if path in resolved[:place]:
            raise ConfigError(f"run folder '{paths[place]}' is given twice: name each folder once")
    runs = [_with_evaluations_of_chain(read_run(path)) for path in paths]
    names = [run.name for run in runs]
    return [
        run if names.count(run.name) == 1 else _renamed(run, path)
        for run, path in zip(runs, resolved, strict=True)
    ]


def read_run(path: Path) -> Run:
    """The run in that folder; `StorageError` when it is no folder or holds no file of a run."""
    _check_is_run(path)
    unread: list[str] = []
    settings = _read_settings(path / "run.yaml", unread)
    ledgers = _read_object(path / "data-ledger.json", unread)
    name = settings.get("run_name")
    return Run(
        name=name if isinstance(name, str) and name else path.resolve().name,
        path=path,
        settings=settings,
        environment=_read_object(path / "env.json", unread),
        ledgers={split: value for split, value in ledgers.items() if isinstance(value, dict)},
        plan=_read_object(path / "plan.json", unread),
        series=_read_metrics(path / "metrics.jsonl", unread),
        samples=_read_samples(path / "samples.jsonl", unread),
        evaluation=_read_evaluation(path / "evaluation.json", unread),
        agents=_read_object(path / "agent-evaluation.json", unread),
        unread=unread,
    )


def chain_folders(path: Path) -> list[Path]:
    """The run folders of the trainings of a chain that have begun, in order; none where the folder is no chain's."""
    if (path / "metrics.jsonl").exists():  # a single training that has taken the folder over
        return []
    names = _read_object(path / CHAIN, []).get("links")
    listed = names if isinstance(names, list) else []
    folders = [path / name for name in listed if isinstance(name, str)]
    return [folder for folder in folders if (folder / "run.yaml").is_file()]


def _with_evaluations_of_chain(run: Run) -> Run:
    """The last training of a finished chain, with what evaluations of the chain's model say, which is its model."""
    top = run.path.parent
    if not (top / "finished.json").is_file() or chain_folders(top)[-1:] != [run.path]:
        return run
    whole = read_run(top)
    return replace(
        run, evaluation=run.evaluation or whole.evaluation, agents=run.agents or whole.agents
    )


def number(row: JsonObject, key: str) -> float | None:
    """The number under `key`; None when absent or no number (booleans are none)."""
    value = row.get(key)
    return float(value) if isinstance(value, int | float) and not isinstance(value, bool) else None


def _check_is_run(path: Path) -> None:
    if not path.exists():
        raise StorageError(f"run folder '{path}' does not exist: check the path, or train first")
    if not path.is_dir():
        raise StorageError(f"'{path}' is a file: give the run folder that holds it")
    if any((path / name).is_file() for name in RUN_FILES):
        return
    inner = sorted(file.parent.name for name in RUN_FILES for file in path.glob(f"*/{name}"))
    remedy = (
        f"did you mean '{path / inner[0]}'?"
        if inner
        else "give a folder that `prefopt train` wrote"
    )
    raise StorageError(
        f"'{path}' is no run folder, it holds none of {', '.join(RUN_FILES)}: {remedy}"
    )


def _renamed(run: Run, resolved: Path) -> Run:
    return replace(run, name=f"{resolved.parent.name}/{run.name}")


def _read_text(path: Path, unread: list[str]) -> str:
    try:
        return path.read_text(encoding="utf-8", errors="replace")
    except FileNotFoundError:
        return ""
    except OSError as error:
        unread.append(f"{path.name} could not be opened ({error.strerror}); it is left out.")
        return ""


def _read_object(path: Path, unread: list[str]) -> dict[str, JsonValue]:
    text = _read_text(path, unread)
    if not text:
        return {}
    try:
        value = json.loads(text)
    except json.JSONDecodeError as error:
        unread.append(f"{path.name}:{error.lineno} is no valid JSON ({error.msg}); it is left out.")
        return {}
    if not isinstance(value, dict):
        unread.append(f"{path.name} holds a {type(value).__name__}, not an object; it is left out.")
        return {}
    return value


def _read_settings(path: Path, unread: list[str]) -> dict[str, JsonValue]:
    text = _read_text(path, unread)
    try:
        value = YAML(typ="safe", pure=True).load(text) if text else {}
    except YAMLError as error:
        problem = str(error).splitlines()[0]
        unread.append(f"{path.name} is no valid YAML ({problem}); it is left out.")
        return {}
    if not isinstance(value, dict):
        unread.append(f"{path.name} holds a {type(value).__name__}, not a recipe; it is left out.")
        return {}
    return {str(key): entry for key, entry in value.items()}


def _read_lines(path: Path, unread: list[str]) -> Iterator[dict[str, JsonValue]]:
    lines = _read_text(path, unread).splitlines()
    for place, line in enumerate(lines, start=1):
        if not line.strip("\0 \t"):
            continue
        try:
            row = json.loads(line)
        except json.JSONDecodeError:
            row = None
        if isinstance(row, dict):
            yield row
            continue
        why = "half written, as after a kill" if place == len(lines) else "no valid JSON object"
        unread.append(f"{path.name}:{place} is {why}; the line is skipped.")


def _read_metrics(path: Path, unread: list[str]) -> dict[str, Series]:
    """Columns over steps. A resumed run repeats the steps after its checkpoint: the later lines count."""
    columns: dict[str, tuple[list[float], list[float]]] = {}
    without_step = 0
    for row in _read_lines(path, unread):
        step = number(row, "step")
        if step is None:
            without_step += 1
            continue
        for key in row:
            value = number(row, key)
            if key == "step" or value is None:
                continue
            steps, values = columns.setdefault(key, ([], []))
            while steps and steps[-1] >= step:
                steps.pop()
                values.pop()
            steps.append(step)
            values.append(value)
    if without_step:
        unread.append(f'{path.name}: lines without a number under "step" skipped: {without_step}.')
    return {
        key: Series(np.array(steps), np.array(values)) for key, (steps, values) in columns.items()
    }


def _read_samples(path: Path, unread: list[str]) -> list[Sample]:
    return [
        Sample(
            id=_text(row.get("id")),
            prompt=_text(row.get("prompt")),
            prefix=_text(row.get("prefix")),
            chosen=_text(row.get("chosen")),
            rejected=_text(row.get("rejected")),
            reward_chosen=number(row, "reward_chosen"),
            reward_rejected=number(row, "reward_rejected"),
            margin=number(row, "margin"),
        )
        for row in _read_lines(path, unread)
    ]


def _text(value: JsonValue) -> str:
    """Text of a prompt or response; messages are written `role: content`, one paragraph each."""
    if value is None:
        return ""
    if isinstance(value, list):
        return "\n\n".join(
            f"{turn.get('role', '')}: {turn.get('content', '')}"
            if isinstance(turn, dict)
            else str(turn)
            for turn in value
        )
    return str(value)


def _read_evaluation(path: Path, unread: list[str]) -> Evaluation | None:
    row = _read_object(path, unread)
    if not row:
        return None
    value = number(row, "value")
    if value is None or not np.isfinite(value):
        unread.append(f'{path.name} holds no number under "value"; it is left out.')
        return None
    correct, total = number(row, "correct"), number(row, "total")
    return Evaluation(
        metric=_text(row.get("metric")) or "value",
        value=value,
        low=number(row, "low"),
        high=number(row, "high"),
        correct=None if correct is None else int(correct),
        total=None if total is None else int(total),
        split=_text(row.get("split")),
    )
