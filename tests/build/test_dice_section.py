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


def round_of(number: int, keys: dict[str, Any] | None = None, **build: Any) -> DiceConfig:
    config = parse({**recipe(rounds=3, **build), **(keys or {})}, METHOD.config)
    starts = ["m0", "m1", "m2"][:number]
    before = Path(starts[-1]) if number > 1 else None
    own = config_of_round(config, METHOD, number, before, starts=starts)
    assert isinstance(own, DiceConfig)
    return own


def build_of(config: DiceConfig) -> DiceBuild:
    assert config.build is not None
    return config.build


def test_the_build_of_later_rounds_can_differ() -> None:
    later = {"later_rounds": {"beta": 0.2, "build": {"gamma": 0.25, "samples": 12}}}
    first, second = (build_of(round_of(k, **later)) for k in (1, 2))
    assert [first.gamma, second.gamma] == [0.5, 0.25]
    assert [first.samples, second.samples] == [8, 12]
    assert second.offline == "pairs.jsonl"


@pytest.mark.parametrize(
    ("later", "says"),
    [
        ({"build": {"gama": 0.25}}, "gama"),
        ({"build": {"previous": "x"}}, "build.later_rounds.build.previous would have no effect"),
        ({"build": {"output_dir": "x"}}, "build.later_rounds.build.output_dir would have no"),
        ({"build": 3}, "build.later_rounds.build is 3; give keys of the section"),
        ({"output_dir": "x"}, "build.later_rounds.output_dir would have no effect"),
        ({"model_name_or_path": "x"}, "build.later_rounds.model_name_or_path would have no"),
    ],
)
def test_mistakes_in_later_rounds_are_one_line(later: dict[str, Any], says: str) -> None:
    with pytest.raises(ConfigError) as error:
        round_of(2, later_rounds=later)
    assert says in str(error.value)
    assert "\n" not in str(error.value)


def test_a_reference_of_the_first_round_is_not_that_of_later_ones() -> None:
    found = [round_of(k, {"reference_model": "elsewhere"}).reference_model for k in (1, 2, 3)]
    assert found == ["elsewhere", None, None]


def test_the_recipes_own_model_keeps_revision_and_tokenizer_as_a_reward_reference() -> None:
    keys = {"model_revision": "v2", "tokenizer_name_or_path": "words"}
    first, second = (build_of(round_of(k, keys)) for k in (1, 2))
    assert (first.previous, first.previous_revision, first.previous_tokenizer) == (
        "sft",
        None,
        None,
    )
    assert (second.previous, second.previous_revision) == ("m0", "v2")
    assert second.previous_tokenizer == "words"
    third = build_of(round_of(3, keys, reward_reference="initial"))
    assert (third.previous, third.previous_revision) == ("m0", "v2")
    fixed = build_of(round_of(2, keys, reward_reference="fixed", previous_revision="v0"))
    assert (fixed.previous, fixed.previous_revision) == ("sft", "v0")


@pytest.mark.parametrize(
    ("keys", "later", "expected"),
    [
        ({"beta": 0.3}, {}, [0.7, 0.3, 0.3]),
        ({"beta": 0.3}, {"beta": 0.5}, [0.7, 0.3, 0.5]),
        ({}, {}, [0.7, 0.1, 0.1]),  # that of DPO
    ],
)
def test_the_beta_of_a_later_reward_is_that_of_the_training_before(
    keys: dict[str, Any], later: dict[str, Any], expected: list[float]
) -> None:
    found = [build_of(round_of(k, keys, beta=0.7, later_rounds=later)).beta for k in (1, 2, 3)]
    assert found == expected


def test_alpha_in_published_units_is_beta_times_it() -> None:
    assert section(alpha=0.023, alpha_unit="logp", beta=0.1).bootstrap().alpha == pytest.approx(
        0.0023
    )
    assert section(alpha=0.0023).bootstrap().alpha == 0.0023
    assert section(alpha=0).bootstrap().alpha == 0
    assert section().bootstrap().alpha is None


def test_answers_are_never_longer_than_training_reads() -> None:
    for given, expected in ((None, 300), (200, 200), (300, 300)):
        config = parse({**recipe(max_length=given), "max_length": 300}, DiceConfig)
        assert build_of(config).longest(config) == expected


def test_inputs_are_the_files_that_are_read() -> None:
    assert section().inputs() == ["pairs.jsonl"]
    assert section(prompts=["a", "b"], gamma=0.0, offline=None).inputs() == ["a", "b"]
