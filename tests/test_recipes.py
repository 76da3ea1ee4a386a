"""The recipes that are shipped: each is valid for its method, named, explained and complete."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from prefopt.config import load_recipe, parse
from prefopt.methods.base import find_method, method_names

FOLDER = Path(__file__).parents[1] / "recipes"
RECIPES = sorted(FOLDER.glob("*/*.yaml"))


@pytest.mark.parametrize("path", RECIPES, ids=lambda p: p.stem)
def test_recipe_is_valid(path: Path):
    raw = load_recipe(path)
    method = find_method(str(raw["method"]))
    config = parse(raw, method.config)
    assert config.method == method.name
    assert path.name in (path.parent / "README.md").read_text()


def test_every_method_has_a_recipe_of_its_name():
    assert [name for name in method_names() if not (FOLDER / name / f"{name}.yaml").is_file()] == []


def test_step_dpo_has_the_published_settings():
    """The 7B script of the authors, dvlab-research/Step-DPO, bash_scrips/qwen2_7b_step_dpo.sh and its config."""
    raw = load_recipe(FOLDER / "step_dpo" / "step_dpo.yaml")
    published = {
        "beta": 0.5,
        "learning_rate": 5e-7,
        "num_train_epochs": 8,
        "lr_scheduler_type": "cosine",
        "warmup_ratio": 0.1,
        "per_device_train_batch_size": 4,
        "gradient_accumulation_steps": 4,
        "max_length": 1024,
        "bf16": True,
        "gradient_checkpointing": True,
        "save_steps": 400,
        "seed": 42,
    }
    assert published.items() <= raw.items()


def test_scdpo_makes_the_pairs_of_a_published_builder():
    """Sheet of the method: the builder for Mistral counts whole solutions written anew and adds no naive pairs.

    The overrides in its README make the other builder, and those in Step-DPO's the published choices.
    """
    build = parsed("scdpo").build
    assert (build.start_zero, build.add_naive, build.per_question) == ("controlled", False, 2)
    assert (build.grader, build.code.count_failures_as_wrong) == ("scdpo", True)
    readme = (FOLDER / "scdpo" / "README.md").read_text()
    other = ["build.start_zero=drop", "build.add_naive=true", "build.code.count_failures_as_wrong=false"]  # fmt: skip
    assert " ".join(other) in readme
    assert parsed("scdpo", *other).build.add_naive
    readme = (FOLDER / "step_dpo" / "README.md").read_text()
    published = ["build.grader=step_dpo", "build.rules=official", "build.judge.rules=official",
                 "build.judge.attempts=1", "build.style=qwen2-boxed-step"]  # fmt: skip
    assert [one for one in published if f"`{one}`" not in readme] == []
    assert parsed("step_dpo", *published).build.judge.attempts == 1


@pytest.mark.parametrize("method", ["step_dpo", "scdpo", "dice"])
def test_the_commands_of_a_build_and_its_training_read_the_same_problems(method: str):
    """`prefopt train` refuses pairs that were built from other problems than its recipe names."""
    readme = (FOLDER / method / "README.md").read_text()
    named = "build.yaml" if method != "dice" else "dice.yaml"
    commands = [line.split() for line in readme.splitlines() if f"recipes/{method}/{named}" in line]
    sections = {
        json.dumps(load_recipe(FOLDER / method / named, [w for w in words if "=" in w])["build"])
        for words in commands
        if "build" in words or "train" in words
    }
    assert len(sections) == 1


def parsed(method: str, *overrides: str) -> Any:
    raw = load_recipe(FOLDER / method / "build.yaml", overrides)
    return parse(raw, find_method(method).config)
