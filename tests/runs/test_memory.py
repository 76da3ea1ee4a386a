"""The memory estimate, which computes nothing, against what autograd really keeps."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor

from prefopt.models.load import CausalModel, LoraSettings, add_lora, disable_dropout, load_model
from prefopt.models.scorer import Scorer
from prefopt.pack.batch import Layout, PackedBatch, collate
from prefopt.runs.memory import estimate_memory
from tests.numerics.forest import random_example
from tests.tiny import Family, make_model_folder

BATCH = collate(
    [[random_example(s, vocabulary=200, prompt=60, length=40)] for s in range(4)],
    layout=Layout.TREE,
)


def really_saved(model: CausalModel, batch: PackedBatch) -> int:
    """Bytes of distinct storages, parameters left out, that a forward pass keeps for the backward pass."""
    sizes: dict[int, int] = {}
    alive: list[Tensor] = []

    def note(tensor: Tensor) -> Tensor:
        sizes.setdefault(tensor.untyped_storage()._cdata, tensor.untyped_storage().nbytes())  # pyright: ignore[reportPrivateUsage]
        alive.append(tensor)
        return tensor

    own = {p.untyped_storage()._cdata for p in model.parameters()}  # pyright: ignore[reportPrivateUsage]
    with torch.autograd.graph.saved_tensors_hooks(note, lambda t: t):
        Scorer(model).hidden_states(batch).sum()
    return sum(size for identity, size in sizes.items() if identity not in own)


@pytest.mark.parametrize("family", ["llama", "qwen3", "gpt2"])
def test_activations_agree_within_a_tenth(family: Family, tmp_path: Path) -> None:
    model = load_model(make_model_folder(tmp_path / family, family)).model.train()
    disable_dropout(model)
    estimate = estimate_memory(model, BATCH, chunk_bytes=1 << 20)["activations"]
    assert estimate == pytest.approx(really_saved(model, BATCH), rel=0.1)


def test_fixed_parts_are_counted_from_the_parameters(tmp_path: Path) -> None:
    model = load_model(make_model_folder(tmp_path / "m", "llama")).model
    count = sum(p.numel() for p in model.parameters())
    memory = estimate_memory(model, BATCH, chunk_bytes=1 << 20)
    assert memory["gradients"] == 4 * count
    assert memory["optimizer"] == 8 * count
    adapted = add_lora(model, LoraSettings(r=2))
    trained = sum(p.numel() for p in adapted.parameters() if p.requires_grad)
    assert estimate_memory(adapted, BATCH, chunk_bytes=1 << 20)["optimizer"] == 8 * trained
    assert trained < count / 10
