"""`prefopt build` for agents: experts' trajectories, roll-outs of the policy in the environment, pairs of both.

build.yaml           the recipe, resolved
journal.sqlite       every reply and every outcome of the environment
experts.jsonl        experts' trajectories as records: what supervised training reads
trajectories.jsonl   the policy's roll-outs, whole
pairs.jsonl          what `prefopt train` reads
held-out.jsonl       pairs (without roll-outs: experts) of the tasks that are held out, if any
counts.json          what became of every trajectory, what happened to the environments, why experts failed
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Literal, NamedTuple

from pydantic import Field, field_validator
from pydantic import JsonValue as Json

from prefopt.agents.environment import Suite, Task
from prefopt.agents.examples import worked_example
from prefopt.agents.failures import troubles
from prefopt.agents.farm import Farm
from prefopt.agents.formats import find_format
from prefopt.agents.rollouts import Rollouts, demonstrate, roll_out
from prefopt.agents.suites import find_suite
from prefopt.agents.trajectory import Trajectory, trajectory_to_json
from prefopt.build.experts import (
    FAILED,
    LEARNABLE,
    MISSING,
    UNSOLVED,
    UNSOLVED_CHOSEN,
    count_missing,
    count_unsolved_chosen,
    failures_of,
    is_unsolved,
    is_usable,
    read_experts,
    require_same_start,
    tell_failures,
    tell_unsolved,
    why_none,
)
from prefopt.build.folder import COUNTS, HELD_OUT, BuildFolder, open_build, tell
from prefopt.build.held_out import belongs_to_share
from prefopt.build.parts import Shelf, own_writer
from prefopt.build.settings import PAIRS, BuildSection, Count, Positive, Text
from prefopt.build.trajectory_pairs import (
    FATES,
    PairSettings,
    TrajectoryPairs,
    expert_record,
    pair_trajectories,
)
from prefopt.config import RunConfig
from prefopt.errors import RecordError
from prefopt.progress import counted, say
from prefopt.records import Preference

EXPERTS_FILE = "experts.jsonl"
TRAJECTORIES_FILE = "trajectories.jsonl"
_FILES = (PAIRS, EXPERTS_FILE, TRAJECTORIES_FILE, HELD_OUT, COUNTS)


class AgentBuild(BuildSection):
    """How pairs of trajectories are made; the defaults are those of the published scripts."""

    environment: Text
    """What the agent acts in: rooms, scienceworld, gymnasium, or `package.module:Class` for one of your own."""
    environment_options: dict[str, Json] = Field(default={})
    """Options of the environment; they decide what happens in an episode."""
    format: Text = "react"
    """How a turn is written: react (a thought and an action), tool_call, or action (nothing else)."""
    example: bool = True
    """Show an expert's way through the first training task in every prompt; that task is not trained on."""
    train_split: Text | None = None
    """Split whose tasks are played; null: the environment's first one."""
    max_tasks: Count | None = None
    """Use only the first so many."""
    experts: Text | None = None
    """File of published trajectories to take experts from; null: the environment's own experts."""
    keep_unsolved: bool = False
    """Train on experts that do not solve their task too; else they are left out of `experts.jsonl`. In pairs their
    rewards count as they are."""
    rollouts: bool = True
    """false: write the experts only, which is what supervised training needs; no model is loaded."""
    samples: Count = 1
    """Roll-outs per task."""
    temperature: Annotated[float, Field(ge=0)] = 0.0
    """Of the roll-outs; 0: greedy, as published."""
    top_p: Annotated[float, Field(gt=0, le=1)] = 1.0
    """Nucleus of the roll-outs."""
    max_new_tokens: Count = 512
    """Length of a turn in tokens."""
    max_turns: Count | None = None
    """Turns of the agent in an episode; null: what each task says."""
    workers: Count = 4
    """Processes that hold environments."""
    step_seconds: Positive = 60.0
    """Time for one step of the environment; beyond it the process is ended and the episode tried again."""
    pick: Literal["all", "worst", "best"] = "all"
    """Which of several roll-outs of a task make pairs: all, or the one with the lowest or the highest reward."""
    min_gap: Annotated[float, Field(ge=0)] = 0.0
    """Rewards that differ by no more are a tie and make no pair."""
    cut: Literal["none", "extra_turns", "divergence"] = "none"
    """Where rejected sides end: nowhere, `extra_turns` after the chosen one's number of turns, or with the first other
    action."""
    extra_turns: Annotated[int, Field(ge=0)] = 5
    """Turns that a rejected side may have more than the chosen one (cut: extra_turns)."""
    noise_filter: Literal["none", "repeats"] = "none"
    """repeats: leave out roll-outs that repeat an action four times in a row or their words, or break the format."""
    seed: Annotated[int, Field(ge=0, lt=2**32)] = 0
    """Source of the randomness of the roll-outs."""

    @field_validator("format")
    @classmethod
    def _known_format(cls, value: str) -> str:
        find_format(value)
        return value

    @property
    def runs_models(self) -> bool:
        """Whether a model in this process has a part in what the data are; experts need none."""
        return self.rollouts and super().runs_models

    def inputs(self) -> list[str]:
        """The file of experts."""
        return [] if self.experts is None else [self.experts]

    def played(self) -> Rollouts:
        """How the agent plays, without the example."""
        return Rollouts(
            format=find_format(self.format),
            samples=self.samples,
            temperature=self.temperature,
            top_p=self.top_p,
            max_new_tokens=self.max_new_tokens,
            seed=self.seed,
            max_turns=self.max_turns,
        )

    def paired(self) -> PairSettings:
        """Which pairs are made."""
        return PairSettings(
            min_gap=self.min_gap,
            pick=self.pick,
            cut=self.cut,
            extra_turns=self.extra_turns,
            noise_filter=self.noise_filter,
            format=find_format(self.format),
        )

    def contradictions(self) -> list[str]:
        """Broken rules about several keys."""
        broken: list[str] = []
        if self.temperature == 0 and self.samples > 1:
            broken.append(
                "build: temperature 0 makes all roll-outs of a task the same: raise it, or set samples to 1"
            )
        if self.samples == 1 and self.pick != "all":
            broken.append(f"build: pick {self.pick!r} has no effect with samples 1: remove it")
        if self.cut != "extra_turns" and self.extra_turns != 5:
            broken.append(f"build: extra_turns has no effect with cut {self.cut!r}: remove it")
        return broken


