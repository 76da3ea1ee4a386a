"""The game of rooms: what is seen, what actions do, rewards, the expert, tasks and splits."""

import copy
import json
import os
import pickle
import random
import subprocess
import sys
import time
from collections import deque
from dataclasses import replace

import pytest

from prefopt.agents.environment import Move, Outcome, Task
from prefopt.agents.environments.rooms import Rooms, RoomsSuite, all_actions
from prefopt.agents.layouts import (
    COLOURS,
    Exit,
    Layout,
    Plan,
    draw_layout,
    is_puzzle,
    needed_colours,
    read_layout,
    shortest,
)
from prefopt.agents.suites import find_suite
from prefopt.errors import AgentError, ConfigError, RecordError

HOUSE = Layout(
    width=3,
    height=2,
    start="A1",
    goal="C1",
    locks={"C1": "red", "B2": "blue"},
    keys={"red": "B2", "blue": "A2", "green": "B1"},
)
#   A1 start   B1 green key   C1 treasure (red)
#   A2 blue    B2 red (blue)  C2


def task_of(layout, max_turns=20):
    return Task("t", "train", max_turns=max_turns, meta=layout.to_json())


def layout_of(task):
    return read_layout(task.meta, origin=task.id)


@pytest.fixture(scope="module")
def suite():
    return RoomsSuite(train_tasks=300, seen_tasks=60, unseen_tasks=60)


NOTE = (
    "The treasure is in C1. It is behind a red door. The red key is in B2. It is behind a blue door. "
    "The blue key is in A2. The green key is in B1. "
)
A2 = "You are in A2. North: open. East: blue door."
B2 = "You are in B2. North: blue door. East: blue door. West: open."
B1 = "You are in B1. South: open. East: red door. West: open."
HAVE = " You have the red key. You have the blue key."
PLAYED = [
    ("go south", f"{A2} Here: blue key.", 0.0),
    ("go east", f"The door is locked. {A2} Here: blue key.", 0.0),
    ("open east door", f"You cannot do that. {A2} Here: blue key.", 0.0),
    ("take blue key", f"{A2} You have the blue key.", 0.2),
    ("take blue key", f"You cannot do that. {A2} You have the blue key.", 0.2),
    ("open east door", "You are in A2. North: open. East: open. You have the blue key.", 0.4),
    ("open east door", "You cannot do that. You are in A2. North: open. East: open. You have the blue key.", 0.4),
    ("go east", f"{B2} Here: red key. You have the blue key.", 0.4),
    ("take red key", f"{B2}{HAVE}", 0.6),
    ("open north door", f"You are in B2. North: open. East: blue door. West: open.{HAVE}", 0.6),
    ("go north", f"{B1} Here: green key.{HAVE}", 0.6),
    ("take green key", f"{B1}{HAVE} You have the green key.", 0.6),
    ("open east door", f"You are in B1. South: open. East: open. West: open.{HAVE} You have the green key.", 0.8),
]  # fmt: skip


def test_an_episode_played_by_hand():
    game = Rooms()
    start = "You are in A1. South: open. East: open."
    assert game.reset(task_of(HOUSE)) == Outcome(NOTE + start, 0.0)
    for action, observation, reward in PLAYED:
        outcome = game.step(action)
        assert (outcome.observation, outcome.done, outcome.success) == (observation, False, False)
        assert outcome.reward == pytest.approx(reward), action
    end = Outcome("You find the treasure.", 1.0, done=True, success=True)
    assert game.step("go east") == end
    # After the end nothing changes any more, and a new episode knows nothing of the old one.
    assert game.step("go west") == end
    assert game.reset(task_of(HOUSE)) == Outcome(NOTE + start, 0.0)
    assert Rooms(note=False).reset(task_of(HOUSE)) == Outcome(start, 0.0)


@pytest.mark.parametrize(
    "action",
    ["", "  ", "go", "go up", "go north", "go west", "take", "take key", "take red key", "take pink key",
     "take treasure", "open south door", "open east door", "open north door", "open door", "look around",
     "go south go south", "go south.", "xyzzy", "\0", "go " * 5000],
)  # fmt: skip
def test_what_cannot_be_done_is_answered_and_changes_nothing(action):
    game = Rooms()
    game.reset(task_of(HOUSE))
    looked = game.step("look")
    assert looked == Outcome("You are in A1. South: open. East: open.", 0.0)
    assert game.step(action) == Outcome(f"You cannot do that. {looked.observation}", 0.0)
    assert game.step("look") == looked


