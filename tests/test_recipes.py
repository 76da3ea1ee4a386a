"""The recipes that are shipped: each is valid for its method, named, explained and complete."""

from __future__ import annotations

from pathlib import Path

import pytest

from prefopt.config import load_recipe, parse
from prefopt.methods.base import find_method, method_names

FOLDER = Path(__file__).parents[1] / "recipes"
RECIPES = sorted(FOLDER.glob("*/*.yaml"))


@pytest.mark.parametrize("path", RECIPES, ids=lambda p: p.stem)
def test_recipe_is_valid(path: Path):
    raw = load_recipe(path)
    method = find_method(path.parent.name)
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