class _Stage(NamedTuple):
    """What the parts of a build share."""

    suite: Suite
    farm: Farm
    tasks: list[Task]
    settings: Rollouts
    build: BuildFolder


def build_trajectories(section: AgentBuild, config: RunConfig) -> Path:
    """Make the files of a recipe; returns the file of pairs, or of experts where there are no roll-outs.

    Started again it goes on where it stopped: no reply is generated and no finished episode played twice.

    Raises:
        PrefoptError: anything a user can cause, one line each.
    """
    suite = find_suite(section.environment, section.environment_options)
    tasks = suite.tasks(section.train_split or suite.splits[0], section.max_tasks)
    folder = section.folder(config.method)
    with (
        open_build(folder, config, section, _FILES) as build,
        Farm(suite, workers=section.workers, step_seconds=section.step_seconds) as farm,
    ):
        stage = _stage(section, _Stage(suite, farm, tasks, section.played(), build))
        experts = _experts(section, stage)
        tell_failures(experts, "experts", file=section.experts)
        unsolved = [e for e in experts if is_unsolved(e, in_file=section.experts is not None)]
        tell_unsolved(unsolved, len(experts), keep=section.keep_unsolved)
        if section.rollouts:
            made = _pairs(section, config, stage, experts)
        else:
            made = TrajectoryPairs([], Counter(experts=len(experts)))
        left_out = {e.task.id for e in unsolved if not section.keep_unsolved}
        taught = [e for e in experts if is_usable(e) and e.task.id not in left_out]
        learnable = [expert_record(expert) for expert in taught]
        counts = Counter({"tasks": len(stage.tasks), **made.counts})
        counts.update(+Counter({UNSOLVED_CHOSEN: count_unsolved_chosen(made.records, unsolved)}))
        lost = {FAILED: len(failures_of(experts)), MISSING: count_missing(experts)}
        counts.update(+Counter(lost))
        counts[UNSOLVED] = len(unsolved)
        counts[LEARNABLE] = len(learnable)
        _tell_and_count(stage, counts, experts)
        return _write(section, stage, made._replace(counts=counts), learnable, experts)


def _tell_and_count(stage: _Stage, counts: Counter[str], experts: Sequence[Trajectory]) -> None:
    """What became of everything, on the screen and in its file."""
    events = troubles(stage.farm.counts)
    if events:
        say(events)
    tell(counts)
    facts = {"counts": dict(counts), "environment": dict(stage.farm.counts)}
    failed = {expert.task.id: expert.reason for expert in failures_of(experts)}
    stage.build.write_facts(COUNTS, {**facts, **({"failed_experts": failed} if failed else {})})


