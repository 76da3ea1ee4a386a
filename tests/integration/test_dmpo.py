"""A short run of DMPO on trajectories: first loss, movement, resume to the same bytes, weights in the identity."""

from __future__ import annotations

import math
import shutil
from pathlib import Path
from typing import Any

import pytest

from prefopt.errors import ResumeError
from tests.integration.runs import (
    Row,
    Settings,
    losses,
    read_json,
    read_rows,
    weight_bytes,
    write_rows,
)


def turns(*actions: str) -> list[Row]:
    found: list[Row] = []
    for i, action in enumerate(actions):
        found += [{"role": "user", "content": f"seen {i}"}] if i else []
        found.append({"role": "assistant", "content": action})
    return found


def trajectories(count: int = 8) -> list[Row]:
    return [
        {
            "id": f"r{i}",
            "prompt": [
                {"role": "user", "content": "rules"},
                {"role": "assistant", "content": "OK", "train": False},
                {"role": "user", "content": f"door {i}"},
            ],
            "responses": [
                {"turns": turns("look", f"take {i}", "east"), "score": 1.0},
                {"turns": turns("look", *["wait"] * (i % 3 + 1), "west"), "score": 0.0},
            ],
            "pairs": [{"chosen": 0, "rejected": 1}],
        }
        for i in range(count)
    ]


@pytest.fixture
def dmpo(settings: Settings, tmp_path: Path) -> Settings:
    """Twenty steps on eight pairs, a checkpoint every 10."""
    return settings.with_(
        method="dmpo",
        train_file=str(write_rows(tmp_path / "trajectories.jsonl", trajectories())),
        max_steps=20,
        save_strategy="steps",
        save_steps=10,
    )


def final(done: Any) -> Row:
    return [row for row in read_rows(done.folder / "metrics.jsonl") if "loss" in row][-1]


def test_a_run_lowers_the_loss_from_ln_2_and_is_resumed_to_the_same_bytes(dmpo: Settings) -> None:
    done = dmpo.train()
    found = losses(done.folder)
    assert len(found) == 20 and found[0] == pytest.approx(math.log(2), abs=1e-6)
    assert found[-1] < 0.6
    assert final(done)["rewards/margins"] > 0
    expected = weight_bytes(done.model)
    for name in ("finished.json", "report.html", "samples.jsonl"):
        (done.folder / name).unlink()
    shutil.rmtree(done.folder / "model")
    shutil.rmtree(done.folder / "checkpoints" / "checkpoint-20")
    with pytest.raises(ResumeError, match="gamma"):
        dmpo.with_(resume_from_checkpoint=True, gamma=0.9).train()
    assert weight_bytes(dmpo.with_(resume_from_checkpoint=True).train().model) == expected


def test_the_weights_of_tokens_are_part_of_what_a_resumed_run_must_share(
    dmpo: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also where no setting says so: another formula of the weights is another run."""
    import prefopt.methods.dmpo as module

    done = dmpo.with_(max_steps=10).train()
    (done.folder / "finished.json").unlink()
    weights = module.phi
    monkeypatch.setattr(module, "phi", lambda turns, gamma: weights(turns, gamma) / 2)
    with pytest.raises(ResumeError, match="data"):
        dmpo.with_(max_steps=10, resume_from_checkpoint=True).train()


def test_weightings_are_different_runs_and_dpo_is_method_dpo(
    dmpo: Settings, tmp_path: Path
) -> None:
    dmpo = dmpo.with_(max_steps=4, save_strategy="no")
    folders = {
        name: dmpo.with_(**changes, output_dir=str(tmp_path / name)).train()
        for name, changes in {
            "turns": {},
            "tokens": {"weighting": "token"},
            "none": {"weighting": "dpo"},
            "dpo": {"method": "dpo", "beta": 0.1},
        }.items()
    }
    assert losses(folders["none"].folder) == losses(folders["dpo"].folder)
    assert weight_bytes(folders["none"].model) == weight_bytes(folders["dpo"].model)
    last = {name: losses(done.folder)[-1] for name, done in folders.items()}
    assert len({last["turns"], last["tokens"], last["none"]}) == 3


def test_the_ledger_names_pairs_that_max_length_leaves_nothing_of(
    dmpo: Settings, tmp_path: Path
) -> None:
    rows = trajectories(3)
    rows[1]["responses"][1]["turns"] = [
        {"role": "assistant", "content": "so " * 100, "train": False},
        {"role": "user", "content": "seen"},
        {"role": "assistant", "content": "west"},
    ]
    path = write_rows(tmp_path / "long.jsonl", rows)
    done = dmpo.with_(train_file=str(path), max_steps=1, max_length=150, save_strategy="no").train()
    ledger = read_json(done.folder / "data-ledger.json")["train"]
    (dropped,) = [row for row in ledger["rows"] if row["fate"] == "dropped"]
    assert (dropped["id"], dropped["reason"]) == ("r1", "nothing scored")
