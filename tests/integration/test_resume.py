"""Runs that are killed, refused, cut short by the disk, and gone on with: nothing is lost, nothing done twice."""

from __future__ import annotations

import os
import resource
import shutil
import sqlite3
import subprocess
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path

import pytest

from prefopt.cli.main import main
from prefopt.errors import ResumeError, StorageError
from prefopt.train.checkpoint import find_damage, list_checkpoints
from prefopt.train.folder import RunFolder
from prefopt.train.track import MetricsFile
from tests.integration.runs import (
    Row,
    Settings,
    errors_in,
    kill_when,
    largest_difference,
    read_rows,
    run,
    string_pairs,
    weight_bytes,
    weights,
    write_rows,
)
from tests.tiny import make_model_folder

TIMES = {"seconds", "seconds_per_step"}


def untimed(folder: Path) -> list[Row]:
    rows = read_rows(folder / "metrics.jsonl")
    return [{k: v for k, v in row.items() if k not in TIMES} for row in rows]


def checkpoint_of(folder: Path, step: int) -> Path:
    return folder / "checkpoints" / f"checkpoint-{step}"


def undo_end(folder: Path) -> None:
    """Take away what a run writes after its last step, as if it had been killed there."""
    for name in ("finished.json", "report.html", "samples.jsonl"):
        (folder / name).unlink()
    shutil.rmtree(folder / "model")


@pytest.fixture
def saving(settings: Settings) -> Settings:
    """Eight epochs: 24 steps, a checkpoint every 5."""
    return settings.with_(
        num_train_epochs=8.0, save_strategy="steps", save_steps=5, logging_steps=2
    )


def scored(cache: Path) -> int:
    """Examples in the reference cache, while another process may be writing it."""
    files = list((cache / "reference").glob("*.sqlite"))
    if not files:
        return 0
    try:
        with closing(sqlite3.connect(files[0])) as connection:
            return connection.execute("SELECT count(*) FROM logps").fetchone()[0]
    except sqlite3.OperationalError:  # being made
        return 0


@pytest.mark.slow
def test_killed_twice_and_resumed_to_the_same_bytes(saving: Settings, tmp_path: Path):
    """During the reference pass, which loses nothing, and half way through training."""
    many = str(write_rows(tmp_path / "many.jsonl", string_pairs(600)))
    saving = saving.with_(train_file=many, per_device_train_batch_size=2, max_steps=24)
    elsewhere = {"output_dir": str(tmp_path / "whole"), "cache_dir": str(tmp_path / "other")}
    whole = saving.with_(**elsewhere).train()
    recipe, folder, cache = (
        saving.write(tmp_path / "recipe.yaml"),
        tmp_path / "run",
        tmp_path / "cache",
    )
    kill_when(lambda: scored(cache) >= 20, recipe)
    before = scored(cache)
    assert 20 <= before < 600
    printed = kill_when(checkpoint_of(folder, 10).exists, recipe, "--resume")
    assert f"reference: {before} examples from the cache, {600 - before} scored" in printed
    assert not (folder / "finished.json").exists()
    resumed = run(recipe, "--resume")
    assert resumed.returncode == 0, resumed.stderr
    assert "reference: 600 examples from the cache, 0 scored" in resumed.stderr
    assert "resuming from" in resumed.stderr and " of 24)" in resumed.stderr
    assert weight_bytes(folder / "model") == weight_bytes(whole.model)
    assert untimed(folder) == untimed(whole.folder)
    steps = [row["step"] for row in untimed(folder)]
    assert steps == sorted(set(steps))


def test_an_adapter_with_dropout_resumes_to_the_same_bytes(saving: Settings, tmp_path: Path):
    lora = {"use_peft": True, "lora_r": 2, "lora_dropout": 0.2, "disable_dropout": False}
    done = saving.with_(**lora).train()
    expected, lines = weight_bytes(done.model), untimed(done.folder)
    undo_end(done.folder)
    for step in (15, 20, 24):
        shutil.rmtree(checkpoint_of(done.folder, step))
    again = saving.with_(resume_from_checkpoint=True, **lora).train()
    assert weight_bytes(again.model) == expected
    assert untimed(again.folder) == lines
    other = saving.with_(seed=1, output_dir=str(tmp_path / "other"), **lora).train()
    assert weight_bytes(other.model) != expected


