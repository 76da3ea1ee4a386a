"""The section `evaluate` of a recipe: its mistakes come before everything else, and it is no part of a run."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from prefopt.cli.main import main
from prefopt.worlds.rooms import RoomsSettings, RoomsWorld

OPTIONS = {"train_tasks": 4, "seen_tasks": 4, "unseen_tasks": 4}


def recipe(folder: Path, model: Path | str = "none", **evaluate: Any) -> str:
    """One round of DMPO in `rooms`."""
    build: dict[str, Any] = {
        "environment": "rooms", "environment_options": OPTIONS, "format": "action", "example": False,
        "max_new_tokens": 8, "workers": 1, "output_dir": str(folder / "data"),
    }  # fmt: skip
    values: dict[str, Any] = {
        "method": "dmpo", "model_name_or_path": str(model), "max_length": 1024, "build": build,
        "evaluate": evaluate, "max_steps": 1, "save_strategy": "no",
        "output_dir": str(folder / "run"), "cache_dir": str(folder / "cache"),
    }  # fmt: skip
    file = folder / "recipe.yaml"
    file.write_text(json.dumps(values))
    return str(file)


@pytest.mark.parametrize(
    ("evaluate", "message"),
    [
        ({"splits": ["nope"]}, "no split 'nope'; it has train, seen, unseen"),
        ({"splits": ["seen", "seen"]}, "split 'seen' is given twice"),
        ({"limit": 5}, "the seen split has 4 tasks, 5 are wanted"),
    ],
)
def test_mistakes_in_what_to_evaluate_are_found_before_the_build(
    evaluate: dict[str, Any],
    message: str,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert main(["run", recipe(tmp_path, **evaluate)]) == 2
    said = capsys.readouterr().err
    assert said.startswith("error: ") and said.count("\n") == 1 and message in said
    assert not (tmp_path / "data").exists() and not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("files", "message"),
    [
        (["nowhere.jsonl"], "nowhere.jsonl"),
        (["sums.jsonl", "other/sums.jsonl"], "two files are called 'sums'"),
        (["broken.jsonl"], "broken.jsonl:1"),
    ],
)
def test_problem_files_are_read_before_the_build(
    files: list[str],
    message: str,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("sums.jsonl").write_text('{"question": "1 + 1?", "answer": "2"}\n')
    Path("broken.jsonl").write_text("{\n")
    judge = {"by": "writer", "writer": {"server": "http://127.0.0.1:9/v1", "model": "m"}}
    values = {
        "method": "step_dpo", "model_name_or_path": "none", "evaluate": {"problems": files},
        "build": {"problems": "sums.jsonl", "output_dir": "data", "judge": judge}, "output_dir": "run",
    }  # fmt: skip
    Path("recipe.yaml").write_text(json.dumps(values))
    assert main(["run", "recipe.yaml"]) == 2
    said = capsys.readouterr().err
    assert message in said and said.count("\n") == 1
    assert not Path("data").exists() and not Path("run").exists()


def test_several_processes_are_told_how_to_share_the_work(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert main(["run", recipe(tmp_path)]) == 2
    said = capsys.readouterr().err
    assert said.count("\n") == 1 and "a launcher started 2: run `prefopt build` alone" in said
    assert not (tmp_path / "data").exists() and not (tmp_path / "run").exists()


@pytest.mark.slow
def test_what_is_evaluated_can_be_changed_after_the_training(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    blank = RoomsWorld(RoomsSettings(hidden_size=32, layers=1)).save_blank(tmp_path / "blank")
    assert main(["run", recipe(tmp_path, blank, limit=1)]) == 0
    trained = (tmp_path / "run" / "finished.json").read_bytes()
    assert main(["run", recipe(tmp_path, blank, limit=2, splits=["unseen"])]) == 0
    assert "this run is already finished" in capsys.readouterr().err
    assert (tmp_path / "run" / "finished.json").read_bytes() == trained
    found = json.loads((tmp_path / "run" / "agent-evaluation.json").read_text())
    assert {split: result["tasks"] for split, result in found["splits"].items()} == {"unseen": 2}