def _write(
    section: AgentBuild,
    stage: _Stage,
    made: TrajectoryPairs,
    learnable: Sequence[Preference],
    experts: Sequence[Trajectory],
) -> Path:
    """The files that are trained on; returns the main one."""
    build = stage.build
    build.write_records(EXPERTS_FILE, _split(learnable, section)[0])
    kept, held_out = _split(made.records if section.rollouts else learnable, section)
    build.write_records(HELD_OUT, held_out)
    if not kept:
        (build.path / PAIRS).unlink(missing_ok=True)  # of a build in which more episodes succeeded
        why = _why_nothing(made.counts, section, held_out, experts)
        raise RecordError(f"{build.path}: {why}")
    if section.rollouts:
        build.write_records(PAIRS, kept)
    return _say_where(build.path, kept, held_out, section)


def _stage(section: AgentBuild, bare: _Stage) -> _Stage:
    """With the worked example in the prompt, and without its task."""
    if not section.example:
        return bare
    example = worked_example(bare.suite, bare.farm, bare.settings, journal=bare.build.journal)
    tasks = [task for task in bare.tasks if task.id != example.task.id]
    settings = replace(bare.settings, example=example.messages)
    return bare._replace(tasks=tasks, settings=settings)


def _experts(section: AgentBuild, stage: _Stage) -> list[Trajectory]:
    """Every task's expert, as far as there are any.

    Raises:
        RecordError: roll-outs are asked for, and no task has an expert to compare them with.
    """
    journal, file = stage.build.journal, section.experts
    if file is not None:
        found = read_experts(file, stage.tasks, stage.suite, stage.settings)
        # Where each environment is a virtual machine, only roll-outs are worth starting it for.
        if section.rollouts or stage.suite.per_worker > 1:
            require_same_start(found, file, stage.farm, journal=journal)
    else:
        with counted("experts") as tick:
            found = demonstrate(
                stage.tasks, stage.farm, stage.settings, journal=journal, progress=tick
            )
    if section.rollouts and not any(map(is_usable, found)):
        why = why_none(found, 0, environment=section.environment, file=file)
        raise RecordError(f"{stage.build.path}: {why}")
    return found


def _pairs(
    section: AgentBuild, config: RunConfig, stage: _Stage, experts: Sequence[Trajectory]
) -> TrajectoryPairs:
    generator = own_writer(section, Shelf(config))
    with counted("roll-outs") as tick:
        found = roll_out(
            stage.tasks,
            generator,
            stage.farm,
            stage.settings,
            journal=stage.build.journal,
            progress=tick,
        )
    tell_failures(found, "roll-outs")
    stage.build.write_rows(TRAJECTORIES_FILE, map(trajectory_to_json, found))
    return pair_trajectories(experts, found, section.paired())


def _split(
    records: Sequence[Preference], section: AgentBuild
) -> tuple[list[Preference], list[Preference]]:
    """The records to train on and those held out; a task's side depends on its id alone."""
    out = [belongs_to_share(str(record.meta["task"]), section.held_out) for record in records]
    kept = [r for r, held in zip(records, out, strict=True) if not held]
    return kept, [r for r, held in zip(records, out, strict=True) if held]


def _why_nothing(
    counts: Counter[str],
    section: AgentBuild,
    held_out: Sequence[Preference],
    experts: Sequence[Trajectory],
) -> str:
    if held_out:
        return (
            f"all records are held out; build.held_out {section.held_out} leaves none to train on"
        )
    if not section.rollouts:
        environment, file = section.environment, section.experts
        return why_none(experts, counts[UNSOLVED], environment=environment, file=file)
    reasons = [f"{fate} {counts[fate]}" for fate in FATES if counts[fate]]
    return (
        f"no pair could be made of {counts['roll-outs']} roll-outs ({'; '.join(reasons)}); more tasks, or more samples "
        "at a higher temperature, may help"
    )


def _say_where(
    folder: Path, kept: Sequence[Preference], held_out: Sequence[Preference], section: AgentBuild
) -> Path:
    """The file that is trained on; and what was taken from it."""
    file = folder / (PAIRS if section.rollouts else EXPERTS_FILE)
    what = "pairs" if section.rollouts else "experts' trajectories"
    sizes = [
        sum(len(record.pairs) for record in group) if section.rollouts else len(group)
        for group in (kept, held_out)
    ]
    say(f"{sizes[0]:,} {what}: {file}")
    if held_out:
        say(f"{sizes[1]:,} {what} of held-out tasks: {folder / HELD_OUT}")
    return file