def test_a_finished_run_is_left_as_it_is(saving: Settings, tmp_path: Path, capsys):
    recipe = saving.write(tmp_path / "recipe.yaml")
    assert main(["train", str(recipe)]) == 0
    files = {p: p.stat().st_mtime_ns for p in (tmp_path / "run").rglob("*")}
    capsys.readouterr()
    assert main(["train", str(recipe), "--resume"]) == 0
    assert capsys.readouterr().err.endswith(f"{tmp_path / 'run'}: this run is already finished\n")
    assert {p: p.stat().st_mtime_ns for p in (tmp_path / "run").rglob("*")} == files


def test_a_finished_run_is_not_returned_for_another_recipe(
    saving: Settings, tmp_path: Path, capsys
):
    recipe = saving.write(tmp_path / "recipe.yaml")
    assert main(["train", str(recipe)]) == 0
    capsys.readouterr()
    assert main(["train", str(recipe), "learning_rate=0.5", "--resume"]) == 2
    assert "not the same run: learning_rate: " in capsys.readouterr().err


def test_overwrite_removes_nothing_before_the_new_run_is_ready(
    saving: Settings, tmp_path: Path, capsys
):
    recipe = saving.write(tmp_path / "recipe.yaml")
    assert main(["train", str(recipe)]) == 0
    weights = (tmp_path / "run" / "model" / "model.safetensors").read_bytes()
    capsys.readouterr()
    assert main(["train", str(recipe), f"train_file={tmp_path / 'nope.jsonl'}", "--overwrite"]) == 2
    own = tmp_path / "run" / "model"
    assert main(["train", str(recipe), f"model_name_or_path={own}", "--overwrite"]) == 2
    assert f"--overwrite would delete {own}, which this run reads" in capsys.readouterr().err
    assert (own / "model.safetensors").read_bytes() == weights


def test_a_fresh_run_removes_nothing_of_the_users(saving: Settings, tmp_path: Path, capsys):
    own = make_model_folder(tmp_path / "run" / "model", "llama")
    weights = (own / "model.safetensors").read_bytes()
    recipe = saving.with_(model_name_or_path=str(own)).write(tmp_path / "recipe.yaml")
    for flags in ([], ["--overwrite"]):
        assert main(["train", str(recipe), *flags]) == 2
    err = capsys.readouterr().err
    assert f"{own}: is in the way of a new run" in err
    assert f"--overwrite would delete {own}, which this run reads" in err
    assert (own / "model.safetensors").read_bytes() == weights


def test_a_refused_resume_changes_nothing(saving: Settings, tmp_path: Path, capsys):
    recipe = saving.write(tmp_path / "recipe.yaml")
    assert main(["train", str(recipe)]) == 0
    files = {p: p.read_bytes() for p in (tmp_path / "run").rglob("*") if p.is_file()}
    checkpoint = checkpoint_of(tmp_path / "run", 5)
    for change in (
        ["learning_rate=0.5", f"resume_from_checkpoint={checkpoint}"],
        ["per_device_train_batch_size=1", "--resume"],
    ):
        assert main(["train", str(recipe), *change]) == 2
    capsys.readouterr()
    assert files == {p: p.read_bytes() for p in (tmp_path / "run").rglob("*") if p.is_file()}


def test_only_damaged_checkpoints_are_not_taken_for_none(saving: Settings, tmp_path: Path, capsys):
    recipe = saving.write(tmp_path / "recipe.yaml")
    assert main(["train", str(recipe)]) == 0
    undo_end(tmp_path / "run")
    for checkpoint in list_checkpoints(tmp_path / "run" / "checkpoints"):
        (checkpoint / "manifest.json").unlink()
    assert main(["train", str(recipe), "--resume"]) == 2
    assert "no checkpoint here is whole; pass --overwrite" in capsys.readouterr().err


def test_two_runs_cannot_share_a_folder(saving: Settings, tmp_path: Path, capsys):
    recipe = saving.write(tmp_path / "recipe.yaml")
    folder = RunFolder(tmp_path / "run")
    folder.acquire()
    assert main(["train", str(recipe)]) == 2
    assert f"another run is working here (process {os.getpid()})" in capsys.readouterr().err
    folder.release()
    assert main(["train", str(recipe)]) == 0


