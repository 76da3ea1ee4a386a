"""The adapter for Gymnasium, with a text environment of our own and two of the package's."""

from __future__ import annotations

import pickle
import sys
import time
from typing import Any

import pytest

from prefopt.agents.environment import Outcome
from prefopt.agents.environments.gymnasium import Gymnasium, uncoloured
from prefopt.agents.suites import find_suite
from prefopt.errors import AgentError, ConfigError, MissingExtraError

pytest.importorskip("gymnasium", reason="the extra `gymnasium` is not installed")

CORRIDOR: dict[str, Any] = {"id": "Corridor-v0", "modules": ["tests.agents.corridor"]}


def play(suite: Gymnasium, seed: int, *actions: str) -> list[Outcome]:
    opened = suite.open()
    try:
        start = opened.reset(suite.tasks("train", seed + 1)[seed])
        return [start, *(opened.step(action) for action in actions)]
    finally:
        opened.close()
        opened.close()


def test_a_text_environment_is_played_as_it_is() -> None:
    outcomes = play(Gymnasium(**CORRIDOR), 0, "dance", "go right", "go left", "go right")
    assert outcomes[0] == Outcome("You are on field 2 of 4.", 0.0)
    assert outcomes[1] == Outcome("You wave your arms.", -0.25)
    assert outcomes[2] == Outcome("You are on field 3.", 0.75, done=True, success=True)


def test_seeds_decide_how_an_episode_starts() -> None:
    suite = Gymnasium(**CORRIDOR, arguments={"length": 50})
    starts = [play(suite, seed)[0].observation for seed in range(4)]
    assert starts == [play(suite, seed)[0].observation for seed in range(4)]
    assert len(set(starts)) > 1
    train, test = (suite.tasks(split) for split in suite.splits)
    assert (len(train), len(test)) == (1000, 100)
    assert not {task.id for task in train} & {task.id for task in test}
    assert test[0].meta == {"seed": 1_000_000}


def test_named_actions_stand_for_what_the_environment_takes() -> None:
    suite = Gymnasium(**CORRIDOR, actions={"East": "go right", "West": "go left"})
    assert suite.instruction == "You act in the environment Corridor-v0.\nActions: East, West"
    _, unknown, known = play(suite, 0, "go right", " east ")
    assert unknown == Outcome("That is no action here. Actions: East, West", 0.0)
    assert known.observation == "You are on field 3."


def test_a_lost_episode_is_done_without_success() -> None:
    outcomes = play(Gymnasium(**CORRIDOR), 0, "go left", "go left", "go left")
    assert outcomes[-1] == Outcome("You fall into a pit.", -1.0, done=True, success=False)


def test_discrete_environments_are_rendered_as_text() -> None:
    suite = Gymnasium(
        "FrozenLake-v1",
        arguments={"is_slippery": False},
        actions="left, down, right, up",  # type: ignore[arg-type] # as on a command line
        setting="Walk from S to G. F is ice, H is a hole.",
    )
    assert suite.instruction.endswith("Actions: left, down, right, up")
    start, *rest = play(suite, 0, *("down " * 2 + "right " * 2 + "down right").split())
    assert start == Outcome("<red:S>FFF\nFHFH\nFFFH\nHFFG", 0.0)
    assert rest[0].observation == "  (Down)\nSFFF\n<red:F>HFH\nFFFH\nHFFG"
    assert [outcome.reward for outcome in rest] == [0, 0, 0, 0, 0, 1]
    assert rest[-1].done
    assert rest[-1].success


def test_without_names_discrete_actions_are_numbers() -> None:
    start, step, wrong = play(Gymnasium("Taxi-v4"), 0, "1", "6")
    assert "<yellow:" in start.observation
    assert step.reward == -1.0
    assert wrong == Outcome("That is no action here. Actions: 0, 1, 2, 3, 4, 5", -1.0)


def test_observations_without_text_are_json() -> None:
    start = play(Gymnasium("Blackjack-v1"), 0)[0].observation
    assert start.startswith("[") and start.endswith("]")


def test_colours_become_words() -> None:
    assert uncoloured("a\x1b[41mS\x1b[0mb") == "a<red:S>b"
    assert uncoloured("\x1b[34;1mR\x1b[0m|\x1b[43m \x1b[0m") == "<blue:R>|<yellow: >"
    assert uncoloured("\x1b[1mbold\x1b[0m \x1b[2Kplain\x1b[0m") == "bold \x1b[2Kplain"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"id": "Corridr-v0"}, "gymnasium cannot make Corridr-v0: .*; check id, modules"),
        ({"id": "Corridor-v0", "modules": ["no_such"]}, "No module named 'no_such'"),
        ({**CORRIDOR, "arguments": {"width": 3}}, "unexpected keyword argument 'width'"),
        ({"id": "Pendulum-v1"}, "neither text nor one of a few actions"),
    ],
)
def test_what_cannot_be_made_is_named(options: dict[str, object], message: str) -> None:
    with pytest.raises(AgentError, match=message):
        find_suite("gymnasium", options).open()  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({}, "missing 1 required positional argument: 'id'"),
        ({"id": "X", "max_turns": 0}, "max_turns is 0; use more than 0"),
        ({"id": "X", "train_tasks": 2_000_000}, "train_tasks is 2000000; use at most 1000000"),
    ],
)
def test_wrong_options_are_named(options: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        find_suite("gymnasium", options)  # type: ignore[arg-type]


def test_unknown_splits_and_too_many_tasks_are_named() -> None:
    suite = Gymnasium("X")
    with pytest.raises(ConfigError, match="unknown split of gymnasium 'dev'"):
        suite.tasks("dev")
    with pytest.raises(ConfigError, match="split test has 100 tasks, not 101; .* raise test_tasks"):
        suite.tasks("test", 101)


def test_without_the_package_the_error_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "gymnasium", None)
    with pytest.raises(MissingExtraError, match=r"pip install 'prefopt\[gymnasium\]'"):
        Gymnasium("FrozenLake-v1").open()


def test_a_suite_can_be_sent_to_a_worker_and_names_what_it_depends_on() -> None:
    suite = Gymnasium(**CORRIDOR, arguments={"length": 5}, actions={"a": "go left"})
    assert pickle.loads(pickle.dumps(suite)) == suite  # noqa: S301 # our own
    others = [Gymnasium(**CORRIDOR), Gymnasium("FrozenLake-v1"), Gymnasium("X", success_at=2)]
    assert len({suite.identity, *(other.identity for other in others)}) == 4
    assert Gymnasium("X", max_turns=3).identity == Gymnasium("X").identity


def test_the_adapter_costs_little() -> None:
    opened = Gymnasium(**CORRIDOR).open()
    opened.reset(Gymnasium(**CORRIDOR).tasks("train", 1)[0])
    started = time.perf_counter()
    for _ in range(1000):
        opened.step("dance")
    assert time.perf_counter() - started < 0.5
    opened.close()
