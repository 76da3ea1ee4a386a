"""ODPO, margins, home advantage, DPOP and MMPO: numpy forms, literal values, the acceptance list of ODPO, edges."""

from __future__ import annotations

import math
import re
from functools import partial
from types import SimpleNamespace
from typing import get_args

import numpy as np
import pytest
import torch

from prefopt.objectives.offsets import (
    Offset,
    dpo_margin,
    dpop,
    home_advantage,
    mmpo,
    odpo,
    odpo_offset,
)
from prefopt.objectives.pairwise import cdpo, dpo
from prefopt.objectives.types import Pairs, needs_of
from tests.objectives.edges import (
    keeps_finite,
    keeps_form,
    keeps_off_the_host,
    keeps_order,
    pairs_at,
    same,
    slopes,
)
from tests.objectives.given import random_pairs

OFFSETS = get_args(Offset)


def minus_log_sigma(z: np.ndarray) -> np.ndarray:
    return np.logaddexp(0, -z)


def sigma(z: np.ndarray) -> np.ndarray:
    return np.exp(-np.logaddexp(0, -z))


def h_of(a: SimpleNamespace) -> np.ndarray:
    return (a.Sw - a.Rw) - (a.Sl - a.Rl)


def odpo_in_numpy(a, beta=0.1, alpha=1.0, offset="log"):
    form = {"log": np.log(a.sw - a.sl), "difference": a.sw - a.sl, "log_ratio": np.log(a.sw / a.sl)}
    return minus_log_sigma(beta * h_of(a) - alpha * form[offset])


def dpop_in_numpy(a, beta=0.3, lambda_=50.0):
    return minus_log_sigma(beta * (h_of(a) - lambda_ * np.maximum(0, a.Rw - a.Sw)))


def mmpo_in_numpy(a, beta=0.1, gamma=1.0):
    p, z = sigma(gamma * (a.sw - a.sl)), beta * h_of(a)
    return p * minus_log_sigma(z) + (1 - p) * minus_log_sigma(-z)


NUMPY = {
    odpo: odpo_in_numpy,
    dpo_margin: lambda a, beta=0.1: minus_log_sigma(beta * h_of(a) - a.margin),
    home_advantage: lambda a, beta=0.1, advantage=0.0: minus_log_sigma(
        beta * (h_of(a) - advantage)
    ),
    dpop: dpop_in_numpy,
    mmpo: mmpo_in_numpy,
}
SETTINGS = [
    *((objective, {}) for objective in NUMPY),
    *((objective, {"beta": 0.37}) for objective in NUMPY),
    *((odpo, {"alpha": 0.5, "offset": offset}) for offset in OFFSETS),
    (home_advantage, {"advantage": 3.0}),
    (home_advantage, {"advantage": -3.0}),
    (dpop, {"lambda_": 0.1}),
    (mmpo, {"gamma": 2.5}),
    (mmpo, {"gamma": 0.0}),
]


@pytest.mark.parametrize(("objective", "parameters"), SETTINGS)
def test_against_the_sheet_in_numpy(objective, parameters) -> None:
    pairs, a = random_pairs(7)
    np.testing.assert_allclose(
        objective(pairs, **parameters).loss.detach().numpy(),
        NUMPY[objective](a, **parameters),
        rtol=0,
        atol=1e-10,
    )


def scored(pairs: Pairs, chosen: list[float], rejected: list[float]) -> Pairs:
    dtype = pairs.policy_chosen.dtype
    return pairs._replace(
        score_chosen=torch.tensor(chosen, dtype=dtype),
        score_rejected=torch.tensor(rejected, dtype=dtype),
    )


@pytest.mark.parametrize(
    ("objective", "at_reference", "at_z_1"),
    [
        # Scores 3 and 1, margin 0.25; rho = 2 and 0 with beta = 0.5.
        (odpo, math.log(3), 0.5514447139320511),
        (partial(odpo, offset="difference"), 2.1269280110429727, 1.3132616875182228),
        (partial(odpo, offset="log_ratio"), math.log(4), 0.7436683806286792),
        (dpo_margin, 0.8259394198788435, 0.38687100611489994),
        (partial(home_advantage, advantage=1.0), 0.9740769841801067, 0.4740769841801067),
        (partial(dpop, lambda_=2.0), math.log(2), 0.31326168751822286),
        (mmpo, math.log(2), 0.4324646095403404),
    ],
)
def test_literal_values(objective, at_reference, at_z_1) -> None:
    pairs = scored(pairs_at([0.0, 2.0]), [3.0, 3.0], [1.0, 1.0])
    loss = objective(pairs, beta=0.5).loss.tolist()
    assert loss == pytest.approx([at_reference, at_z_1], rel=1e-12)


