"""DPO, its pairwise kin and SFT: literal values, independent float64 numpy forms, identities, slopes, edges."""

from __future__ import annotations

import math
import re
from functools import partial
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from prefopt.objectives import Pairs, Scores, needs_of, sft
from prefopt.objectives.pairwise import (
    cdpo,
    discopop,
    dpo,
    dpo_norm,
    exo,
    hinge,
    ipo,
    ipo_sum,
    robust,
)
from prefopt.objectives.types import Losses
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


def make_pairs(h: list[float]) -> Pairs:
    """Pairs whose policy-to-reference margins are `h`."""
    margin = torch.tensor(h, dtype=torch.float64, requires_grad=True)
    zero = torch.zeros(len(h), dtype=torch.float64)
    return Pairs(margin - 5.0, zero - 7.0, zero - 5.0, zero - 7.0)


def test_at_the_reference_the_loss_is_ln_2_with_slope_minus_half_beta() -> None:
    chosen = torch.tensor([-3.0, -9.0], requires_grad=True)
    rejected = torch.tensor([-4.0, -1.0])
    out = dpo(Pairs(chosen, rejected, chosen.detach(), rejected), beta=0.3)
    torch.testing.assert_close(out.loss, torch.full((2,), 0.6931471805599453))
    (gradient,) = torch.autograd.grad(out.loss.sum(), chosen)
    torch.testing.assert_close(gradient, torch.tensor([-0.15, -0.15]))
    assert out.terms["rewards/accuracies"].tolist() == [0.0, 0.0], "a tie is not a win"


def test_literal_values() -> None:
    # z = 0.5 * (2 - (-1)) = 1.5: loss = log(1 + e^-1.5)
    out = dpo(
        Pairs(
            torch.tensor([-1.0]), torch.tensor([-6.0]), torch.tensor([-3.0]), torch.tensor([-5.0])
        ),
        beta=0.5,
    )
    assert out.loss.item() == pytest.approx(0.2014132779827524, rel=1e-6)
    terms = {name: value.item() for name, value in out.terms.items()}
    assert terms == {
        "rewards/chosen": 1.0,
        "rewards/rejected": -0.5,
        "rewards/margins": 1.5,
        "rewards/accuracies": 1.0,
        "logps/chosen": -1.0,
        "logps/rejected": -6.0,
    }


def test_against_numpy_in_float64() -> None:
    g = np.random.default_rng(0)
    values = g.normal(0, 30, (4, 200))
    out = dpo(Pairs(*(torch.from_numpy(v) for v in values)), beta=0.17).loss
    z = 0.17 * ((values[0] - values[2]) - (values[1] - values[3]))
    np.testing.assert_allclose(out.numpy(), np.logaddexp(0, -z), rtol=0, atol=1e-10)


def test_swapping_chosen_and_rejected_adds_z() -> None:
    pairs = make_pairs([-4.0, 0.3, 12.0])
    swapped = Pairs(
        pairs.policy_rejected, pairs.policy_chosen, pairs.reference_rejected, pairs.reference_chosen
    )
    z = 0.1 * torch.tensor([-4.0, 0.3, 12.0], dtype=torch.float64)
    torch.testing.assert_close(dpo(swapped).loss, dpo(pairs).loss + z)


@pytest.mark.parametrize("h", [-1e6, -1e3, 0.0, 1e3, 1e6])
def test_finite_at_the_edges(h: float) -> None:
    pairs = make_pairs([h])
    loss = dpo(pairs).loss
    (gradient,) = torch.autograd.grad(loss.sum(), pairs.policy_chosen)
    assert torch.isfinite(loss).all()
    assert torch.isfinite(gradient).all()


def test_bfloat16_inputs_give_float32_losses() -> None:
    pairs = Pairs(*(torch.ones(3, dtype=torch.bfloat16) for _ in range(4)))
    assert dpo(pairs).loss.dtype == torch.float32


