"""SLiC, CPO, SimPO, AlphaPO and TPO: numpy forms, literal values, identities, closed gradients, edges."""

from __future__ import annotations

import math
from functools import partial
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from prefopt.objectives.reference_free import alphapo, cpo, gold_nll, simpo, slic, tpo, tpo_l
from prefopt.objectives.types import Losses, Pairs, needs_of
from tests.objectives.given import random_pairs

ALL = [slic, cpo, simpo, alphapo, tpo, tpo_l]


def minus_log_sigma(z: np.ndarray) -> np.ndarray:
    return np.logaddexp(0, -z)


def smoothed(z: np.ndarray, eps: float) -> np.ndarray:
    return (1 - eps) * minus_log_sigma(z) + eps * minus_log_sigma(-z)


def slic_in_numpy(a: SimpleNamespace, delta: float = 1.0, lambda_: float = 0.1):
    return np.maximum(0, delta - a.Sw + a.Sl) - lambda_ * a.Sw / a.nw


def cpo_in_numpy(
    a: SimpleNamespace, beta: float = 0.1, label_smoothing: float = 0.0, cpo_alpha: float = 1.0
):
    return smoothed(beta * (a.Sw - a.Sl), label_smoothing) - cpo_alpha * a.Sw / a.nw


def simpo_in_numpy(
    a: SimpleNamespace, beta: float = 2.0, gamma: float = 1.0, label_smoothing: float = 0.0
):
    return smoothed(beta * (a.Sw / a.nw - a.Sl / a.nl - gamma / beta), label_smoothing)


def alphapo_in_numpy(
    a: SimpleNamespace, beta: float = 2.5, gamma: float = 0.5, alpha: float = 0.25
):
    p_w, p_l = np.exp(a.Sw / a.nw), np.exp(a.Sl / a.nl)
    r_w, r_l = ((1 - p**-alpha) / alpha if alpha else np.log(p) for p in (p_w, p_l))
    return minus_log_sigma(beta * (r_w - r_l - gamma / beta))


def tpo_in_numpy(
    a: SimpleNamespace, beta: float = 0.01, tpo_alpha: float = 1.0, label_smoothing: float = 0.0
):
    return smoothed(beta * (a.Sw - a.Sl), label_smoothing) - tpo_alpha * a.Sg / a.ng


def tpo_l_in_numpy(
    a: SimpleNamespace, beta: float = 2.0, gamma: float = 0.5, tpo_alpha: float = 1.0
):
    preference = minus_log_sigma(beta * (a.Sw / a.nw - a.Sl / a.nl - gamma / beta))
    return preference - tpo_alpha * a.Sg / a.ng


@pytest.mark.parametrize(
    ("objective", "in_numpy", "parameters"),
    [
        (slic, slic_in_numpy, {}),
        (slic, slic_in_numpy, {"delta": 20.0, "lambda_": 2.0}),
        (slic, slic_in_numpy, {"delta": 0.0, "lambda_": 0.0}),
        (cpo, cpo_in_numpy, {}),
        (cpo, cpo_in_numpy, {"beta": 1.3, "label_smoothing": 0.2, "cpo_alpha": 0.4}),
        (cpo, cpo_in_numpy, {"cpo_alpha": 0.0}),
        (simpo, simpo_in_numpy, {}),
        (simpo, simpo_in_numpy, {"beta": 10.0, "gamma": 3.0, "label_smoothing": 0.1}),
        (simpo, simpo_in_numpy, {"gamma": 0.0}),
        (alphapo, alphapo_in_numpy, {}),
        (alphapo, alphapo_in_numpy, {"beta": 1.0, "gamma": 0.1, "alpha": -0.5}),
        (alphapo, alphapo_in_numpy, {"beta": 0.3, "gamma": 2.0, "alpha": 1.0}),
        (alphapo, alphapo_in_numpy, {"alpha": 0.0}),
        (tpo, tpo_in_numpy, {}),
        (tpo, tpo_in_numpy, {"beta": 0.2, "tpo_alpha": 0.05, "label_smoothing": 0.3}),
        (tpo_l, tpo_l_in_numpy, {}),
        (tpo_l, tpo_l_in_numpy, {"beta": 10.0, "gamma": 5.4, "tpo_alpha": 0.05}),
    ],
)
def test_against_numpy_in_float64(objective, in_numpy, parameters) -> None:
    pairs, a = random_pairs(3)
    loss = objective(pairs, **parameters).loss
    np.testing.assert_allclose(loss.detach().numpy(), in_numpy(a, **parameters), rtol=0, atol=1e-10)