def test_dpop_below_the_reference() -> None:
    # beta (h - lambda 1) = 0.5 (3 - 2)
    pairs = pairs_at([-1.0], [-4.0])
    loss = dpop(pairs, beta=0.5, lambda_=2.0).loss
    assert loss.item() == pytest.approx(0.4740769841801067, rel=1e-12)


# The acceptance list of ODPO (A1 to A6, A8).


@pytest.mark.parametrize("offset", OFFSETS)
def test_a1_without_alpha_odpo_is_dpo_bit_for_bit(offset: Offset) -> None:
    pairs, _ = random_pairs(1)
    same(partial(odpo, alpha=0.0, offset=offset), dpo, pairs)


@pytest.mark.parametrize("alpha", [0.5, 1.0, 7.0])
def test_a1_with_gaps_of_one_odpo_is_dpo_bit_for_bit(alpha: float) -> None:
    pairs, _ = random_pairs(1, 3)
    same(partial(odpo, alpha=alpha), dpo, scored(pairs, [2.0, 1.5, 0.0], [1.0, 0.5, -1.0]))


@pytest.mark.parametrize("alpha", [0.5, 1.0])
def test_a2_at_the_reference_the_loss_is_log_1_plus_gap_to_the_alpha(alpha: float) -> None:
    gap = [1e-6, 0.1, 0.5, 1.0, 2.0, 6.0]
    pairs = scored(pairs_at([0.0] * 6, dtype=torch.float32), gap, [0.0] * 6)
    expected = torch.tensor([math.log1p(g**alpha) for g in gap])
    torch.testing.assert_close(odpo(pairs, alpha=alpha).loss, expected, rtol=0, atol=1e-6)


@pytest.mark.parametrize("offset", OFFSETS)
def test_a3_the_slope_is_minus_sigma_of_offset_minus_z(offset: Offset) -> None:
    pairs, a = random_pairs(2)
    delta = {
        "log": np.log(a.sw - a.sl),
        "difference": a.sw - a.sl,
        "log_ratio": np.log(a.sw / a.sl),
    }
    expected = -sigma(delta[offset] - h_of(a))
    chosen, rejected = slopes(partial(odpo, beta=1.0, offset=offset), pairs)
    np.testing.assert_allclose(chosen.numpy(), expected, rtol=0, atol=1e-10)
    torch.testing.assert_close(rejected, -chosen)


@pytest.mark.parametrize("offset", OFFSETS)
def test_a4_odpo_is_the_margin_loss_with_the_offset_as_margin(offset: Offset) -> None:
    pairs, a = random_pairs(3)
    assert pairs.score_chosen is not None and pairs.score_rejected is not None
    delta = odpo_offset(pairs.score_chosen, pairs.score_rejected, alpha=0.7, offset=offset)
    with_margin = pairs._replace(margin=delta)
    same(partial(odpo, alpha=0.7, offset=offset), dpo_margin, with_margin)
    if offset == "log_ratio":
        expected = 0.7 * (np.log(a.sw) - np.log(a.sl))
        np.testing.assert_allclose(delta.numpy(), expected, rtol=0, atol=1e-12)


def test_a5_shifts_and_units_of_the_scores() -> None:
    chosen, rejected = torch.tensor([2.0, 4.0]), torch.tensor([1.0, 0.5])
    invariant: dict[Offset, bool] = {"log": True, "difference": True, "log_ratio": False}
    for offset in OFFSETS:
        before = odpo_offset(chosen, rejected, alpha=0.5, offset=offset)
        after = odpo_offset(chosen + 8, rejected + 8, alpha=0.5, offset=offset)
        assert torch.allclose(before, after) == invariant[offset]
    scaled = odpo_offset(3 * chosen, 3 * rejected, alpha=0.5)
    moved = odpo_offset(chosen, rejected, alpha=0.5) + 0.5 * math.log(3)
    torch.testing.assert_close(scaled, moved)


def test_a6_ties_have_no_loss_and_no_gradient_in_the_log_form() -> None:
    pairs = scored(pairs_at([-1e6, 0.0, 5.0, 1.0]), [1.0, 1.0, 0.0, 2.0], [1.0, 1.0, 0.0, 1.0])
    out = odpo(pairs, beta=1.0)
    assert out.loss[:3].tolist() == [0.0, 0.0, 0.0]
    assert out.loss[3].item() == pytest.approx(0.31326168751822286, rel=1e-12)
    chosen, rejected = slopes(partial(odpo, beta=1.0), pairs)
    assert chosen[:3].tolist() == rejected[:3].tolist() == [0.0, 0.0, 0.0]
    assert chosen[3].item() == pytest.approx(-0.2689414213699951, rel=1e-12)
    assert out.terms["offset"].tolist() == [0.0, 0.0, 0.0, 0.0], "finite for the log"
    assert out.terms["score_gap"].tolist() == [0.0, 0.0, 0.0, 1.0]
    ties = torch.ones(2)
    assert odpo_offset(ties, ties).tolist() == [-math.inf, -math.inf]


