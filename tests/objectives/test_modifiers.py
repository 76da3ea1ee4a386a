"""Divergences, length desensitisation, no reference, WPO weights: numpy forms, limits, edges."""

from __future__ import annotations

import math
from functools import partial
from typing import cast

import numpy as np
import pytest
import torch

from prefopt.objectives.modifiers import (
    Divergence,
    f_divergence,
    f_dpo,
    ld,
    ld_dpo,
    ld_dpo_policy,
    ld_policy,
    wpo,
    wpo_weights,
    zero_reference,
)
from prefopt.objectives.types import Losses, Pairs, needs_of
from tests.objectives.given import random_pairs

DIVERGENCES: list[Divergence] = ["reverse_kl", "forward_kl", "js_divergence", "alpha_divergence"]
ALL = [wpo, ld_dpo, ld_dpo_policy, f_dpo]


def softplus(x):
    return np.logaddexp(0, x)


def np_slope(rho, divergence, coefficient):
    return {
        "reverse_kl": lambda: rho,
        "forward_kl": lambda: 1 - np.exp(-rho),
        "js_divergence": lambda: np.log(2) - softplus(-rho),
        "alpha_divergence": lambda: (np.exp((coefficient - 1) * rho) - 1) / (coefficient - 1),
    }[divergence]()


def the(value: torch.Tensor | None) -> torch.Tensor:
    assert value is not None
    return value


def margin(pairs: Pairs) -> torch.Tensor:
    chosen = pairs.policy_chosen - the(pairs.reference_chosen)
    return chosen - pairs.policy_rejected + the(pairs.reference_rejected)


def plain_dpo(pairs: Pairs, beta: float) -> torch.Tensor:
    return -torch.nn.functional.logsigmoid(beta * margin(pairs))


def gradients(loss: torch.Tensor, pairs: Pairs) -> tuple[torch.Tensor, ...]:
    wanted = [pairs.policy_chosen, pairs.policy_rejected]
    return torch.autograd.grad(loss.sum(), wanted, retain_graph=True)


def assert_is_dpo(losses: Losses, pairs: Pairs, beta: float) -> None:
    expected = plain_dpo(pairs, beta)
    torch.testing.assert_close(losses.loss, expected, rtol=0, atol=1e-12)
    for ours, theirs in zip(gradients(losses.loss, pairs), gradients(expected, pairs), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-12)


def given_ratios(chosen: list[float], rejected: list[float], *, dtype=torch.float32) -> Pairs:
    """Pairs with these log-ratios over a reference of zeros; half of everything is common."""
    w = torch.tensor(chosen, dtype=dtype, requires_grad=True)
    loser = torch.tensor(rejected, dtype=dtype, requires_grad=True)
    zero = torch.zeros(len(chosen), dtype=dtype)
    one = zero + 1
    return Pairs(
        w,
        loser,
        zero,
        zero,
        2 * one,
        one,
        alignment_chosen=-one,
        alignment_rejected=zero,
        policy_chosen_common=w / 2,
        policy_rejected_common=loser / 2,
        reference_chosen_common=zero,
        reference_rejected_common=zero,
    )


@pytest.mark.parametrize("divergence", DIVERGENCES)
@pytest.mark.parametrize("coefficient", [0.5, -0.5, 1.7])
def test_f_divergence_against_numpy(divergence, coefficient) -> None:
    pairs, a = random_pairs(1)
    loss = f_dpo(
        pairs, beta=0.1, f_divergence_type=divergence, f_alpha_divergence_coef=coefficient
    ).loss
    chosen = np_slope(a.Sw - a.Rw, divergence, coefficient)
    rejected = np_slope(a.Sl - a.Rl, divergence, coefficient)
    expected = softplus(-0.1 * (chosen - rejected))
    # Slopes reach e^15, so the tolerance is relative there.
    np.testing.assert_allclose(loss.detach().numpy(), expected, rtol=1e-12, atol=1e-10)


def test_wpo_against_numpy() -> None:
    pairs, a = random_pairs(2)
    weight = np.exp(a.aw / a.nw) * np.exp(a.al / a.nl)
    np.testing.assert_allclose(wpo_weights(pairs).numpy(), weight, rtol=0, atol=1e-10)
    out = wpo(pairs, beta=0.3)
    h = (a.Sw - a.Rw) - (a.Sl - a.Rl)
    np.testing.assert_allclose(
        out.loss.detach().numpy(), weight * softplus(-0.3 * h), rtol=0, atol=1e-10
    )
    gradient, _ = gradients(out.loss, pairs)
    np.testing.assert_allclose(
        gradient.numpy(), -0.3 * weight / (1 + np.exp(0.3 * h)), rtol=0, atol=1e-10
    )
    np.testing.assert_allclose(out.terms["wpo_weight"].numpy(), weight, rtol=0, atol=1e-10)


