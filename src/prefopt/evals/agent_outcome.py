"""What an evaluation of an agent found, split by split, and how two of them compare. No models, no files.

The average reward is that of the published evaluations of DMPO and ETO: a task without a reward counts 0. The success
rate is not: there an episode is a success when the environment ends it, here when the task is solved.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

from prefopt.agents.trajectory import Trajectory
from prefopt.evals.outcome import Share
from prefopt.grade.statistics import (
    Difference,
    Estimate,
    bootstrap_mean,
    mcnemar,
    paired_bootstrap,
    wilson,
)
from prefopt.values import JsonValue


class KindResult(NamedTuple):
    """Tasks of one kind."""

    tasks: int
    reward: float
    """Average; a task without a reward counts 0."""
    solved: int


class SplitResult(NamedTuple):
    """One episode for each task of a split."""

    split: str
    tasks: int
    reward: Estimate
    """Average over all tasks, one without a reward as 0, with its 95% bootstrap interval."""
    rewarded: Estimate | None
    """The same over the tasks that have a reward; None where there are none."""
    success: Share
    """Tasks that were solved, with the 95% Wilson interval."""
    steps: float
    """Mean number of the agent's turns."""
    format_errors: int
    """Turns in which no action could be read."""
    failures: int
    """Tasks without a reward: the environment or the server failed."""
    cut: int
    """Episodes that a turn at the token limit, or a full context, ended."""
    kinds: Mapping[str, KindResult]
    """By kind of task, in alphabetical order; empty where the environment has none."""


class AgentComparison(NamedTuple):
    """Two evaluations of the same tasks, task by task; over those that have a reward in both."""

    reward: Difference | None
    """Of the average reward, second minus first, with its paired 95% bootstrap interval; None where no task has one."""
    gained: int
    """Tasks that only the second solved."""
    lost: int
    p: float
    """Of gained and lost by McNemar's exact test."""
    tasks: int
    """Those that have a reward in both."""
    failures: tuple[int, int]
    """Tasks without one in the first and in the second: environment or server failed. They say nothing about who is
    better."""


def summarise(split: str, trajectories: Sequence[Trajectory]) -> SplitResult:
    """The numbers of a split.

    Args:
        split: its name.
        trajectories: one for each of its tasks.

    Raises:
        ValueError: there are none.
    """
    total = len(trajectories)
    rewards = [_reward(t) for t in trajectories]
    known = [t.reward for t in trajectories if t.reward is not None]
    solved = sum(_is_solved(t) for t in trajectories)
    return SplitResult(
        split=split,
        tasks=total,
        reward=bootstrap_mean(rewards),
        rewarded=bootstrap_mean(known) if known else None,
        success=Share(solved, total, solved / total, *wilson(solved, total)),
        steps=sum(t.steps for t in trajectories) / total,
        format_errors=sum(t.format_errors for t in trajectories),
        failures=_failures(trajectories),
        cut=sum(t.status in {"length", "context"} for t in trajectories),
        kinds=_by_kind(trajectories),
    )


def _reward(trajectory: Trajectory) -> float:
    return 0.0 if trajectory.reward is None else trajectory.reward


def _is_solved(trajectory: Trajectory) -> bool:
    return trajectory.success and trajectory.reward is not None


def _by_kind(trajectories: Sequence[Trajectory]) -> dict[str, KindResult]:
    kinds = sorted({t.task.kind for t in trajectories})
    if kinds == [""]:
        return {}
    groups = {kind: [t for t in trajectories if t.task.kind == kind] for kind in kinds}
    return {
        kind: KindResult(
            len(group), sum(map(_reward, group)) / len(group), sum(map(_is_solved, group))
        )
        for kind, group in groups.items()
    }


def compare_agents(first: Sequence[Trajectory], second: Sequence[Trajectory]) -> AgentComparison:
    """The second evaluation against the first, over equal tasks in the same order.

    Raises:
        ValueError: other tasks, or none.
    """
    if [t.task.id for t in first] != [t.task.id for t in second]:
        raise ValueError("the sides are about different tasks")
    pairs = list(zip(first, second, strict=True))
    known = [(a, b) for a, b in pairs if a.reward is not None and b.reward is not None]
    solved = [(_is_solved(a), _is_solved(b)) for a, b in known]
    gained, lost = solved.count((False, True)), solved.count((True, False))
    before, after = ([_reward(pair[side]) for pair in known] for side in (0, 1))
    return AgentComparison(
        reward=paired_bootstrap(before, after) if known else None,
        gained=gained,
        lost=lost,
        p=mcnemar(gained, lost),
        tasks=len(known),
        failures=(_failures(first), _failures(second)),
    )


def _failures(trajectories: Sequence[Trajectory]) -> int:
    return sum(t.reward is None for t in trajectories)


def result_to_json(result: SplitResult) -> dict[str, JsonValue]:
    """The numbers as `agent-evaluation.json` keeps them."""
    return {
        "tasks": result.tasks,
        "reward": dict(result.reward._asdict()),
        "rewarded": None if result.rewarded is None else dict(result.rewarded._asdict()),
        "success": dict(result.success._asdict()),
        "steps": result.steps,
        "format_errors": result.format_errors,
        "failures": result.failures,
        "cut": result.cut,
        "kinds": {kind: dict(found._asdict()) for kind, found in result.kinds.items()},
    }