def one_pair(*, gold: bool = False) -> Pairs:
    """S = -6 over 3 tokens against S = -4 over 4; gold S = -1 over 2."""
    pairs = Pairs(
        policy_chosen=torch.tensor([-6.0]),
        policy_rejected=torch.tensor([-4.0]),
        length_chosen=torch.tensor([3.0]),
        length_rejected=torch.tensor([4.0]),
    )
    if not gold:
        return pairs
    return pairs._replace(policy_gold=torch.tensor([-1.0]), length_gold=torch.tensor([2.0]))


@pytest.mark.parametrize(
    ("objective", "expected", "rewards"),
    [
        # 1 + 2 + 0.1 * 2
        (slic, 3.2, (-6.0, -4.0)),
        # log(1 + e^0.2) + 2
        (cpo, 2.798138869381592, (-0.6, -0.4)),
        # z = 2 * (-2 + 1) - 1 = -3
        (simpo, 3.048587351573742, (-4.0, -2.0)),
        # r = 4 (1 - e^0.5) and 4 (1 - e^0.25); z = 2.5 * (-2.594885 + 1.136102) - 0.5 = -4.146958
        (alphapo, 4.162647262, (-6.487213, -2.840254)),
        # log(1 + e^0.02) + 1/2
        (tpo, 1.2031971806432785, (-0.06, -0.04)),
        # z = 2 * (-2 + 1) - 0.5 = -2.5
        (tpo_l, 3.0788891646925833, (-4.0, -2.0)),
    ],
)
def test_literal_values(objective, expected, rewards) -> None:
    out: Losses = objective(one_pair(gold=True))
    assert out.loss.item() == pytest.approx(expected, rel=1e-6)
    assert out.terms["rewards/chosen"].item() == pytest.approx(rewards[0], rel=1e-6)
    assert out.terms["rewards/rejected"].item() == pytest.approx(rewards[1], rel=1e-6)
    assert out.terms["rewards/accuracies"].item() == 0.0
    assert out.terms["logps/chosen"].item() == -6.0
    assert not any(value.requires_grad for value in out.terms.values())


@pytest.mark.parametrize(
    ("objective", "expected"),
    [
        (partial(slic, lambda_=0.0), 1.0),
        (partial(cpo, cpo_alpha=0.0), math.log(2)),
        (partial(cpo, cpo_alpha=0.0, label_smoothing=0.3), math.log(2)),
        (simpo, 1.3132616875182228),  # log(1 + e)
        (partial(simpo, gamma=0.0), math.log(2)),
        (alphapo, 0.9740769841801067),  # log(1 + e^0.5)
        (partial(tpo, tpo_alpha=0.0), math.log(2)),
        (partial(tpo_l, tpo_alpha=0.0), 0.9740769841801067),
    ],
)
def test_equal_responses(objective, expected) -> None:
    values, n = torch.tensor([-3.0, -8.0], dtype=torch.float64), torch.tensor([2.0, 5.0])
    loss = objective(Pairs(values, values, length_chosen=n, length_rejected=n)).loss
    torch.testing.assert_close(loss, torch.full_like(values, expected), rtol=0, atol=1e-12)


def gradients(loss: torch.Tensor, pairs: Pairs) -> list[torch.Tensor]:
    wanted = [pairs.policy_chosen, pairs.policy_rejected]
    return list(torch.autograd.grad(loss.sum(), wanted))


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (partial(tpo, beta=0.3, tpo_alpha=0.0), partial(cpo, beta=0.3, cpo_alpha=0.0)),
        (
            lambda pairs: tpo(
                pairs._replace(policy_gold=None), beta=0.3, tpo_alpha=0.7, label_smoothing=0.1
            ),
            partial(cpo, beta=0.3, cpo_alpha=0.7, label_smoothing=0.1),
        ),
        (partial(alphapo, beta=3.0, alpha=0.0), partial(simpo, beta=3.0, gamma=0.5)),
        (partial(alphapo, beta=3.0, alpha=1e-13), partial(simpo, beta=3.0, gamma=0.5)),
        (partial(tpo_l, gamma=0.7, tpo_alpha=0.0), partial(simpo, gamma=0.7)),
        (partial(cpo, label_smoothing=0.0), partial(cpo, label_smoothing=1e-15)),
    ],
)
def test_identities(one, other) -> None:
    pairs, _ = random_pairs(4)
    left, right = one(pairs).loss, other(pairs).loss
    torch.testing.assert_close(left, right, rtol=0, atol=1e-10)
    for a, b in zip(gradients(left, pairs), gradients(right, pairs), strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=1e-10)