@pytest.mark.parametrize("alpha", [0.0, 0.3, 1.0])
def test_ld_against_numpy(alpha) -> None:
    pairs, a = random_pairs(3)

    def cut(whole, common):
        return common + alpha * (whole - common)

    policy = cut(a.Sw, a.Swc) - cut(a.Sl, a.Slc)
    both = policy - cut(a.Rw, a.Rwc) + cut(a.Rl, a.Rlc)
    ours = ld_dpo(pairs, beta=0.2, ld_alpha=alpha).loss.detach().numpy()
    np.testing.assert_allclose(ours, softplus(-0.2 * both), rtol=0, atol=1e-10)
    ours = ld_dpo_policy(pairs, beta=0.2, ld_alpha=alpha).loss.detach().numpy()
    np.testing.assert_allclose(ours, softplus(-0.2 * (policy - a.Rw + a.Rl)), rtol=0, atol=1e-10)


def test_literal_values() -> None:
    pairs = given_ratios([1.0], [-1.0], dtype=torch.float64)
    values: dict[Divergence, float] = {
        # s(1) - s(-1): e - 1/e; log sigma(1) - log sigma(-1) = 1; 2 (e^0.5 - e^-0.5)
        "reverse_kl": 2.0,
        "forward_kl": 2.3504023872876028,
        "js_divergence": 1.0,
        "alpha_divergence": 2.0843812219749895,
    }
    for divergence, margin in values.items():
        out = f_dpo(pairs, beta=0.1, f_divergence_type=divergence)
        assert out.terms["rewards/margins"].item() == pytest.approx(0.1 * margin, abs=1e-12)
        assert out.loss.item() == pytest.approx(math.log1p(math.exp(-0.1 * margin)), abs=1e-12)
    # w = e^(-1/2) * 1, z = 0.2
    assert wpo(pairs).loss.item() == pytest.approx(
        0.6065306597126334 * 0.5981388693815918, abs=1e-12
    )
    # Of 1 and -1 half is common: h' = 2 * (0.5 + 0.5 * 0.5) = 1.5
    assert ld_dpo(pairs).loss.item() == pytest.approx(0.6209570477895321, abs=1e-12)


@pytest.mark.parametrize(
    "objective", [*(partial(f_dpo, f_divergence_type=d) for d in DIVERGENCES), ld_dpo]
)
def test_at_the_reference_the_loss_is_ln_2(objective) -> None:
    pairs, _ = random_pairs(4)
    still = pairs._replace(
        policy_chosen=pairs.reference_chosen,
        policy_rejected=pairs.reference_rejected,
        policy_chosen_common=pairs.reference_chosen_common,
        policy_rejected_common=pairs.reference_rejected_common,
    )
    loss = objective(still).loss
    torch.testing.assert_close(loss, torch.full_like(loss, 0.6931471805599453), rtol=0, atol=1e-12)
    torch.testing.assert_close(wpo(still).loss, wpo_weights(still) * math.log(2))


def test_at_the_reference_the_policy_only_form_favours_the_longer_response() -> None:
    still = given_ratios([-10.0], [-4.0])._replace(
        reference_chosen=torch.tensor([-10.0]),
        reference_rejected=torch.tensor([-4.0]),
        policy_chosen_common=torch.tensor([-4.0]),
        policy_rejected_common=torch.tensor([-4.0]),
    )
    # h' = (0.5 - 1) * (-6 - 0) = 3
    loss = ld_dpo_policy(still, beta=1.0).loss.item()
    assert loss == pytest.approx(math.log1p(math.exp(-3.0)), rel=1e-6)


def test_limits_that_are_dpo() -> None:
    pairs, _ = random_pairs(5)
    assert_is_dpo(f_dpo(pairs, beta=0.2, f_divergence_type="reverse_kl"), pairs, 0.2)
    one = partial(f_dpo, pairs, beta=0.2, f_divergence_type="alpha_divergence")
    assert_is_dpo(one(f_alpha_divergence_coef=1.0), pairs, 0.2)
    near = one(f_alpha_divergence_coef=1 + 1e-5).loss
    torch.testing.assert_close(near, plain_dpo(pairs, 0.2), rtol=0, atol=1e-3)
    assert_is_dpo(ld_dpo(pairs, beta=0.2, ld_alpha=1.0), pairs, 0.2)
    assert_is_dpo(ld_dpo_policy(pairs, beta=0.2, ld_alpha=1.0), pairs, 0.2)
    zero = torch.zeros(200, dtype=torch.float64)
    assert_is_dpo(
        wpo(pairs._replace(alignment_chosen=zero, alignment_rejected=zero), beta=0.2), pairs, 0.2
    )


