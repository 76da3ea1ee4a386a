"""A tree gives the values and gradients of separate rows; two wrong trees do not (negative controls)."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor

from prefopt.models.load import CausalModel, ModelSettings, load_model
from prefopt.models.scorer import Scorer, sum_by_response
from prefopt.objectives import dpo
from prefopt.objectives.types import Pairs
from prefopt.pack.batch import Layout, PackedBatch, collate
from tests.numerics.forest import random_example
from tests.tiny import FAMILIES, make_model_folder, make_tokenizer

EXAMPLES = [random_example(seed, vocabulary=200, responses=2 + seed % 3) for seed in range(5)]


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    base, tokenizer = tmp_path_factory.mktemp("models"), make_tokenizer()
    return {f: make_model_folder(base / f, f, tokenizer=tokenizer) for f in FAMILIES}


def load(folder: Path, attention: str | None = None) -> CausalModel:
    model = load_model(folder, ModelSettings(attn_implementation=attention)).model
    for parameter in model.parameters():  # random init gives near-uniform outputs: make them matter
        parameter.data.mul_(3.0 if parameter.ndim > 1 else 1.0)
    return model


def loss_and_gradients(
    model: CausalModel, batch: PackedBatch
) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
    """Response log-probabilities, weighted DPO loss against a constant reference, and all gradients."""
    model.zero_grad()
    policy = sum_by_response(batch, Scorer(model)(batch).logp)
    reference = torch.linspace(-3, -1, len(policy))
    pairs = Pairs(
        policy[batch.chosen], policy[batch.rejected],
        reference[batch.chosen], reference[batch.rejected],
    )  # fmt: skip
    loss = (dpo(pairs, beta=0.3).loss * batch.pair_weight).sum()
    loss.backward()
    return (
        policy.detach(),
        loss.detach(),
        {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None},
    )


def assert_same(model: CausalModel, a: PackedBatch, b: PackedBatch) -> None:
    policy_a, loss_a, gradients_a = loss_and_gradients(model, a)
    policy_b, loss_b, gradients_b = loss_and_gradients(model, b)
    torch.testing.assert_close(policy_a, policy_b, rtol=1e-5, atol=2e-4)
    torch.testing.assert_close(loss_a, loss_b, rtol=1e-5, atol=1e-5)
    assert gradients_a.keys() == gradients_b.keys()
    for name, gradient in gradients_a.items():
        scale = float(gradients_b[name].abs().max()) + 1e-6
        assert float((gradient - gradients_b[name]).abs().max()) < 2e-4 * scale, name


@pytest.mark.parametrize("family", FAMILIES)
def test_tree_equals_rows(family: str, folders: dict[str, Path]) -> None:
    model = load(folders[family])
    rows = collate([[e] for e in EXAMPLES], layout=Layout.ROWS)
    assert_same(model, collate([[e] for e in EXAMPLES], layout=Layout.TREE), rows)


def test_several_trees_in_one_row_equal_rows(folders: dict[str, Path]) -> None:
    model = load(folders["llama"])
    packed = collate([EXAMPLES[:3], EXAMPLES[3:]], layout=Layout.PACKED, row_length=128)
    assert_same(model, packed, collate([[e] for e in EXAMPLES], layout=Layout.ROWS))


def test_eager_attention_equals_sdpa(folders: dict[str, Path]) -> None:
    tree = collate([[e] for e in EXAMPLES], layout=Layout.TREE)
    sdpa = loss_and_gradients(load(folders["llama"]), tree)[0]
    eager = loss_and_gradients(load(folders["llama"], "eager"), tree)[0]
    torch.testing.assert_close(sdpa, eager, rtol=1e-5, atol=2e-4)


def test_a_pair_scores_the_same_alone_and_in_any_company(folders: dict[str, Path]) -> None:
    model = load(folders["qwen2"])
    with torch.no_grad():
        alone = Scorer(model)(collate([[EXAMPLES[2]]], layout=Layout.TREE)).logp
        batch = collate([[e] for e in EXAMPLES], layout=Layout.TREE)
        together = Scorer(model)(batch).logp[batch.scored_group == 2]
    torch.testing.assert_close(alone, together, rtol=0, atol=5e-6)


def difference(model: CausalModel, batch: PackedBatch) -> float:
    rows = collate([[e] for e in EXAMPLES], layout=Layout.ROWS)
    with torch.no_grad():
        expected = sum_by_response(rows, Scorer(model)(rows).logp)
        return float((sum_by_response(batch, Scorer(model)(batch).logp) - expected).abs().max())


def test_negative_control_plain_causal_mask_fails(folders: dict[str, Path]) -> None:
    tree = collate([[e] for e in EXAMPLES], layout=Layout.TREE)
    length = tree.until.shape[1]
    model = load(folders["llama"])
    assert difference(model, tree) < 1e-3
    assert difference(model, tree._replace(until=torch.full_like(tree.until, length))) > 0.05


def test_negative_control_running_positions_fail(folders: dict[str, Path]) -> None:
    tree = collate([[e] for e in EXAMPLES], layout=Layout.TREE)
    running = torch.arange(tree.position.shape[1]).expand_as(tree.position)
    assert difference(load(folders["llama"]), tree._replace(position=running)) > 0.02


def test_negative_control_left_neighbour_as_predictor_fails(folders: dict[str, Path]) -> None:
    tree = collate([[EXAMPLES[0]]], layout=Layout.TREE)
    example = EXAMPLES[0].tree
    left = torch.from_numpy(example.scored.nonzero()[0] - 1)
    assert not torch.equal(left, tree.predictor)
    model = load(folders["llama"])
    with torch.no_grad():
        right = Scorer(model)(tree).logp
        wrong = Scorer(model)(tree._replace(predictor=left)).logp
    assert float((right - wrong).abs().max()) > 0.1
