"""What a recipe's objectives make of the report: whose rewards, what zero means, how they are named."""

from pathlib import Path

import numpy as np
import pytest

from prefopt.report.folder import Run
from prefopt.report.health import examine
from prefopt.report.objectives import (
    Rewards,
    margin_note,
    objective_words,
    objectives_of,
    rewards_note,
    rewards_of,
)
from prefopt.report.panels import curve_panels
from prefopt.report.series import Series

LINE = np.linspace(0, 1, 20)


def run_of(loss_type=None, name="run", columns=None, **settings) -> Run:
    recipe = {"method": "dpo", "loss_type": loss_type, **settings}
    series = {
        column: Series(np.arange(1.0, len(values) + 1), np.asarray(values, float))
        for column, values in (columns or {}).items()
    }
    known = {key: value for key, value in recipe.items() if value is not None}
    return Run(name, Path(name), known, series=series)


def falling(scale: float = 1.0) -> dict[str, object]:
    return {"rewards/chosen": -0.6 * scale * LINE, "rewards/rejected": -2.0 * scale * LINE}


def test_objectives_with_their_weights():
    assert objectives_of(run_of()) == []
    assert objectives_of(run_of("simpo")) == [("simpo", 1.0)]
    mixed = run_of(["dpo", "sft"], loss_weights=[1.0, 0.2])
    assert objectives_of(mixed) == [("dpo", 1.0), ("sft", 0.2)]


@pytest.mark.parametrize(
    ("method", "loss_type", "weights", "words"),
    [
        ("dpo", None, None, ""),
        ("dpo", ["dpo"], None, ""),
        ("step_dpo", ["dpo"], None, ""),
        ("odpo", ["odpo"], None, ""),
        ("dpo", ["simpo"], None, "simpo"),
        ("dpo", ["dpo"], [0.5], "0.5 dpo"),
        ("dpo", ["dpo", "bco_pair", "sft"], [0.8, 0.2, 1], "0.8 dpo + 0.2 bco_pair + sft"),
    ],
)
def test_objectives_are_named_where_they_are_not_the_methods_own(method, loss_type, weights, words):
    assert objective_words(run_of(loss_type, method=method, loss_weights=weights)) == words


@pytest.mark.parametrize(
    ("loss_type", "settings", "expected"),
    [
        (None, {}, Rewards("dpo", "reference", 0.2)),
        (["ipo"], {}, Rewards("ipo", "reference", 0.2)),
        (["asft"], {}, Rewards("asft", "none", None)),
        (["simpo", "dpo"], {}, Rewards("simpo", "none", None)),
        (["sft", "dpo"], {}, Rewards("dpo", "reference", 0.2)),
        (["kto"], {}, Rewards("kto", "reference", None)),
        (["dpo"], {"reference_free": True}, Rewards("dpo", "none", None)),
        (["dpo"], {"ld_alpha": 0.5}, Rewards("dpo", "reference", None)),
        (["ld_dpo"], {}, Rewards("ld_dpo", "reference", None)),
        (["dpo"], {"f_divergence_type": "forward_kl"}, Rewards("dpo", "reference", None)),
        (["dpo"], {"reference": "moving"}, Rewards("dpo", "reference", None)),
        (["plackett_luce"], {}, Rewards("plackett_luce", "unknown", None)),
        (["of a later version"], {}, Rewards("of a later version", "unknown", None)),
    ],
)
def test_what_the_rewards_are(loss_type, settings, expected):
    assert rewards_of(run_of(loss_type, beta=0.2, **settings)) == expected


def test_samples_hold_the_rewards_of_the_first_objective_of_pairs():
    run = run_of(["kto", "simpo"])
    assert rewards_of(run).objective == "kto"
    assert rewards_of(run, paired=True).objective == "simpo"


