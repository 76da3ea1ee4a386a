"""beta-DPO: which pairs are selected, what beta becomes, and the statistic it carries."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
import torch

from prefopt.objectives.adaptive import advance_gap, beta_dpo
from prefopt.objectives.types import Pairs, needs_of, parameters_of
from tests.objectives.given import random_pairs


def given_margins(h: list[float]) -> Pairs:
    zero = torch.zeros(len(h))
    return Pairs(torch.tensor(h, requires_grad=True), zero, zero, zero)


def test_the_adapted_beta_has_a_floor() -> None:
    out = beta_dpo(given_margins([-50.0, -30.0]), beta=0.1, alpha=0.6)
    assert out.terms["beta"].tolist() == pytest.approx([1e-3, 1e-3])


@pytest.mark.parametrize(
    ("pairs", "rho", "kept"),
    [
        (10, 0.2, 8),
        (10, 0.9, 1),
        (100, 0.9, 10),
        (5, 0.2, 4),
        (7, 0.5, 3),
        (3, 0.99, 1),
        (1, 0.5, 1),
    ],
)
def test_how_many_pairs_are_selected(pairs, rho, kept) -> None:
    given, _ = random_pairs(12, pairs)
    generator = torch.Generator().manual_seed(0)
    loss = beta_dpo(given, rho=rho, generator=generator, gap_std=3.0).loss
    assert int((loss > 0).sum()) == kept


def test_selected_pairs_are_scaled_to_the_mean_over_the_selected() -> None:
    pairs, a = random_pairs(13)
    h = (a.Sw - a.Rw) - (a.Sl - a.Rl)
    generator = torch.Generator().manual_seed(1)
    out = beta_dpo(
        pairs, beta=0.1, alpha=0.6, rho=0.3, generator=generator, gap_mean=0.5, gap_std=5.0
    )
    selected = out.loss.detach().numpy() > 0
    beta = 0.1 * (1 + 0.6 * (h[selected].mean() - 0.5))
    assert selected.sum() == 140
    np.testing.assert_allclose(out.terms["beta"].numpy(), beta, rtol=0, atol=1e-12)
    mean = np.logaddexp(0, -beta * h[selected]).mean()
    np.testing.assert_allclose(out.loss.mean().item(), mean, rtol=0, atol=1e-10)
    (gradient,) = torch.autograd.grad(out.loss.sum(), pairs.policy_chosen)
    assert not gradient.numpy()[~selected].any()


def test_selection_draws_without_replacement_with_the_stated_weights() -> None:
    h, mean, std = [0.0, 1.0, 2.0, 4.0], 0.5, 1.2
    weight = np.exp(-0.5 * ((np.array(h) - mean) / std) ** 2)
    chance = np.zeros(4)
    for first, second in itertools.permutations(range(4), 2):
        p = weight[first] / weight.sum() * weight[second] / (weight.sum() - weight[first])
        chance[[first, second]] += p
    pairs = given_margins(h)
    generator = torch.Generator().manual_seed(3)
    draws = 2000
    hits = torch.zeros(4)
    with torch.no_grad():
        for _ in range(draws):
            loss = beta_dpo(pairs, rho=0.5, generator=generator, gap_mean=mean, gap_std=std).loss
            hits += loss > 0
    # Four standard errors of a share.
    assert np.abs(hits.numpy() / draws - chance).max() < 4 * 0.5 / math.sqrt(draws)


def test_selection_follows_the_generator_and_survives_outliers() -> None:
    pairs, _ = random_pairs(14, 40)
    one, same, other = (
        beta_dpo(pairs, generator=torch.Generator().manual_seed(seed), gap_std=2e-4).loss > 0
        for seed in (1, 1, 2)
    )
    assert torch.equal(one, same)
    # All weights underflow in floating point, yet 32 pairs are drawn: those of the smallest gaps.
    assert int(other.sum()) == 32 and torch.equal(one, other)


def test_without_spread_every_pair_is_as_likely() -> None:
    pairs = given_margins([0.0, 0.0, 0.0, 30.0])
    generator = torch.Generator().manual_seed(0)
    hits = torch.zeros(4)
    with torch.no_grad():
        for _ in range(400):
            hits += beta_dpo(pairs, rho=0.5, generator=generator).loss > 0
    assert hits.min() > 140, "200 expected of each, the outlier too"


def test_evaluation_and_rho_0_count_every_pair_once() -> None:
    pairs, _ = random_pairs(15)
    everything = beta_dpo(pairs, rho=0.0, generator=torch.Generator().manual_seed(0)).loss
    torch.testing.assert_close(everything, beta_dpo(pairs, rho=0.5).loss, rtol=0, atol=0)
    assert bool((everything > 0).all())


def test_the_running_gap() -> None:
    state = {"gap_mean": torch.tensor(0.0).double(), "gap_std": torch.tensor(0.0).double()}
    state = advance_gap(given_margins([1.0, 3.0]), state, beta=0.1, alpha=0.6, rho=0.2)
    assert state["gap_mean"].item() == pytest.approx(0.2)
    assert state["gap_std"].item() == pytest.approx(0.1 * math.sqrt(2))
    state = advance_gap(given_margins([5.0]), state)
    assert state["gap_mean"].item() == pytest.approx(0.9 * 0.2 + 0.5)
    assert state["gap_std"].item() == pytest.approx(0.1 * math.sqrt(2)), "one pair has no spread"
    after = advance_gap(given_margins([]), state)
    assert {k: v.item() for k, v in after.items()} == {k: v.item() for k, v in state.items()}
    assert all(
        v.dtype == torch.float64 and v.shape == () and not v.requires_grad for v in after.values()
    )
    running = needs_of(beta_dpo).running
    assert running is not None and set(running.start) == set(after) == set(running.arguments)
    assert parameters_of(beta_dpo) == {"beta": 0.1, "alpha": 0.6, "rho": 0.2}


@pytest.mark.parametrize("std", [0.0, 2.0])
def test_running_values_may_be_tensors_of_another_dtype(std) -> None:
    pairs, _ = random_pairs(16, 30)
    single = Pairs._make(None if v is None else v.detach().float() for v in pairs)
    generators = (torch.Generator().manual_seed(4) for _ in range(2))
    numbers = beta_dpo(single, generator=next(generators), gap_mean=1.25, gap_std=std)
    mean, spread = torch.tensor(1.25).double(), torch.tensor(std).double()
    tensors = beta_dpo(single, generator=next(generators), gap_mean=mean, gap_std=spread)
    assert tensors.loss.dtype == tensors.terms["beta"].dtype == torch.float32
    torch.testing.assert_close(numbers.loss, tensors.loss)


def test_rounding_at_the_reference_decides_nothing() -> None:
    """Gaps of 1e-6 nats are noise of how a batch was computed: the same pairs are drawn as without any."""
    zero = torch.zeros(8, dtype=torch.float64)
    noise = torch.tensor([0, 0, 7.6e-6, 0, 0, 0, 0, 0], dtype=torch.float64)
    drawn = []
    for gap in (zero, noise):
        generator = torch.Generator().manual_seed(4)
        pairs = Pairs(gap, zero, zero, zero)
        drawn.append(beta_dpo(pairs, generator=generator, gap_std=float(gap.std())).loss > 0)
    assert torch.equal(drawn[0], drawn[1])
