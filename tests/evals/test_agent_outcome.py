"""Numbers of an agent's evaluation: rewards that are missing, success that is not the end, intervals, comparisons."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from prefopt.agents.environment import Task
from prefopt.agents.suites import find_suite
from prefopt.agents.trajectory import Status, Trajectory
from prefopt.errors import ConfigError
from prefopt.evals.agent_files import read_comparable, read_episodes, write_agent_evaluation
from prefopt.evals.agent_outcome import KindResult, compare_agents, result_to_json, summarise
from prefopt.evals.agent_remarks import (
    comparison_line,
    condition_remarks,
    doubts,
    prompt_remarks,
)
from prefopt.evals.agents import AgentEvaluation, AgentSettings, tasks_of
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
    before = [*EPISODES[:2], episode("c", 0.0), EPISODES[3]]
    found = compare_agents(before, better)
    assert found.reward is not None and found.reward.value == 0.375
    assert (found.gained, found.lost, found.tasks, found.failures) == (2, 0, 4, (0, 0))
    assert found.p == 0.5  # 2 of 2, two-sided
    back = compare_agents(better, before)
    assert back.reward is not None and back.reward.value == -0.375
    assert (back.gained, back.lost) == (0, 2)
    with pytest.raises(ValueError, match="different tasks"):
        compare_agents(EPISODES, better[:3])


def test_a_failed_environment_is_no_defeat() -> None:
    """The same agent twice; in the first evaluation the environment failed in half of the tasks."""
    whole = [episode(name, 1.0, success=True) for name in "abcdefghij"]
    half = [*whole[:5], *(episode(name, None, status="error") for name in "fghij")]
    found = compare_agents(half, whole)
    assert found.reward is not None
    assert (found.reward.value, found.gained, found.lost, found.p) == (0.0, 0, 0, 1.0)
    assert (found.tasks, found.failures) == (5, (5, 0))
    assert comparison_line("seen", Path("base"), found) == (
        "seen against base: +0.000 average reward (95% interval +0.000 to +0.000), 0 tasks gained, 0 lost, p = 1 "
        "(McNemar); over the 5 tasks with a reward on both sides: environment or server failed in 5 tasks there and "
        "0 here"
    )
    nothing = compare_agents(half[5:], whole[5:])
    assert (nothing.reward, nothing.tasks, nothing.failures) == (None, 0, (5, 0))
    assert comparison_line("seen", Path("base"), nothing) == (
        "seen against base: no task has a reward on both sides; environment or server failed in 5 tasks there and 0 "
        "here"
    )


def evaluation(episodes: list[Trajectory], **events: int) -> AgentEvaluation:
    results = (summarise("seen", episodes),)
    return AgentEvaluation("m", results, tuple(episodes), Path("out"), events=events)


def test_what_throws_doubt_on_the_numbers_is_said() -> None:
    assert doubts(evaluation([episode("a", 1.0)], resets=1)) == []
    failed = replace(EPISODES[2], reason="RuntimeError: disk")
    found = evaluation([*EPISODES[:2], failed, EPISODES[3]], crashes=2, drift=1)
    assert doubts(found) == [
        "environments: 2 crashes, 1 drift; episodes were tried again",
        "seen: 1 of 4 tasks got no reward and count 0; the others have 0.500 on average. First 'c': RuntimeError: "
        "disk. The same command tries them again",
        "seen: 1 of 4 episodes ended at the token limit or in a full context; a higher max_new_tokens may change the "
        "numbers",
    ]


@pytest.mark.parametrize(("errors", "said"), [(5, False), (6, True), (10, True)])
def test_an_agent_that_speaks_another_format_is_noticed(errors: int, said: bool) -> None:
    lines = doubts(evaluation([episode("a", 0.0, steps=10, format_errors=errors)]))
    expected = (
        f"seen: no action could be read in {errors} of 10 turns; the agent may have learnt another format, or another "
        "prompt (format, example)"
    )
    assert lines == ([expected] if said else [])


def test_settings_that_differ_in_a_comparison_are_named() -> None:
    before: dict[str, JsonValue] = {
        "target": "old", "generator": "1", "environment": "rooms", "environment_options": {"a": 1}, "splits": ["seen"],
        "limit": None, "format": "react", "max_turns": 2, "example": True, "temperature": 0.0,
    }  # fmt: skip
    other: dict[str, JsonValue] = {"target": "new", "generator": "2", "environment_options": {}}
    alike: dict[str, JsonValue] = {**before, **other, "splits": ["seen", "unseen"], "limit": 3}
    assert condition_remarks(Path("base"), before, alike) == []
    now: dict[str, JsonValue] = {**alike, "max_turns": None, "example": False}
    assert condition_remarks(Path("base"), before, now) == [
        "base: evaluated with other settings (there / here: max_turns 2 / none; example yes / no), which are part of "
        "the difference"
    ]


def test_the_prompt_of_the_training_data_is_found_beside_them(tmp_path: Path) -> None:
    """A run that trains on what another recipe has built has no section `build` of its own."""
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "build.yaml").write_text(
        "method: dmpo\nbuild: {environment: rooms, format: action, example: false}\n"
    )
    run = tmp_path / "run"
    run.mkdir()
    pairs = tmp_path / "data" / "pairs.jsonl"
    for own in ("", "build: {environment: rooms, format: react, example: true}\n"):
        (run / "run.yaml").write_text(f"method: dmpo\ntrain_file: {pairs}\n{own}")
        assert prompt_remarks(run, AgentSettings("rooms"), find_suite("rooms")) == [
            "trained with format 'action', evaluated with 'react': the agent sees another prompt or task",
            "trained with example False, evaluated with True: the agent sees another prompt or task",
        ]
    pairs.with_name("build.yaml").write_text("not: [a recipe")
    assert prompt_remarks(run, AgentSettings("rooms"), find_suite("rooms")) == [], "the run's own"
    (run / "run.yaml").write_text("method: sft\ntrain_file: elsewhere/rows.jsonl\n")
    assert prompt_remarks(run, AgentSettings("rooms"), find_suite("rooms")) == []


def test_the_task_of_the_example_is_not_evaluated() -> None:
    suite = find_suite("rooms", {"train_tasks": 3, "seen_tasks": 2})
    names = {
        example: [task.id for task in tasks_of(suite, ["train"], None, example=example)["train"]]
        for example in (True, False)
    }
    assert names == {True: ["train-2", "train-3"], False: ["train-1", "train-2", "train-3"]}
    assert len(tasks_of(suite, ["seen"], None, example=True)["seen"]) == 2
    with pytest.raises(ConfigError, match="split 'train' has no task but that of the worked exam"):
        tasks_of(suite, ["train"], 1, example=True)


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
    found = read_comparable(tmp_path, {"seen": tasks}, "e 1")
    assert (list(found.episodes), found.settings["seed"]) == (["seen"], 0)
    with pytest.raises(ConfigError, match=r"there the environment was another one, under other"):
        read_comparable(tmp_path, {"seen": tasks}, "e 2")
    moved = [*tasks[:2], replace(tasks[2], meta={"at": "z"}), tasks[3]]
    with pytest.raises(ConfigError, match=r"there task 'c' was another one, under other options"):
        read_comparable(tmp_path, {"seen": moved}, "e 1")
    with pytest.raises(ConfigError, match=r"its 4 tasks of split 'seen' are not the 3 of this"):
        read_comparable(tmp_path, {"seen": tasks[:3]}, "e 1")
