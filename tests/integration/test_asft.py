"""ASFT as a method: no reference anywhere, known first losses, SFT and the align-only stage as limits."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch

from prefopt.errors import ConfigError
from tests.integration.runs import Settings, losses, read_rows, string_pairs, weights, write_rows


def first(settings: Settings, **changes: Any) -> dict[str, Any]:
    settings = settings.with_(method="asft", max_steps=1, overwrite_output_dir=True, **changes)
    return read_rows(settings.train().folder / "metrics.jsonl")[0]


def test_the_first_loss_is_the_closed_form(settings: Settings, tmp_path) -> None:
    """One pair: L = -(1 + lambda) m_chosen - lambda log(1 - exp(m_rejected)), from the logged log-probabilities."""
    settings |= {"train_file": str(write_rows(tmp_path / "one.jsonl", string_pairs(1)))}
    row = first(settings, lambda_=0.7)
    nll = first(settings, lambda_=0.0)["loss"]
    assert row["nll"] == pytest.approx(nll, rel=1e-6)
    unlikelihood = first(settings, lambda_=1.0, ce_coef=0.0)["loss"] - nll
    assert row["loss"] == pytest.approx(1.7 * nll + 0.7 * unlikelihood, rel=1e-5)
    tokens = row["logps/chosen"] / -nll
    assert tokens == pytest.approx(round(tokens), abs=1e-4), "a mean over a whole number of tokens"


def test_without_alignment_it_is_sft_of_a_pair(settings: Settings, tmp_path) -> None:
    settings |= {"train_file": str(write_rows(tmp_path / "one.jsonl", string_pairs(1)))}
    asft = settings.with_(method="asft", lambda_=0.0, output_dir=str(tmp_path / "asft")).train()
    sft = settings.with_(method="sft", output_dir=str(tmp_path / "sft")).train()
    assert losses(asft.folder) == pytest.approx(losses(sft.folder), rel=1e-5)
    other = weights(sft.model)
    for name, value in weights(asft.model).items():
        torch.testing.assert_close(value, other[name], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("changes", [{"reference": "live"}, {"reference_model": "other"}])
def test_a_reference_is_refused(changes: dict[str, str], settings: Settings, tmp_path) -> None:
    if "reference_model" in changes:
        changes = {"reference_model": settings["model_name_or_path"]}
    with pytest.raises(
        ConfigError, match="method asft has no reference with these objectives: remove"
    ):
        first(settings, **changes)


def test_nothing_is_scored_ahead(settings: Settings, tmp_path, capfd) -> None:
    first(settings)
    assert "reference" not in capfd.readouterr().err
    assert not list(tmp_path.glob("cache/**/*.sqlite"))


def test_nothing_to_train_is_refused(settings: Settings) -> None:
    with pytest.raises(ConfigError, match="lambda_ 0 and ce_coef 0 leave nothing to train"):
        first(settings, lambda_=0.0, ce_coef=0.0)


def test_chosen_rises_and_rejected_falls(settings: Settings) -> None:
    settings |= {"method": "asft", "num_train_epochs": 8.0, "learning_rate": 3e-3}
    rows = read_rows(settings.train().folder / "metrics.jsonl")
    assert rows[-1]["logps/chosen"] > rows[0]["logps/chosen"] + 1
    assert rows[-1]["rewards/margins"] > rows[0]["rewards/margins"]
    assert all(math.isfinite(v) for row in rows for v in row.values())
