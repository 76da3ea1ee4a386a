"""ORPO and ASFT: numpy forms, the identities and gradients of ASFT, singular and empty responses, dynamics."""

from __future__ import annotations

import math
from functools import partial
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from prefopt.objectives.odds import asft, orpo
from prefopt.objectives.terms import log1mexp
from prefopt.objectives.types import Losses, Pairs, needs_of
from tests.objectives.given import random_pairs

ALL = [orpo, asft, partial(asft, beta=0.3)]
LAMBDAS = [0.0, 0.3, 1.0, 2.5]


def minus_log_sigma(z: np.ndarray) -> np.ndarray:
    return np.logaddexp(0, -z)


def odds_scores(a: SimpleNamespace) -> tuple[np.ndarray, np.ndarray]:
    """log(p / (1 - p)) as it is written."""
    p_w, p_l = np.exp(a.Sw / a.nw), np.exp(a.Sl / a.nl)
    return np.log(p_w / (1 - p_w)), np.log(p_l / (1 - p_l))


def orpo_in_numpy(a: SimpleNamespace, beta: float = 0.1) -> np.ndarray:
    r_w, r_l = odds_scores(a)
    return -a.Sw / a.nw + beta * minus_log_sigma(r_w - r_l)


def asft_in_numpy(
    a: SimpleNamespace, lambda_: float = 1.0, ce_coef: float = 1.0, beta: float = 1.0
) -> np.ndarray:
    r_w, r_l = odds_scores(a)
    align = minus_log_sigma(beta * r_w) + minus_log_sigma(-beta * r_l)
    return -ce_coef * a.Sw / a.nw + lambda_ * align


@pytest.mark.parametrize(
    ("objective", "in_numpy", "parameters"),
    [
        (orpo, orpo_in_numpy, {}),
        (orpo, orpo_in_numpy, {"beta": 2.0}),
        (asft, asft_in_numpy, {}),
        (asft, asft_in_numpy, {"lambda_": 0.2, "ce_coef": 0.5}),
        (asft, asft_in_numpy, {"lambda_": 0.2, "ce_coef": 0.5, "beta": 0.1}),
        (asft, asft_in_numpy, {"ce_coef": 0.0, "beta": 2.0}),
    ],
)
def test_against_numpy_in_float64(objective, in_numpy, parameters) -> None:
    pairs, a = random_pairs(3)
    loss = objective(pairs, **parameters).loss
    np.testing.assert_allclose(loss.detach().numpy(), in_numpy(a, **parameters), rtol=0, atol=1e-10)


def of_means(chosen: torch.Tensor, rejected: torch.Tensor) -> Pairs:
    """Pairs of responses of one token, so that m = S."""
    one = torch.ones_like(chosen)
    return Pairs(chosen, rejected, length_chosen=one, length_rejected=one)


def random_means(n: int = 200) -> tuple[torch.Tensor, torch.Tensor]:
    """m in (-5, -1e-3), float64, with gradients."""
    g = np.random.default_rng(0)
    m_w, m_l = (
        torch.tensor(-(10 ** g.uniform(-3, math.log10(5), n)), requires_grad=True) for _ in range(2)
    )
    return m_w, m_l


