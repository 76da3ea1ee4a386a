"""Evaluating an agent: the model acts in an environment, one episode for each task of a split.

Killed at any time, the same call goes on where it stopped: replies and outcomes are in a journal. The results are
`agent-evaluation.json` and `trajectories.jsonl` (`prefopt.evals.agent_files`). The prompt is made as in
`prefopt.build.agents`, so that an agent is evaluated as it was trained.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import NamedTuple

from prefopt.agents.environment import Suite, Task
from prefopt.agents.examples import worked_example
from prefopt.agents.farm import Farm
from prefopt.agents.formats import find_format
from prefopt.agents.rollouts import Rollouts, roll_out
from prefopt.agents.suites import find_suite
from prefopt.agents.trajectory import Trajectory
from prefopt.errors import ConfigError
from prefopt.evals.agent_files import RESULT_FILE, read_comparable, write_agent_evaluation
from prefopt.evals.agent_outcome import AgentComparison, SplitResult, compare_agents, summarise
from prefopt.evals.agent_remarks import condition_remarks, prompt_remarks
from prefopt.evals.earlier import require_replaceable
from prefopt.evals.target import (
    Server,
    Target,
    choose_endpoint,
    find_target,
    find_tokenizer,
    open_local,
    open_server,
)
from prefopt.generate.base import Generator
from prefopt.generate.journal import Journal
from prefopt.progress import counted
from prefopt.text.styles import find_style
from prefopt.values import JsonValue

JOURNAL_FILE = "agent-evaluation.sqlite"
DEFAULT_FOLDER = Path("evaluations")


@dataclass(frozen=True, slots=True)
class AgentSettings:
    """How an agent is evaluated. Decoding is greedy unless a temperature is given."""

    environment: str
    options: Mapping[str, JsonValue] = field(default_factory=dict)
    """Of the environment."""
    splits: tuple[str, ...] = ()
    """Empty: all but the first, which is for training."""
    limit: int | None = None
    """Only the first tasks of each split."""
    format: str = "react"
    example: bool = True
    """Whether an expert's way through the first training task is in the prompt."""
    max_turns: int | None = None
    """None: what each task says."""
    max_new_tokens: int = 512
    """Of a turn."""
    temperature: float = 0.0
    seed: int = 0
    workers: int = 4
    step_seconds: float = 60.0
    batch_size: int = 64
    """Rows decoded together; it does not change the results."""
    device: str = "auto"
    dtype: str = "auto"
    server: Server | None = None

    def __post_init__(self) -> None:
        for name in ("max_new_tokens", "workers", "batch_size", "limit", "max_turns"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ConfigError(f"{name} is {value}; use 1 or more")

    @property
    def played(self) -> Rollouts:
        """How the agent plays, without the example."""
        return Rollouts(
            format=find_format(self.format),
            temperature=self.temperature,
            max_new_tokens=self.max_new_tokens,
            seed=self.seed,
            purpose="evaluation",
            max_turns=self.max_turns,
        )


class AgentEvaluation(NamedTuple):
    """What an evaluation found."""

    name: str
    """Of what was evaluated."""
    results: tuple[SplitResult, ...]
    trajectories: tuple[Trajectory, ...]
    """All episodes, split by split."""
    folder: Path
    """Where the files are."""
    remarks: tuple[str, ...] = ()
    """In what the prompt differs from the one that the run was trained with, and the settings from those of the
    evaluation that this one is compared with; which task is left out."""
    against: tuple[AgentComparison, ...] = ()
    """For each split the comparison with the earlier evaluation, where that was asked for."""
    events: Mapping[str, int] = {}
    """What happened to environments in this process: crashes, time-outs, restarts (`Farm.counts`)."""


class _Found(NamedTuple):
    """The episodes by split, and what happened to environments meanwhile."""

    episodes: dict[str, list[Trajectory]]
    events: Mapping[str, int]


class _Played(NamedTuple):
    """What is known before anything is loaded."""

    target: Target
    suite: Suite
    tasks: Mapping[str, list[Task]]
    """By split."""
    settings: AgentSettings
    remarks: tuple[str, ...]
    """What is left out."""


def evaluate_agent(
    target: str,
    settings: AgentSettings,
    *,
    output: Path | None = None,
    name: str | None = None,
    against: Path | None = None,
    overwrite: bool = False,
) -> AgentEvaluation:
    """The evaluation of a model as an agent, written into a folder: `output`, the run folder, or `evaluations/<name>`.

    Everything that can be checked is checked before the model writes anything.

    Args:
        target: a run folder, a model or adapter folder, a hub id, or what to call the model of a server.
        settings: environment, splits, prompt, limits.
        output: folder for the results.
        name: of the model, for tables and the report.
        against: folder of an earlier evaluation of the same tasks.
        overwrite: whether an evaluation with other settings may be replaced; one with equal settings always is.

    Raises:
        ConfigError: an unknown environment, option, split or format; the folder holds an evaluation with other
            settings; or the one in `against` is about other tasks, or another form of the environment.
        AgentError, MissingExtraError: the environment cannot be started.
        ModelError: the target cannot be loaded.
    """
    played = _prepare(find_target(target), settings)
    label = name or played.target.name
    folder = output or played.target.run or DEFAULT_FOLDER / label
    before = (
        None if against is None else read_comparable(against, played.tasks, played.suite.identity)
    )
    generator = _open(played)
    facts = _facts(played, generator.identity)
    require_replaceable(folder, facts, overwrite=overwrite, file=RESULT_FILE)
    found, events = _play(played, generator, folder)
    results = tuple(summarise(split, group) for split, group in found.items())
    write_agent_evaluation(folder, label, results, found, facts, events=events)
    remarks = [*played.remarks, *prompt_remarks(played.target.run, settings, played.suite)]
    compared: tuple[AgentComparison, ...] = ()
    if before is not None and against is not None:
        remarks += condition_remarks(against, before.settings, facts)
        compared = tuple(compare_agents(before.episodes[split], found[split]) for split in found)
    episodes = tuple(t for group in found.values() for t in group)
    return AgentEvaluation(label, results, episodes, folder, tuple(remarks), compared, events)


def _prepare(target: Target, settings: AgentSettings) -> _Played:
    suite = find_suite(settings.environment, settings.options)
    tasks = tasks_of(suite, settings.splits, settings.limit, example=settings.example)
    find_format(settings.format)
    remarks: tuple[str, ...] = ()
    if settings.example and suite.splits[0] in tasks:
        shown = _example_task(suite)
        remarks = (
            f"{shown.split}: task {shown.id!r} stands solved in every prompt and is left out",
        )
    return _Played(target, suite, tasks, settings, remarks)


def _example_task(suite: Suite) -> Task:
    """As `worked_example` takes it."""
    [shown] = suite.tasks(suite.splits[0], 1)
    return shown


def tasks_of(
    suite: Suite, splits: Sequence[str], limit: int | None, *, example: bool
) -> dict[str, list[Task]]:
    """The tasks of an evaluation by split.

    Args:
        suite: whose tasks.
        splits: none: all but the first, which is for training.
        limit: only the first tasks of each split.
        example: whether the first task of the first split stands in the prompt with its solution, which leaves it out.

    Raises:
        ConfigError: no such split, or one given twice, or one with no tasks or fewer than the limit.
    """
    splits = splits or tuple(suite.splits[1:])
    twice = next((split for split in splits if splits.count(split) > 1), None)
    if twice is not None or not splits:
        what = "no split is given" if twice is None else f"split {twice!r} is given twice"
        raise ConfigError(f"environment {suite.name}: {what}; it has {', '.join(suite.splits)}")
    tasks = {split: suite.tasks(split, limit) for split in splits}
    if example and suite.splits[0] in tasks:
        shown = _example_task(suite)
        left = [task for task in tasks[suite.splits[0]] if task.id != shown.id]
        if not left:
            raise ConfigError(
                f"environment {suite.name}: split {suite.splits[0]!r} has no task but that of the worked example; take "
                "more, or leave the example out (example: false, --no-example)"
            )
        tasks[suite.splits[0]] = left
    empty = next((split for split, found in tasks.items() if not found), None)
    if empty is not None:
        raise ConfigError(f"environment {suite.name}: split {empty!r} has no tasks")
    return tasks


def _open(played: _Played) -> Generator:
    settings = played.settings
    if settings.server is not None:
        tokenizer = find_tokenizer(played.target, server=True)
        return open_server(settings.server, find_style("chat"), tokenizer)
    return open_local(
        played.target,
        device=settings.device,
        dtype=settings.dtype,
        batch_size=settings.batch_size,
    )


def _facts(played: _Played, generator: str) -> dict[str, JsonValue]:
    """Everything that decided the numbers; what changes no result is left out."""
    settings, server = played.settings, played.settings.server
    return {
        "target": played.target.model if server is None else server.model,
        "server": None if server is None else server.url,
        "endpoint": None if server is None else choose_endpoint(server, find_style("chat")),
        "extra_body": None if server is None or not server.extra_body else dict(server.extra_body),
        "generator": generator,
        "dtype": settings.dtype if server is None else None,
        "environment": settings.environment,
        "environment_options": dict(settings.options),
        "environment_identity": played.suite.identity,
        "splits": list(played.tasks),
        "limit": settings.limit,
        "format": settings.format,
        "example": settings.example,
        "max_turns": settings.max_turns,
        "max_new_tokens": settings.max_new_tokens,
        "temperature": settings.temperature,
        "seed": settings.seed,
    }


def _play(played: _Played, generator: Generator, folder: Path) -> _Found:
    settings = played.settings
    found: dict[str, list[Trajectory]] = {}
    with ExitStack() as stack:
        journal = stack.enter_context(Journal(folder / JOURNAL_FILE))
        farm = stack.enter_context(
            Farm(played.suite, workers=settings.workers, step_seconds=settings.step_seconds)
        )
        rollouts = settings.played
        if settings.example:
            example = worked_example(played.suite, farm, rollouts, journal=journal)
            rollouts = replace(rollouts, example=example.messages)
        for split, tasks in played.tasks.items():
            with counted(f"{split}: episodes") as tick:
                found[split] = roll_out(
                    tasks, generator, farm, rollouts, journal=journal, progress=tick
                )
        return _Found(found, dict(farm.counts))