def test_simpo_without_margin_on_equal_lengths_is_cpo_with_beta_over_n() -> None:
    pairs = random_pairs(5)[0]
    n = torch.full_like(pairs.policy_chosen, 8.0)
    pairs = pairs._replace(length_chosen=n, length_rejected=n)
    left = simpo(pairs, beta=2.0, gamma=0.0, label_smoothing=0.1).loss
    right = cpo(pairs, beta=0.25, cpo_alpha=0.0, label_smoothing=0.1).loss
    torch.testing.assert_close(left, right, rtol=0, atol=1e-12)
    for a, b in zip(gradients(left, pairs), gradients(right, pairs), strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=1e-12)


def test_alphapo_is_simpo_with_each_response_weighed_by_its_probability() -> None:
    pairs, a = random_pairs(6)
    alpha, beta = 0.4, 1.5
    loss = alphapo(pairs, beta=beta, gamma=0.2, alpha=alpha).loss
    u = 1 - np.exp(-alphapo_in_numpy(a, beta=beta, gamma=0.2, alpha=alpha))
    chosen, rejected = gradients(loss, pairs)
    np.testing.assert_allclose(chosen, -beta * u * np.exp(-alpha * a.Sw / a.nw) / a.nw, atol=1e-10)
    np.testing.assert_allclose(rejected, beta * u * np.exp(-alpha * a.Sl / a.nl) / a.nl, atol=1e-10)


def test_slopes_in_closed_form() -> None:
    pairs, a = random_pairs(7)
    hinge = gradients(slic(pairs, delta=5.0, lambda_=0.3).loss, pairs)
    open_ = a.Sw - a.Sl < 5.0
    assert 0 < open_.sum() < len(open_), "both sides of the kink are tested"
    np.testing.assert_allclose(hinge[0], -1.0 * open_ - 0.3 / a.nw, atol=1e-12)
    np.testing.assert_allclose(hinge[1], 1.0 * open_, atol=1e-12)
    z = 0.2 * (a.Sw - a.Sl)
    contrast = gradients(cpo(pairs, beta=0.2, label_smoothing=0.1, cpo_alpha=0.5).loss, pairs)
    slope = 0.2 * (0.1 - 1 / (1 + np.exp(z)))
    np.testing.assert_allclose(contrast[0], slope - 0.5 / a.nw, atol=1e-12)
    np.testing.assert_allclose(contrast[1], -slope, atol=1e-12)


def test_the_gold_response_alone_gets_the_likelihood_term() -> None:
    pairs, a = random_pairs(8)
    assert pairs.policy_gold is not None
    for loss in (tpo(pairs, tpo_alpha=0.7).loss, tpo_l(pairs, tpo_alpha=0.7).loss):
        (gold,) = torch.autograd.grad(loss.sum(), pairs.policy_gold)
        np.testing.assert_allclose(gold, -0.7 / a.ng, atol=1e-12)


@pytest.mark.parametrize("objective", ALL)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("h", [-1e6, -1e3, 0.0, 1e3, 1e6])
def test_finite_at_the_edges(objective, dtype, h) -> None:
    chosen = torch.tensor([min(h, 0.0), -1e6 + h], dtype=dtype, requires_grad=True)
    rejected = torch.tensor([min(-h, 0.0), -1e6], dtype=dtype, requires_grad=True)
    n = torch.tensor([7.0, 1.0])
    pairs = Pairs(chosen, rejected, length_chosen=n, length_rejected=n)
    loss = objective(pairs).loss
    assert loss.dtype == dtype
    assert torch.isfinite(loss).all()
    assert all(torch.isfinite(g).all() for g in gradients(loss, pairs))


