"""NCA, BCO, SPPO, APO and Cal-DPO: numpy forms, literal values, identities, slopes, the running mean, edges."""

from __future__ import annotations

import math
from functools import partial
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from prefopt.objectives.pairwise import dpo
from prefopt.objectives.pointwise import (
    advance_bco,
    apo_down,
    apo_zero,
    bco,
    cal_dpo,
    nca,
    sppo,
)
from prefopt.objectives.types import Losses, Pairs, needs_of, parameters_of
from tests.objectives.edges import (
    keeps_finite,
    keeps_form,
    keeps_off_the_host,
    keeps_order,
    pairs_at,
    slopes,
)
from tests.objectives.given import random_pairs


def minus_log_sigma(z: np.ndarray) -> np.ndarray:
    return np.logaddexp(0, -z)


def sigma(z: np.ndarray) -> np.ndarray:
    return np.exp(-np.logaddexp(0, -z))


def rewards(a: SimpleNamespace, beta: float) -> tuple[np.ndarray, np.ndarray]:
    return beta * (a.Sw - a.Rw), beta * (a.Sl - a.Rl)


def nca_in_numpy(a, beta=0.01):
    r_w, r_l = rewards(a, beta)
    return minus_log_sigma(r_w) + 0.5 * minus_log_sigma(-r_w) + 0.5 * minus_log_sigma(-r_l)


def bco_in_numpy(a, beta=0.01, delta=0.0):
    r_w, r_l = rewards(a, beta)
    return minus_log_sigma(r_w - delta) + minus_log_sigma(-(r_l - delta))


def sppo_in_numpy(a, beta=0.001):
    rho_w, rho_l = rewards(a, 1.0)
    return (rho_w - 1 / (2 * beta)) ** 2 + (rho_l + 1 / (2 * beta)) ** 2


def apo_zero_in_numpy(a, beta=0.1):
    r_w, r_l = rewards(a, beta)
    return 1 - sigma(r_w) + sigma(r_l)


def apo_down_in_numpy(a, beta=0.1):
    r_w, r_l = rewards(a, beta)
    return sigma(r_w) + 1 - sigma(r_w - r_l)


def cal_dpo_in_numpy(a, beta=1e-3):
    rho_w, rho_l = rewards(a, 1.0)
    return minus_log_sigma(rho_w - rho_l) + sppo_in_numpy(a, beta)


NUMPY = {
    nca: nca_in_numpy,
    bco: bco_in_numpy,
    sppo: sppo_in_numpy,
    apo_zero: apo_zero_in_numpy,
    apo_down: apo_down_in_numpy,
    cal_dpo: cal_dpo_in_numpy,
}
SETTINGS = [
    *((objective, {}) for objective in NUMPY),
    *((objective, {"beta": 0.37}) for objective in NUMPY),
    (bco, {"beta": 0.2, "delta": -1.3}),
]


@pytest.mark.parametrize(("objective", "parameters"), SETTINGS)
def test_against_the_sheet_in_numpy(objective, parameters) -> None:
    pairs, a = random_pairs(7)
    # The squares reach 5e5, where neighbouring float64 numbers are 6e-11 apart: 1e-15 relative is their rounding.
    np.testing.assert_allclose(
        objective(pairs, **parameters).loss.detach().numpy(),
        NUMPY[objective](a, **parameters),
        rtol=1e-15,
        atol=1e-10,
    )


@pytest.mark.parametrize(
    ("objective", "at_reference", "elsewhere"),
    [
        # rho = 2 and -4: with beta = 0.5 the rewards are 1 and -2, the targets 1 and -1.
        (nca, 2 * math.log(2), 1.0333565367988205),
        (bco, 2 * math.log(2), 0.44018969856119533),
        (partial(bco, delta=0.5), 1.4481539683602134, 0.5529667184726563),
        (sppo, 2.0, 10.0),
        (apo_zero, 1.0, 0.38814434339211264),
        (apo_down, 1.0, 0.7784844518075717),
        (cal_dpo, math.log(2) + 2, 10.00247568513773),
    ],
)
def test_literal_values(objective, at_reference, elsewhere) -> None:
    loss = objective(pairs_at([0.0, 2.0], [0.0, -4.0]), beta=0.5).loss.tolist()
    assert loss == pytest.approx([at_reference, elsewhere], rel=1e-12)


