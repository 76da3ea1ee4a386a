"""Curry-DPO killed while it was written over, and resumed under another name of the same folder."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest

from prefopt.errors import ResumeError
from prefopt.train.folder import RunFolder
from tests.integration.runs import Row, Settings, read_json, weight_bytes, write_rows
from tests.integration.test_curry_dpo_files import ranked


@pytest.fixture
def curry(settings: Settings, tmp_path: Path) -> Settings:
    """Two stages of four pairs, a step each."""
    return settings.with_(
        method="curry_dpo",
        train_file=str(write_rows(tmp_path / "lists.jsonl", map(ranked, range(4)))),
        num_train_epochs=1.0,
    )


def of_three_stages(settings: Settings, folder: Path) -> Settings:
    path = write_rows(folder / "three.jsonl", (ranked(i, 4) for i in range(4)))
    return settings.with_(train_file=str(path))


def put_first_stage(new: Path, over: Path) -> None:
    """What an `--overwrite` that was killed at the end of stage 1 leaves: that stage is new, the rest is not."""
    for name in ("stage-1", "curriculum"):
        shutil.rmtree(over / name)
        shutil.copytree(new / name, over / name)


@pytest.mark.parametrize("forgotten", ["nothing", pytest.param("the top", marks=pytest.mark.slow)])
def test_what_is_left_of_the_run_that_was_written_over_is_no_part_of_the_new_one(
    forgotten: str, curry: Settings, tmp_path: Path
) -> None:
    curry = of_three_stages(curry, tmp_path)
    folder = curry.train().folder
    anew = curry.with_(learning_rate=1e-2, order="hard_to_easy")
    expected = anew.with_(output_dir=str(tmp_path / "new")).train()
    put_first_stage(expected.folder, folder)
    if forgotten != "nothing":
        RunFolder(folder).clear()
    resumed = anew.with_(resume_from_checkpoint=True)
    assert resumed.train().folder == folder
    assert weight_bytes(folder / "model") == weight_bytes(expected.model)
    told = [read_json(f / "finished.json")["links"] for f in (folder, expected.folder)]
    assert [x["starting_weights"] for x in told[0]] == [x["starting_weights"] for x in told[1]]
    files = {p: p.stat().st_mtime_ns for p in folder.rglob("*.safetensors")}
    resumed.train()
    assert {p: p.stat().st_mtime_ns for p in folder.rglob("*.safetensors")} == files


def test_the_old_model_is_not_taken_for_that_of_a_new_last_stage(
    curry: Settings, tmp_path: Path
) -> None:
    one = curry.with_(stages="pooled")
    folder = one.train().folder
    (folder / "evaluation.json").write_text("{}")
    anew = one.with_(learning_rate=1e-2)
    expected = anew.with_(output_dir=str(tmp_path / "new")).train()
    put_first_stage(expected.folder, folder)
    anew.with_(resume_from_checkpoint=True).train()
    assert weight_bytes(folder / "model") == weight_bytes(expected.model)
    assert not (folder / "evaluation.json").exists(), "it is about the model that was there before"


def test_a_stage_whose_files_were_changed_is_refused_and_not_forgotten(
    curry: Settings, tmp_path: Path
) -> None:
    """What goes on from a stage is removed where that stage was trained again, and for no other reason."""
    folder = curry.train().folder
    other = curry.with_(output_dir=str(tmp_path / "other"), learning_rate=1e-2).train().folder
    shutil.rmtree(folder / "stage-1" / "model")
    shutil.copytree(other / "stage-1" / "model", folder / "stage-1" / "model")
    kept = (folder / "stage-2" / "finished.json").read_bytes()
    with pytest.raises(ResumeError, match=r"stage-2/finished.json: not the same run: .*weights"):
        curry.with_(resume_from_checkpoint=True).train()
    assert (folder / "stage-2" / "finished.json").read_bytes() == kept


def test_a_chain_goes_on_under_another_name_of_its_folder(
    curry: Settings,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    relative = of_three_stages(curry, tmp_path).with_(output_dir="out/a", save_strategy="epoch")
    relative.train()
    expected = weight_bytes(tmp_path / "out" / "a" / "model")
    for name in ("model", "stage-3/model"):
        shutil.rmtree(tmp_path / "out" / "a" / name)
    (tmp_path / "out" / "a" / "stage-3" / "finished.json").unlink()
    (tmp_path / "out" / "a").rename(tmp_path / "moved")
    moved = tmp_path / "moved"
    before = (moved / "stage-2" / "finished.json").read_bytes()
    result = relative.with_(output_dir=str(moved), resume_from_checkpoint=True).train()
    assert weight_bytes(result.model) == expected
    assert (moved / "stage-2" / "finished.json").read_bytes() == before, "it was found again"
    assert f"resuming from {moved / 'stage-3' / 'checkpoints'}" in capsys.readouterr().err


def train_and_be_killed(settings: Settings, path: Path, patch: pytest.MonkeyPatch) -> None:
    """Training ends where that folder, or what is in it, is removed; the checkpoint that is written is one of these."""
    remove = shutil.rmtree

    def stop(removed: str | Path, *words: Any, **options: Any) -> None:
        if path in (Path(removed), Path(removed).parent):
            raise KeyboardInterrupt
        remove(removed, *words, **options)

    with patch.context() as inner:
        inner.setattr(shutil, "rmtree", stop)
        with pytest.raises(KeyboardInterrupt):
            settings.train()


@pytest.mark.parametrize("schedule", ["iterative", "single_run"])
def test_a_removal_that_was_killed_is_finished(
    schedule: str, curry: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    curry = curry.with_(schedule=schedule, save_strategy="steps", save_steps=1)
    folder = curry.train().folder
    first = folder / "stage-1" if schedule == "iterative" else folder
    anew = curry.with_(order="hard_to_easy", learning_rate=1e-2)
    overwriting = anew.with_(overwrite_output_dir=True)
    train_and_be_killed(overwriting, first / "checkpoints", monkeypatch)
    assert not (first / "finished.json").exists()
    assert (first / "model").exists(), "the old run is there in part"
    resumed = anew.with_(resume_from_checkpoint=True).train()
    expected = anew.with_(output_dir=str(tmp_path / "new")).train()
    assert weight_bytes(resumed.model) == weight_bytes(expected.model)
    assert not list(folder.rglob(".removing"))


def test_a_chain_that_writes_over_a_single_training_goes_on(
    curry: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = curry.with_(schedule="single_run").train().folder
    anew = curry.with_(learning_rate=1e-2, save_strategy="epoch")
    resuming = anew.with_(resume_from_checkpoint=True)
    with pytest.raises(ResumeError, match="holds a single training, and this recipe makes several"):
        resuming.train()
    overwriting = anew.with_(overwrite_output_dir=True)
    train_and_be_killed(overwriting, folder / "stage-1" / "checkpoints", monkeypatch)
    assert (folder / "metrics.jsonl").exists()
    assert resuming.train().folder == folder
    expected = anew.with_(output_dir=str(tmp_path / "new")).train()
    assert weight_bytes(folder / "model") == weight_bytes(expected.model)
    assert not (folder / "metrics.jsonl").exists()


def test_pairs_that_the_reader_leaves_out_are_counted_too(curry: Settings, tmp_path: Path) -> None:
    rows: list[Row] = [
        {"prompt": f"{i} + 4?\n", "chosen": str(i + 4), "rejected": "no", "stage": stage}
        for i, stage in ((1, 1), (2, 1), (3, 2), (1, 2))
    ]
    result = curry.with_(
        train_file=str(write_rows(tmp_path / "twice.jsonl", rows)), stages="given"
    ).train()
    index = read_json(result.folder / "curriculum" / "curriculum.json")
    assert [stage["pairs"] for stage in index["stages"]] == [2, 1]
    assert index["left_out"] == {"duplicate of an earlier row": 1}
