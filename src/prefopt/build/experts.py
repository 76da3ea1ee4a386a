"""Experts from files: published trajectories in place of those of the environment's own experts."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from prefopt.agents.environment import Suite, Task
from prefopt.agents.formats import opening
from prefopt.agents.published import read_trajectories
from prefopt.agents.rollouts import Rollouts
from prefopt.agents.trajectory import Trajectory
from prefopt.errors import ConfigError, RecordError
from prefopt.progress import say


def read_experts(
    file: str, tasks: Sequence[Task], suite: Suite, settings: Rollouts
) -> list[Trajectory]:
    """The trajectories of a file that are about these tasks, in the file's order, with the prompt of the settings.

    The first observation is that of the file; instruction, form of the replies and worked example are those that
    roll-outs and evaluations show.

    Raises:
        ConfigError: none is about these tasks.
        RecordError: a turn has no action in the format of the settings, or the file is broken.
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
    for trajectory in wanted:
        _require_actions(trajectory, file, settings)
    return [_reopened(t, known[t.task.id], suite, settings) for t in wanted]


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