def test_alpha_0_is_forward_kl() -> None:
    pairs, _ = random_pairs(6)
    alpha = f_dpo(pairs, f_divergence_type="alpha_divergence", f_alpha_divergence_coef=0.0)
    torch.testing.assert_close(alpha.loss, f_dpo(pairs, f_divergence_type="forward_kl").loss)


def test_ld_on_equal_lengths_changes_nothing() -> None:
    pairs, _ = random_pairs(7)
    equal = pairs._replace(
        policy_chosen_common=pairs.policy_chosen,
        policy_rejected_common=pairs.policy_rejected,
        reference_chosen_common=pairs.reference_chosen,
        reference_rejected_common=pairs.reference_rejected,
    )
    for alpha in (0.0, 0.5):
        for change in (ld, ld_policy):
            changed = change(equal, ld_alpha=alpha)
            torch.testing.assert_close(changed.policy_chosen, pairs.policy_chosen)
            torch.testing.assert_close(changed.policy_rejected, pairs.policy_rejected)


def test_the_two_definitions_of_ld_differ_by_the_references_tail() -> None:
    pairs, a = random_pairs(8)
    both, policy = ld(pairs, ld_alpha=0.3), ld_policy(pairs, ld_alpha=0.3)
    difference = (the(policy.reference_chosen) - the(both.reference_chosen)).numpy()
    np.testing.assert_allclose(difference, 0.7 * (a.Rw - a.Rwc), rtol=0, atol=1e-12)
    assert both.length_chosen is pairs.length_chosen


def test_without_a_reference_ratios_are_log_probabilities() -> None:
    pairs, a = random_pairs(9)
    free = zero_reference(pairs._replace(reference_chosen=None, reference_rejected=None))
    expected = softplus(-0.1 * (a.Sw - a.Sl))
    loss = wpo(
        free._replace(alignment_chosen=torch.zeros(200), alignment_rejected=torch.zeros(200))
    )
    np.testing.assert_allclose(loss.loss.detach().numpy(), expected, rtol=0, atol=1e-10)
    assert (
        not the(free.reference_chosen_common).any()
        and not the(free.reference_rejected_common).any()
    )
    bare = zero_reference(Pairs(torch.tensor([-1.0]), torch.tensor([-2.0])))
    assert the(bare.reference_chosen).tolist() == [0.0] and bare.reference_chosen_common is None


def test_rewards_follow_the_divergence_and_log_probabilities_stay() -> None:
    pairs, a = random_pairs(10)
    terms = f_dpo(pairs, beta=0.5, f_divergence_type="js_divergence").terms
    reward = 0.5 * np_slope(a.Sw - a.Rw, "js_divergence", 0)
    np.testing.assert_allclose(terms["rewards/chosen"].numpy(), reward, rtol=0, atol=1e-10)
    for out in (f_dpo(pairs), ld_dpo(pairs), ld_dpo_policy(pairs), wpo(pairs)):
        assert out.terms["logps/chosen"].tolist() == a.Sw.tolist()
        assert out.terms["logps/rejected"].tolist() == a.Sl.tolist()


@pytest.mark.parametrize("divergence", DIVERGENCES)
def test_extreme_ratios_keep_a_finite_value_and_slope(divergence) -> None:
    extremes = [-1e6, -1e3, -60.0, -40.0, 0.0, 1e3, 1e6]
    for coefficient in (0.5, 1.5):
        pairs = given_ratios(extremes, extremes[::-1])
        changed = f_divergence(pairs, divergence=divergence, coefficient=coefficient)
        assert bool(torch.isfinite(changed.policy_chosen).all())
        slope, _ = torch.autograd.grad(
            changed.policy_chosen.sum(),
            [pairs.policy_chosen, pairs.policy_rejected],
            allow_unused=True,
        )
        assert bool(torch.isfinite(slope).all())
        loss = f_dpo(pairs, f_divergence_type=divergence, f_alpha_divergence_coef=coefficient).loss
        assert bool(torch.isfinite(loss).all())
        assert all(bool(torch.isfinite(g).all()) for g in gradients(loss, pairs))


def test_exponents_above_40_continue_linearly() -> None:
    pairs = given_ratios([-40.0, -41.0, -50.0], [0.0, 0.0, 0.0], dtype=torch.float64)
    changed = f_divergence(pairs, divergence="forward_kl").policy_chosen
    top = math.exp(40)
    expected = torch.tensor([1 - top, 1 - 2 * top, 1 - 11 * top], dtype=torch.float64)
    torch.testing.assert_close(changed, expected, rtol=1e-12, atol=0)
    (slope,) = torch.autograd.grad(changed.sum(), pairs.policy_chosen)
    torch.testing.assert_close(slope[1:], torch.tensor([top, top], dtype=torch.float64))


