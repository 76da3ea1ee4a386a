"""The worked example in an agent's prompt: what an expert does in the first task of the training split."""

from __future__ import annotations

from dataclasses import replace
from typing import NamedTuple

from prefopt.agents.environment import Suite, Task
from prefopt.agents.farm import Farm
from prefopt.agents.rollouts import Rollouts, demonstrate
from prefopt.errors import AgentError
from prefopt.generate.journal import Journal
from prefopt.progress import say
from prefopt.records import Message

LONG = 20
"""Turns from which on an example is worth a remark."""


class Example(NamedTuple):
    """A task and how it is solved, as messages."""

    task: Task
    messages: tuple[Message, ...]
    """First observation, turns and observations; for `Rollouts.example`."""


def worked_example(
    suite: Suite, farm: Farm, settings: Rollouts, *, journal: Journal | None = None
) -> Example:
    """The expert's way through the first task of the suite's first split.

    The task depends on the suite alone, so that training, roll-outs and evaluations show the same example.

    Args:
        suite: whose task it is.
        farm: of environments of that suite.
        settings: the format of turns; example and limit of turns do not count.
        journal: keeps what the environment said.

    Raises:
        AgentError: the environment has no expert for the task, or failed.
    """
    [task] = suite.tasks(suite.splits[0], 1)
    # The observation as a message of its own, and the whole way, whatever limit the agent has.
    alone = replace(settings, example=(), acknowledgement="OK", max_turns=None)
    [shown] = demonstrate([task], farm, alone, journal=journal)
    if shown.reward is None or not shown.turns:
        raise AgentError(
            f"environment {suite.name}: no example can be shown, since there is no expert's way through task "
            f"{task.id!r} ({shown.reason or 'no moves'}); leave the example out (example: false, --no-example)"
        )
    if not shown.success:
        say(
            f"the worked example in every prompt, task {task.id!r}, ends before its task is solved (reward "
            f"{shown.reward:g} after {shown.steps} turns); another first task, or no example, may teach more"
        )
    if shown.steps > LONG:
        say(
            f"the worked example in every prompt, task {task.id!r}, has {shown.steps} turns: a split that begins with "
            "a shorter task, or no example, leaves more room"
        )
    return Example(task, (shown.opening[-1], *shown.turns))
