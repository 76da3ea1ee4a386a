"""The start-up check: passes on real models, demotes and refuses those that would be silently wrong."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from prefopt.errors import ConfigError, ModelError
from prefopt.models.layout import choose_layout
from prefopt.models.load import find_backbone, load_model, output_head
from prefopt.models.selfcheck import check_model, require_head
from prefopt.pack.batch import Layout
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
