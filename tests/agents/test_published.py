"""Files in published shapes, written here with contents of our own."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from prefopt.agents.published import Reading, read_trajectories
from prefopt.agents.trajectory import Trajectory, trajectory_to_json
from prefopt.errors import ConfigError, RecordError, StorageError
from prefopt.ledger import Ledger
from prefopt.records import Message
from prefopt.text.sources import load_preferences

TELL, OK, TASK = "You do experiments. Write a thought and an action.", "OK", "Find a plant."


def said(*texts: str) -> list[dict[str, str]]:
    """A conversation in which the user begins and the two take turns."""
    return [{"from": ("human", "gpt")[i % 2], "value": text} for i, text in enumerate(texts)]


def turn(action: str) -> str:
    return f"Thought: Let me see.\nAction: {action}"


def example(messages: int) -> list[str]:
    """Instruction, acknowledgement and a worked example."""
    return [TELL, OK, *(f"example {i}" for i in range(messages - 2))]


def written(path: Path, content: Any) -> Path:
    path.write_text(json.dumps(content, indent=4))
    return path


def rollout(conversation: list[dict[str, str]], **meta: object) -> dict[str, object]:
    stated = {
        "steps": 2,
        "reward": 0.25,
        "finished": True,
        "success": True,
        "terminate_reason": "success",
        "error": None,
    }
    return {"meta": {**stated, **meta}, "conversations": conversation}


def texts(trajectory: Trajectory) -> list[str]:
    return [message.content for message in trajectory.turns]


def test_scienceworld_experts_get_the_names_of_their_tasks_and_reward_one(tmp_path: Path) -> None:
    rows = [
        {"id": "14_0", "conversations": said(TELL, OK, TASK, turn("look"), "A room.", turn("go"))},
        {"id": "20_70", "conversations": said(TELL, OK, TASK, turn("focus on egg"))},
    ]
    first, second = read_trajectories(written(tmp_path / "sciworld_sft.json", rows))
    assert (first.task.id, first.task.split, first.task.max_turns) == ("find-plant:0", "train", 15)
    assert first.task.meta == {"task": "find-plant", "variation": 0}
    assert first.opening == (
        Message("user", TELL),
        Message("assistant", OK, train=False),
        Message("user", TASK),
    )
    assert texts(first) == [turn("look"), "A room.", turn("go")]
    assert [m.train for m in first.turns] == [True, True, True]
    assert (first.reward, first.success, first.status, first.steps) == (1.0, True, "done", 2)
    assert (second.task.id, second.task.split) == ("lifespan-longest-lived:70", "seen")


def test_webshop_experts_state_their_reward(tmp_path: Path) -> None:
    row = {
        "id": 812,
        "conversations": said(TELL, OK, "Buy a mug.", turn("search[mug]")),
        "reward": 0.75,
    }
    (read,) = read_trajectories(written(tmp_path / "webshop_sft.json", [row]))
    assert (read.task.id, read.task.kind, read.task.max_turns) == ("812", "webshop", 10)
    assert (read.reward, read.success) == (0.75, False)
    del row["reward"]
    path = written(tmp_path / "webshop_sft.json", [row])
    with pytest.raises(RecordError, match="'reward' is null; WebShop's experts have one"):
        read_trajectories(path, Reading(source="webshop"))


def test_alfworld_experts_are_named_after_their_trial(tmp_path: Path) -> None:
    game = "data/train/pick_and_place_simple-Mug-None-Desk-1/trial_T0001"
    row = {
        "id": "train_7",
        "conversations": said(TELL, OK, TASK, turn("go to desk 1")),
        "game_file": game,
    }
    (read,) = read_trajectories(written(tmp_path / "alfworld_sft.json", [row]))
    assert (read.task.id, read.task.kind) == ("trial_T0001", "pick_and_place_simple")
    assert read.task.meta == {"game_file": game}
    assert (read.reward, read.task.max_turns) == (1.0, 40)


@pytest.mark.parametrize(
    ("name", "length", "meta", "task"),
    [
        ("14_3", 16, {}, "find-plant:3"),
        ("812", 10, {}, "812"),
        ("5", 12, {"error": "a/b/look_at-x/trial_T2/game.tw-pddl", "reward": False}, "trial_T2"),
    ],
)
def test_rollouts_begin_after_the_worked_example_of_their_environment(
    tmp_path: Path, name: str, length: int, meta: dict[str, object], task: str
) -> None:
    talk = said(*example(length), TASK, turn("look"), "A room.", turn("go"), "The hallway.")
    written(tmp_path / f"{name}.json", rollout(talk, **meta))
    (tmp_path / "log.txt").write_text("not read")
    (read,) = read_trajectories(tmp_path)
    assert read.task.id == task
    assert [m.content for m in read.opening] == [TELL, OK, TASK]
    assert texts(read) == [turn("look"), "A room.", turn("go")]
    assert read.reward == (0.0 if meta else 0.25)
    assert not read.success
    kept = read_trajectories(tmp_path, Reading(keep_example=True))[0].opening
    assert [m.content for m in kept] == [*example(length), TASK]
    assert not any(m.train for m in kept if m.role == "assistant")


def test_the_length_of_the_worked_example_can_be_given(tmp_path: Path) -> None:
    talk = said(*example(4), TASK, turn("look"))
    path = written(tmp_path / "14_3.json", rollout(talk))
    with pytest.raises(
        RecordError, match=r"14_3.json: message 16 \(from 0, of 6\) should be the t"
    ):
        read_trajectories(path)
    (read,) = read_trajectories(path, Reading(example_end=4))
    assert [m.content for m in read.opening] == [TELL, OK, TASK]
    assert texts(read) == [turn("look")]


@pytest.mark.parametrize(
    ("meta", "status", "reward", "success"),
    [
        ({"reward": 1.0}, "done", 1.0, True),
        ({"reward": -1.0}, "done", -1.0, False),
        ({"terminate_reason": "max_steps"}, "turns", 0.25, False),
        (
            {"terminate_reason": "exceeding maximum input length", "reward": None},
            "context",
            None,
            False,
        ),
        ({"terminate_reason": None, "finished": False}, "error", 0.25, False),
        ({"reward": True}, "done", 1.0, True),
    ],
)
def test_how_a_rollout_ended_is_told_apart_from_success(
    tmp_path: Path, meta: dict[str, object], status: str, reward: float | None, success: bool
) -> None:
    talk = said(*example(16), TASK, turn("look"), "A room.", "I give up.")
    (read,) = read_trajectories(written(tmp_path / "14_3.json", rollout(talk, **meta)))
    assert (read.status, read.reward, read.success) == (status, reward, success)
    assert bool(read.reason) == (status in {"context", "error"})
    assert read.format_errors == 1


def test_a_rollout_that_failed_at_once_has_no_turns(tmp_path: Path) -> None:
    meta = {"terminate_reason": "exceeding maximum input length", "reward": None, "success": False}
    path = written(tmp_path / "14_3.json", rollout(said(*example(16), TASK), **meta))
    (read,) = read_trajectories(path)
    assert (read.turns, read.reward, read.status) == ((), None, "context")


def test_only_a_real_heading_is_cut_from_the_task(tmp_path: Path) -> None:
    for number, task in enumerate(["Task Description:\nYour task is to boil water.", "Boil it."]):
        talk = said(*example(16), task, turn("look"))
        written(tmp_path / f"0_{number}.json", rollout(talk))
    tasks = [read.opening[-1].content for read in read_trajectories(tmp_path)]
    assert tasks == ["Your task is to boil water.", "Boil it."]


def test_files_of_a_folder_are_in_the_order_of_their_numbers(tmp_path: Path) -> None:
    for number in (10, 9, 100):
        written(tmp_path / f"{number}.json", rollout(said(*example(10), TASK, turn("look"))))
    assert [read.task.id for read in read_trajectories(tmp_path)] == ["9", "10", "100"]


def test_agent_conversations_of_other_sets_are_read(tmp_path: Path) -> None:
    yes = "OK. I shall do as you say."
    talk = [
        {"from": "human", "loss": None, "value": TELL},
        {"from": "gpt", "loss": False, "value": yes},
        {"from": "human", "loss": None, "value": TASK},
        {"from": "gpt", "loss": True, "value": turn("look")},
    ]
    roles = [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": TASK},
        {"role": "assistant", "content": "ls"},
        {"role": "tool", "content": "a b"},
        {"role": "assistant", "content": "cat a"},
    ]
    lines = [{"id": "os_1", "conversations": talk}, {"id": "os_2", "messages": roles}]
    path = tmp_path / "sets.jsonl"
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    first, second = read_trajectories(path)
    assert [m.content for m in first.opening] == [TELL, yes, TASK]
    assert texts(first) == [turn("look")]
    assert [m.role for m in second.opening] == ["system", "user"]
    assert texts(second) == ["ls", "a b", "cat a"]
    assert (second.task.id, second.task.kind, second.reward) == ("os_2", "other", 1.0)


def test_our_own_files_are_read_back(tmp_path: Path) -> None:
    rows = [{"id": "14_0", "conversations": said(TELL, OK, TASK, turn("look"))}]
    read = read_trajectories(written(tmp_path / "a.json", rows))
    ours = tmp_path / "trajectories.jsonl"
    ours.write_text("".join(json.dumps(trajectory_to_json(t)) + "\n" for t in read))
    assert read_trajectories(ours) == read


def test_experts_that_do_not_end_with_the_agent_are_named(tmp_path: Path) -> None:
    good = {"id": "14_0", "conversations": said(TELL, OK, TASK, turn("look"))}
    bad = {"id": "14_1", "conversations": said(TELL, OK, TASK, turn("look"), "A room.")}
    none = {"id": "14_2", "conversations": said(TELL, OK)}
    path = tmp_path / "experts.jsonl"
    path.write_text("\n".join(json.dumps(row) for row in (good, bad, none)))
    with pytest.raises(RecordError) as caught:
        read_trajectories(path)
    assert "experts.jsonl:2: the conversation ends with the user, not with a turn of the a" in str(
        caught.value
    )
    assert "experts.jsonl:3: " in str(caught.value)


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"id": "14_300", "conversations": said(TELL, OK, TASK, "a")}, "ids of ScienceWorld are"),
        ({"id": "30_0", "conversations": said(TELL, OK, TASK, "a")}, "ids of ScienceWorld are"),
        ({"conversations": said(TELL, OK, TASK, "a")}, "'id' is null; give every trajectory"),
        ({"id": "x", "conversations": []}, "'conversations' is an empty list"),
        ({"id": "x", "conversations": [{"from": "gpt", "value": "a"}]}, "message 0 .from 0, of 1"),
        ({"id": "x", "conversations": [{"from": "cat", "value": "a"}]}, "known roles are"),
        ({"id": "x", "conversations": said(TELL, OK, TASK, "a"), "reward": "1"}, "'reward' is"),
        ({"id": "x", "conversations": said(TELL, "a"), "game_file": "trial"}, "'game_file' is"),
    ],
)
def test_other_rows_are_refused_with_their_place(
    tmp_path: Path, row: dict[str, object], message: str
) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text(json.dumps(row) + "\n")
    with pytest.raises(RecordError, match=f"rows.jsonl:1: .*{message}"):
        read_trajectories(path)


def test_what_cannot_be_read_is_named(tmp_path: Path) -> None:
    with pytest.raises(StorageError, match="none.json"):
        read_trajectories(tmp_path / "none.json")
    with pytest.raises(RecordError, match="there are no trajectories"):
        read_trajectories(tmp_path)
    written(tmp_path / "list.json", [{"id": "14_0"}])
    with pytest.raises(RecordError, match="list.json: no single JSON object"):
        read_trajectories(tmp_path)
    with pytest.raises(ConfigError, match="unknown source of trajectories 'web'"):
        Reading(source="web")  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="example_end is 0"):
        Reading(example_end=0)


def test_published_pairs_are_read_like_every_other_data_set(tmp_path: Path) -> None:
    talk = said(TELL, OK, TASK, turn("look"), "A room.", turn("go"))
    lost = said(TELL, OK, TASK, turn("focus on air"))
    row = {"id": "14_0", "prompt": talk[:3], "chosen": talk[3:], "rejected": lost[3:]}
    path = written(tmp_path / "pairs.json", [row])
    (first,) = load_preferences(path, ledger=Ledger("pairs.json")).preferences
    assert first.id == "14_0"
    assert isinstance(first.prompt, tuple)
    assert [m.role for m in first.prompt] == ["user", "assistant", "user"]
    chosen, rejected = first.responses
    assert [m.role for m in chosen.turns] == ["assistant", "user", "assistant"]
    assert rejected.text == turn("focus on air")
    assert [(pair.chosen, pair.rejected) for pair in first.pairs] == [(0, 1)]
    path = written(tmp_path / "pairs.json", [{**row, "rejected": [*row["rejected"], talk[4]]}])
    with pytest.raises(RecordError, match=r"pairs.json:2: responses\[1\] ends with a user message"):
        load_preferences(path, ledger=Ledger("pairs.json"))
