"""A farm of four ScienceWorld simulators survives one that is killed and one that hangs."""

from __future__ import annotations

import os
import signal

import pytest

from prefopt.agents.environments.scienceworld import ScienceWorld
from prefopt.agents.farm import Farm
from prefopt.agents.rollouts import Rollouts, roll_out
from prefopt.generate.base import Request
from tests.agents.counting import Agent, group_of, turn_of, wait_until_gone, workers_of

ACTIONS = ("look around", "inventory", "look around", "wait1")


def simulators() -> list[int]:
    """Java processes of our workers."""
    found = group_of(workers_of())
    return sorted(process.number for process in found if process.program == "java")


@pytest.mark.scienceworld
@pytest.mark.timeout(600)
def test_four_simulators_survive_one_that_is_killed_and_one_that_hangs():
    suite = ScienceWorld(kinds=("find-*",))
    tasks = suite.tasks("train", 4)
    disturbed: list[int] = []

    def disturb(request: Request) -> str:
        _, turn = turn_of(request)
        if turn == 2 and not disturbed:
            killed, stopped, *_ = disturbed[:] = simulators()
            os.kill(killed, signal.SIGKILL)
            os.kill(stopped, signal.SIGSTOP)
        return f"Action: {ACTIONS[turn]}"

    settings = Rollouts(max_turns=len(ACTIONS))
    with Farm(suite, workers=4, step_seconds=20) as farm:
        calm = Agent(lambda request: f"Action: {ACTIONS[turn_of(request)[1]]}")
        well = roll_out(tasks, calm, farm, settings)
        first = simulators()
        found = roll_out(tasks, Agent(disturb), farm, settings)
        assert disturbed == first and len(first) == 4
        assert found == well
        assert {t.status for t in found} == {"turns"}
        assert farm.counts["crashes"] == farm.counts["time-outs"] == farm.counts["restarts"] == 1
        last = simulators()
        assert len(last) == 4 and set(last) & set(first) == set(first[2:])
    wait_until_gone([*first, *last])