@pytest.mark.parametrize("beta", [1e-3, 0.1, 5.0])
def test_the_values_at_the_reference_that_the_sheet_names(beta: float) -> None:
    at = pairs_at([0.0])
    for objective, expected in [
        (apo_zero, 1.0),
        (apo_down, 1.0),
        (nca, 2 * math.log(2)),
        (bco, 2 * math.log(2)),
        (sppo, 1 / (2 * beta**2)),
    ]:
        assert objective(at, beta=beta).loss.item() == pytest.approx(expected, rel=1e-12)


R = np.array([-30.0, -4.0, -0.5, 0.0, 0.5, 1.0, 4.0, 30.0])


@pytest.mark.parametrize(
    ("objective", "chosen", "rejected"),
    [
        (nca, lambda c, r: 0.5 * sigma(c) - sigma(-c), lambda c, r: 0.5 * sigma(r)),
        (bco, lambda c, r: -sigma(-c), lambda c, r: sigma(r)),
        (partial(bco, delta=2.0), lambda c, r: -sigma(2 - c), lambda c, r: sigma(r - 2)),
        (sppo, lambda c, r: 2 * c - 1, lambda c, r: 2 * r + 1),
        (apo_zero, lambda c, r: -sigma(c) * sigma(-c), lambda c, r: sigma(r) * sigma(-r)),
        (
            apo_down,
            lambda c, r: sigma(c) * sigma(-c) - sigma(c - r) * sigma(r - c),
            lambda c, r: sigma(c - r) * sigma(r - c),
        ),
        (
            cal_dpo,
            lambda c, r: 2 * c - 1 - sigma(r - c),
            lambda c, r: 2 * r + 1 + sigma(r - c),
        ),
    ],
)
def test_slopes_in_closed_form(objective, chosen, rejected) -> None:
    c, r = (grid.ravel() for grid in np.meshgrid(R, R))
    got = slopes(partial(objective, beta=1.0), pairs_at(c.tolist(), r.tolist()))
    np.testing.assert_allclose(got[0].numpy(), chosen(c, r), rtol=0, atol=1e-10)
    np.testing.assert_allclose(got[1].numpy(), rejected(c, r), rtol=0, atol=1e-10)


def test_nca_holds_the_chosen_reward_at_ln_2() -> None:
    at = pairs_at([math.log(2)], [-1e3])
    assert nca(at, beta=1.0).loss.item() == pytest.approx(0.9547712524422192, rel=1e-12)
    assert slopes(partial(nca, beta=1.0), at)[0].item() == pytest.approx(0.0, abs=1e-15)


def test_swapping_a_pair() -> None:
    right, wrong = pairs_at([2.0, -1.0], [0.5, 3.0]), pairs_at([0.5, 3.0], [2.0, -1.0])
    h = torch.tensor([1.5, -4.0], dtype=torch.float64)
    torch.testing.assert_close(bco(wrong, beta=1.0).loss, bco(right, beta=1.0).loss + h)
    torch.testing.assert_close(apo_zero(wrong).loss, 2 - apo_zero(right).loss)
    torch.testing.assert_close(sppo(wrong, beta=0.5).loss, sppo(right, beta=0.5).loss + 4 * h)


def test_cal_dpo_is_unscaled_dpo_plus_the_squares_of_sppo() -> None:
    pairs, _ = random_pairs(5)
    expected = dpo(pairs, beta=1.0).loss + sppo(pairs, beta=0.01).loss
    torch.testing.assert_close(cal_dpo(pairs, beta=0.01).loss, expected)


