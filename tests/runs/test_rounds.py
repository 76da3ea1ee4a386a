"""The section `evaluate` of a recipe: its mistakes come before everything else, and it is no part of a run."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest

from prefopt.cli.main import main
from prefopt.worlds.rooms import RoomsSettings, RoomsWorld
from tests.integration.runs import errors_in, largest_difference, read_json, run, weights

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


@pytest.mark.slow
def test_two_processes_make_the_same_rounds_as_one(tmp_path: Path) -> None:
    """The first process builds and evaluates, both train; every message once."""
    blank = RoomsWorld(RoomsSettings(hidden_size=32, layers=1)).save_blank(tmp_path / "blank")
    folders = [tmp_path / "one", tmp_path / "two"]
    for processes, folder in enumerate(folders, start=1):
        folder.mkdir()
        file = recipe(folder, blank, splits=["unseen"])
        share = f"per_device_train_batch_size={4 // processes}"
        words = [file, "build.rounds=2", share]
        done = run(*words, command=[sys.executable, "-m", *launched(processes), "prefopt", "run"])
        assert done.returncode == 0, done.stderr
        assert done.stdout.split() == [str(folder / "run" / f"round-{k}" / "model") for k in (1, 2)]
        for said in ("round 1 of 2", "round 2 of 2", "all rounds: "):
            assert done.stderr.count(said) == 1, done.stderr
    for name in ("round-1", "round-2"):
        one, two = (folder / "run" / name for folder in folders)
        assert read_json(two / "plan.json")["world_size"] == 2
        assert (folders[0] / "data" / name / "pairs.jsonl").read_bytes() == (
            folders[1] / "data" / name / "pairs.jsonl"
        ).read_bytes()
        assert largest_difference(weights(one / "model"), weights(two / "model")) < 1e-5
        assert read_json(two / "agent-evaluation.json")["splits"]["unseen"]["tasks"] == 4


@pytest.mark.slow
def test_two_processes_say_once_that_nothing_can_be_built(tmp_path: Path) -> None:
    """A server that refuses is an error of the process that asked it, and ends both."""
    blank = RoomsWorld(RoomsSettings(hidden_size=32, layers=1)).save_blank(tmp_path / "blank")
    nobody = {"server": "http://127.0.0.1:9/v1", "model": "m", "patience": 0.1}
    words = [recipe(tmp_path, blank), f"build.writer={json.dumps(nobody)}"]
    done = run(*words, command=[sys.executable, "-m", *launched(2), "prefopt", "run"])
    found = errors_in(done.stderr)
    assert done.returncode != 0 and len(found) == 1 and "127.0.0.1:9" in found[0], done.stderr


@pytest.mark.slow
def test_a_run_goes_on_with_the_data_that_it_was_begun_on(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """An environment that failed in the build and works now would make other data."""
    blank = RoomsWorld(RoomsSettings(hidden_size=32, layers=1)).save_blank(tmp_path / "blank")
    (tmp_path / "marks").mkdir()
    words = [
        "run", recipe(tmp_path, blank, splits=["test"], limit=1), "build.environment=tests.agents.counting:Planned",
        f"build.environment_options={{goal: 2, closed: [1], folder: {tmp_path / 'marks'}}}", "build.max_tasks=3",
    ]  # fmt: skip
    assert main(words) == 0
    assert "1 of 3 experts failed" in capsys.readouterr().err
    pairs = (tmp_path / "data" / "pairs.jsonl").read_bytes()
    (tmp_path / "marks" / "mended").touch()
    assert main(words) == 0
    said = capsys.readouterr().err
    assert f"data: {tmp_path / 'data' / 'pairs.jsonl'}, on which the run in" in said
    assert (tmp_path / "data" / "pairs.jsonl").read_bytes() == pairs
    assert main([*words, "--overwrite"]) == 0
    assert (tmp_path / "data" / "pairs.jsonl").read_bytes() != pairs


def launched(processes: int) -> list[str]:
    """What comes between `python -m` and `prefopt`."""
    if processes == 1:
        return []
    return ["torch.distributed.run", "--standalone", "--nproc_per_node", str(processes), "-m"]


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
