"""One run split into micro-batches or processes: the same weights, each file and message once."""

from __future__ import annotations

import shutil
import sys
from pathlib import Path

import pytest

from prefopt.cli.main import main
from tests.integration.runs import (
    Row,
    Settings,
    errors_in,
    largest_difference,
    losses,
    read_json,
    read_rows,
    run,
    string_pairs,
    weights,
    write_rows,
)

TORCHRUN = [
    sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2", "-m", "prefopt", "train",
]  # fmt: skip
ACCELERATE = [
    sys.executable, "-m", "accelerate.commands.launch", "--multi_gpu", "--num_processes", "2", "--num_machines", "1",
    "--mixed_precision", "no", "--dynamo_backend", "no", "--main_process_port", "0", "-m", "prefopt", "train",
]  # fmt: skip

WEIGHTS = 1e-5
"""Bound on |a - b| relative to the largest weight of a tensor: sums in another order, through AdamW."""
SAID_ONCE = ("evaluation data ", "reference: ", "layout tree: ", "step 0: ", "model: ", "report: ")


def column(rows: list[Row], name: str) -> list[float]:
    return [row[name] for row in rows if name in row]


@pytest.fixture
def uneven(settings: Settings, tmp_path: Path) -> Settings:
    """Two files, of pairs and of ranked lists with two pairs: unequal lengths, and a smaller last batch."""
    ranked = [
        {
            "prompt": f"Why {i}?\n",
            "responses": ["Yes.", "No" * (i + 1), "Perhaps."],
            "ranks": [1, 3, 2],
        }
        for i in range(5)
    ]
    files = [
        write_rows(tmp_path / "a.jsonl", string_pairs(16)),
        write_rows(tmp_path / "b.jsonl", ranked),
    ]
    return settings.with_(train_file=[str(file) for file in files], per_device_train_batch_size=8)


@pytest.mark.parametrize(("micro", "accumulation"), [(1, 8), (2, 4), (4, 2)])
def test_micro_batches_do_not_change_the_run(
    micro: int, accumulation: int, uneven: Settings, tmp_path: Path
):
    whole = uneven.with_(output_dir=str(tmp_path / "whole")).train()
    split = {"per_device_train_batch_size": micro, "gradient_accumulation_steps": accumulation}
    other = uneven.with_(**split).train()
    assert losses(other.folder) == pytest.approx(losses(whole.folder), rel=1e-5)
    assert largest_difference(weights(whole.model), weights(other.model)) < WEIGHTS
    assert read_json(other.folder / "plan.json")["batch_size"] == 8


@pytest.mark.parametrize("layout", ["rows", "tree"])
def test_layouts_do_not_change_the_run(layout: str, uneven: Settings, tmp_path: Path):
    expected = uneven.with_(output_dir=str(tmp_path / "auto")).train()
    other = uneven.with_(layout=layout).train()
    assert losses(other.folder) == pytest.approx(losses(expected.folder), rel=1e-5)
    assert largest_difference(weights(expected.model), weights(other.model)) < WEIGHTS


@pytest.mark.slow
def test_two_processes_are_one_run(uneven: Settings, tmp_path: Path):
    """Also over what an earlier run left, which both processes find."""
    held_out = str(write_rows(tmp_path / "held_out.jsonl", string_pairs(5)))
    uneven |= {
        "save_strategy": "steps",
        "save_steps": 2,
        "eval_strategy": "epoch",
        "eval_file": held_out,
    }
    whole = uneven.with_(output_dir=str(tmp_path / "whole")).train()
    shutil.copytree(whole.folder, tmp_path / "run")
    halves = uneven.with_(per_device_train_batch_size=4, cache_dir=str(tmp_path / "empty"))
    done = run(halves.write(tmp_path / "recipe.yaml"), "--overwrite", command=ACCELERATE)
    assert done.returncode == 0, done.stderr
    folder = tmp_path / "run"
    plan = read_json(folder / "plan.json")
    assert (plan["world_size"], plan["batch_size"]) == (2, 8)
    assert largest_difference(weights(whole.model), weights(folder / "model")) < WEIGHTS
    one, two = read_rows(whole.folder / "metrics.jsonl"), read_rows(folder / "metrics.jsonl")
    assert [row["step"] for row in two] == [row["step"] for row in one] == [1, 2, 3, 4, 5, 6]
    for name in ("loss", "rewards/margins", "logps/chosen", "grad_norm", "eval_loss"):
        assert column(two, name) == pytest.approx(column(one, name), rel=1e-5, abs=1e-6), name
    printed = [line for line in done.stderr.splitlines() if line.startswith(SAID_ONCE)]
    assert len(printed) == len(SAID_ONCE), done.stderr
    random_states = (folder / "checkpoints" / "checkpoint-6").glob("rng-*")
    assert {path.name for path in random_states} == {"rng-0.pt", "rng-1.pt"}
    (folder / "finished.json").unlink()
    middle = str(folder / "checkpoints" / "checkpoint-4")
    alone = uneven.with_(resume_from_checkpoint=middle).train()
    assert largest_difference(weights(whole.model), weights(alone.model)) < WEIGHTS
    (folder / "finished.json").unlink()
    again = run(tmp_path / "recipe.yaml", f"resume_from_checkpoint={middle}", command=TORCHRUN)
    assert again.returncode == 0, again.stderr
    assert f"resuming from {middle} (step 4 of 6)" in again.stderr
    assert largest_difference(weights(whole.model), weights(folder / "model")) < WEIGHTS


@pytest.mark.slow
def test_two_processes_report_a_mistake_once(settings: Settings, tmp_path: Path):
    folder = settings.train().folder
    refused = run(settings.write(tmp_path / "recipe.yaml"), command=TORCHRUN)
    assert errors_in(refused.stderr) == [
        f"error: {folder}: already holds a run (finished); pass --resume to go on, --overwrite to start anew, or set "
        "another output_dir"
    ]
    # torchrun itself ends with 1 whatever its processes end with; their exit code is in its summary.
    assert refused.returncode != 0
    assert "exitcode  : 2 " in refused.stderr


def test_accelerate_that_starts_one_of_several_processes_is_refused(
    settings: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys
):
    """What `accelerate launch --cpu --num_processes 2` without MPI sets for the one process it starts."""
    monkeypatch.setenv("ACCELERATE_USE_CPU", "True")
    monkeypatch.setenv("MASTER_ADDR", "127.0.0.1")
    monkeypatch.setenv("MASTER_PORT", "29500")
    assert main(["train", str(settings.write(tmp_path / "recipe.yaml"))]) == 2
    assert capsys.readouterr().err == (
        "error: accelerate launch --cpu was asked for several processes and starts one only: use torchrun "
        "--nproc_per_node N -m prefopt ..., which shares the work on CPUs and GPUs alike\n"
    )
    assert not (tmp_path / "run").exists()