@pytest.mark.parametrize("offset", ["difference", "log_ratio"])
def test_a6_ties_are_dpo_in_the_other_forms(offset: Offset) -> None:
    pairs = scored(pairs_at([-3.0, 0.0, 5.0]), [1.0] * 3, [1.0] * 3)
    same(partial(odpo, offset=offset), dpo, pairs)


@pytest.mark.parametrize("offset", OFFSETS)
def test_a6_without_alpha_no_score_matters(offset: Offset) -> None:
    pairs = scored(pairs_at([-3.0, 0.0, 5.0, 1.0]), [1.0, 0.0, math.nan, math.inf], [1.0, 2.0, 1.0, -1.0])  # fmt: skip
    same(partial(odpo, alpha=0.0, offset=offset), dpo, pairs)


@pytest.mark.parametrize(
    ("offset", "chosen", "rejected", "message"),
    [
        (
            "log",
            [1.0, 0.2, 3.0, -1.0],
            [0.0, 0.7, 3.0, 2.0],
            "odpo: 2 of 4 pairs with the lower score on the chosen response, where offset 'log' has no value, "
            "the first at index 1 (chosen 0.2, rejected 0.7); swap or drop them (the odpo method does either), or "
            "take offset 'difference'",
        ),
        (
            "log_ratio",
            [1.0, 2.0, 3.0, -1.0],
            [0.5, 0.0, 1.0, -2.0],
            "odpo: 2 of 4 pairs with a score <= 0, where offset 'log_ratio' has no value, the first at index 1 "
            "(chosen 2, rejected 0); shift the scores above 0, or take offset 'log' or 'difference'",
        ),
        *(
            (
                offset,
                [1.0, 2.0, -3.0, math.inf],
                [0.5, math.nan, 1.0, 0.5],
                "odpo: 2 of 4 pairs with a score that is missing or infinite, the first at index 1 "
                "(chosen 2, rejected nan); score them, or let the odpo method drop them or train them as plain DPO",
            )
            for offset in OFFSETS
        ),
    ],
)
def test_a6_scores_without_an_offset_are_counted_and_shown(
    offset, chosen, rejected, message
) -> None:
    pairs = scored(pairs_at([0.0] * 4), chosen, rejected)
    with pytest.raises(ValueError) as caught:
        odpo(pairs, offset=offset)
    assert str(caught.value) == message


def test_a6_a_swapped_pair_with_its_scores() -> None:
    # With the difference, Delta and z both change sign: the loss grows by z - Delta.
    right, wrong = pairs_at([2.0]), pairs_at([-2.0])
    loss = partial(odpo, beta=1.0, offset="difference")
    swapped = loss(scored(wrong, [1.0], [1.5])).loss
    torch.testing.assert_close(swapped, loss(scored(right, [1.5], [1.0])).loss + 2.0 - 0.5)
    with pytest.raises(ValueError, match="1 of 1 pairs with the lower score on the chosen"):
        odpo(scored(wrong, [1.0], [1.5]))


def test_a8_sums_count_and_lengths_do_not() -> None:
    pairs, _ = random_pairs(4)
    assert pairs.length_chosen is not None
    other = pairs._replace(length_chosen=3 * pairs.length_chosen, length_rejected=None)
    assert torch.equal(odpo(pairs).loss, odpo(other).loss)


def test_whole_and_half_precision_scores_become_float32() -> None:
    whole = odpo_offset(torch.tensor([7, 3]), torch.tensor([1, 2]))
    assert whole.dtype == torch.float32
    torch.testing.assert_close(whole, torch.tensor([1.791759469228055, 0.0]))
    assert odpo_offset(torch.ones(1).bfloat16(), torch.zeros(1).bfloat16()).dtype == torch.float32
    assert odpo_offset(torch.ones(1).double(), torch.zeros(1).double()).dtype == torch.float64


def test_offsets_and_margins_carry_no_gradient() -> None:
    chosen = torch.tensor([2.0], requires_grad=True)
    rejected = torch.tensor([1.0], requires_grad=True)
    pairs = pairs_at([1.0], dtype=torch.float32)
    pairs = pairs._replace(score_chosen=chosen, score_rejected=rejected, margin=chosen)
    for objective in (odpo, dpo_margin, mmpo):
        objective(pairs).loss.sum().backward()
    assert chosen.grad is None and rejected.grad is None
    assert not odpo_offset(chosen, rejected).requires_grad


# The others.


