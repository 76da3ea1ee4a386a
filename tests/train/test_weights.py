"""The total of a mean, known from the data, is the sum of the weights that the batch gives."""

from __future__ import annotations

import pytest
import torch

from prefopt.models.scorer import common_sums, lengths
from prefopt.objectives import Scores
from prefopt.pack.batch import Example, Layout, PackedBatch, collate
from prefopt.train.weights import batch_weight, example_weight
from tests.numerics.forest import random_example


def varied() -> list[Example]:
    """Pairs, labels without pairs, rankings, and answers to other prompts."""
    examples = [random_example(seed, vocabulary=50, responses=3) for seed in range(6)]
    return [
        examples[0],
        examples[1]._replace(pairs=(), pair_weight=(), pair_margin=(), label=(1.0, 0.0, None)),
        examples[2]._replace(rank=(1.0, None, 2.0), mismatched=(False, True, False), pairs=((0, 2),),
                             pair_weight=(2.0,), pair_margin=(None,)),
        examples[3]._replace(pairs=(), pair_weight=(), pair_margin=(), score=(0.5, None, None)),
        examples[4]._replace(pairs=((0, 1), (1, 2)), pair_weight=(1.0, 1.0), score=(3.0, 2.0, 1.0)),
        examples[5]._replace(pairs=(), pair_weight=(), pair_margin=(), label=(None, 1.0, None),
                             mismatched=(False, False, True)),
    ]  # fmt: skip


def seen(batch: PackedBatch) -> Scores:
    """The batch as objectives see it, but for log-probabilities."""
    length = lengths(batch)
    return Scores(
        length, None, length, batch.chosen, batch.rejected, batch.group, batch.score, batch.rank, batch.label,
        batch.pair_margin, mismatched=batch.mismatched,
    )  # fmt: skip


@pytest.mark.parametrize("layout", [Layout.TREE, Layout.ROWS])
@pytest.mark.parametrize(
    ("mean", "expected"),
    [
        ("pairs", [2.5, 0, 2, 0, 2, 0]),
        ("responses", [3, 2, 2, 0, 2, 1]),
        ("groups", [0, 0, 1, 0, 1, 0]),
        ("tokens", None),
    ],
)
def test_totals(layout, mean, expected) -> None:
    examples = varied()
    totals = [example_weight(example, mean) for example in examples]
    if expected is not None:
        assert totals == expected
    batch = collate([[e] for e in examples], layout=layout)
    weight = batch_weight(seen(batch), batch.pair_weight, mean)
    if mean == "groups":
        assert torch.nonzero(weight).flatten().tolist() == [6, 12], "the best of each ranked list"
    groups = batch.pair_group if mean == "pairs" else batch.group
    summed = torch.zeros(len(examples)).index_add(0, groups, weight)
    assert summed.tolist() == totals


def test_tokens_are_those_of_responses_to_imitate() -> None:
    examples = varied()
    batch = collate([[e] for e in examples], layout=Layout.TREE)
    weight = batch_weight(seen(batch), batch.pair_weight, "tokens")
    wanted = [(0,), (0, 2), (0,), (0, 1, 2), (0, 1), (0, 1)]
    for number, responses in enumerate(wanted):
        found = torch.nonzero(weight[3 * number : 3 * number + 3]).flatten().tolist()
        assert tuple(found) == responses, number


@pytest.mark.parametrize("layout", [Layout.TREE, Layout.ROWS])
def test_common_sums_against_a_loop(layout) -> None:
    examples = varied()
    batch = collate([[e] for e in examples], layout=layout)
    values = torch.linspace(-3, -0.1, len(batch.target))
    chosen, rejected = common_sums(batch, values)
    for pair, sides in enumerate(zip(batch.chosen.tolist(), batch.rejected.tolist(), strict=True)):
        own = [values[batch.token[batch.response == side]] for side in sides]
        common = min(len(own[0]), len(own[1]))
        assert chosen[pair].item() == pytest.approx(own[0][:common].sum().item(), rel=1e-6)
        assert rejected[pair].item() == pytest.approx(own[1][:common].sum().item(), rel=1e-6)


def test_common_sums_carry_gradient_to_the_common_tokens_only() -> None:
    batch = collate([[varied()[0]]], layout=Layout.TREE)
    values = torch.zeros(len(batch.target), requires_grad=True)
    chosen, rejected = common_sums(batch, values)
    (gradient,) = torch.autograd.grad(chosen.sum() + rejected.sum(), values)
    length = lengths(batch)
    common = torch.minimum(length[batch.chosen], length[batch.rejected])
    assert gradient.sum().item() == pytest.approx(2 * common.sum().item())