def test_no_pairs_give_a_differentiable_nothing() -> None:
    empty = torch.zeros(0, requires_grad=True)
    loss = dpo(Pairs(empty, empty, empty.detach(), empty.detach())).loss
    loss.sum().backward()
    assert loss.shape == (0,)


def test_a_missing_reference_is_named() -> None:
    with pytest.raises(
        ValueError, match="dpo needs reference_chosen and reference_rejected; got None"
    ):
        dpo(Pairs(torch.zeros(1), torch.zeros(1)))


def scores(policy: list[float], length: list[float]) -> Scores:
    n = len(policy)
    nan, index = torch.full((n,), math.nan), torch.zeros(0, dtype=torch.int64)
    return Scores(
        torch.tensor(policy), None, torch.tensor(length), index, index,
        torch.arange(n), nan, nan, nan, nan[:0],
    )  # fmt: skip


def test_sft_is_the_token_mean_per_response() -> None:
    out: Losses = sft(scores([-6.0, -1.0, 0.0], [3.0, 2.0, 0.0]))
    assert out.loss.tolist() == [2.0, 0.5, 0.0]
    assert needs_of(sft).view == "responses"
    assert not needs_of(sft).reference


def test_declarations_survive_partial_and_are_demanded() -> None:
    assert needs_of(partial(dpo, beta=0.5)).reference
    with pytest.raises(TypeError, match="is not declared as an objective"):
        needs_of(lambda pairs: Losses(pairs.policy_chosen, {}))


def test_scores_view_as_pairs() -> None:
    view = scores([-6.0, -1.0, -2.0], [3.0, 2.0, 4.0])._replace(
        chosen=torch.tensor([2, 0]), rejected=torch.tensor([1, 1])
    )
    assert view.pairs().policy_chosen.tolist() == [-2.0, -6.0]
    length = view.pairs().length_rejected
    assert length is not None and length.tolist() == [2.0, 2.0]


def minus_log_sigma(z: np.ndarray) -> np.ndarray:
    return np.logaddexp(0, -z)


def sigma(z: np.ndarray) -> np.ndarray:
    return np.exp(-np.logaddexp(0, -z))


def rhos(a: SimpleNamespace) -> tuple[np.ndarray, np.ndarray]:
    return a.Sw - a.Rw, a.Sl - a.Rl


def z_of(a: SimpleNamespace, beta: float) -> np.ndarray:
    rho_w, rho_l = rhos(a)
    return beta * (rho_w - rho_l)


def per_token(a: SimpleNamespace) -> np.ndarray:
    rho_w, rho_l = rhos(a)
    return rho_w / a.nw - rho_l / a.nl


def cdpo_in_numpy(a, beta=0.1, label_smoothing=0.2):
    z, eps = z_of(a, beta), label_smoothing
    return (1 - eps) * minus_log_sigma(z) + eps * minus_log_sigma(-z)


def robust_in_numpy(a, beta=0.1, label_smoothing=0.1):
    z, eps = z_of(a, beta), label_smoothing
    return ((1 - eps) * minus_log_sigma(z) - eps * minus_log_sigma(-z)) / (1 - 2 * eps)


def exo_in_numpy(a, beta=0.1, label_smoothing=1e-3):
    z, eps = z_of(a, beta), label_smoothing
    right = sigma(z) * (-minus_log_sigma(z) - np.log(1 - eps))
    return right + sigma(-z) * (-minus_log_sigma(-z) - np.log(eps))


def discopop_in_numpy(a, beta=0.05, tau=0.05):
    z = z_of(a, beta)
    q = sigma(z / tau)
    return (1 - q) * minus_log_sigma(z) + q * np.exp(-z)


