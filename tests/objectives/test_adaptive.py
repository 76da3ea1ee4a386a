"""AOT, beta-DPO, MallowsPO and TDPO: numpy forms, literal values, limits, selection, edges."""

from __future__ import annotations

import math
from functools import partial

import numpy as np
import pytest
import torch

from prefopt.objectives.adaptive import advance_gap, aot, aot_unpaired, beta_dpo
from prefopt.objectives.token_level import mallows, mallows_ipo, tdpo, tdpo1
from prefopt.objectives.types import Losses, Pairs, needs_of
from tests.objectives.given import random_pairs


def softplus(x):
    return np.logaddexp(0, x)


def smoothed(z, eps):
    return (1 - eps) * softplus(-z) + eps * softplus(z)


def np_aot(a, *, beta, label_smoothing=0.0):
    return smoothed(beta * (np.sort(a.Sw - a.Sl) - np.sort(a.Rw - a.Rl)), label_smoothing)


def np_aot_unpaired(a, *, beta, label_smoothing=0.0):
    return smoothed(beta * (np.sort(a.Sw - a.Rw) - np.sort(a.Sl - a.Rl)), label_smoothing)


def np_beta_dpo(a, *, beta, alpha, gap_mean=0.0):
    h = (a.Sw - a.Rw) - (a.Sl - a.Rl)
    return softplus(-max(1e-3, beta * (1 + alpha * (h.mean() - gap_mean))) * h)


def np_mallows_ipo(a, *, beta, scale):
    spread = (a.Hw / a.nw + a.Hl / a.nl) / 2
    h = (a.Sw - a.Rw) - (a.Sl - a.Rl)
    return (-scale * np.log(spread) * h - 1 / (2 * beta)) ** 2


def np_mallows(a, *, beta, scale):
    dispersion = 0.5 * (a.Hw / a.nw + a.Hl / a.nl)
    return softplus(beta * scale * np.log(dispersion) * ((a.Sw - a.Rw) - (a.Sl - a.Rl)))


def np_tdpo(a, *, beta, alpha):
    return softplus(-beta * ((a.Sw - a.Rw) - (a.Sl - a.Rl) - alpha * (a.Dl - a.Dw)))


CASES = [
    (aot, np_aot, {"beta": 0.01}),
    (aot, np_aot, {"beta": 0.7, "label_smoothing": 0.2}),
    (aot_unpaired, np_aot_unpaired, {"beta": 0.01}),
    (aot_unpaired, np_aot_unpaired, {"beta": 0.7, "label_smoothing": 0.2}),
    (beta_dpo, np_beta_dpo, {"beta": 0.1, "alpha": 0.6}),
    (beta_dpo, np_beta_dpo, {"beta": 0.3, "alpha": 2.0, "gap_mean": -1.5}),
    (beta_dpo, np_beta_dpo, {"beta": 0.3, "alpha": 2.0, "gap_mean": 50.0}),
    (mallows, np_mallows, {"beta": 0.1, "scale": 0.29}),
    (mallows, np_mallows, {"beta": 0.9, "scale": 3.0}),
    (mallows_ipo, np_mallows_ipo, {"beta": 0.2, "scale": 0.29}),
    (tdpo, np_tdpo, {"beta": 0.1, "alpha": 0.5}),
    (tdpo, np_tdpo, {"beta": 0.4, "alpha": 2.0}),
    (tdpo1, partial(np_tdpo, alpha=1.0), {"beta": 0.2}),
]
ALL = [aot, aot_unpaired, beta_dpo, mallows, tdpo, tdpo1]


def names(values):
    return [getattr(v, "__name__", "") for v in values]


def the(value: torch.Tensor | None) -> torch.Tensor:
    assert value is not None
    return value


def margin(pairs: Pairs) -> torch.Tensor:
    chosen = pairs.policy_chosen - the(pairs.reference_chosen)
    return chosen - pairs.policy_rejected + the(pairs.reference_rejected)


def plain_dpo(pairs: Pairs, beta: float) -> torch.Tensor:
    return -torch.nn.functional.logsigmoid(beta * margin(pairs))


def gradients(loss: torch.Tensor, pairs: Pairs) -> tuple[torch.Tensor, ...]:
    return torch.autograd.grad(loss.sum(), [pairs.policy_chosen, pairs.policy_rejected])