def test_case_and_spaces_of_an_action_do_not_matter():
    game = Rooms()
    game.reset(task_of(HOUSE))
    assert game.step(" GO   South\n").observation.startswith("You are in A2.")


def test_the_expert_says_what_each_move_is_for():
    game = Rooms()
    game.reset(task_of(HOUSE))
    blue, red = "I need the blue key in A2.", "I need the red key in B2."
    treasure = "I go to the treasure in C1."
    assert game.expert(task_of(HOUSE)) == [
        Move("go south", blue),
        Move("take blue key", blue),
        Move("open east door", red),
        Move("go east", red),
        Move("take red key", red),
        Move("open north door", treasure),
        Move("go north", treasure),
        Move("open east door", treasure),
        Move("go east", treasure),
    ]
    with pytest.raises(AgentError, match="a step before the first reset"):
        game.step("look")
    assert Rooms().expert(task_of(replace(HOUSE, keys={}))) == []
    game.close()
    game.close()


def brute_force(layout):
    """Length of the shortest way: every action of the game tried in every state of the game itself."""
    game = Rooms()
    game.reset(task_of(layout))
    seen = set()
    queue = deque([(game, 0)])
    while queue:
        game, length = queue.popleft()
        for action in all_actions():
            tried = copy.copy(game)
            tried._lying, tried._opened = dict(game._lying), set(game._opened)
            tried._colours = set(game._colours)
            if tried.step(action).success:
                return length + 1
            state = (tried._room, frozenset(tried._lying), frozenset(tried._opened))
            if state not in seen:
                seen.add(state)
                queue.append((tried, length + 1))
    return None


@pytest.mark.parametrize(
    "plan",
    [
        Plan(2, 2, (1, 2), 1, 0),
        Plan(4, 1, (1, 2), 0, 0),
        Plan(6, 1, (1, 3), 1, 0),
        Plan(3, 2, (1, 2), 0, 1),
        Plan(2, 3, (1, 2), 1, 2),
        Plan(3, 3, (2, 2), 0, 2),
    ],
    ids=str,
)
def test_the_expert_is_as_short_as_brute_force(plan):
    rng = random.Random(0)
    layouts = [x for x in (draw_layout(plan, rng) for _ in range(60)) if is_puzzle(x)][:8]
    assert len(layouts) >= 3
    for layout in layouts:
        assert len(shortest(layout) or []) == brute_force(layout), layout


def test_brute_force_finds_no_way_where_the_expert_finds_none():
    for layout in (
        replace(HOUSE, keys={"red": "B2"}),
        replace(HOUSE, keys={"red": "C1", "blue": "A2"}),
        replace(HOUSE, walls=(("A1", "B1"), ("A1", "A2"))),
    ):
        assert shortest(layout) is None
        assert brute_force(layout) is None


def test_a_colour_is_needed_when_there_is_no_way_without_its_key():
    assert needed_colours(HOUSE) == ["red", "blue"]
    # With the red key in the open the blue door is no longer needed, and neither counts in the reward.
    easy = replace(HOUSE, keys={"red": "A2", "blue": "B1"})
    assert needed_colours(easy) == ["red"]
    game = Rooms()
    game.reset(task_of(easy))
    rewards = [game.step(a).reward for a in ("go east", "take blue key", "go west", "go south")]
    assert rewards == [0.0, 0.0, 0.0, 0.0]
    assert game.step("take red key").reward == pytest.approx(1 / 3)
    assert needed_colours(replace(HOUSE, goal="B1")) == []


def test_rooms_of_two_colours_have_a_wall_between_and_those_of_one_a_passage():
    two = Layout(3, 1, "A1", "C1", {"B1": "red", "C1": "blue"}, {})
    assert two.exits() == {"A1": {"east": Exit("B1", "red")}, "B1": {"west": Exit("A1", "red")}, "C1": {}}  # fmt: skip
    one = replace(two, locks={"B1": "red", "C1": "red"})
    assert one.exits()["B1"] == {"east": Exit("C1", None), "west": Exit("A1", "red")}
    walled = replace(one, walls=(("C1", "B1"),))
    assert walled.exits()["C1"] == {}


