"""An agent's evaluation as `prefopt run` does it: a real model in a real farm, and what is said about the numbers."""

from __future__ import annotations

from pathlib import Path

import pytest

from prefopt.evals.agents import AgentSettings, evaluate_agent
from prefopt.evals.measure import measure_agent
from prefopt.values import JsonValue
from tests.tiny import make_model_folder

PLANNED = "tests.agents.counting:Planned"


def settings(**options: JsonValue) -> AgentSettings:
    """Three tasks of three turns."""
    return AgentSettings(
        PLANNED,
        options,
        limit=3,
        format="action",
        example=False,
        max_turns=3,
        max_new_tokens=4,
        workers=1,
        device="cpu",
    )


@pytest.fixture
def model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return make_model_folder(tmp_path / "model", "llama", max_position_embeddings=4096)


def test_what_a_run_measures_comes_with_its_failures(
    model: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    measure_agent(settings(closed=[1]), model)
    said = capsys.readouterr().err
    assert "test: reward 0.000, 0/3 solved\n" in said
    assert "environments: 2 crashes; episodes were tried again\n" in said
    assert (
        "test: 1 of 3 tasks got no reward and count 0; the others have 0.000 on average. First 'test-1': ValueError: "
        "the abacus broke. The same command tries them again\n" in said
    )


def test_a_comparison_leaves_out_what_failed_on_either_side(model: Path, tmp_path: Path) -> None:
    base = tmp_path / "base"
    evaluate_agent(str(model), settings(closed=[1]), output=base)
    found = evaluate_agent(str(model), settings(closed=[1]), against=base)
    [compared] = found.against
    assert (compared.tasks, compared.failures) == (2, (1, 1))
    assert compared.reward is not None and compared.reward.value == 0.0