def assert_is_dpo(losses: Losses, pairs: Pairs, beta: float) -> None:
    expected = plain_dpo(pairs, beta)
    torch.testing.assert_close(losses.loss, expected, rtol=0, atol=1e-12)
    for ours, theirs in zip(gradients(losses.loss, pairs), gradients(expected, pairs), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-12)


def given_margins(h: list[float], *, dtype: torch.dtype = torch.float32) -> Pairs:
    """Pairs with policy margins `h` over a reference of zeros, one token each; the chosen policy requires gradients."""
    zero = torch.zeros(len(h), dtype=dtype)
    chosen = torch.tensor(h, dtype=dtype, requires_grad=True)
    half, one = torch.full_like(zero, 0.5), torch.ones_like(zero)
    return Pairs(
        chosen,
        zero.clone().requires_grad_(),
        zero,
        zero,
        one,
        one,
        kl_chosen=half,
        kl_rejected=one,
        dispersion_chosen=half,
        dispersion_rejected=half,
    )


@pytest.mark.parametrize(("objective", "reference", "parameters"), CASES)
def test_against_numpy_in_float64(objective, reference, parameters) -> None:
    pairs, a = random_pairs(3)
    loss = objective(pairs, **parameters).loss
    assert loss.dtype == torch.float64
    expected = reference(a, **parameters)
    np.testing.assert_allclose(loss.detach().numpy(), expected, rtol=0, atol=1e-10)


@pytest.mark.parametrize("objective", ALL, ids=names(ALL))
def test_at_the_reference_the_loss_is_ln_2(objective) -> None:
    pairs, _ = random_pairs(5, 20)
    still = pairs._replace(
        reference_chosen=pairs.policy_chosen.detach(),
        reference_rejected=pairs.policy_rejected.detach(),
        kl_chosen=torch.zeros(20, dtype=torch.float64),
        kl_rejected=torch.zeros(20, dtype=torch.float64),
    )
    loss = objective(still).loss
    torch.testing.assert_close(loss, torch.full_like(loss, 0.6931471805599453), rtol=0, atol=1e-12)


def test_literal_values() -> None:
    one = given_margins([2.0], dtype=torch.float64)
    # beta_b = 0.5 * (1 + 0.25 * (2 - 0.4)) = 0.7
    out = beta_dpo(one, beta=0.5, alpha=0.25, gap_mean=0.4)
    assert out.loss.item() == pytest.approx(math.log1p(math.exp(-1.4)), abs=1e-12)
    assert out.terms["beta"].item() == pytest.approx(0.7, abs=1e-12)
    # phi = 0.29 * ln 2
    out = mallows(one, beta=0.5)
    assert out.terms["phi"].item() == pytest.approx(0.20101268236238415, abs=1e-12)
    assert out.loss.item() == pytest.approx(0.5976831211235367, abs=1e-12)
    # 0.5 * (2 - 0.5 * (1 - 0.5)) = 0.875, and 0.5 * (2 - 0.5) = 0.75
    assert tdpo(one, beta=0.5).loss.item() == pytest.approx(0.3484445810050557, abs=1e-12)
    assert tdpo1(one, beta=0.5).loss.item() == pytest.approx(0.38687100611489994, abs=1e-12)


def test_aot_sorts_policy_and_reference_each_for_itself() -> None:
    # policy margins 3, 1 and reference margins 0, 2: sorted differences 1 - 0 and 3 - 2.
    zero = torch.zeros(2)
    pairs = Pairs(torch.tensor([3.0, 1.0]), zero, torch.tensor([0.0, 2.0]), zero)
    expected = torch.full((2,), math.log1p(math.exp(-1.0)))
    torch.testing.assert_close(aot(pairs, beta=1.0).loss, expected)
    # log-ratios 3, -1 against 0, 0
    expected = torch.tensor([math.log1p(math.exp(1.0)), math.log1p(math.exp(-3.0))])
    torch.testing.assert_close(aot_unpaired(pairs, beta=1.0).loss, expected)


@pytest.mark.parametrize("objective", [aot, aot_unpaired])
def test_one_pair_alone_is_dpo(objective) -> None:
    for seed in range(20):
        pairs, _ = random_pairs(seed, 1)
        assert_is_dpo(objective(pairs, beta=0.2), pairs, 0.2)


