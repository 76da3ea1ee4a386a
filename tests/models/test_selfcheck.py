"""The start-up check: passes on real models, demotes and refuses those that would be silently wrong."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from prefopt.errors import ConfigError, ModelError
from prefopt.models.layout import choose_layout, tree_cost
from prefopt.models.load import find_backbone, load_model, output_head
from prefopt.models.selfcheck import check_model, require_head
from prefopt.pack.batch import Example, Layout
from prefopt.pack.tree import build_tree
from prefopt.text.tokens import TokenSequence
from tests.tiny import FAMILIES, Family, make_model_folder


@pytest.mark.parametrize("family", FAMILIES)
def test_every_family_passes(family: Family, tmp_path: Path) -> None:
    check = check_model(load_model(make_model_folder(tmp_path / family, family)).model)
    assert check.head_ok
    assert check.tree_ok, check.reason


class Doubling(nn.Linear):
    """A head whose module does more than its weight says."""

    def forward(self, input: Tensor) -> Tensor:
        return 2 * super().forward(input)


def test_unknown_logit_processing_is_refused_by_name(tmp_path: Path) -> None:
    model = load_model(make_model_folder(tmp_path / "m", "llama")).model
    head = Doubling(32, model.config.vocab_size, bias=False)
    head.weight = nn.Parameter(output_head(model).weight.detach() * 8)
    model.set_output_embeddings(head)
    with pytest.raises(
        ModelError, match="LlamaForCausalLM: the chunked head differs .* model type 'llama'"
    ):
        require_head(model, check_model(model))


def test_a_model_that_ignores_the_mask_falls_back_to_rows(tmp_path: Path) -> None:
    model = load_model(make_model_folder(tmp_path / "m", "llama")).model
    for p in model.parameters():
        p.data.mul_(4.0 if p.ndim > 1 else 1.0)
    backbone = find_backbone(model)
    original = backbone.forward
    backbone.forward = lambda attention_mask=None, **rest: original(attention_mask=None, **rest)
    choice = choose_layout(model, requested="auto", longest=10)
    assert choice.layout is Layout.ROWS
    assert "differ by" in choice.reason
    with pytest.raises(ConfigError, match="layout tree: LlamaForCausalLM: .*use layout: auto"):
        choose_layout(model, requested="tree", longest=10)


def test_a_short_sliding_window_means_rows(tmp_path: Path) -> None:
    model = load_model(make_model_folder(tmp_path / "m", "mistral", sliding_window=16)).model
    assert choose_layout(model, requested="auto", longest=16).layout is Layout.TREE
    choice = choose_layout(model, requested="auto", longest=17)
    assert choice.layout is Layout.ROWS
    assert (
        choice.reason == "its sliding window of 16 tokens is shorter than the longest response (17)"
    )


def test_packed_needs_flex_attention(tmp_path: Path) -> None:
    model = load_model(make_model_folder(tmp_path / "m", "llama")).model
    with pytest.raises(ConfigError, match="packed needs attn_implementation: flex_attention"):
        choose_layout(model, requested="packed", longest=5)


def test_training_mode_is_restored(tmp_path: Path) -> None:
    model = load_model(make_model_folder(tmp_path / "m", "llama")).model.train()
    check_model(model)
    assert model.training
    assert torch.is_grad_enabled()


def _example(shared: int, own: int, responses: int) -> Example:
    """Responses that share a prompt of `shared` tokens and have `own` ones each."""
    sequences = [
        TokenSequence(
            [*range(shared), *([5 + r] * own)],
            [*([False] * shared), *([True] * own)],
            [*([-1] * shared), *([0] * own)],
        )
        for r in range(responses)
    ]
    none = (None,) * responses
    return Example("a", build_tree(sequences), (), (), (), none, none, none)


def test_trees_are_left_where_a_dense_mask_costs_more_than_sharing_saves(tmp_path: Path) -> None:
    """Counted by hand: body parameters P, width and layers of the tiny model, one tree of 1 prompt and K responses."""
    model = load_model(make_model_folder(tmp_path / "m", "llama")).model
    body = sum(
        p.numel() for n, p in model.named_parameters() if "layers" in n or n.endswith("norm.weight")
    )
    step, deep = _example(60, 10, 2), _example(10, 200, 8)

    def expected(tree: int, rows: list[int]) -> float:
        attention = 2 * 32
        masked = 6 * body * tree + 12 * attention * tree**2
        return masked / sum(6 * body * n + 6 * attention * n**2 for n in rows)

    assert tree_cost(model, [step]) == pytest.approx(expected(80, [70, 70]))
    assert tree_cost(model, [deep]) == pytest.approx(expected(1610, [210] * 8))
    assert tree_cost(model, []) == 1
    chosen = choose_layout(model, requested="auto", longest=10, examples=[step])
    assert chosen.layout is Layout.TREE
    chosen = choose_layout(model, requested="auto", longest=10, examples=[deep])
    assert chosen.layout is Layout.ROWS
    assert chosen.reason.startswith("a dense mask over trees of up to 1610 tokens would take ")
    chosen = choose_layout(model, requested="tree", longest=10, examples=[deep])
    assert chosen.layout is Layout.TREE