@pytest.mark.parametrize(
    ("objective", "expected", "reward"),
    [
        # p = 1/4 chosen, 3/4 rejected: odds 1/3 and 3
        (orpo, math.log(4) + 0.1 * math.log(10), -0.1 * math.log(3)),
        (asft, 2 * math.log(4) + math.log(4), -math.log(3)),
        # -log sigma(-log 3) = log 4 on both sides, times 1/2, plus 1/4 of the likelihood
        (partial(asft, lambda_=0.5, ce_coef=0.25), 1.25 * math.log(4), -math.log(3)),
        # odds to the power 1/2: log(1 + sqrt 3) on both sides
        (
            partial(asft, beta=0.5),
            math.log(4) + 2 * math.log(1 + math.sqrt(3)),
            -math.log(3) / 2,
        ),
    ],
)
def test_literal_values(objective, expected, reward) -> None:
    quarter = torch.tensor([math.log(0.25)], requires_grad=True)
    out: Losses = objective(of_means(quarter, torch.tensor([math.log(0.75)])))
    assert out.loss.item() == pytest.approx(expected, rel=1e-6)
    assert out.terms["rewards/chosen"].item() == pytest.approx(reward, rel=1e-6)
    assert out.terms["rewards/rejected"].item() == pytest.approx(-reward, rel=1e-6)
    assert out.terms["nll"].item() == pytest.approx(math.log(4), rel=1e-6)
    assert out.terms["rewards/accuracies"].item() == 0.0
    assert not any(value.requires_grad for value in out.terms.values())


@pytest.mark.parametrize(
    ("objective", "expected"), [(orpo, 1.1 * math.log(2)), (asft, 3 * math.log(2))]
)
def test_a_response_of_even_odds_on_both_sides(objective, expected) -> None:
    half = torch.tensor([math.log(0.5)], dtype=torch.float64)
    assert objective(of_means(half, half)).loss.item() == pytest.approx(expected, abs=1e-12)


def test_log_sigma_of_the_odds_score_is_the_mean() -> None:
    m, _ = random_means()
    r = m - log1mexp(m)
    torch.testing.assert_close(F.logsigmoid(r), m, rtol=0, atol=1e-12)
    torch.testing.assert_close(F.logsigmoid(-r), torch.log(1 - torch.exp(m)), rtol=0, atol=1e-12)


def test_the_alignment_part_is_the_cross_entropy_of_two_labelled_responses() -> None:
    m_w, m_l = random_means()
    align = asft(of_means(m_w, m_l), ce_coef=0.0).loss
    targets = F.binary_cross_entropy(m_w.exp(), torch.ones_like(m_w), reduction="none")
    targets = targets + F.binary_cross_entropy(m_l.exp(), torch.zeros_like(m_l), reduction="none")
    torch.testing.assert_close(align, targets, rtol=0, atol=1e-12)


@pytest.mark.parametrize("lambda_", LAMBDAS)
def test_the_closed_form_is_the_tempered_form_at_beta_one(lambda_) -> None:
    m_w, m_l = random_means()
    closed = asft(of_means(m_w, m_l), lambda_=lambda_).loss
    tempered = asft(of_means(m_w, m_l), lambda_=lambda_, beta=1 + 1e-15).loss
    torch.testing.assert_close(closed, tempered, rtol=0, atol=1e-12)
    by_hand = -(1 + lambda_) * m_w - lambda_ * torch.log(1 - torch.exp(m_l))
    torch.testing.assert_close(closed, by_hand, rtol=0, atol=1e-12)
    for a, b in zip(gradients(closed, m_w, m_l), gradients(tempered, m_w, m_l), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-12)


def test_closed_and_naive_form_agree_in_float32() -> None:
    m_w = torch.linspace(-20, -1e-3, 400)
    m_l = m_w.flip(0)
    closed = asft(of_means(m_w, m_l)).loss
    r_w, r_l = (m.double() - torch.log1p(-torch.exp(m.double())) for m in (m_w, m_l))
    naive = -m_w - F.logsigmoid(r_w) - F.logsigmoid(-r_l)
    torch.testing.assert_close(closed, naive.float(), rtol=1e-6, atol=1e-6)


def gradients(loss: torch.Tensor, *inputs: torch.Tensor) -> tuple[torch.Tensor, ...]:
    return torch.autograd.grad(loss.sum(), inputs, retain_graph=True)