def test_limits_that_are_dpo() -> None:
    pairs, _ = random_pairs(7)
    assert_is_dpo(beta_dpo(pairs, beta=0.3, alpha=0.0, rho=0.0, gap_mean=4.0), pairs, 0.3)
    assert_is_dpo(tdpo(pairs, beta=0.3, alpha=0.0), pairs, 0.3)
    certain = pairs._replace(
        dispersion_chosen=the(pairs.length_chosen) / math.e,
        dispersion_rejected=the(pairs.length_rejected) / math.e,
    )
    assert_is_dpo(mallows(certain, beta=0.3, scale=1.0), pairs, 0.3)


@pytest.mark.parametrize("objective", [aot, aot_unpaired])
def test_swapping_chosen_and_rejected_adds_z_of_every_position(objective) -> None:
    pairs, _ = random_pairs(8)
    swapped = Pairs(
        pairs.policy_rejected, pairs.policy_chosen, pairs.reference_rejected, pairs.reference_chosen
    )
    # softplus(z) - softplus(-z) = z, and sorting keeps the sum of the margins.
    difference = objective(swapped, beta=0.3).loss.sum() - objective(pairs, beta=0.3).loss.sum()
    torch.testing.assert_close(difference, 0.3 * margin(pairs).sum())


@pytest.mark.parametrize("objective", ALL, ids=names(ALL))
def test_the_order_of_pairs_has_no_influence(objective) -> None:
    pairs, _ = random_pairs(9, 50)
    order = torch.from_numpy(np.random.default_rng(0).permutation(50))
    shuffled = Pairs._make(None if value is None else value[order] for value in pairs)
    before, after = objective(pairs).loss, objective(shuffled).loss
    torch.testing.assert_close(before.sum(), after.sum())
    if not needs_of(objective).coupled:
        torch.testing.assert_close(before[order], after)
    before_gradient, after_gradient = gradients(before, pairs), gradients(after, pairs)
    for one, other in zip(before_gradient, after_gradient, strict=True):
        torch.testing.assert_close(one, other)


def test_tdpo_pushes_the_rejected_divergence_only() -> None:
    pairs, a = random_pairs(10)
    inner = (a.Sw - a.Rw) - (a.Sl - a.Rl) - 0.5 * (a.Dl - a.Dw)
    slope = 0.2 / (1 + np.exp(0.2 * inner))
    gradient = torch.autograd.grad(
        tdpo(pairs, beta=0.2).loss.sum(),
        [the(pairs.kl_rejected), the(pairs.kl_chosen)],
        allow_unused=True,
    )
    np.testing.assert_allclose(gradient[0].numpy(), 0.5 * slope, rtol=0, atol=1e-12)
    assert gradient[1] is None, "detached"
    inner = (a.Sw - a.Rw) - (a.Sl - a.Rl) - (a.Dl - a.Dw)
    slope = 0.2 / (1 + np.exp(0.2 * inner))
    gradient = torch.autograd.grad(
        tdpo1(pairs, beta=0.2).loss.sum(), [the(pairs.kl_rejected), the(pairs.kl_chosen)]
    )
    np.testing.assert_allclose(gradient[0].numpy(), slope, rtol=0, atol=1e-12)
    np.testing.assert_allclose(gradient[1].numpy(), -slope, rtol=0, atol=1e-12)
    assert tdpo(pairs).terms["kl/chosen"].tolist() == a.Dw.tolist()
    assert tdpo(pairs).terms["kl/rejected"].tolist() == a.Dl.tolist()


def test_adapted_beta_and_phi_are_constants() -> None:
    pairs, a = random_pairs(11)
    h = (a.Sw - a.Rw) - (a.Sl - a.Rl)
    beta = 0.1 * (1 + 0.6 * h.mean())
    gradient, _ = gradients(beta_dpo(pairs).loss, pairs)
    np.testing.assert_allclose(gradient.numpy(), -beta / (1 + np.exp(beta * h)), rtol=0, atol=1e-12)
    phi = -0.29 * np.log(0.5 * (a.Hw / a.nw + a.Hl / a.nl))
    gradient, _ = gradients(mallows(pairs).loss, pairs)
    expected = -0.1 * phi / (1 + np.exp(0.1 * phi * h))
    np.testing.assert_allclose(gradient.numpy(), expected, rtol=0, atol=1e-12)