def test_float32_keeps_small_ratios() -> None:
    pairs = given_ratios([1e-6], [0.0])
    differences_of_1: list[Divergence] = ["forward_kl", "alpha_divergence"]
    for divergence in differences_of_1:
        s = f_divergence(pairs, divergence=divergence).policy_chosen
        assert s.item() == pytest.approx(1e-6, rel=1e-5)


@pytest.mark.parametrize("objective", ALL)
def test_edges(objective) -> None:
    extremes = [-1e6, -1e3, 0.0, 1e3, 1e6]
    pairs = given_ratios(extremes, [0.0] * 5)
    loss = objective(pairs).loss
    assert loss.dtype == torch.float32 and bool(torch.isfinite(loss).all())
    assert all(bool(torch.isfinite(g).all()) for g in gradients(loss, pairs))
    empty = objective(given_ratios([], [])).loss
    assert empty.shape == (0,)
    empty.sum().backward()
    half = objective(given_ratios([0.5, -2.0], [1.0, 0.0], dtype=torch.bfloat16))
    assert half.loss.dtype == torch.float32
    assert all(t.dtype == torch.float32 and not t.requires_grad for t in half.terms.values())
    # Meta tensors have no values: whatever would wait for one raises.
    meta = Pairs._make(None if v is None else v.to("meta") for v in pairs)
    assert objective(meta).loss.device.type == "meta"


@pytest.mark.parametrize("objective", ALL)
def test_the_order_of_pairs_has_no_influence_and_inputs_stay(objective) -> None:
    pairs, a = random_pairs(11, 50)
    order = torch.from_numpy(np.random.default_rng(0).permutation(50))
    shuffled = Pairs._make(None if value is None else value[order] for value in pairs)
    torch.testing.assert_close(objective(pairs).loss[order], objective(shuffled).loss)
    assert pairs.policy_chosen.tolist() == a.Sw.tolist()


@pytest.mark.parametrize(
    ("objective", "field", "message"),
    [
        (wpo, "reference_chosen", "wpo needs reference_chosen and reference_rejected; got None"),
        (wpo, "alignment_rejected", "wpo needs alignment_rejected; got None"),
        (wpo, "length_chosen", "wpo needs length_chosen; got None"),
        (ld_dpo, "policy_chosen_common", "ld needs policy_chosen_common; got None"),
        (ld_dpo, "reference_rejected_common", "ld needs reference_rejected_common; got None"),
        (ld_dpo_policy, "policy_rejected_common", "ld needs policy_rejected_common; got None"),
        (
            f_dpo,
            "reference_rejected",
            "f_divergence needs reference_chosen and reference_rejected; got None",
        ),
    ],
)
def test_a_missing_field_is_named(objective, field, message) -> None:
    with pytest.raises(ValueError) as error:
        objective(given_ratios([1.0], [0.0])._replace(**{field: None}))
    assert str(error.value) == message


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (partial(wpo, beta=0.0), "wpo: beta is 0.0; it must be a finite number > 0"),
        (partial(ld_dpo, ld_alpha=1.5), "ld_dpo: ld_alpha is 1.5; it must be from 0 to 1"),
        (
            partial(ld_dpo_policy, ld_alpha=-0.5),
            "ld_dpo_policy: ld_alpha is -0.5; it must be from 0 to 1",
        ),
        (partial(ld, ld_alpha=2.0), "ld: ld_alpha is 2.0; it must be from 0 to 1"),
        (partial(f_dpo, beta=math.inf), "f_dpo: beta is inf; it must be a finite number > 0"),
        (
            partial(f_dpo, f_divergence_type=cast("Divergence", "kl")),
            "f_divergence: divergence is 'kl'; it must be one of reverse_kl, forward_kl, "
            "js_divergence, alpha_divergence",
        ),
        (
            partial(f_divergence, divergence="alpha_divergence", coefficient=math.nan),
            "f_divergence: coefficient is nan; it must be a finite number",
        ),
    ],
)
def test_parameters_out_of_range(call, message) -> None:
    with pytest.raises(ValueError) as error:
        call(given_ratios([1.0], [0.0]))
    assert str(error.value) == message


def test_needs() -> None:
    extras = {objective.__name__: needs_of(objective).extras for objective in ALL}
    assert extras == {
        "wpo": ("alignment",),
        "ld_dpo": ("common",),
        "ld_dpo_policy": ("common",),
        "f_dpo": (),
    }
