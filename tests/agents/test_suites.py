"""Finding environments: options of the right type, environments of one's own, and every mistake in one line."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from prefopt.agents.formats import find_format
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
    found = find_suite("tests.agents.counting:Counting", {"splits": ["a", "b"], "start": 5})
    assert found == Counting(splits=("a", "b"), start=5.0)
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
