"""Trackers get what metrics.jsonl gets; one that is not installed is one line that says how to install it."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import pytest

from prefopt.cli.main import main
from tests.integration.runs import Settings, errors_in, read_rows, string_pairs, write_rows

ABSENT = [n for n in ("wandb", "mlflow", "trackio") if importlib.util.find_spec(n) is None]


# TensorBoard 2.21 uses what numpy, protobuf and setuptools deprecate.
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_tensorboard_gets_every_metric(settings: Settings, tmp_path: Path):
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    held_out = str(write_rows(tmp_path / "held_out.jsonl", string_pairs(4)))
    changes = {"report_to": "tensorboard", "eval_file": held_out, "eval_strategy": "epoch"}
    result = settings.with_(**changes, columns={"prompt": "prompt"}).train()
    (events,) = result.folder.rglob("events.out.tfevents.*.0")
    board = EventAccumulator(str(events.parent)).Reload()
    rows = read_rows(result.folder / "metrics.jsonl")
    names = {name for row in rows for name in row} - {"step", "epoch", "seconds"}
    scalars = board.Tags()["scalars"]
    assert isinstance(scalars, list) and set(scalars) == names
    for name in ("loss", "rewards/margins", "eval_loss", "learning_rate"):
        expected = {row["step"]: row[name] for row in rows if name in row}
        assert {e.step: e.value for e in board.Scalars(name)} == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize("tracker", ABSENT)
def test_a_tracker_that_is_not_installed_is_named_with_its_extra(
    tracker: str, settings: Settings, tmp_path: Path, capsys
):
    recipe = settings.with_(report_to=tracker).write(tmp_path / "recipe.yaml")
    assert main(["train", str(recipe)]) == 2
    assert errors_in(capsys.readouterr().err) == [
        f"error: report_to: {tracker} is not installed; run: pip install 'prefopt[{tracker}]'"
    ]
    assert not (tmp_path / "run").exists()
