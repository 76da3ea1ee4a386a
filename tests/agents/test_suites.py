"""Finding environments: options of the right type, environments of one's own, and every mistake in one line."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from prefopt.agents.environment import Task
from prefopt.agents.farm import Farm
from prefopt.agents.formats import find_format
from prefopt.agents.plays import Play
from prefopt.agents.suites import find_suite
from prefopt.errors import ConfigError, PrefoptError
from tests.agents.counting import Counting

HERE = "tests.agents.test_suites"


@dataclass(frozen=True)
class Splitless:
    """A suite that lacks something."""

    name: str = "splitless"
    identity: str = "s"
    instruction: str = ""
    per_worker: int = 1
    start_seconds: float = 1.0


@dataclass(frozen=True)
class Fussy(Counting):
    """A suite that refuses what it is given with an error of its own."""

    def __post_init__(self) -> None:
        raise KeyError(f"no goal\nbelow {self.goal}")


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("rooms", {"width": 3.5}, "rooms: option width is the number 3.5: input should be a valid integer"),
        ("rooms", {"unseen_tasks": 10.5}, "option unseen_tasks is the number 10.5: input should"),
        ("rooms", {"slack": 1.5}, "option slack is the number 1.5: input should be a valid integer"),
        ("rooms", {"width": True}, "option width is true: input should be a valid integer"),
        ("rooms", {"note": 1}, "option note is the number 1: input should be a valid boolean"),
        ("rooms", {"seed": None}, "option seed is null: input should be a valid integer"),
        ("scienceworld", {"test_per_kind": 1.5}, "option test_per_kind is the number 1.5: input"),
        ("scienceworld", {"kinds": [1]}, "option kinds is a list of 1 items: input should be"),
        ("gymnasium", {"id": "FrozenLake-v1", "test_tasks": 1.5}, "option test_tasks is the number 1.5"),
        (f"{HERE}:Splitless", {}, "Splitless has no splits, tasks, open; a suite needs name, identity"),
        (f"{HERE}:Fussy", {}, "KeyError: 'no goal"),
        (f"{HERE}:Nothing", {}, "has no attribute 'Nothing'; write package.module:Class"),
        (":X", {}, "ValueError: Empty module name; write package.module:Class"),
        ("..x:Y", {}, "relative import"),
    ],
)  # fmt: skip
def test_mistakes_are_one_line(name: str, options: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError) as error:
        find_suite(name, options)
    assert message in str(error.value) and "\n" not in str(error.value)


@dataclass(frozen=True)
class Odd(Counting):
    """A suite of which one part is not what it should be."""

    part: str = ""

    def __getattribute__(self, key: str) -> Any:
        part = object.__getattribute__(self, "part")
        if key == part.partition(" ")[0]:
            return ODD[part]
        return object.__getattribute__(self, key)


def failing(*_: object) -> Any:
    raise KeyError("levels.json")


ODD: dict[str, Any] = {
    "name none": None,
    "identity number": 7,
    "instruction none": None,
    "splits text": "train",
    "splits twice": ("train", "train"),
    "splits empty": (),
    "per_worker none": 0,
    "start_seconds nan": float("nan"),
    "tasks fail": failing,
    "tasks generator": lambda split, _: (Task(str(n), split) for n in range(2)),
    "tasks dicts": lambda split, _: [{"id": "a", "split": split}],
    "tasks numbers": lambda split, _: [Task(n, split) for n in range(2)],  # type: ignore[arg-type]
    "tasks twice": lambda split, _: [Task("a", split)] * 2,
    "tasks elsewhere": lambda _, __: [Task("a", "test")],
    "tasks fewer": lambda split, _: [Task("a", split)],
    "tasks timeless": lambda split, _: [Task("a", split, max_turns=0)],
    "tasks tuple": lambda split, _: [Task("a", split, meta={"at": (1, 2)})],  # type: ignore[dict-item]
    "tasks sets": lambda split, _: [Task("a", split, meta={"doors": {1}})],  # type: ignore[dict-item]
}


@pytest.mark.parametrize(
    ("part", "count", "message"),
    [
        ("name none", None, "name is None; it has to be a text"),
        ("identity number", None, "identity is 7; it has to be a text"),
        ("instruction none", None, "instruction is None; it has to be a text"),
        ("splits text", None, "splits is 'train'; it has to be a list"),
        ("splits twice", None, "splits is ['train', 'train']; give each split once, the"),
        ("splits empty", None, "splits is []; give each split once"),
        ("per_worker none", None, "per_worker is 0; use a whole number, 1 or more"),
        ("start_seconds nan", None, "start_seconds is nan; use a number of seconds above 0"),
        ("tasks fail", None, "tasks('train') fails (KeyError: 'levels.json'); mend its class"),
        ("tasks generator", None, "tasks('train') is a generator; it has to be a list"),
        ("tasks dicts", None, "tasks('train')[0] is a dict; return prefopt.agents.environment.Task"),
        ("tasks numbers", 2, "tasks('train', 2)[0].id is 0; it has to be a text"),
        ("tasks twice", None, "tasks('train') returns task 'a' twice; ids must be unique"),
        ("tasks elsewhere", None, "tasks('train')[0].split is 'test'; it has to be 'train'"),
        ("tasks fewer", 2, "tasks('train', 2) returns 1 tasks; ask for fewer, or mend it"),
        ("tasks timeless", None, "[0].max_turns is 0; use a whole number, 1 or more"),
        ("tasks sets", None, "[0].meta holds what JSON cannot (Object of type set is not JSON"),
    ],
)  # fmt: skip
def test_a_suite_of_ones_own_that_breaks_a_promise_is_told_which(
    part: str, count: int | None, message: str
) -> None:
    with pytest.raises(ConfigError) as error:
        find_suite(f"{HERE}:Odd", {"part": part}).tasks("train", count)
    said = str(error.value)
    assert said.startswith(f"environment {HERE}:Odd: ") and message in said and "\n" not in said


def test_a_suite_of_ones_own_knows_its_splits() -> None:
    with pytest.raises(ConfigError, match="Counting: no split 'nosuch'; it has train, test$"):
        find_suite("tests.agents.counting:Counting").tasks("nosuch")


def test_a_suite_of_ones_own_opens_in_workers_and_its_tasks_are_of_json() -> None:
    """A tuple is a list there, as it is in files of trajectories and in worker processes."""
    suite = find_suite("tests.agents.counting:Counting", {"goal": 2})
    with Farm(suite, workers=1) as farm:
        [(_, played)] = farm.play([Play(("a", 0), Task("a", "train"), ("up",), last=True)])
    assert [outcome.reward for outcome in played.outcomes] == [0.0, 0.5]
    [task] = find_suite(f"{HERE}:Odd", {"part": "tasks tuple"}).tasks("train")
    assert task == Task("a", "train", meta={"at": [1, 2]})


@pytest.mark.parametrize("find", [find_suite, find_format])
def test_a_module_that_cannot_be_compiled_is_named(
    find: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "prefopt_broken_module.py").write_text("class X\n    pass\n")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(PrefoptError, match="prefopt_broken_module.py, line 1") as error:
        find("prefopt_broken_module:X")
    assert "\n" not in str(error.value)


def test_options_are_what_the_fields_say() -> None:
    """Lists of a recipe are tuples where the suite has tuples; whole numbers are numbers; the rest stays as it is."""
    own: Any = find_suite("tests.agents.counting:Counting", {"splits": ["a", "b"], "start": 5})
    assert own.suite == Counting(splits=("a", "b"), start=5.0)
    options: dict[str, Any] = {
        "id": "X",
        "modules": "m",
        "actions": "a,b",
        "arguments": {"deep": [1, {"x": None}]},
    }
    made: Any = find_suite("gymnasium", options)
    assert (made.modules, made.actions) == (("m",), ("a", "b"))
    assert made.arguments == {"deep": [1, {"x": None}]}
    assert find_suite("scienceworld", {"kinds": "find-*"}) == find_suite(
        "scienceworld", {"kinds": ["find-*"], "train_per_kind": 120}
    )
