"""Numbers of an agent's evaluation: rewards that are missing, success that is not the end, intervals, comparisons."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from prefopt.agents.environment import Task
from prefopt.agents.trajectory import Status, Trajectory
from prefopt.errors import ConfigError
from prefopt.evals.agent_files import read_comparable, read_episodes, write_agent_evaluation
from prefopt.evals.agent_outcome import KindResult, compare_agents, result_to_json, summarise
from prefopt.records import Message
from prefopt.values import JsonValue


def episode(
    task: str,
    reward: float | None,
    *,
    success: bool = False,
    steps: int = 1,
    kind: str = "",
    status: Status = "done",
    format_errors: int = 0,
) -> Trajectory:
    turns = [Message("assistant", "go"), Message("user", "seen")] * steps
    return Trajectory(
        Task(task, "seen", kind=kind),
        (Message("user", "Act."),),
        tuple(turns[:-1]),
        reward,
        success,
        status,
        format_errors=format_errors,
    )


EPISODES = [
    episode("a", 1.0, success=True, steps=2, kind="find"),
    episode("b", 0.5, steps=4, kind="boil", status="turns", format_errors=2),
    episode("c", None, kind="find", status="error"),
    episode("d", 0.0, steps=1, kind="boil", status="length"),
]


def test_a_missing_reward_counts_0_in_one_average_and_not_in_the_other() -> None:
    found = summarise("seen", EPISODES)
    assert found.reward.value == 0.375
    assert 0.0 <= found.reward.low < 0.375 < found.reward.high <= 1.0
    assert found.rewarded is not None and found.rewarded.value == 0.5
    assert (found.tasks, found.failures, found.cut, found.format_errors) == (4, 1, 1, 2)
    assert found.steps == 2.0


def test_an_episode_that_ends_is_no_success() -> None:
    """The published code counts it as one: its `success` is what the environment calls done."""
    ended = [episode("a", 0.2, status="done"), episode("b", 1.0, success=True)]
    found = summarise("seen", ended)
    assert (found.success.correct, found.success.total, found.success.value) == (1, 2, 0.5)
    # Wilson 1927 for 1 of 2 at 95%.
    assert (found.success.low, found.success.high) == pytest.approx((0.09453, 0.90547), abs=1e-5)


def test_a_negative_reward_enters_the_average() -> None:
    assert summarise("s", [episode("a", -1.0), episode("b", 1.0)]).reward.value == 0.0


def test_nothing_is_known_where_every_environment_failed() -> None:
    found = summarise("s", [episode("a", None, status="error")])
    assert (found.reward.value, found.rewarded, found.failures) == (0.0, None, 1)
    assert result_to_json(found)["rewarded"] is None


def test_kinds_of_tasks() -> None:
    kinds = summarise("seen", EPISODES).kinds
    assert kinds == {"boil": KindResult(2, 0.25, 0), "find": KindResult(2, 0.5, 1)}
    assert list(kinds) == ["boil", "find"]
    assert summarise("seen", [episode("a", 1.0)]).kinds == {}


def test_two_evaluations_of_the_same_tasks() -> None:
    better = [
        episode("a", 1.0, success=True),
        episode("b", 1.0, success=True),
        episode("c", 1.0, success=True),
        episode("d", 0.0),
    ]
    found = compare_agents(EPISODES, better)
    assert found.reward.value == 0.375
    assert (found.gained, found.lost) == (2, 0)
    assert found.p == 0.5  # 2 of 2, two-sided
    back = compare_agents(better, EPISODES)
    assert (back.reward.value, back.gained, back.lost) == (-0.375, 0, 2)
    with pytest.raises(ValueError, match="different tasks"):
        compare_agents(EPISODES, better[:3])


def test_episodes_are_read_back(tmp_path: Path) -> None:
    """Also one whose environment failed at its start, so that nothing was said."""
    failed = Trajectory(Task("e", "seen"), (), (), None, status="error", reason="killed")
    episodes = [*EPISODES, failed]
    write(tmp_path, episodes)
    assert read_episodes(tmp_path) == {"seen": episodes}


def write(folder: Path, episodes: list[Trajectory], *, seed: int = 0, **events: int) -> None:
    results = [summarise("seen", episodes)]
    settings: dict[str, JsonValue] = {
        "environment": "e", "environment_identity": "e 1", "seed": seed,
    }  # fmt: skip
    write_agent_evaluation(folder, "m", results, {"seen": episodes}, settings, events=events)


def test_events_of_the_same_evaluation_add_up(tmp_path: Path) -> None:
    """The same command plays only what failed, or nothing; that does not make the first failures undone."""

    def events() -> object:
        return json.loads((tmp_path / "agent-evaluation.json").read_text())["events"]

    write(tmp_path, EPISODES, resets=4, crashes=2)
    write(tmp_path, EPISODES, resets=1)
    assert events() == {"crashes": 2, "resets": 5}
    before = (tmp_path / "agent-evaluation.json").read_bytes()
    write(tmp_path, EPISODES)
    assert (tmp_path / "agent-evaluation.json").read_bytes() == before
    write(tmp_path, EPISODES, seed=1, resets=3)
    assert events() == {"resets": 3}, "another evaluation"


def test_only_evaluations_of_the_same_tasks_in_the_same_environment_compare(tmp_path: Path) -> None:
    """Ids of tasks alone do not tell: under other options the same ids are other tasks."""
    write(tmp_path, [replace(e, task=replace(e.task, meta={"at": e.task.id})) for e in EPISODES])
    tasks = [replace(e.task, meta={"at": e.task.id}) for e in EPISODES]
    assert list(read_comparable(tmp_path, {"seen": tasks}, "e 1")) == ["seen"]
    with pytest.raises(ConfigError, match=r"there the environment was another one, under other"):
        read_comparable(tmp_path, {"seen": tasks}, "e 2")
    moved = [*tasks[:2], replace(tasks[2], meta={"at": "z"}), tasks[3]]
    with pytest.raises(ConfigError, match=r"there task 'c' was another one, under other options"):
        read_comparable(tmp_path, {"seen": moved}, "e 1")
    with pytest.raises(ConfigError, match=r"its 4 tasks of split 'seen' are not the 3 of this"):
        read_comparable(tmp_path, {"seen": tasks[:3]}, "e 1")