@pytest.mark.parametrize("delta", [-3.0, 0.0, 0.7])
def test_bco_bounds_dpo_from_above(delta: float) -> None:
    pairs, _ = random_pairs(6)
    assert (bco(pairs, beta=0.3, delta=delta).loss >= dpo(pairs, beta=0.3).loss).all()


def start() -> dict[str, torch.Tensor]:
    running = needs_of(bco).running
    assert running is not None
    return {name: torch.tensor(value, dtype=torch.float64) for name, value in running.start.items()}


def test_the_running_delta_is_the_mean_of_all_rewards_so_far() -> None:
    batches = [random_pairs(seed, n) for seed, n in [(1, 7), (2, 1), (3, 40)]]
    state, seen = start(), []
    for pairs, a in batches:
        state = advance_bco(pairs, state, beta=0.3)
        seen += [*(0.3 * (a.Sw - a.Rw)), *(0.3 * (a.Sl - a.Rl))]
        assert state["delta"].item() == pytest.approx(np.mean(seen), rel=0, abs=1e-12)
    assert state["count"].item() == 96
    assert all(v.dtype == torch.float64 and v.shape == () for v in state.values())
    assert not any(value.requires_grad for value in state.values())


def test_a_batch_without_pairs_leaves_delta() -> None:
    assert advance_bco(pairs_at([]), start()) == {"delta": 0.0, "count": 0.0}
    once = advance_bco(pairs_at([2.0], [1.0], torch.float32), start(), beta=0.5)
    assert advance_bco(pairs_at([]), once, beta=0.5) == {"delta": 0.75, "count": 2.0}


def test_delta_is_a_constant_of_the_loss_and_does_not_widen_it() -> None:
    pairs = pairs_at([2.0], [-4.0], torch.float32)
    number: Losses = bco(pairs, beta=0.5, delta=0.5)
    tensor = bco(pairs, beta=0.5, delta=torch.tensor(0.5, dtype=torch.float64))
    assert tensor.loss.dtype == torch.float32
    assert torch.equal(number.loss, tensor.loss)
    assert tensor.terms["rewards/chosen"].item() == 1.0, "rewards are logged without the shift"


def test_bco_declares_its_state() -> None:
    need = needs_of(bco)
    assert need.coupled and need.running is not None
    assert need.running.arguments == ("delta",)
    assert need.running.start == {"delta": 0.0, "count": 0.0}
    assert need.running.advance is advance_bco
    assert parameters_of(bco) == {"beta": 0.01}


@pytest.mark.parametrize("objective", NUMPY)
@pytest.mark.parametrize("check", [keeps_finite, keeps_form, keeps_order, keeps_off_the_host])
def test_what_all_keep(objective, check) -> None:
    check(objective)


@pytest.mark.parametrize("objective", NUMPY)
def test_rewards_are_beta_times_the_log_ratios(objective) -> None:
    terms = objective(pairs_at([3.0], [1.0]), beta=0.5).terms
    assert terms["rewards/chosen"].tolist() == [1.5]
    assert terms["rewards/rejected"].tolist() == [0.5]
    assert needs_of(objective).view == "pairs" and needs_of(objective).reference


@pytest.mark.parametrize("objective", NUMPY)
def test_every_one_names_what_it_misses_and_a_bad_beta(objective) -> None:
    name = objective.__name__
    with pytest.raises(ValueError, match=f"{name} needs reference_chosen and"):
        objective(Pairs(torch.zeros(1), torch.zeros(1)))
    with pytest.raises(ValueError, match=f"{name}: beta is -1.0; it must be a finite number > 0"):
        objective(pairs_at([0.0]), beta=-1.0)


def test_bco_pair_is_bco_without_its_shift() -> None:
    from prefopt.objectives.pointwise import bco_pair

    pairs, _ = random_pairs(4)
    torch.testing.assert_close(bco_pair(pairs, beta=0.3).loss, bco(pairs, beta=0.3).loss)
    assert not needs_of(bco_pair).coupled and needs_of(bco_pair).running is None