def test_dispersion_at_its_ends_stays_finite() -> None:
    pairs = given_margins([3.0, 3.0, 3.0])._replace(
        dispersion_chosen=torch.tensor([0.0, 1.0, 2.0]),
        dispersion_rejected=torch.tensor([0.0, 1.0, 2.0]),
    )
    out = mallows(pairs)
    assert out.terms["phi"].tolist() == pytest.approx([0.29 * math.log(1e6), 0.0, 0.0])
    gradient, _ = gradients(out.loss, pairs)
    assert bool(torch.isfinite(gradient).all()) and gradient[1] == 0


@pytest.mark.parametrize("objective", ALL, ids=names(ALL))
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_extreme_margins_are_finite(objective, dtype) -> None:
    for h in ([-1e6, -1e3, 0.0, 1e3, 1e6], [-1e6], [1e6]):
        pairs = given_margins(h, dtype=dtype)
        loss = objective(pairs).loss
        assert loss.dtype == dtype and bool(torch.isfinite(loss).all())
        assert all(bool(torch.isfinite(g).all()) for g in gradients(loss, pairs))


@pytest.mark.parametrize("objective", ALL, ids=names(ALL))
def test_empty_input_and_bfloat16(objective) -> None:
    empty = given_margins([])
    loss = objective(empty).loss
    assert loss.shape == (0,)
    loss.sum().backward()
    half = objective(given_margins([0.5, -2.0], dtype=torch.bfloat16))
    assert half.loss.dtype == torch.float32
    assert all(t.dtype == torch.float32 and t.shape == (2,) for t in half.terms.values())
    assert not any(t.requires_grad for t in half.terms.values())


@pytest.mark.parametrize("objective", ALL, ids=names(ALL))
def test_nothing_is_read_back_from_the_device(objective) -> None:
    # Meta tensors have no values: whatever would wait for one raises.
    pairs = Pairs._make(None if v is None else v.to("meta") for v in given_margins([1.0, 2.0, 3.0]))
    assert objective(pairs).loss.device.type == "meta"
    if objective is beta_dpo:
        scalar = torch.zeros((), dtype=torch.float64, device="meta")
        beta_dpo(pairs, generator=torch.Generator(), gap_mean=scalar, gap_std=scalar)
        advance_gap(pairs, {"gap_mean": scalar, "gap_std": scalar})


@pytest.mark.parametrize(
    ("objective", "field"),
    [
        (aot, "reference_chosen"),
        (aot_unpaired, "reference_chosen"),
        (beta_dpo, "reference_chosen"),
        (mallows, "reference_chosen"),
        (mallows, "length_chosen"),
        (mallows, "dispersion_chosen"),
        (tdpo, "kl_rejected"),
        (tdpo1, "kl_chosen"),
        (tdpo1, "reference_rejected"),
    ],
)
def test_a_missing_field_is_named(objective, field) -> None:
    pairs = given_margins([1.0])._replace(**{field: None})
    with pytest.raises(ValueError, match=f"{objective.__name__} needs .*{field}"):
        objective(pairs)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (partial(aot, beta=0.0), "aot: beta is 0.0; it must be a finite number > 0"),
        (
            partial(aot_unpaired, label_smoothing=0.5),
            "aot_unpaired: label_smoothing is 0.5; it must be at least 0 and below 0.5",
        ),
        (partial(beta_dpo, alpha=-0.1), "beta_dpo: alpha is -0.1; it must be a finite number >= 0"),
        (partial(beta_dpo, rho=1.0), "beta_dpo: rho is 1.0; it must be at least 0 and below 1"),
        (partial(mallows, scale=-1.0), "mallows: scale is -1.0; it must be a finite number > 0"),
        (partial(tdpo, alpha=math.nan), "tdpo: alpha is nan; it must be a finite number >= 0"),
        (partial(tdpo1, beta=-1.0), "tdpo1: beta is -1.0; it must be a finite number > 0"),
    ],
)
def test_parameters_out_of_range(call, message) -> None:
    with pytest.raises(ValueError) as error:
        call(given_margins([1.0]))
    assert str(error.value) == message


def test_needs() -> None:
    coupled = [objective.__name__ for objective in ALL if needs_of(objective).coupled]
    assert coupled == ["aot", "aot_unpaired", "beta_dpo"]
    assert needs_of(mallows).extras == ("dispersion",)
    assert needs_of(tdpo).extras == needs_of(tdpo1).extras == ("kl",)
    assert [objective.__name__ for objective in ALL if needs_of(objective).random] == ["beta_dpo"]
