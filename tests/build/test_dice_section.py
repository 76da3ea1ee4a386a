"""The section `build` of DICE: contradictions in one line, references of later rounds, units of alpha."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from prefopt.build.dice import DiceBuild
from prefopt.config import parse
from prefopt.errors import ConfigError
from prefopt.methods.base import find_method
from prefopt.methods.dice import DiceConfig
from prefopt.runs.rounds import config_of_round

METHOD = find_method("dice")


def recipe(**build: Any) -> dict[str, Any]:
    section: dict[str, Any] = {"previous": "sft", "offline": "pairs.jsonl", "samples": 8} | build
    return {"method": "dice", "model_name_or_path": "m0", "output_dir": "runs/d", "build": section}


def section(**build: Any) -> DiceBuild:
    config = parse(recipe(**build), DiceConfig)
    assert config.build is not None
    return config.build


@pytest.mark.parametrize(
    ("build", "says"),
    [
        ({"previous": "m0"}, "previous is model_name_or_path, 'm0': every reward would be 0"),
        ({"offline": None}, "there is nothing to answer: set offline"),
        ({"offline": None, "prompts": "p.jsonl"}, "gamma 0.5 mixes in earlier data: set offline"),
        ({"min_valid": 9}, "min_valid 9 is more than samples 8"),
        ({"temperature": 0}, "temperature 0 makes all answers the same"),
        ({"max_length": 4096}, "max_length 4096 is more than the recipe's, 1024"),
        ({"scan": "official", "allow_negative": True}, "allow_negative has no effect"),
        ({"gamma": 1.5}, "gamma is 1.5; expected a number >= 0 and <= 1"),
        ({"alpha": "half"}, 'alpha is "half"; expected auto or a number'),
        ({"rounds": 2, "writer": {"model_name_or_path": "x"}}, "a writer of its own"),
    ],
)
def test_contradictions(build: dict[str, Any], says: str) -> None:
    with pytest.raises(ConfigError) as error:
        parse(recipe(**build), DiceConfig)
    assert says in str(error.value)


@pytest.mark.parametrize(
    ("reference", "expected"),
    [
        ("previous", ["sft", "m0", "m1", "m2"]),
        ("initial", ["sft", "m0", "m0", "m0"]),
        ("fixed", ["sft", "sft", "sft", "sft"]),
    ],
)
def test_a9_the_reward_reference_of_each_round(reference: str, expected: list[str]) -> None:
    config = parse(recipe(rounds=4, reward_reference=reference), METHOD.config)
    starts = ["m0", "m1", "m2", "m3"]
    found: list[tuple[str, str]] = []
    for number, start in enumerate(starts, start=1):
        before = Path(start) if number > 1 else None
        own = config_of_round(config, METHOD, number, before, starts=starts[:number])
        assert isinstance(own, DiceConfig)
        assert own.build is not None
        assert own.reference_model is None, "training is against its own start"
        found.append((own.model_name_or_path, own.build.previous))
    assert found == list(zip(starts, expected, strict=True))


def test_alpha_in_published_units_is_beta_times_it() -> None:
    assert section(alpha=0.023, alpha_unit="logp", beta=0.1).bootstrap().alpha == pytest.approx(
        0.0023
    )
    assert section(alpha=0.0023).bootstrap().alpha == 0.0023
    assert section(alpha=0).bootstrap().alpha == 0
    assert section().bootstrap().alpha is None


def test_inputs_are_the_files_that_are_read() -> None:
    assert section().inputs() == ["pairs.jsonl"]
    assert section(prompts=["a", "b"], gamma=0.0, offline=None).inputs() == ["a", "b"]