def test_a_second_start_is_refused(saving: Settings, tmp_path: Path, capsys):
    recipe = saving.write(tmp_path / "recipe.yaml")
    assert main(["train", str(recipe), "max_steps=5"]) == 0
    before = weight_bytes(tmp_path / "run" / "model")
    capsys.readouterr()
    assert main(["train", str(recipe)]) == 2
    assert capsys.readouterr().err == (
        f"error: {tmp_path / 'run'}: already holds a run (finished); pass --resume to go on, --overwrite to start "
        "anew, or set another output_dir\n"
    )
    undo_end(tmp_path / "run")
    assert main(["train", str(recipe)]) == 2
    assert "(unfinished, newest checkpoint checkpoint-5)" in capsys.readouterr().err
    (tmp_path / "run" / "notes.txt").write_text("mine")
    assert main(["train", str(recipe), "--overwrite"]) == 0
    assert weight_bytes(tmp_path / "run" / "model") != before
    assert (tmp_path / "run" / "notes.txt").read_text() == "mine"


def test_resume_without_a_run_starts_one(settings: Settings, tmp_path: Path):
    first = settings.with_(output_dir=str(tmp_path / "first")).train()
    other = settings.with_(resume_from_checkpoint=True).train()
    assert weight_bytes(first.model) == weight_bytes(other.model)


def test_resume_before_the_first_checkpoint_starts_over(settings: Settings, tmp_path: Path):
    """A run killed before its first checkpoint has written metrics, which must not be there twice."""
    done = settings.train()
    expected = untimed(done.folder)
    undo_end(done.folder)
    again = settings.with_(resume_from_checkpoint=True).train()
    assert untimed(again.folder) == expected


def test_resume_after_the_last_step_only_finishes(saving: Settings, tmp_path: Path):
    done = saving.train()
    expected, card = weight_bytes(done.model), (done.model / "README.md").read_text()
    undo_end(done.folder)
    again = saving.with_(resume_from_checkpoint=True).train()
    assert weight_bytes(again.model) == expected
    assert again.metrics == done.metrics
    assert "`loss`" in card


@pytest.mark.parametrize("damage", ["cut", "no manifest", "changed"])
def test_a_half_written_newest_checkpoint_is_skipped(
    damage: str, saving: Settings, tmp_path: Path, capsys
):
    done = saving.train()
    expected = weight_bytes(done.model)
    undo_end(done.folder)
    newest = checkpoint_of(done.folder, 24)
    data = (newest / "optimizer.pt").read_bytes()
    if damage == "cut":
        (newest / "optimizer.pt").write_bytes(data[:-100])
    elif damage == "changed":
        (newest / "optimizer.pt").write_bytes(data[:-100] + bytes(100))
    else:
        (newest / "manifest.json").unlink()
    capsys.readouterr()
    again = saving.with_(resume_from_checkpoint=True).train()
    printed = capsys.readouterr().err
    kind = "damaged" if damage == "changed" else "half-written"
    assert f"warning: {newest}: {kind} checkpoint (" in printed
    assert f"resuming from {checkpoint_of(done.folder, 20)} (step 20 of 24)" in printed
    assert weight_bytes(again.model) == expected
    assert find_damage(newest) == ""


def test_resume_from_a_named_checkpoint_in_another_folder(saving: Settings, tmp_path: Path):
    done = saving.train()
    there = saving.with_(
        output_dir=str(tmp_path / "there"),
        resume_from_checkpoint=str(checkpoint_of(done.folder, 10)),
    ).train()
    assert weight_bytes(there.model) == weight_bytes(done.model)
    assert [row["step"] for row in untimed(there.folder)] == [12, 14, 15, 16, 18, 20, 22, 24]


@pytest.mark.parametrize(
    ("change", "difference"),
    [
        ({"learning_rate": 2e-3}, "learning_rate: 0.001 in the checkpoint, 0.002 now"),
        ({"beta": 0.5}, "beta: 0.1 in the checkpoint, 0.5 now"),
        ({"seed": 1}, "seed: 42 in the checkpoint, 1 now"),
        ({"num_train_epochs": 9.0}, "num_train_epochs: 8.0 in the checkpoint, 9.0 now"),
        ({"per_device_train_batch_size": 2}, "schedule: "),
    ],
)
def test_another_run_is_refused_with_a_diff(
    change: Row, difference: str, saving: Settings, tmp_path: Path
):
    done = saving.train()
    undo_end(done.folder)
    with pytest.raises(ResumeError) as caught:
        saving.with_(resume_from_checkpoint=True, **change).train()
    message = str(caught.value)
    assert f"{checkpoint_of(done.folder, 24)}: not the same run: " in message
    assert difference in message and "--overwrite" in message
    assert "\n" not in message