def test_alphapo_keeps_pulling_at_a_chosen_response_of_vanishing_probability() -> None:
    chosen = torch.tensor([-100.0, -1e5, -1e30], requires_grad=True)
    n = torch.ones(3)
    loss = alphapo(Pairs(chosen, n - 2, length_chosen=n, length_rejected=n), alpha=1.0).loss
    (slope,) = torch.autograd.grad(loss.sum(), chosen)
    torch.testing.assert_close(slope, torch.full((3,), -2.5 * math.exp(40)))
    torch.testing.assert_close(loss.detach(), torch.full((3,), 2.5 * math.exp(40)))


@pytest.mark.parametrize("objective", ALL)
def test_not_a_number_stays_one(objective) -> None:
    n = torch.ones(1)
    for chosen, rejected in [(math.nan, -1.0), (-1.0, math.nan), (-math.inf, -1.0)]:
        pairs = Pairs(
            torch.tensor([chosen]), torch.tensor([rejected]), length_chosen=n, length_rejected=n
        )
        assert not torch.isfinite(objective(pairs).loss).any()


@pytest.mark.parametrize("objective", ALL)
def test_bfloat16_inputs_give_float32_losses(objective) -> None:
    values = [torch.full((3,), -2.0, dtype=torch.bfloat16) for _ in range(2)]
    n = torch.full((3,), 2.0, dtype=torch.bfloat16)
    out = objective(Pairs(*values, length_chosen=n, length_rejected=n))
    assert out.loss.dtype == torch.float32
    assert all(value.dtype == torch.float32 for value in out.terms.values())


@pytest.mark.parametrize("objective", ALL)
def test_no_pairs_give_a_differentiable_nothing(objective) -> None:
    empty = torch.zeros(0, requires_grad=True)
    n = torch.zeros(0)
    loss = objective(Pairs(empty, empty, length_chosen=n, length_rejected=n)).loss
    loss.sum().backward()
    assert loss.shape == (0,)


@pytest.mark.parametrize("objective", ALL)
def test_an_empty_response_is_finite(objective) -> None:
    zero, n = torch.zeros(1, requires_grad=True), torch.zeros(1)
    loss = objective(Pairs(zero, zero - 2.0, length_chosen=n, length_rejected=n + 2)).loss
    assert torch.isfinite(loss).all()


@pytest.mark.parametrize("objective", ALL)
def test_pairs_do_not_know_of_each_other(objective) -> None:
    pairs, _ = random_pairs(9)
    order = torch.randperm(200, generator=torch.Generator().manual_seed(0))
    shuffled = Pairs(**{k: v[order] for k, v in pairs._asdict().items() if v is not None})
    torch.testing.assert_close(
        objective(shuffled).loss, objective(pairs).loss[order], rtol=0, atol=1e-12
    )


@pytest.mark.parametrize(
    ("objective", "scale"),
    [(partial(cpo, beta=0.3, cpo_alpha=0.0), 0.3), (partial(tpo, beta=0.2, tpo_alpha=0.0), 0.2)],
)
def test_swapping_chosen_and_rejected_adds_z(objective, scale) -> None:
    pairs, a = random_pairs(10)
    swapped = pairs._replace(
        policy_chosen=pairs.policy_rejected, policy_rejected=pairs.policy_chosen
    )
    difference = (objective(swapped).loss - objective(pairs).loss).detach()
    np.testing.assert_allclose(difference, scale * (a.Sw - a.Sl), atol=1e-12)


@pytest.mark.parametrize("objective", ALL)
def test_declared_without_a_reference_and_inputs_untouched(objective) -> None:
    need = needs_of(objective)
    assert (need.view, need.reference, need.coupled) == ("pairs", False, False)
    pairs, _ = random_pairs(11)
    before = {k: v.detach().clone() for k, v in pairs._asdict().items() if v is not None}
    loss = objective(pairs._replace(reference_chosen=None, reference_rejected=None)).loss
    loss.sum().backward()
    assert all(torch.equal(value, getattr(pairs, name)) for name, value in before.items())


@pytest.mark.parametrize(
    ("objective", "message"),
    [
        (slic, "slic needs length_chosen; got None"),
        (cpo, "cpo needs length_chosen; got None"),
        (simpo, "simpo needs length_chosen; got None"),
        (alphapo, "alphapo needs length_chosen; got None"),
        (tpo, "tpo needs length_chosen; got None"),
        (tpo_l, "tpo_l needs length_chosen; got None"),
    ],
)
def test_missing_lengths_are_named(objective, message) -> None:
    with pytest.raises(ValueError, match=message):
        objective(Pairs(torch.zeros(1), torch.zeros(1)))