@pytest.mark.parametrize("lambda_", LAMBDAS)
def test_slopes_of_asft_in_closed_form(lambda_) -> None:
    m_w, m_l = random_means()
    chosen, rejected = gradients(asft(of_means(m_w, m_l), lambda_=lambda_).loss, m_w, m_l)
    p = m_l.detach().exp()
    torch.testing.assert_close(chosen, torch.full_like(p, -(1 + lambda_)), rtol=0, atol=1e-12)
    torch.testing.assert_close(rejected, lambda_ * p / (1 - p), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("beta", [0.1, 0.7, 3.0])
def test_slopes_of_tempered_asft_in_closed_form(beta) -> None:
    m_w, m_l = random_means()
    chosen, rejected = gradients(asft(of_means(m_w, m_l), ce_coef=0, beta=beta).loss, m_w, m_l)
    p_w, p_l = m_w.detach().exp(), m_l.detach().exp()
    odds_w, odds_l = ((p / (1 - p)) ** beta for p in (p_w, p_l))
    torch.testing.assert_close(chosen, -beta / (1 + odds_w) / (1 - p_w), rtol=1e-10, atol=0)
    torch.testing.assert_close(
        rejected, beta * odds_l / (1 + odds_l) / (1 - p_l), rtol=1e-10, atol=0
    )


@pytest.mark.parametrize("beta", [0.1, 1.0, 2.0])
def test_slopes_of_orpo_in_closed_form(beta) -> None:
    m_w, m_l = random_means()
    chosen, rejected = gradients(orpo(of_means(m_w, m_l), beta=beta).loss, m_w, m_l)
    p_w, p_l = m_w.detach().exp(), m_l.detach().exp()
    fade = 1 / (1 + (p_w / (1 - p_w)) / (p_l / (1 - p_l)))
    torch.testing.assert_close(chosen, -1 - beta * fade / (1 - p_w), rtol=1e-10, atol=0)
    torch.testing.assert_close(rejected, beta * fade / (1 - p_l), rtol=1e-10, atol=0)


def test_asft_without_alignment_is_the_likelihood() -> None:
    pairs, a = random_pairs(4)
    loss = asft(pairs, lambda_=0.0).loss
    np.testing.assert_allclose(loss.detach(), -a.Sw / a.nw, atol=1e-12)
    chosen, rejected = gradients(loss, pairs.policy_chosen, pairs.policy_rejected)
    np.testing.assert_allclose(chosen, -1 / a.nw, atol=1e-12)
    assert not rejected.any()


@pytest.mark.parametrize("lambda_", LAMBDAS[1:])
def test_orpo_is_asft_plus_a_term_that_is_never_positive(lambda_) -> None:
    m_w, m_l = random_means()
    p_w, p_l = m_w.exp(), m_l.exp()
    coupling = lambda_ * torch.log(p_w * (1 - p_l) + p_l * (1 - p_w))
    left = orpo(of_means(m_w, m_l), beta=lambda_).loss
    right = asft(of_means(m_w, m_l), lambda_=lambda_).loss + coupling
    assert (coupling <= 0).all()
    torch.testing.assert_close(left, right, rtol=0, atol=1e-12)
    for a, b in zip(gradients(left, m_w, m_l), gradients(right, m_w, m_l), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("beta", [0.1, 1.0])
def test_a_form_that_clamps_the_probability_agrees_away_from_its_clamp(beta) -> None:
    pairs, a = random_pairs(5)
    m_w, m_l = a.Sw / a.nw, a.Sl / a.nl
    r_w, r_l = (m - np.log1p(-np.minimum(np.exp(m), 1 - 1e-7)) for m in (m_w, m_l))
    align = minus_log_sigma(beta * r_w) + minus_log_sigma(-beta * r_l)
    loss = asft(pairs, lambda_=0.7, ce_coef=0.4, beta=beta).loss
    np.testing.assert_allclose(loss.detach(), -0.4 * m_w + 0.7 * align, atol=1e-10)


@pytest.mark.parametrize("lambda_", LAMBDAS)
def test_swapping_chosen_and_rejected(lambda_) -> None:
    m_w, m_l = (m.detach() for m in random_means())
    change = asft(of_means(m_l, m_w), lambda_=lambda_).loss
    change = change - asft(of_means(m_w, m_l), lambda_=lambda_).loss
    unlikely_w, unlikely_l = (torch.log(1 - m.exp()) for m in (m_w, m_l))
    expected = -(1 + lambda_) * (m_l - m_w) - lambda_ * (unlikely_w - unlikely_l)
    torch.testing.assert_close(change, expected, rtol=0, atol=1e-11)


@pytest.mark.parametrize("objective", ALL)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("m_w", [-1e6, -1e3, -1e-9, 0.0])
@pytest.mark.parametrize("m_l", [-1e6, -1e3, -1e-9, 0.0])
def test_finite_for_certain_and_for_impossible_responses(objective, dtype, m_w, m_l) -> None:
    chosen = torch.tensor([m_w], dtype=dtype, requires_grad=True)
    rejected = torch.tensor([m_l], dtype=dtype, requires_grad=True)
    loss = objective(of_means(chosen, rejected)).loss
    assert loss.dtype == dtype
    assert torch.isfinite(loss).all()
    assert all(torch.isfinite(g).all() for g in gradients(loss, chosen, rejected))


def test_a_rejected_response_of_certain_tokens_is_pushed_with_a_bounded_slope() -> None:
    m_l = torch.tensor([-1e-9, 0.0], requires_grad=True)
    m_w = torch.tensor([0.0, 0.0], requires_grad=True)
    loss = asft(of_means(m_w, m_l)).loss
    torch.testing.assert_close(loss, torch.full((2,), 13.815510))
    chosen, rejected = gradients(loss, m_w, m_l)
    torch.testing.assert_close(chosen, torch.full((2,), -2.0))
    torch.testing.assert_close(rejected, torch.full((2,), 1e6), rtol=1e-5, atol=0)


@pytest.mark.parametrize("objective", ALL)
def test_an_empty_response_has_no_term_and_no_gradient(objective) -> None:
    chosen = torch.tensor([-4.0, 0.0, -4.0, 0.0], requires_grad=True)
    rejected = torch.tensor([-6.0, -6.0, 0.0, 0.0], requires_grad=True)
    pairs = Pairs(
        chosen,
        rejected,
        length_chosen=torch.tensor([2.0, 0.0, 2.0, 0.0]),
        length_rejected=torch.tensor([3.0, 3.0, 0.0, 0.0]),
    )
    out = objective(pairs)
    alone = objective(of_means(torch.tensor([-2.0]), torch.tensor([-2.0]))).loss
    torch.testing.assert_close(out.loss[:1], alone)
    assert torch.isfinite(out.loss).all()
    assert out.loss[3].item() == 0.0
    dw, dl = gradients(out.loss, chosen, rejected)
    assert dw[[1, 3]].tolist() == [0.0, 0.0] and dl[[2, 3]].tolist() == [0.0, 0.0]
    assert dw[0] != 0 and dw[2] != 0 and dl[0] != 0
    assert out.terms["rewards/chosen"][[1, 3]].tolist() == [0.0, 0.0]


def test_what_remains_of_a_pair_with_one_empty_response() -> None:
    n, two = torch.zeros(1), torch.tensor([-2.0])
    no_chosen = Pairs(torch.zeros(1), two, length_chosen=n, length_rejected=n + 1)
    no_rejected = Pairs(two, torch.zeros(1), length_chosen=n + 1, length_rejected=n)
    assert orpo(no_chosen).loss.item() == 0.0
    assert orpo(no_rejected).loss.item() == 2.0
    assert asft(no_chosen).loss.item() == pytest.approx(-math.log(1 - math.exp(-2)), rel=1e-6)
    assert asft(no_rejected).loss.item() == 4.0


@pytest.mark.parametrize("objective", ALL)
@pytest.mark.parametrize("length", [0.0, 1.0])
@pytest.mark.parametrize("value", [math.nan, -math.inf])
def test_what_is_not_finite_stays_so(objective, length, value) -> None:
    for chosen, rejected in [(value, -1.0), (-1.0, value)]:
        n = torch.tensor([length])
        pairs = Pairs(
            torch.tensor([chosen]), torch.tensor([rejected]), length_chosen=n, length_rejected=n
        )
        assert not torch.isfinite(objective(pairs).loss).any()


def test_a_mean_that_is_a_sum_by_mistake_would_lose_its_rejected_side() -> None:
    m_w, m_l = torch.tensor([-300.0]), torch.tensor([-300.0], requires_grad=True)
    (slope,) = gradients(asft(of_means(m_w, m_l)).loss, m_l)
    assert slope.item() == 0.0
    for objective in (asft, orpo):
        with pytest.raises(ValueError, match="needs length_chosen; got None"):
            objective(Pairs(m_w, m_l))
        with pytest.raises(ValueError, match="needs length_rejected; got None"):
            objective(Pairs(m_w, m_l, length_chosen=torch.ones(1)))


@pytest.mark.parametrize("objective", ALL)
def test_bfloat16_inputs_give_float32_losses(objective) -> None:
    # bfloat16 rounds e^-0.001 to 1: the loss would be infinite.
    value = torch.full((3,), -0.001, dtype=torch.bfloat16)
    out = objective(of_means(value, value))
    assert out.loss.dtype == torch.float32
    assert torch.isfinite(out.loss).all()
    assert all(term.dtype == torch.float32 for term in out.terms.values())


@pytest.mark.parametrize("objective", ALL)
def test_no_pairs_give_a_differentiable_nothing(objective) -> None:
    empty = torch.zeros(0, requires_grad=True)
    loss = objective(of_means(empty, empty)).loss
    loss.sum().backward()
    assert loss.shape == (0,)


@pytest.mark.parametrize("objective", ALL)
def test_a_pair_does_not_know_its_batch(objective) -> None:
    pairs, _ = random_pairs(6)
    fields = {k: v for k, v in pairs._asdict().items() if v is not None}
    order = torch.randperm(200, generator=torch.Generator().manual_seed(0))
    whole = objective(pairs).loss
    shuffled = objective(Pairs(**{k: v[order] for k, v in fields.items()})).loss
    torch.testing.assert_close(shuffled, whole[order], rtol=0, atol=1e-12)
    alone = objective(Pairs(**{k: v[7:8] for k, v in fields.items()})).loss
    torch.testing.assert_close(alone, whole[7:8], rtol=0, atol=1e-12)


@pytest.mark.parametrize("objective", ALL)
def test_declared_without_a_reference_and_inputs_untouched(objective) -> None:
    need = needs_of(objective)
    assert (need.view, need.reference, need.coupled) == ("pairs", False, False)
    pairs, _ = random_pairs(7)
    before = {k: v.detach().clone() for k, v in pairs._asdict().items() if v is not None}
    objective(pairs._replace(reference_chosen=None, reference_rejected=None)).loss.sum().backward()
    assert all(torch.equal(value, getattr(pairs, name)) for name, value in before.items())


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (partial(orpo, beta=0.0), "orpo: beta is 0.0; it must be a finite number > 0"),
        (partial(asft, beta=-1.0), "asft: beta is -1.0; it must be a finite number > 0"),
        (partial(asft, beta=math.nan), "asft: beta is nan; it must be a finite number > 0"),
        (partial(asft, lambda_=-1.0), "asft: lambda_ is -1.0; it must be a finite number >= 0"),
        (partial(asft, ce_coef=math.inf), "asft: ce_coef is inf; it must be a finite number >= 0"),
    ],
)
def test_parameters_out_of_range_are_refused(call, message) -> None:
    with pytest.raises(ValueError, match=message):
        call(of_means(torch.tensor([-1.0]), torch.tensor([-1.0])))