NUMPY = {
    dpo: lambda a, beta=0.1: minus_log_sigma(z_of(a, beta)),
    cdpo: cdpo_in_numpy,
    robust: robust_in_numpy,
    hinge: lambda a, beta=0.1: np.maximum(0, 1 - z_of(a, beta)),
    ipo: lambda a, beta=0.1: (per_token(a) - 1 / (2 * beta)) ** 2,
    ipo_sum: lambda a, beta=0.1: (z_of(a, 1.0) - 1 / (2 * beta)) ** 2,
    dpo_norm: lambda a, beta=5.0: minus_log_sigma(beta * per_token(a)),
    exo: exo_in_numpy,
    discopop: discopop_in_numpy,
}
SETTINGS = [
    *((objective, {}) for objective in NUMPY),
    *((objective, {"beta": 0.37}) for objective in NUMPY),
    (cdpo, {"label_smoothing": 0.0}),
    (cdpo, {"beta": 1.0, "label_smoothing": 0.45}),
    (robust, {"label_smoothing": 0.0}),
    (robust, {"beta": 1.0, "label_smoothing": 0.4}),
    (exo, {"beta": 1.0, "label_smoothing": 0.3}),
    (discopop, {"beta": 0.5, "tau": 1.0}),
]


@pytest.mark.parametrize(("objective", "parameters"), SETTINGS)
def test_against_the_sheet_in_numpy(objective, parameters) -> None:
    pairs, a = random_pairs(7)
    # Losses reach 1e4 here, where a float64 has 1e-12 to spare.
    np.testing.assert_allclose(
        objective(pairs, **parameters).loss.detach().numpy(),
        NUMPY[objective](a, **parameters),
        rtol=0,
        atol=1e-10,
    )


@pytest.mark.parametrize(
    ("objective", "at_reference", "at_h_4"),
    [
        # h = 4 with beta = 0.5: z = 2; with the lengths 4 and 5 the margin per token is 1.
        (partial(dpo, beta=0.5), 0.6931471805599453, 0.1269280110429726),
        (partial(cdpo, beta=0.5, label_smoothing=0.2), 0.6931471805599453, 0.5269280110429726),
        (partial(robust, beta=0.5, label_smoothing=0.1), 0.6931471805599453, -0.1230719889570274),
        (partial(hinge, beta=0.5), 1.0, 0.0),
        (partial(ipo, beta=0.25), 4.0, 1.0),
        (partial(ipo_sum, beta=0.25), 4.0, 4.0),
        (partial(dpo_norm, beta=2.0), 0.6931471805599453, 0.1269280110429726),
        (partial(exo, beta=0.5, label_smoothing=0.25), 0.1438410362258904, 0.0533060123432181),
        (partial(discopop, beta=0.5, tau=0.05), 0.8465735902799727, 0.1353352832366127),
    ],
)
def test_literal_values_of_all(objective, at_reference, at_h_4) -> None:
    loss = objective(pairs_at([0.0, 4.0])).loss.tolist()
    assert loss == pytest.approx([at_reference, at_h_4], rel=1e-12, abs=1e-12)


@pytest.mark.parametrize("beta", [1e-3, 0.1, 5.0])
def test_the_values_at_the_reference_that_the_sheet_names(beta: float) -> None:
    at = pairs_at([0.0])
    eps = 1e-3
    assert hinge(at, beta=beta).loss.item() == 1
    assert ipo(at, beta=beta).loss.item() == pytest.approx(1 / (4 * beta**2), rel=1e-12)
    assert ipo_sum(at, beta=beta).loss.item() == pytest.approx(1 / (4 * beta**2), rel=1e-12)
    expected = -0.5 * math.log(eps * (1 - eps)) - math.log(2)
    assert exo(at, beta=beta, label_smoothing=eps).loss.item() == pytest.approx(expected, rel=1e-12)
    assert discopop(at, beta=beta).loss.item() == pytest.approx((math.log(2) + 1) / 2, rel=1e-12)
    for objective in (dpo, cdpo, robust, dpo_norm):
        assert objective(at, beta=beta).loss.item() == pytest.approx(math.log(2), rel=1e-12)


Z = np.array([-30.0, -4.0, -0.5, 0.0, 0.02, 0.5, 0.99, 1.01, 4.0, 30.0])


