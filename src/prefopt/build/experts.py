"""Experts' trajectories: those of files in place of the environment's own, and which of them are worth imitating."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import replace

from prefopt.agents.demonstration import NO_EXPERT
from prefopt.agents.environment import Suite, Task
from prefopt.agents.failures import first_of
from prefopt.agents.farm import Farm
from prefopt.agents.formats import opening
from prefopt.agents.published import read_trajectories
from prefopt.agents.rollouts import Rollouts, begin
from prefopt.agents.trajectory import Trajectory
from prefopt.errors import ConfigError, RecordError
from prefopt.generate.journal import Journal
from prefopt.progress import say
from prefopt.records import Preference
from prefopt.values import describe, quote

FAILED = "experts without a reward: environment or planner failed"
MISSING = "tasks for which there is no expert"
UNSOLVED = "experts that do not solve their task"
LEARNABLE = "experts that can be trained on"
UNSOLVED_CHOSEN = "pairs that prefer an expert that does not solve its task"
_PLACES = frozenset({"game_file"})
"""Keys of `Task.meta` that say where a file lies on one machine; the id of the task holds its name."""


def is_usable(expert: Trajectory) -> bool:
    """Whether it can be compared with anything."""
    return expert.reward is not None and bool(expert.turns)


def failures_of(found: Sequence[Trajectory]) -> list[Trajectory]:
    """Those without a reward because something failed, and not because there is no expert for their task."""
    return [t for t in found if t.reward is None and t.reason != NO_EXPERT]


def count_missing(experts: Sequence[Trajectory]) -> int:
    """Tasks for which the environment has no expert."""
    return sum(e.reward is None and e.reason == NO_EXPERT for e in experts)


def tell_failures(found: Sequence[Trajectory], what: str, *, file: str | None = None) -> None:
    """Say how many experts or roll-outs have no reward, and why the first one has none.

    Args:
        found: all of them.
        what: what they are called.
        file: where they are from; None: they were played now, and are played again by the next build.
    """
    failed = failures_of(found)
    if failed:
        how = "failed" if file is None else f"of {file} have no reward"
        again = "; the same command tries them again" if file is None else ""
        say(f"{len(failed):,} of {len(found):,} {what} {how} (first: {first_of(failed)}){again}")


def why_none(
    experts: Sequence[Trajectory], unsolved: int, *, environment: str, file: str | None = None
) -> str:
    """Why no expert's trajectory can be trained on, and what to do about each reason.

    Args:
        experts: all of them.
        unsolved: how many are left out because they do not solve their task.
        environment: its name.
        file: where they are from; None: the environment.
    """
    failed, missing = failures_of(experts), count_missing(experts)
    silent = sum(e.reward is not None and not e.turns for e in experts)
    reasons: list[str] = []
    if failed:
        how = "failed" if file is None else f"have no reward in {file}"
        again = ", which the same command tries again" if file is None else ""
        reasons.append(f"{len(failed)} {how} (first: {first_of(failed)}){again}")
    if missing:
        reasons.append(
            f"environment {environment} has none for {missing} tasks: set build.experts to a file"
        )
    if unsolved:
        reasons.append(
            f"{unsolved} do not solve their task: raise build.max_turns, or set build.keep_unsolved to train on them "
            "all the same"
        )
    if silent:
        reasons.append(f"{silent} have no turn of the agent")
    why = f": {'; '.join(reasons)}" if reasons else ""
    return f"no expert's trajectory can be trained on, of {len(experts)}{why}"


def is_unsolved(expert: Trajectory, *, in_file: bool) -> bool:
    """Whether an expert is known not to solve its task: its turns were used up, its moves or the episode ended early.

    Published files state what an episode was worth and not whether it was solved. One of a file (`in_file`) that the
    environment ended is therefore taken as it is.
    """
    taken = in_file and expert.status == "done"
    return is_usable(expert) and not expert.success and not taken


def tell_unsolved(unsolved: Sequence[Trajectory], total: int, *, keep: bool) -> None:
    """Say that there are such experts, and what becomes of them."""
    if unsolved:
        first = unsolved[0]
        fate = "trained on all the same (keep_unsolved)" if keep else "not trained on"
        say(
            f"{len(unsolved):,} of {total:,} experts do not solve their task (first: {first.task.id!r}, reward "
            f"{first.reward:g} after {first.steps} turns): {fate}"
        )


def count_unsolved_chosen(records: Sequence[Preference], unsolved: Sequence[Trajectory]) -> int:
    """Pairs that prefer one of these experts to an agent with less reward still."""
    names = {expert.task.id for expert in unsolved}
    found = 0
    for record in records:
        samples = record.meta["samples"]
        if record.id in names and isinstance(samples, list):
            found += sum(samples[pair.chosen] is None for pair in record.pairs)
    return found


def read_experts(
    file: str, tasks: Sequence[Task], suite: Suite, settings: Rollouts
) -> list[Trajectory]:
    """The trajectories of a file that are about these tasks, in the file's order, with the prompt of the settings.

    The first observation is that of the file; instruction, form of the replies and worked example are those that
    roll-outs and evaluations show.

    Raises:
        ConfigError: none is about these tasks.
        RecordError: two are about the same task; one is about another task of the same id; a turn has no action in the
            format of the settings; or the file is broken.
        StorageError: the file cannot be read.
    """
    known = {task.id: task for task in tasks}
    read = read_trajectories(file)
    wanted = [trajectory for trajectory in read if trajectory.task.id in known]
    if not wanted:
        raise ConfigError(
            f"{file}: none of its {len(read)} trajectories (first: {read[0].task.id!r}) is about a task of environment "
            f"{suite.name} (first: {next(iter(known), 'none')!r}); set experts to null, or choose another file"
        )
    if len(wanted) < len(read):
        say(f"{file}: {len(wanted):,} of {len(read):,} trajectories are about tasks of this build")
    counts = Counter(trajectory.task.id for trajectory in wanted)
    twice = next((name for name, count in counts.items() if count > 1), None)
    if twice is not None:
        raise RecordError(
            f"{file}: task {twice!r} has {counts[twice]} expert trajectories; keep one of them"
        )
    for trajectory in wanted:
        _require_same_task(trajectory.task, known[trajectory.task.id], file)
        _require_actions(trajectory, file, settings)
    return [_reopened(t, known[t.task.id], suite, settings) for t in wanted]


def require_same_start(
    experts: Sequence[Trajectory], file: str, farm: Farm, *, journal: Journal | None = None
) -> None:
    """Nothing, where the experts of a file saw what the environment shows at the start of their tasks.

    A task whose environment fails is not checked.

    Raises:
        RecordError: one saw something else; names the task.
        MissingExtraError, AgentError, StorageError: environments cannot be opened, or the journal not written.
    """
    starts = begin([expert.task for expert in experts], farm, journal=journal)
    for expert, start in zip(experts, starts, strict=True):
        theirs = expert.opening[-1].content
        if start is not None and theirs.strip() != start.observation.strip():
            raise RecordError(
                f"{file}: task {expert.task.id!r}: expert and agent start from different observations ({quote(theirs)} "
                f"and {quote(start.observation)}); make both with the same environment and options"
            )


def _require_same_task(theirs: Task, own: Task, file: str) -> None:
    """Ids alone do not tell: under other options of an environment the same ids are other tasks."""
    for key in theirs.meta.keys() & own.meta.keys() - _PLACES:
        if theirs.meta[key] != own.meta[key]:
            raise RecordError(
                f"{file}: task {own.id!r} is another one there: {key} is {describe(theirs.meta[key])}, here "
                f"{describe(own.meta[key])}; take a file of the same environment and options"
            )


def _require_actions(trajectory: Trajectory, file: str, settings: Rollouts) -> None:
    agent = [message for message in trajectory.turns if message.role == "assistant"]
    for number, message in enumerate(agent):
        if settings.format.read(message.content) is None:
            raise RecordError(
                f"{file}: task {trajectory.task.id!r}: turn {number} has no action in format {settings.format.name}; "
                "choose the format in which the file is written"
            )


def _reopened(trajectory: Trajectory, task: Task, suite: Suite, settings: Rollouts) -> Trajectory:
    start = opening(
        suite,
        settings.format,
        trajectory.opening[-1].content,
        example=settings.example,
        acknowledgement=settings.acknowledgement,
    )
    return replace(trajectory, task=task, opening=start)
