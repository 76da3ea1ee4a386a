"""`prefopt run` with DMPO on `rooms`: experts, roll-outs, pairs, training and evaluation, in two rounds."""

from __future__ import annotations

import json
import sqlite3
from contextlib import closing
from pathlib import Path

import pytest

from prefopt.cli.main import main
from prefopt.config import load_recipe
from prefopt.worlds.rooms import RoomsSettings, RoomsWorld
from tests.integration.runs import Row, losses, read_json, read_rows, weight_bytes

pytestmark = pytest.mark.slow

TASKS = {"train_tasks": 8, "seen_tasks": 4, "unseen_tasks": 4}
RESULT = "agent-evaluation.json"


@pytest.fixture
def recipe(tmp_path: Path) -> Path:
    """An untrained model of the world, eight tasks, two rounds."""
    world = RoomsWorld(RoomsSettings(hidden_size=32, layers=1))
    values: Row = {
        "method": "dmpo",
        "model_name_or_path": str(world.save_blank(tmp_path / "blank")),
        "max_length": 1024,
        "build": {
            "environment": "rooms",
            "environment_options": TASKS,
            "format": "action",
            "example": False,
            "max_new_tokens": 8,
            "workers": 1,
            "rounds": 2,
            "later_rounds": {"beta": 0.5},
            "output_dir": str(tmp_path / "data"),
        },
        "evaluate": {"limit": 3},
        "learning_rate": 1e-4,
        "num_train_epochs": 2,
        "per_device_train_batch_size": 4,
        "logging_steps": 1,
        "save_strategy": "no",
        "output_dir": str(tmp_path / "run"),
        "cache_dir": str(tmp_path / "cache"),
    }
    file = tmp_path / "recipe.yaml"
    file.write_text(json.dumps(values), encoding="utf-8")
    return file


def snapshot(root: Path) -> dict[str, bytes]:
    """What the rounds left, but for the counts of each call; of journals, every reply and outcome in them."""
    kept = {".jsonl", ".safetensors", ".yaml"}
    found = sorted(p for name in ("data", "run") for p in (root / name).rglob("*"))
    files = [p for p in found if p.suffix in kept or p.name == RESULT]
    journals = [p for p in found if p.suffix == ".sqlite"]
    assert len(journals) == 4
    return {str(p.relative_to(root)): p.read_bytes() for p in files} | {
        str(p.relative_to(root)): rows_of(p) for p in journals
    }


def rows_of(journal: Path) -> bytes:
    with closing(sqlite3.connect(journal)) as opened:
        return "\n".join(opened.iterdump()).encode()


def test_two_rounds_with_evaluation_and_nothing_is_done_twice(
    recipe: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["run", str(recipe)]) == 0
    rounds = [tmp_path / "run" / f"round-{k}" for k in (1, 2)]
    assert capsys.readouterr().out.split() == [str(r / "model") for r in rounds]

    recipes = [load_recipe(r / "run.yaml") for r in rounds]
    assert [r["beta"] for r in recipes] == [0.1, 0.5]
    assert recipes[1]["model_name_or_path"] == str(rounds[0] / "model")
    for number, folder in enumerate(rounds, start=1):
        require_round(folder, tmp_path / "data" / f"round-{number}")
    assert weight_bytes(rounds[0] / "model") != weight_bytes(rounds[1] / "model")

    before = snapshot(tmp_path)
    assert main(["run", str(recipe)]) == 0, "a finished recipe is found again"
    said = capsys.readouterr()
    assert said.out.split() == [str(r / "model") for r in rounds]
    assert said.err.count("this run is already finished") == 2
    assert snapshot(tmp_path) == before


def require_round(run: Path, data: Path) -> None:
    """What a round leaves: eight pairs of its own model and the experts, two epochs, an evaluation of the result."""
    counts = read_json(data / "counts.json")["counts"]
    assert (counts["tasks"], counts["roll-outs"], counts["pairs"]) == (8, 8, 8)
    rollouts = read_rows(data / "trajectories.jsonl")
    assert len(rollouts) == 8
    assert {row["task"]["split"] for row in rollouts} == {"train"}
    assert read_json(run / "data-ledger.json")["train"]["kept"] == 8
    assert losses(run)[0] == pytest.approx(0.6931472, abs=1e-5), "policy and reference agree"
    assert len(losses(run)) == 4
    found = read_json(run / RESULT)
    assert {name: split["tasks"] for name, split in found["splits"].items()} == {
        "seen": 3,
        "unseen": 3,
    }
    assert found["settings"]["format"] == "action"
    episodes = read_rows(run / "trajectories.jsonl")
    assert [row["task"]["id"] for row in episodes] == [
        f"{split}-{k}" for split in ("seen", "unseen") for k in (1, 2, 3)
    ]
