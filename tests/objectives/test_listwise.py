"""Plackett-Luce: an enumeration over rankings, DPO at K = 2, ties, what takes no part, edges."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
import torch

from prefopt.objectives.listwise import plackett_luce
from prefopt.objectives.types import Scores, needs_of

NAN = math.nan


def given(
    ratio: list[float],
    rank: list[float],
    *,
    group: list[int] | None = None,
    score: list[float] | None = None,
    mismatched: list[bool] | None = None,
    dtype: torch.dtype = torch.float64,
) -> Scores:
    n = len(ratio)
    none = torch.zeros(0, dtype=torch.int64)
    return Scores(
        policy=torch.tensor(ratio, dtype=dtype, requires_grad=True),
        reference=torch.zeros(n, dtype=dtype),
        length=torch.ones(n, dtype=dtype),
        chosen=none,
        rejected=none,
        group=torch.tensor(group or [0] * n, dtype=torch.int64),
        score=torch.tensor(score or [NAN] * n, dtype=dtype),
        rank=torch.tensor(rank, dtype=dtype),
        label=torch.full((n,), NAN, dtype=dtype),
        margin=torch.zeros(0, dtype=dtype),
        mismatched=None if mismatched is None else torch.tensor(mismatched),
    )


def log_likelihood(reward, ranking) -> float:
    """Log-probability of drawing `ranking` one after the other without replacement, by the definition."""
    left, total = list(ranking), 0.0
    for i in ranking:
        total += reward[i] - math.log(sum(math.exp(reward[j]) for j in left))
        left.remove(i)
    return total


@pytest.mark.parametrize("beta", [0.1, 0.8])
def test_random_groups_against_the_definition(beta) -> None:
    g = np.random.default_rng(0)
    ratio, rank, group, expected = [], [], [], 0.0
    for number in range(40):
        k = int(g.integers(1, 7))
        values, order = g.normal(0, 5, k), g.permutation(k)
        expected -= log_likelihood(beta * values, list(np.argsort(order)))
        ratio += values.tolist()
        rank += (order + 1.0).tolist()
        group += [number] * k
    mix = g.permutation(len(ratio))
    scores = given([ratio[i] for i in mix], [rank[i] for i in mix], group=[group[i] for i in mix])
    out = plackett_luce(scores, beta=beta)
    assert out.loss.shape == (len(ratio),) and bool((out.loss >= 0).all())
    assert out.loss.sum().item() == pytest.approx(expected, abs=1e-10)
    np.testing.assert_allclose(out.terms["reward"].numpy(), beta * np.array(ratio)[mix], atol=1e-12)


def test_the_likelihoods_of_all_rankings_sum_to_1() -> None:
    ratio = [0.3, -2.0, 1.1, 4.0]
    total = 0.0
    for order in itertools.permutations([1.0, 2.0, 3.0, 4.0]):
        total += math.exp(-plackett_luce(given(ratio, list(order)), beta=0.7).loss.sum().item())
    assert total == pytest.approx(1.0, abs=1e-12)


def test_literal_values() -> None:
    # rewards 1, 0, -1 ranked in this order: log(1 + e^-1 + e^-2), log(1 + e^-1), 0
    out = plackett_luce(given([2.0, 0.0, -2.0], [1.0, 2.0, 3.0]), beta=0.5)
    assert out.loss.tolist() == pytest.approx([0.7208676519626028, 0.0, 0.0], abs=1e-12)
    still = plackett_luce(given([0.0] * 4, [4.0, 2.0, 1.0, 3.0]))
    assert still.loss.sum().item() == pytest.approx(math.log(24), abs=1e-12)


def test_two_responses_are_dpo_in_value_and_gradient() -> None:
    g = np.random.default_rng(1)
    for better, worse in g.normal(0, 20, (50, 2)):
        scores = given([worse, better], [2.0, 1.0])
        loss = plackett_luce(scores, beta=0.3).loss
        z = 0.3 * (better - worse)
        assert loss.tolist() == pytest.approx([0.0, np.logaddexp(0, -z)], abs=1e-12)
        (gradient,) = torch.autograd.grad(loss.sum(), scores.policy)
        slope = 0.3 / (1 + math.exp(z))
        assert gradient.tolist() == pytest.approx([slope, -slope], abs=1e-12)


def test_scores_order_where_there_are_no_ranks() -> None:
    ranked = plackett_luce(given([1.0, 5.0, -3.0], [2.0, 3.0, 1.0])).loss
    scored = plackett_luce(given([1.0, 5.0, -3.0], [NAN] * 3, score=[0.5, 0.1, 7.0])).loss
    torch.testing.assert_close(ranked, scored)
    assert torch.nonzero(ranked).tolist() == [[2]], "the loss stands at the best response"


def test_ties_stand_in_each_others_denominator() -> None:
    loss = plackett_luce(given([0.0, 0.0, 0.0], [1.0, 1.0, 2.0])).loss
    assert loss.tolist() == pytest.approx([2 * math.log(3), 0.0, 0.0], abs=1e-12)
    assert plackett_luce(given([0.0, 0.0], [1.0, 1.0])).loss.sum().item() == pytest.approx(
        2 * math.log(2)
    )


def test_unranked_and_mismatched_responses_take_no_part() -> None:
    scores = given(
        [1.0, 50.0, -1.0, 70.0, 3.0],
        [1.0, NAN, 2.0, 1.0, 1.0],
        group=[0, 0, 0, 0, 1],
        mismatched=[False, False, False, True, False],
    )
    loss = plackett_luce(scores, beta=1.0).loss
    assert loss.tolist() == pytest.approx([math.log1p(math.exp(-2)), 0.0, 0.0, 0.0, 0.0], abs=1e-12)
    (gradient,) = torch.autograd.grad(loss.sum(), scores.policy)
    assert gradient[[1, 3, 4]].tolist() == [0.0] * 3 and gradient[0] < 0 < gradient[2]


def test_adding_a_constant_to_a_group_changes_nothing() -> None:
    ratio = [3.0, 1.0, -2.0, 0.5]
    one = plackett_luce(given(ratio, [2.0, 1.0, 4.0, 3.0])).loss
    other = plackett_luce(given([r + 100.0 for r in ratio], [2.0, 1.0, 4.0, 3.0])).loss
    torch.testing.assert_close(one, other, rtol=0, atol=1e-10)


def test_edges() -> None:
    scores = given([-1e6, 1e6, 0.0, -1e3, 1e3], [1.0, 2.0, 3.0, 4.0, 5.0], dtype=torch.float32)
    loss = plackett_luce(scores).loss
    assert loss.dtype == torch.float32 and bool(torch.isfinite(loss).all())
    (gradient,) = torch.autograd.grad(loss.sum(), scores.policy)
    assert bool(torch.isfinite(gradient).all())
    empty = plackett_luce(given([], [])).loss
    assert empty.shape == (0,)
    empty.sum().backward()
    half = plackett_luce(given([0.5, 1.0], [1.0, 2.0], dtype=torch.bfloat16))
    assert half.loss.dtype == half.terms["reward"].dtype == torch.float32
    # Meta tensors have no values: whatever would wait for one raises.
    scores = given([1.0, 2.0], [1.0, 2.0], mismatched=[False, True])
    meta = Scores._make(None if v is None else v.to("meta") for v in scores)
    assert plackett_luce(meta).loss.device.type == "meta"


def test_errors_and_needs() -> None:
    with pytest.raises(ValueError, match=r"^plackett_luce needs reference; got None$"):
        plackett_luce(given([1.0], [1.0])._replace(reference=None))
    with pytest.raises(
        ValueError, match=r"^plackett_luce: beta is 0.0; it must be a finite number > 0$"
    ):
        plackett_luce(given([1.0], [1.0]), beta=0.0)
    need = needs_of(plackett_luce)
    assert (need.view, need.mean, need.annotations) == ("responses", "groups", ("ranking",))