def test_every_task_is_solved_by_its_expert_with_exact_rewards(suite):
    game = suite.open()
    lengths = set()
    for split in suite.splits:
        for task in suite.tasks(split, 40):
            doors = len(layout_of(task).locks)
            assert task.kind == ("1 door" if doors == 1 else "2 doors")
            moves = game.expert(task)
            assert task.max_turns == len(moves) + 6
            outcomes = [game.reset(task), *(game.step(move.action) for move in moves)]
            rewards = [outcome.reward for outcome in outcomes]
            parts = 2 * doors + 1
            assert sorted(set(rewards)) == [pytest.approx(k / parts) for k in range(parts + 1)]
            assert rewards == sorted(rewards)
            ends = [(outcome.done, outcome.success) for outcome in outcomes]
            assert ends == [(False, False)] * len(moves) + [(True, True)]
            lengths.add(len(moves))
    assert min(lengths) >= 3 and max(lengths) > 10


def test_splits_share_no_layout_and_unseen_no_pair_of_ends(suite):
    tasks = {split: suite.tasks(split) for split in suite.splits}
    assert {split: len(found) for split, found in tasks.items()} == {
        "train": 300,
        "seen": 60,
        "unseen": 60,
    }
    layouts = {s: {json.dumps(t.meta, sort_keys=True) for t in found} for s, found in tasks.items()}
    assert all(len(layouts[split]) == len(tasks[split]) for split in suite.splits)
    assert not layouts["train"] & layouts["seen"]
    ends = {s: {(t.meta["start"], t.meta["goal"]) for t in found} for s, found in tasks.items()}
    assert not ends["unseen"] & (ends["train"] | ends["seen"])
    # `seen` means the same kind of tasks: nearly all of its pairs occur in training.
    assert ends["seen"] <= ends["train"] and len(ends["train"]) == 60 and len(ends["unseen"]) == 12
    names = [task.id for found in tasks.values() for task in found]
    assert len(set(names)) == len(names)
    for split, found in tasks.items():
        assert {task.split for task in found} == {split}
        assert {task.kind for task in found} == {"1 door", "2 doors"}


def test_other_seeds_never_bring_a_layout_into_another_split(suite):
    mine = {json.dumps(t.meta, sort_keys=True) for t in suite.tasks("train")}
    for seed in (1, 2):
        other = replace(suite, seed=seed)
        for split in ("seen", "unseen"):
            assert not mine & {json.dumps(t.meta, sort_keys=True) for t in other.tasks(split)}
        assert other.tasks("train", 5) != suite.tasks("train", 5)


def test_a_longer_list_of_tasks_continues_the_shorter_one(suite):
    assert suite.tasks("train", 30)[:10] == suite.tasks("train", 10)
    more = replace(suite, train_tasks=400)
    assert more.tasks("train", 30) == suite.tasks("train", 30)
    assert more.identity == suite.identity
    assert suite.tasks("seen", 0) == []


def test_tasks_are_the_same_in_another_process_without_torch(suite):
    script = (
        "import json, sys\n"
        "from prefopt.agents.environments.rooms import SUITE\n"
        "tasks = [[t.id, t.kind, t.max_turns, dict(t.meta)] for t in SUITE().tasks('train', 20)]\n"
        "game = SUITE().open()\n"
        "seen = game.reset(SUITE().tasks('train', 1)[0]).observation\n"
        "print(json.dumps([tasks, seen, SUITE().identity, 'torch' in sys.modules]))\n"
    )
    environment = {**os.environ, "PYTHONHASHSEED": "7"}
    printed = subprocess.run(
        [sys.executable, "-c", script], env=environment, capture_output=True, text=True, check=True
    ).stdout
    default = RoomsSuite()
    tasks = [[t.id, t.kind, t.max_turns, dict(t.meta)] for t in default.tasks("train", 20)]
    first = Rooms().reset(default.tasks("train", 1)[0]).observation
    assert json.loads(printed) == [tasks, first, default.identity, False]