def test_a_gold_response_without_its_length_is_refused() -> None:
    with pytest.raises(ValueError, match="tpo needs length_gold; got None"):
        tpo(one_pair(gold=True)._replace(length_gold=None))


def test_sums_alone_do_where_no_likelihood_is_asked_for() -> None:
    pairs = Pairs(torch.tensor([-6.0]), torch.tensor([-4.0]))
    assert slic(pairs, lambda_=0.0).loss.item() == 3.0
    pairs = pairs._replace(policy_gold=pairs.policy_chosen)
    assert cpo(pairs, cpo_alpha=0.0).loss.item() == pytest.approx(0.798138869381592, rel=1e-6)
    assert tpo(pairs, tpo_alpha=0.0).loss.item() == pytest.approx(0.7031971806432785, rel=1e-6)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (partial(slic, delta=-1.0), "slic: delta is -1.0; it must be a finite number >= 0"),
        (partial(slic, lambda_=-0.1), "slic: lambda_ is -0.1; it must be a finite number >= 0"),
        (partial(cpo, beta=0.0), "cpo: beta is 0.0; it must be a finite number > 0"),
        (
            partial(cpo, cpo_alpha=math.nan),
            "cpo: cpo_alpha is nan; it must be a finite number >= 0",
        ),
        (
            partial(cpo, label_smoothing=0.5),
            "cpo: label_smoothing is 0.5; it must be at least 0 and below 0.5",
        ),
        (partial(simpo, beta=-2.0), "simpo: beta is -2.0; it must be a finite number > 0"),
        (partial(simpo, gamma=-1.0), "simpo: gamma is -1.0; it must be a finite number >= 0"),
        (
            partial(simpo, label_smoothing=-0.1),
            "simpo: label_smoothing is -0.1; it must be at least 0 and below 0.5",
        ),
        (partial(alphapo, beta=math.inf), "alphapo: beta is inf; it must be a finite number > 0"),
        (partial(alphapo, gamma=-1.0), "alphapo: gamma is -1.0; it must be a finite number >= 0"),
        (partial(alphapo, alpha=math.nan), "alphapo: alpha is nan; it must be a finite number"),
        (partial(tpo, beta=0.0), "tpo: beta is 0.0; it must be a finite number > 0"),
        (partial(tpo, tpo_alpha=-1.0), "tpo: tpo_alpha is -1.0; it must be a finite number >= 0"),
        (
            partial(tpo, label_smoothing=1.0),
            "tpo: label_smoothing is 1.0; it must be at least 0 and below 0.5",
        ),
        (partial(tpo_l, beta=0.0), "tpo_l: beta is 0.0; it must be a finite number > 0"),
        (partial(tpo_l, gamma=-1.0), "tpo_l: gamma is -1.0; it must be a finite number >= 0"),
        (
            partial(tpo_l, tpo_alpha=-1.0),
            "tpo_l: tpo_alpha is -1.0; it must be a finite number >= 0",
        ),
    ],
)
def test_parameters_out_of_range_are_refused(call, message) -> None:
    with pytest.raises(ValueError, match=message):
        call(one_pair())


def test_gold_nll_is_the_anchor_of_tpo() -> None:
    pairs, a = random_pairs(21)
    np.testing.assert_allclose(gold_nll(pairs).loss.detach(), -a.Sg / a.ng, rtol=0, atol=1e-10)
    both = cpo(pairs, beta=0.2, cpo_alpha=0.0).loss + 0.7 * gold_nll(pairs).loss
    torch.testing.assert_close(tpo(pairs, beta=0.2, tpo_alpha=0.7).loss, both)
    without = gold_nll(pairs._replace(policy_gold=None, length_gold=None)).loss
    np.testing.assert_allclose(without.detach(), -a.Sw / a.nw, rtol=0, atol=1e-10)
    assert pairs.policy_gold is not None
    (gradient,) = torch.autograd.grad(gold_nll(pairs).loss.sum(), pairs.policy_gold)
    np.testing.assert_allclose(gradient, -1 / a.ng, rtol=0, atol=1e-12)
