import math
from pathlib import Path

import numpy as np
import pytest

from prefopt.report.folder import Evaluation, Run, read_runs
from prefopt.report.health import examine
from prefopt.report.series import Series


def run_with(settings=None, plan=None, ledgers=None, evaluation=None, unread=(), **columns) -> Run:
    series = {
        name.replace("__", "/"): Series(np.arange(1.0, len(values) + 1), np.asarray(values, float))
        for name, values in columns.items()
    }
    return Run(
        "dpo",
        Path("dpo"),
        settings or {},
        ledgers=ledgers or {},
        plan=plan or {},
        series=series,
        evaluation=evaluation,
        unread=unread,
    )


def titles(run: Run, baseline: Evaluation | None = None) -> list[tuple[str, str]]:
    return [(remark.level, remark.title) for remark in examine(run, baseline)]


def test_displacement_says_how_much_was_lost():
    line = np.linspace(0, 1, 20)
    run = run_with(
        {"beta": 0.1},
        rewards__chosen=-0.6 * line,
        rewards__rejected=-2.0 * line,
        logps__chosen=-40 - 6 * line,
        logps__rejected=-50 - 20 * line,
    )
    (remark,) = examine(run)
    assert remark.level == "warning"
    # first three of twenty lines: mean of 0, 1/19, 2/19; last three: mean of 17/19, 18/19, 1
    assert remark.text == (
        "rewards/chosen fell by 0.537 (−0.032 → −0.568) and rewards/rejected fell by 1.79 (−0.105 → −1.89); "
        "at beta 0.1 the chosen responses lost 5.37 and the rejected 17.89 nats each; logps/chosen fell by 5.37 "
        "(−40.32 → −45.68) nats and logps/rejected fell by 17.89 (−51.05 → −68.95) nats. The margin grew only "
        "because the rejected responses fell further."
    )


def test_falling_rejected_alone_is_healthy():
    line = np.linspace(0, 1, 20)
    run = run_with(rewards__chosen=0.1 * line, rewards__rejected=-2 * line, loss=0.69 - 0.3 * line)
    assert titles(run) == [("good", "No sign of trouble in the curves")]
    assert examine(run)[0].text == (
        "The loss is finite in all 20 logged lines; the chosen responses did not become less likely "
        "(rewards/chosen ends at 0.095)."
    )


def test_a_fall_within_the_scatter_is_no_displacement():
    noise = np.array([3.0, -3.0, 2.0, -2.0] * 5)
    run = run_with(logps__chosen=noise - np.linspace(0, 0.5, 20), logps__rejected=noise)
    assert titles(run) == [("good", "No sign of trouble in the curves")]


def test_displacement_from_log_probabilities_alone():
    line = np.linspace(0, 1, 20)
    run = run_with(logps__chosen=-10 - line, logps__rejected=-20 - 5 * line)
    assert "likelihood displacement" in examine(run)[0].title


def test_saturated_margins():
    run = run_with(
        loss=[0.7, 0.3, 0.02], rewards__accuracies=[0.5, 1, 1], rewards__margins=[0, 2, 5]
    )
    (remark,) = examine(run)
    assert remark.title == "The margins are saturated"
    assert (
        "100.0% of the training pairs are in the right order, the loss is 0.020 and the margin 5.00"
        in remark.text
    )


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_a_loss_that_is_not_finite(bad):
    remark = examine(run_with(loss=[0.7, 0.6, bad, bad, 0.5]))[0]
    assert (remark.level, remark.title) == ("serious", "loss is not finite")
    assert remark.text == "loss is not a finite number in 2 of 5 lines, first at step 3."


def test_accuracy_below_chance():
    run = run_with(rewards__accuracies=[0.5, 0.4, 0.31])
    assert examine(run)[0].text.startswith("At the end 31.0% of the training pairs")
    assert titles(run)[0] == ("serious", "Training ends below chance")


def test_accuracy_at_chance_is_no_proof_of_swapped_data():
    run = run_with(
        loss=[0.8, 0.5], rewards__accuracies=[0.6, 0.4, 0.58, 0.43, 0.55, 0.5, 0.44, 0.52]
    )
    assert titles(run)[0] == ("warning", "Training ends no better than chance")


def test_noisy_accuracy_names_the_pairs_behind_a_line():
    # alternating 0.25 and 0.75: rms of neighbouring differences / sqrt 2 = 0.354, so 0.25 / 0.125 = 2 pairs
    run = run_with(plan={"batch_size": 2}, rewards__accuracies=[0.25, 0.75] * 20)
    notes = [remark for remark in examine(run) if remark.level == "note"]
    assert notes[0].title == "The accuracy curve is mostly noise"
    assert "scatters by ±0.354, as if a line covered about 2 pairs (batch size 2)" in notes[0].text


def test_a_steep_but_smooth_accuracy_is_not_noisy():
    run = run_with(rewards__accuracies=np.linspace(0.5, 0.95, 30), loss=np.linspace(0.69, 0.2, 30))
    assert titles(run) == [("good", "No sign of trouble in the curves")]


def test_a_policy_that_did_not_move():
    run = run_with(loss=[0.6931, 0.6930, 0.6929], rewards__accuracies=[0.5, 0.52, 0.51])
    assert titles(run) == [("warning", "The policy hardly moved")]


def test_an_evaluation_loss_that_turns():
    run = run_with(loss=np.linspace(0.7, 0.1, 30), eval_loss=[0.6, 0.5, 0.4, 0.5, 0.61])
    (remark,) = examine(run)
    assert remark.text.startswith("eval_loss was lowest at step 3 (0.400) and ends at 0.610")


def test_length_drift():
    run = run_with(length__chosen=[100.0] * 3 + [160.0] * 3)
    (remark,) = examine(run)
    assert remark.text == "length/chosen rose by 60.00 (100.0 → 160.0) (+60%)."


def test_dropped_rows():
    ledger = {"read": 100, "dropped": 25, "reasons": {"duplicate": 5, "prompt too long": 20}}
    (remark,) = examine(run_with(ledgers={"train": ledger}, loss=[0.7, 0.5]))
    assert remark.text == (
        '25 of 100 rows (25.0%) were dropped; the most frequent reason on record is "prompt too long" (20).'
    )


def test_a_model_that_became_worse():
    before = Evaluation("accuracy", 0.6, 0.55, 0.65, 300, 500, "test")
    after = Evaluation("accuracy", 0.4, 0.35, 0.45, 200, 500, "test")
    assert titles(run_with(evaluation=after), before) == [("serious", "The model became worse")]
    refusals = after._replace(metric="attack success rate")
    assert not titles(run_with(evaluation=refusals), before._replace(metric="attack success rate"))


def test_what_could_not_be_read_is_a_note():
    run = run_with(loss=[0.7, 0.6], unread=["plan.json:1 is no valid JSON; it is left out."])
    assert [level for level, _ in titles(run)] == ["good", "note"]


def test_an_untrained_run_has_no_remarks(three_runs):
    base, dpo, step_dpo = read_runs(three_runs)
    assert examine(base) == []
    assert titles(dpo, base.evaluation)[0][1].startswith("Chosen responses became less likely too")
    assert titles(step_dpo, base.evaluation) == [("good", "No sign of trouble in the curves")]