def test_notes_speak_of_the_reference_only_where_there_is_one():
    old, odds = run_of(name="old"), run_of(["orpo"], name="odds")
    assert rewards_note([old]) == (
        "Implicit reward of chosen (solid) and rejected (dashed) responses. Below zero: less likely than under the "
        "reference."
    )
    assert rewards_note([odds]) == (
        "Reward of chosen (solid) and rejected (dashed) responses. On the scale of orpo, without a reference: zero "
        "is not where training started."
    )
    assert rewards_note([old, odds]) == (
        "Reward of chosen (solid) and rejected (dashed) responses. old: below zero: less likely than under the "
        "reference. odds: on the scale of orpo, without a reference: zero is not where training started."
    )
    assert margin_note([odds]) == (
        "The margin is the reward of the chosen minus that of the rejected response, on the scale of orpo, without a "
        "reference."
    )
    assert "raised the chosen response" in margin_note([old])
    assert margin_note([]) == ""


def test_unpaired_objectives_have_two_curves_and_no_margin():
    run = run_of(["kto"], columns={"loss": 1 - LINE, **falling(-1)})
    panels = {panel.name: panel for panel in curve_panels([run], {"run": "#fe0000"})}
    assert list(panels) == ["loss", "rewards"]
    assert [row[0] for row in panels["rewards"].rows] == ["run chosen", "run rejected"]
    assert [remark.level for remark in examine(run)] == ["good"]


def test_listwise_rewards_and_likelihoods_have_panels():
    ranked = run_of(["plackett_luce"], columns={"loss": 1 - LINE, "reward": LINE})
    assert [p.name for p in curve_panels([ranked], {"run": "#fe0000"})] == ["loss", "reward"]
    odds = run_of(["asft"], columns={"loss": 1 - LINE, "nll": 2 - LINE})
    assert [p.name for p in curve_panels([odds], {"run": "#fe0000"})] == ["loss", "nll"]
    supervised = run_of(method="sft", columns={"loss": 1 - LINE, "nll": 1 - LINE})
    assert [p.name for p in curve_panels([supervised], {"run": "#fe0000"})] == ["loss"]


@pytest.mark.parametrize(
    ("loss_type", "nats"), [(["dpo"], True), (["simpo"], False), (["kto"], False)]
)
def test_losses_in_nats_are_told_only_of_log_ratios(loss_type, nats):
    (remark,) = examine(run_of(loss_type, beta=10.0, columns=falling(10)))
    assert "likelihood displacement" in remark.title
    assert (
        "at beta 10 the chosen responses lost 0.537 and the rejected 1.79 nats each" in remark.text
    ) is nats
    assert ("larger beta" in remark.advice) is (loss_type != ["simpo"])


def test_tied_pairs_are_no_swapped_pairs():
    zero = np.zeros(12)
    columns = {"loss": zero, "grad_norm": zero, "ties": zero + 1, "rewards/accuracies": zero}
    (remark,) = examine(run_of(["odpo"], method="odpo", columns=columns))
    assert (remark.level, remark.title) == ("serious", "The loss has no gradient")
    assert remark.text == (
        "grad_norm is 0 in all 12 logged lines: there was nothing to learn from. ties is 1 throughout: both responses "
        "of every pair have the same score, and such a pair has neither loss nor gradient under offset log."
    )
    assert "on_ties: drop" in remark.advice


def test_no_gradient_for_another_reason():
    columns = {"loss": [0.69], "grad_norm": [0.0], "rewards/accuracies": [0.5]}
    (remark,) = examine(run_of(["dpo"], columns=columns))
    assert remark.text == (
        "grad_norm is 0 in the only logged line: there was nothing to learn from. Either the loss is flat where "
        "training starts, or nothing that it depends on is trained."
    )
    columns["grad_norm"] = [0.1]
    assert "no gradient" not in examine(run_of(["dpo"], columns=columns))[0].title


@pytest.mark.parametrize(
    ("accuracies", "level"),
    [(np.linspace(0.1, 0.4, 20), "warning"), (0.45 - 0.3 * LINE, "serious")],
)
def test_without_a_reference_the_order_starts_anywhere(accuracies, level):
    (remark,) = examine(run_of(["cpo"], columns={"rewards/accuracies": accuracies}))
    assert (remark.level, remark.title) == (
        level,
        "Most rejected responses still have the higher reward",
    )


def test_a_negative_evaluation_loss_that_keeps_falling_does_not_rise():
    columns = {"loss": 0.7 - LINE, "eval_loss": [0.5, -0.2, -1.0]}
    assert [r.level for r in examine(run_of(["robust"], columns=columns))] == ["good"]