def test_other_data_is_refused(saving: Settings, tmp_path: Path):
    done = saving.train()
    undo_end(done.folder)
    rows = string_pairs()
    rows[3]["chosen"] += " Sure."
    write_rows(tmp_path / "pairs.jsonl", rows)
    with pytest.raises(ResumeError, match="not the same run: data: "):
        saving.with_(resume_from_checkpoint=True).train()


def test_the_same_global_batch_may_be_split_otherwise(saving: Settings, tmp_path: Path):
    done = saving.train()
    expected = weights(done.model)
    undo_end(done.folder)
    for step in (15, 20, 24):
        shutil.rmtree(checkpoint_of(done.folder, step))
    other = {"per_device_train_batch_size": 1, "gradient_accumulation_steps": 4}
    again = saving.with_(resume_from_checkpoint=True, **other).train()
    assert largest_difference(expected, weights(again.model)) < 1e-4


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Callable[[int], Path]]:
    """Mounts a file system of so many KiB; the test is skipped where that is not allowed."""
    folder = tmp_path / "disk"
    mounted: list[Path] = []

    def mount(size: int) -> Path:
        folder.mkdir()
        command = ["mount", "-t", "tmpfs", "-o", f"size={size}k", "tmpfs", str(folder)]
        if (
            shutil.which("mount") is None
            or subprocess.run(command, check=False, capture_output=True).returncode
        ):
            pytest.skip("no right to mount a file system")
        mounted.append(folder)
        return folder

    yield mount
    for path in mounted:
        subprocess.run(["umount", "--lazy", str(path)], check=True)


def free_bytes(folder: Path) -> int:
    return shutil.disk_usage(folder).free


def fill(folder: Path, leave: int) -> Path:
    """A file that leaves so many bytes free."""
    filler = folder / "filler"
    filler.write_bytes(bytes(free_bytes(folder) - leave))
    return filler


@pytest.mark.parametrize(
    ("leave", "problem"),
    [
        (0, "run.yaml: cannot write the recipe: No space left on device; "),
        (
            600_000,
            "checkpoint-15: the checkpoint could not be written (not enough space to save the model in ",
        ),
        (
            4_000_000,
            "checkpoint-15: the checkpoint could not be written (no space left for optimizer.pt); ",
        ),
    ],
)
def test_full_disk_while_saving_keeps_what_was_there(
    leave: int,
    problem: str,
    saving: Settings,
    small_disk: Callable[[int], Path],
    tmp_path: Path,
    capsys,
):
    disk = small_disk(64_000)
    model = make_model_folder(tmp_path / "model", "llama", intermediate_size=2048)
    changes = {"model_name_or_path": str(model), "output_dir": str(disk / "run")}
    recipe = saving.with_(**changes).write(tmp_path / "recipe.yaml")
    assert main(["train", str(recipe)]) == 0
    expected, rows = weight_bytes(disk / "run" / "model"), untimed(disk / "run")
    undo_end(disk / "run")
    for step in (15, 20, 24):
        shutil.rmtree(checkpoint_of(disk / "run", step))
    filler = fill(disk, leave)
    capsys.readouterr()
    assert main(["train", str(recipe), "--resume"]) == 2
    (line,) = errors_in(capsys.readouterr().err)
    assert problem in line and "free space" in line
    assert [p.name for p in list_checkpoints(disk / "run" / "checkpoints")][:2] == [
        "checkpoint-5",
        "checkpoint-10",
    ]
    assert not any(find_damage(p) for p in list_checkpoints(disk / "run" / "checkpoints"))
    filler.unlink()
    assert main(["train", str(recipe), "--resume"]) == 0
    assert weight_bytes(disk / "run" / "model") == expected
    assert untimed(disk / "run") == rows


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no device that is always full")
def test_full_disk_while_logging_is_one_line():
    with pytest.raises(
        StorageError, match=r"^/dev/full: cannot be written \(No space left on device\); "
    ):
        MetricsFile(Path("/dev/full")).append({"step": 1})


def test_file_size_limit_is_one_line_and_exit_code_2(saving: Settings, tmp_path: Path, capsys):
    """The limit that every user can set, for machines where nothing can be mounted."""
    big = make_model_folder(tmp_path / "big", "llama", intermediate_size=1024)
    recipe = saving.with_(model_name_or_path=str(big)).write(tmp_path / "recipe.yaml")
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (500_000, before[1]))
    try:
        code = main(["train", str(recipe)])
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    (line,) = errors_in(capsys.readouterr().err)
    assert code == 2
    assert "checkpoint-5: the checkpoint could not be written (" in line and "free space" in line
    assert main(["train", str(recipe), "--resume"]) == 0