def test_a_task_read_from_a_file_starts_equally(suite):
    for task in suite.tasks("seen", 20):
        stored = json.loads(json.dumps(task.meta, sort_keys=True))
        assert read_layout(stored, origin="x").to_json() == task.meta
        game = Rooms()
        assert game.reset(replace(task, meta=stored)) == Rooms().reset(task)
        assert game.expert(replace(task, meta=stored)) == Rooms().expert(task)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"goal": "D1"}, "task t: there is no room or colour 'D1' in a grid of 3 x 2"),
        ({"keys": {"red": "A9"}}, "no room or colour 'A9'"),
        ({"keys": {"pink": "A1"}}, "no room or colour 'pink'"),
        ({"locks": {"A1": "pink"}}, "no room or colour 'pink'"),
        ({"start": None}, "task t: 'start' is null"),
        ({"width": "3"}, "task t: 'width' is the text"),
        ({"locks": []}, "task t: 'locks' is an empty list"),
        ({"walls": [[]]}, "task t: 'walls' is an empty list"),
    ],
)
def test_a_task_that_is_no_layout_is_refused(change, message):
    task = Task("t", "train", meta={**HOUSE.to_json(), **change})
    with pytest.raises(RecordError, match=message):
        Rooms().reset(task)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"width": 0}, "width is 0; use 1 to 26"),
        ({"height": 0}, "height is 0; use 1 or more"),
        ({"min_doors": 0}, "min_doors is 0; use 1 or more"),
        ({"min_doors": 3}, "doors is 2; use at least 3"),
        ({"doors": 7}, "doors is 7; use at most 6"),
        ({"width": 2, "height": 1}, "doors is 2; use at most 1"),
        ({"spare_keys": 5}, "spare_keys is 5; use 0 to 4"),
        ({"walls": -1}, "walls is -1; use 0 or more"),
        ({"slack": -1}, "slack is -1; use 0 or more"),
        ({"train_tasks": 0}, "train_tasks is 0; use 1 or more"),
    ],
)
def test_impossible_options_are_refused(options, message):
    with pytest.raises(ConfigError, match=f"environment rooms: {message}"):
        find_suite("rooms", options)


def test_tasks_that_there_are_not_are_refused(suite):
    with pytest.raises(ConfigError, match="no split 'test'; it has train, seen, unseen"):
        suite.tasks("test")
    with pytest.raises(ConfigError, match="the seen split has 60 tasks, 61 are wanted"):
        suite.tasks("seen", 61)
    tiny = RoomsSuite(width=2, height=1, doors=1, spare_keys=0)
    with pytest.raises(ConfigError, match=r"the train split has only about \d+ different tasks"):
        tiny.tasks("train")


@pytest.mark.parametrize(
    "options",
    [
        {"width": 6, "height": 1, "doors": 3, "spare_keys": 0},
        {"width": 4, "height": 4, "min_doors": 3, "doors": 4, "walls": 4},
        {"doors": 1, "note": False, "slack": 2},
    ],
    ids=str,
)
def test_difficulty_is_an_option(options):
    suite = find_suite("rooms", options)
    game = suite.open()
    for task in suite.tasks("train", 20):
        doors = len(layout_of(task).locks)
        assert options.get("min_doors", 1) <= doors <= options["doors"]
        assert len(layout_of(task).walls) == options.get("walls", 0)
        first = game.reset(task).observation
        assert first.startswith("You are in") == (not options.get("note", True))
        assert task.max_turns == len(game.expert(task)) + options.get("slack", 6)


def test_a_suite_travels_to_other_processes(suite):
    assert pickle.loads(pickle.dumps(suite)) == suite  # noqa: S301 - our own
    assert suite.identity != replace(suite, slack=7).identity
    assert suite.name == "rooms" and suite.splits[0] == "train"
    colours = {colour for task in suite.tasks("train", 50) for colour in layout_of(task).keys}
    assert colours == set(COLOURS)


def test_thousands_of_steps_a_second(suite):
    # 100,000 on an idle core; the floor is what roll-outs need, and holds on a busy machine.
    game = suite.open()
    episodes = [(task, [m.action for m in game.expert(task)]) for task in suite.tasks("train", 50)]
    best = 0.0
    for _ in range(3):
        started, steps = time.perf_counter(), 0
        for task, actions in episodes:
            game.reset(task)
            for action in actions:
                game.step(action)
            steps += len(actions)
        best = max(best, steps / (time.perf_counter() - started))
    assert best > 2000