@pytest.mark.parametrize(
    ("objective", "slope"),
    [
        (dpo, lambda z: -sigma(-z)),
        (partial(cdpo, label_smoothing=0.3), lambda z: 0.3 * sigma(z) - 0.7 * sigma(-z)),
        (partial(robust, label_smoothing=0.3), lambda z: -(0.7 * sigma(-z) + 0.3 * sigma(z)) / 0.4),
        (hinge, lambda z: np.where(z < 1, -1.0, 0.0)),
        (partial(exo, label_smoothing=0.2), lambda z: sigma(z) * sigma(-z) * (z - np.log(4))),
        (
            partial(discopop, tau=0.5),
            lambda z: (
                sigma(2 * z) * sigma(-2 * z) * 2 * (np.exp(-z) - minus_log_sigma(z))
                - sigma(-2 * z) * sigma(-z)
                - sigma(2 * z) * np.exp(-z)
            ),
        ),
    ],
)
def test_slopes_in_closed_form(objective, slope) -> None:
    chosen, rejected = slopes(partial(objective, beta=1.0), pairs_at(Z.tolist()))
    np.testing.assert_allclose(chosen.numpy(), slope(Z), rtol=0, atol=1e-10)
    torch.testing.assert_close(rejected, -chosen)


def test_slopes_of_the_squared_and_the_normalised_losses() -> None:
    at = pairs_at(Z.tolist())
    chosen, rejected = slopes(partial(ipo_sum, beta=0.1), at)
    np.testing.assert_allclose(chosen.numpy(), 2 * (Z - 5), rtol=0, atol=1e-10)
    torch.testing.assert_close(rejected, -chosen)
    chosen, rejected = slopes(partial(ipo, beta=0.1), at)
    np.testing.assert_allclose(chosen.numpy(), 2 * (Z / 4 - 5) / 4, rtol=0, atol=1e-10)
    np.testing.assert_allclose(rejected.numpy(), -2 * (Z / 4 - 5) / 5, rtol=0, atol=1e-10)
    chosen, rejected = slopes(partial(dpo_norm, beta=2.0), at)
    np.testing.assert_allclose(chosen.numpy(), -sigma(-Z / 2) / 2, rtol=0, atol=1e-10)
    np.testing.assert_allclose(rejected.numpy(), sigma(-Z / 2) * 2 / 5, rtol=0, atol=1e-10)


def test_without_smoothing_cdpo_and_robust_are_dpo() -> None:
    pairs, _ = random_pairs(1)
    same(partial(cdpo, beta=0.3, label_smoothing=0.0), partial(dpo, beta=0.3), pairs)
    same(partial(robust, beta=0.3, label_smoothing=0.0), partial(dpo, beta=0.3), pairs)


def equally_long(n: float) -> Pairs:
    pairs, _ = random_pairs(2)
    length = torch.full_like(pairs.policy_chosen, n).detach()
    return pairs._replace(length_chosen=length, length_rejected=length)


def test_with_equal_lengths_dpo_norm_is_dpo() -> None:
    pairs = equally_long(8.0)
    same(partial(dpo_norm, beta=2.0), partial(dpo, beta=0.25), pairs, atol=1e-12)


def test_with_equal_lengths_the_two_ipos_differ_by_scales_only() -> None:
    pairs = equally_long(8.0)
    expected = ipo_sum(pairs, beta=0.1 / 8).loss / 64
    torch.testing.assert_close(ipo(pairs, beta=0.1).loss, expected)


def test_robust_averaged_over_flips_is_dpo() -> None:
    right, wrong = pairs_at(Z.tolist()), pairs_at((-Z).tolist())
    loss = partial(robust, beta=1.0, label_smoothing=0.2)
    averaged = 0.8 * loss(right).loss + 0.2 * loss(wrong).loss
    torch.testing.assert_close(averaged, dpo(right, beta=1.0).loss)


def test_the_smoothed_losses_have_their_minimum_at_the_log_odds() -> None:
    at = pairs_at([math.log(3.0)])
    for objective, least in [(cdpo, 0.5623351446188083), (exo, 0.0)]:
        bound = partial(objective, beta=1.0, label_smoothing=0.25)
        assert bound(at).loss.item() == pytest.approx(least, abs=1e-15)
        assert slopes(bound, at)[0].item() == pytest.approx(0.0, abs=1e-15)