def test_limits_are_dpo() -> None:
    pairs, a = random_pairs(5)
    same(home_advantage, dpo, pairs)
    same(partial(dpop, lambda_=0.0), partial(dpo, beta=0.3), pairs)
    same(dpo_margin, dpo, pairs._replace(margin=torch.zeros(200, dtype=torch.float64)))
    wide = pairs._replace(score_chosen=torch.tensor(a.sl + 1.0))
    same(partial(mmpo, gamma=1e4), dpo, wide, atol=1e-12)


def test_a_constant_margin_is_a_home_advantage() -> None:
    pairs, _ = random_pairs(5)
    pairs = pairs._replace(margin=torch.full((200,), 0.6, dtype=torch.float64))
    lead = partial(home_advantage, beta=0.2, advantage=3.0)
    same(lead, partial(dpo_margin, beta=0.2), pairs, atol=1e-12)


def test_dpop_is_dpo_above_the_reference_and_steeper_below() -> None:
    above, below = pairs_at([0.0, 3.0]), pairs_at([-0.25], [-4.0])
    same(partial(dpop, beta=0.1), dpo, above)
    chosen, rejected = slopes(partial(dpop, beta=1.0, lambda_=10.0), below)
    weight = float(sigma(np.array(-(3.75 - 2.5))))
    assert chosen.item() == pytest.approx(-11 * weight, rel=1e-12)
    assert rejected.item() == pytest.approx(weight, rel=1e-12)


def test_mmpo_is_cdpo_with_the_smoothing_that_the_scores_say() -> None:
    pairs = scored(pairs_at([-2.0, 0.0, 3.0]), [math.log(4)] * 3, [0.0] * 3)
    same(mmpo, partial(cdpo, label_smoothing=0.2), pairs, atol=1e-12)


def test_mmpo_has_its_minimum_at_the_gap_and_does_not_mind_the_order() -> None:
    at = scored(pairs_at([1.5]), [1.0], [0.25])
    loss = partial(mmpo, beta=1.0, gamma=2.0)
    assert slopes(loss, at)[0].item() == pytest.approx(0.0, abs=1e-15)
    p = 0.8175744761936437
    entropy = -p * math.log(p) - (1 - p) * math.log(1 - p)
    assert loss(at).loss.item() == pytest.approx(entropy, rel=1e-12)
    swapped = scored(pairs_at([-0.4]), [0.25], [1.0])
    torch.testing.assert_close(
        loss(swapped).loss, loss(scored(pairs_at([0.4]), [1.0], [0.25])).loss
    )


@pytest.mark.parametrize("objective", [*NUMPY, *(partial(odpo, offset=o) for o in OFFSETS[1:])])
@pytest.mark.parametrize("check", [keeps_finite, keeps_form, keeps_order, keeps_off_the_host])
def test_what_all_keep(objective, check) -> None:
    if check is keeps_off_the_host and getattr(objective, "func", objective) is odpo:
        objective = partial(odpo, alpha=0.0)  # else it reads the scores once, to check them
    check(objective)


def test_what_they_need() -> None:
    assert {o.__name__: needs_of(o).annotations for o in NUMPY} == {
        "odpo": ("scores",),
        "dpo_margin": ("margins",),
        "home_advantage": (),
        "dpop": (),
        "mmpo": ("scores",),
    }
    assert all(needs_of(o).view == "pairs" and needs_of(o).reference for o in NUMPY)


@pytest.mark.parametrize(
    ("objective", "field"),
    [
        *((o, "reference_chosen") for o in NUMPY),
        (odpo, "score_chosen"),
        (odpo, "score_rejected"),
        (mmpo, "score_chosen"),
        (mmpo, "score_rejected"),
        (dpo_margin, "margin"),
    ],
)
def test_missing_fields_are_named(objective, field) -> None:
    with pytest.raises(ValueError, match=f"{objective.__name__} needs {field}.*; got None"):
        objective(pairs_at([0.0])._replace(**{field: None}))


@pytest.mark.parametrize(
    ("objective", "parameters", "message"),
    [
        *((o, {"beta": 0.0}, f"{o.__name__}: beta is 0.0; it must be a finite") for o in NUMPY),
        (odpo, {"alpha": -1.0}, "odpo: alpha is -1.0; it must be a finite number >= 0"),
        (
            odpo,
            {"offset": "ratio"},
            "odpo: offset is 'ratio'; it must be one of 'log', 'difference', 'log_ratio'",
        ),
        (
            home_advantage,
            {"advantage": math.nan},
            "home_advantage: advantage is nan; it must be a finite number",
        ),
        (dpop, {"lambda_": -2.0}, "dpop: lambda_ is -2.0; it must be a finite number >= 0"),
        (mmpo, {"gamma": -2.0}, "mmpo: gamma is -2.0; it must be a finite number >= 0"),
    ],
)
def test_parameters_out_of_range_are_named(objective, parameters, message) -> None:
    with pytest.raises(ValueError, match=re.escape(message)):
        objective(pairs_at([0.0]), **parameters)
