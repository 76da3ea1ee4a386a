from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from prefopt.report.folder import Evaluation, Run, read_runs
from prefopt.report.series import Series
from prefopt.report.verdict import difference, find_baseline, recipe_words, verdict


def wilson(correct: int, total: int, split: str = "test") -> Evaluation:
    z, share = 1.959964, correct / total
    middle = (share + z * z / (2 * total)) / (1 + z * z / total)
    half = z / (1 + z * z / total) * (share * (1 - share) / total + z * z / (4 * total**2)) ** 0.5
    return Evaluation("accuracy", share, middle - half, middle + half, correct, total, split)


def test_difference_is_newcombes_example():
    # Newcombe 1998, table II, 56/70 - 48/80, method 10
    moved = difference(wilson(56, 70), wilson(48, 80))
    assert moved is not None
    assert moved.value == pytest.approx(0.2)
    assert moved.low == pytest.approx(0.0524, abs=5e-5)
    assert moved.high == pytest.approx(0.3339, abs=5e-5)
    assert moved.certain
    assert moved.words() == "+20.0 points (+5.2 to +33.4)"


def test_difference_needs_the_same_metric_and_split():
    assert difference(wilson(5, 10), wilson(5, 10, split="train")) is None


def test_difference_without_intervals_is_never_certain():
    moved = difference(Evaluation("reward", 2.5), Evaluation("reward", 1.0))
    assert moved is not None
    assert not moved.certain
    assert moved.words() == "+1.50"


def test_baseline_is_the_run_that_others_start_from(tmp_path):
    base = Run(
        "sft",
        tmp_path / "sft",
        series={"loss": Series(np.ones(1), np.ones(1))},
        evaluation=wilson(6, 10),
    )
    other = Run(
        "dpo", tmp_path / "dpo", {"model_name_or_path": "sft/model"}, evaluation=wilson(7, 10)
    )
    assert find_baseline([other, base]) is base
    assert find_baseline([other]) is None


def test_baseline_is_else_the_untrained_run(three_runs):
    runs = read_runs(three_runs)
    assert find_baseline(runs) is runs[0]
    assert find_baseline(runs[:1]) is None
    assert find_baseline(runs[1:]) is None


def test_verdict_of_three_runs(three_runs):
    runs = read_runs(three_runs)
    dpo, step_dpo, contest = verdict(runs, runs[0])
    assert dpo == (
        "dpo (360 pairs, 90 steps) raised accuracy on held-out problems from 61.2% to 78.2% "
        "(95% interval 74.4–81.6%): +17.0 points (+11.3 to +22.5)."
    )
    assert step_dpo == (
        "step_dpo (360 pairs, 90 steps) raised accuracy on held-out problems from 61.2% to 84.8% "
        "(95% interval 81.4–87.7%): +23.6 points (+18.2 to +28.8)."
    )
    assert contest == "step_dpo ends above dpo: +6.6 points (+1.8 to +11.4)."


def test_verdict_calls_noise_noise():
    base = Run("base", Path("base"), evaluation=wilson(300, 500))
    same = Run("dpo", Path("dpo"), evaluation=wilson(309, 500))
    less = Run("odpo", Path("odpo"), evaluation=wilson(240, 500))
    first, second, third = verdict([base, same, less], base)
    assert first.endswith("+1.8 points (−4.2 to +7.8), which 500 items cannot tell from no change.")
    assert first.startswith("dpo moved accuracy on test from 60.0% to 61.8%")
    assert second.startswith("odpo lowered accuracy on test from 60.0% to 48.0%")
    assert third.startswith("dpo ends above odpo: ")
    level = verdict([same, base], None)[-1]
    assert level == (
        "dpo and base are level: +1.8 points (−4.2 to +7.8) between them is within the noise of 500 items."
    )


def test_verdict_without_evaluation_promises_nothing():
    steps = np.arange(1.0, 3.0)
    run = Run("dpo", Path("dpo"), series={"loss": Series(steps, np.array([0.693, 0.21]))})
    (sentence,) = verdict([run], None)
    assert sentence == (
        "dpo was trained for 2 steps; loss went from 0.693 to 0.210. It has no evaluation, so nothing is "
        "said about held-out problems."
    )
    assert verdict([Run("x", Path("x"))], None) == [
        "None of these runs has been trained or evaluated yet."
    ]


def test_recipe_words():
    settings = {
        "method": "dpo",
        "train_file": "data/pairs.jsonl",
        "learning_rate": 1e-5,
        "beta": 0.3,
    }
    run = Run("dpo", Path("dpo"), settings, plan={"pairs": 360, "steps": 90})
    assert recipe_words(run) == (
        "dpo, 360 pairs from pairs.jsonl, 90 steps, learning rate 1e-05, beta 0.3"
    )
    assert not recipe_words(Run("base", Path("base")))


def test_objectives_stand_beside_the_method(three_runs):
    base, run, _ = read_runs(three_runs)
    mixed = replace(
        run, settings={**run.settings, "loss_type": ["simpo", "sft"], "loss_weights": [1.0, 0.1]}
    )
    assert recipe_words(mixed).startswith("dpo with simpo + 0.1 sft, 360 pairs")
    assert verdict([base, mixed], base)[0].startswith(
        "dpo (simpo + 0.1 sft, 360 pairs, 90 steps) raised accuracy on held-out problems"
    )
    alone = replace(mixed, evaluation=None)
    assert verdict([alone], None)[0].startswith(
        "dpo was trained with simpo + 0.1 sft for 90 steps; loss went from"
    )
