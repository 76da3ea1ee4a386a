"""The recipe of Curry-DPO: what each key means, and which ones exclude each other."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from prefopt.build.stages import CurriculumRules
from prefopt.config import load_recipe, parse
from prefopt.errors import ConfigError
from prefopt.methods.base import find_method
from prefopt.methods.curry_dpo import METHOD, CurryDpoConfig, difficulty_of, rules_of
from prefopt.runs.chain import Link, config_of_link
from prefopt.runs.setup import input_paths

RECIPE = Path(__file__).parents[2] / "recipes" / "curry_dpo" / "curry_dpo.yaml"


def recipe(**changes: Any) -> CurryDpoConfig:
    raw = {"method": "curry_dpo", "model_name_or_path": "m", "train_file": "d.jsonl", **changes}
    return parse(raw, METHOD.config)


def test_the_defaults_are_the_papers() -> None:
    config = recipe()
    assert rules_of(config) == CurriculumRules()
    assert difficulty_of(config) == ("score_gap", None, "m", 0.1)
    assert (config.schedule, config.pairing, config.loss_type) == (
        "iterative",
        "best_vs_rest",
        ["dpo"],
    )


@pytest.mark.parametrize(
    ("keys", "says"),
    [
        ({"quantiles": 4}, "quantiles 4 has no effect with stages 'ranks'"),
        ({"stages": "pooled", "align": "easy"}, "align 'easy' has no effect unless stages is ranks"),
        ({"only": "easiest", "order": "random"}, "order 'random' has no effect with one stage"),
        ({"stages": "pooled", "only": 1}, "only 1 names a stage, and stages: pooled has one"),
        ({"stages": "given", "difficulty": "rank_gap"}, "difficulty 'rank_gap' has no effect"),
        ({"stages": "given", "drop_hardest": 0.1}, "drop_hardest has no meaning with stages: given"),
        ({"columns": {"stage": "level"}}, "columns.stage 'level' has no effect with stages 'ranks'"),
        ({"difficulty": "implicit_reward"}, "difficulty: implicit_reward and difficulty_policy belong"),
        ({"difficulty_reference": "r"}, "difficulty_reference has no effect unless difficulty is"),
        ({"difficulty": "scoregap"}, "difficulty 'scoregap' is unknown: use score_gap, rank_gap"),
        ({"only": 0}, "only 0 is no stage"),
        ({"schedule": "single_run", "max_steps": 5}, "max_steps 5 would cut stages off"),
        ({"reference": "adapter_off", "use_peft": True}, "reference 'adapter_off' is the model before"),
        ({"reference_model": "r"}, "reference_model 'r' has no place in schedule: iterative"),
    ],
)  # fmt: skip
def test_keys_that_exclude_each_other_are_one_line(keys: dict[str, Any], says: str) -> None:
    with pytest.raises(ConfigError) as caught:
        recipe(**keys)
    assert str(caught.value).startswith(says)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "keys",
    [
        {"reference": "adapter_off", "use_peft": True, "schedule": "single_run"},
        {"reference": "adapter_off", "use_peft": True, "only": "easiest"},
        {"reference_model": "r", "stages": "pooled"},
        {"schedule": "single_run", "stages": "pooled", "max_steps": 5},
        {"difficulty": "implicit_reward", "difficulty_policy": "p", "difficulty_reference": "r"},
        {"difficulty": "package.module:function"},
        {"columns": {"stage": "level"}, "stages": "given"},
    ],
)
def test_keys_that_go_together(keys: dict[str, Any]) -> None:
    recipe(**keys)


@pytest.mark.parametrize(
    "key", ["stages=given", "stages=pooled", "only=easiest", "order=random", "schedule=single_run"]
)
def test_the_recipe_goes_with_every_baseline(key: str) -> None:
    raw = load_recipe(RECIPE, [key])
    name, _, value = key.partition("=")
    assert getattr(parse(raw, METHOD.config), name) == value


def test_the_models_of_difficulties_are_inputs(tmp_path: Path) -> None:
    for name in ("policy", "reference"):
        (tmp_path / name).mkdir()
    config = recipe(
        difficulty="implicit_reward",
        difficulty_policy=str(tmp_path / "policy"),
        difficulty_reference=str(tmp_path / "reference"),
    )
    assert {str(tmp_path / name) for name in ("policy", "reference")} <= set(input_paths(config))


def test_only_the_last_link_is_uploaded() -> None:
    config = recipe(push_to_hub=True, hub_model_id="me/model", run_name="try", output_dir="runs/x")
    links = [Link("stage-1", {"seed": 7}), Link("stage-2", {})]
    first, last = (
        config_of_link(config, find_method("curry_dpo"), link, None, last=link is links[1])
        for link in links
    )
    assert (first.push_to_hub, first.hub_model_id, first.seed) == (False, None, 7)
    assert (last.push_to_hub, last.hub_model_id, last.seed) == (True, "me/model", 42)
    assert (last.run_name, last.output_dir) == ("try stage-2", "runs/x/stage-2")