def test_swapping_in_cdpo_flips_the_smoothing() -> None:
    # (1 - eps) f(-z) + eps f(z) with f(-z) = f(z) + z
    right, wrong = pairs_at(Z.tolist()), pairs_at((-Z).tolist())
    loss = partial(cdpo, beta=1.0, label_smoothing=0.2)
    torch.testing.assert_close(loss(wrong).loss, loss(right).loss + 0.6 * torch.from_numpy(Z))


def test_an_empty_response_counts_as_no_change_per_token() -> None:
    pairs = pairs_at([2.0], [0.0])._replace(length_rejected=torch.zeros(1, dtype=torch.float64))
    assert ipo(pairs, beta=0.5).loss.item() == 0.25
    assert dpo_norm(pairs, beta=2.0).loss.item() == pytest.approx(0.31326168751822286, rel=1e-12)


def test_discopop_rises_at_the_reference() -> None:
    (slope,) = slopes(partial(discopop, beta=1.0), pairs_at([0.0]))[0].tolist()
    assert slope == pytest.approx(0.7842640972002736, rel=1e-12)


@pytest.mark.parametrize("objective", NUMPY)
@pytest.mark.parametrize("check", [keeps_finite, keeps_form, keeps_order, keeps_off_the_host])
def test_what_all_keep(objective, check) -> None:
    check(objective)


@pytest.mark.parametrize("objective", NUMPY)
def test_rewards_are_beta_times_the_summed_log_ratios(objective) -> None:
    terms = objective(pairs_at([3.0], [1.0]), beta=0.5).terms
    assert terms["rewards/chosen"].tolist() == [1.5]
    assert terms["rewards/rejected"].tolist() == [0.5]
    need = needs_of(objective)
    assert (need.view, need.reference, need.mean, need.coupled) == ("pairs", True, "pairs", False)


@pytest.mark.parametrize("objective", NUMPY)
def test_every_one_names_its_missing_reference(objective) -> None:
    with pytest.raises(ValueError, match=f"{objective.__name__} needs reference_chosen and"):
        objective(pairs_at([0.0])._replace(reference_chosen=None))


@pytest.mark.parametrize("objective", [ipo, dpo_norm])
def test_the_length_means_name_missing_lengths(objective) -> None:
    message = f"{objective.__name__} needs length_rejected; got None"
    with pytest.raises(ValueError, match=message):
        objective(pairs_at([0.0])._replace(length_rejected=None))


@pytest.mark.parametrize(
    ("objective", "parameters", "message"),
    [
        *((o, {"beta": 0}, f"{o.__name__}: beta is 0; it must be a finite") for o in NUMPY),
        (dpo, {"beta": math.nan}, "dpo: beta is nan; it must be a finite number > 0"),
        (dpo, {"beta": math.inf}, "dpo: beta is inf; it must be a finite number > 0"),
        (cdpo, {"label_smoothing": 0.7}, "cdpo: label_smoothing is 0.7; it must be at least 0"),
        (cdpo, {"label_smoothing": -0.1}, "cdpo: label_smoothing is -0.1; it must be at least 0"),
        (robust, {"label_smoothing": 0.5}, "robust: label_smoothing is 0.5; it must be at least 0"),
        (exo, {"label_smoothing": 0.0}, "exo: label_smoothing is 0.0; it must be a finite"),
        (exo, {"label_smoothing": 0.5}, "exo: label_smoothing is 0.5; it must be at least 0"),
        (discopop, {"tau": 0.0}, "discopop: tau is 0.0; it must be a finite number > 0"),
        (discopop, {"tau": 2.0}, "discopop: tau is 2.0; it must be from 0 to 1"),
    ],
)
def test_parameters_out_of_range_are_named(objective, parameters, message) -> None:
    with pytest.raises(ValueError, match=re.escape(message)):
        objective(pairs_at([0.0]), **parameters)
