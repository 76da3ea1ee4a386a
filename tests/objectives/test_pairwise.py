"""DPO and SFT losses: literal values, an independent float64 numpy form, gradients, edges."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from prefopt.objectives import Pairs, Scores, dpo, needs_of, sft
from prefopt.objectives.types import Losses


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
    from functools import partial

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
