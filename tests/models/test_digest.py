"""Digests change with every bit that matters and with nothing else."""

from __future__ import annotations

import hashlib
from pathlib import Path

import pytest
import torch
from torch import nn

from prefopt.errors import ModelError
from prefopt.models.digest import adapter_bytes, model_bytes, model_digest, weights_digest
from prefopt.models.load import LoraSettings, add_lora, disable_dropout, load_model
from tests.tiny import FAMILIES, Family, make_model_folder


def test_digest_is_the_hash_of_names_dtypes_shapes_and_bytes() -> None:
    module = nn.Linear(1, 2)
    with torch.no_grad():
        module.weight.copy_(torch.tensor([[1.0], [-2.0]]))
        module.bias.copy_(torch.tensor([0.0, 0.5]))
    expected = hashlib.sha256(
        b"bias\0torch.float32 [2]\0"
        + hashlib.sha256(bytes.fromhex("000000000000003f")).digest()
        + b"weight\0torch.float32 [2, 1]\0"
        + hashlib.sha256(bytes.fromhex("0000803f000000c0")).digest()
    )
    assert weights_digest(module) == expected.hexdigest()


@pytest.mark.parametrize("family", FAMILIES)
def test_changing_one_weight_by_one_bit_changes_the_digest(tmp_path: Path, family: Family) -> None:
    model = load_model(make_model_folder(tmp_path / "model", family)).model
    before = weights_digest(model)
    parameter = list(model.parameters())[-1]
    bits = parameter.data.view(torch.int32).flatten()
    bits[-1] ^= 1
    assert weights_digest(model) != before
    bits[-1] ^= 1
    assert weights_digest(model) == before


@pytest.mark.parametrize("family", FAMILIES)
def test_base_digest_of_an_adapter_model_is_that_of_the_base(
    tmp_path: Path, family: Family
) -> None:
    model = load_model(make_model_folder(tmp_path / "model", family)).model
    weights, whole = weights_digest(model), model_digest(model)
    wrapped = add_lora(model, LoraSettings(r=2))
    assert weights_digest(wrapped, adapter=False) == weights
    assert model_digest(wrapped, adapter=False) == whole
    assert weights_digest(wrapped) != weights
    assert model_digest(wrapped) != whole


def test_persistent_buffers_count_and_others_do_not() -> None:
    module, scratch, kept = nn.Module(), torch.zeros(1), torch.zeros(1)
    module.register_buffer("scratch", scratch, persistent=False)
    module.register_buffer("kept", kept)
    before = weights_digest(module)
    scratch += 1
    assert weights_digest(module) == before
    kept += 1
    assert weights_digest(module) != before


def test_memory_layout_does_not_count() -> None:
    module, other = nn.Linear(3, 3, bias=False), nn.Linear(3, 3, bias=False)
    other.weight.data = module.weight.data.T.contiguous().T
    assert not other.weight.is_contiguous()
    assert weights_digest(other) == weights_digest(module)


def test_model_digest_tells_models_with_equal_weights_apart(tmp_path: Path) -> None:
    llama = load_model(make_model_folder(tmp_path / "llama", "llama")).model
    mistral = load_model(make_model_folder(tmp_path / "mistral", "mistral")).model
    assert weights_digest(llama) == weights_digest(mistral)
    assert model_digest(llama) != model_digest(mistral)
    before = model_digest(llama)
    disable_dropout(llama)
    assert model_digest(llama) == before
    llama.config.rms_norm_eps = 1e-3
    assert model_digest(llama) != before


def test_bytes_count_tied_weights_once(tmp_path: Path) -> None:
    model = load_model(make_model_folder(tmp_path / "model", "gpt2")).model
    base = 4 * sum(p.numel() for p in model.parameters())
    assert model_bytes(model) == base
    wrapped = add_lora(model, LoraSettings(r=2))
    adapter = 4 * sum(p.numel() for p in wrapped.parameters() if p.requires_grad)
    assert adapter_bytes(wrapped) == adapter
    assert model_bytes(wrapped) == base + adapter


def test_weights_without_values_are_refused() -> None:
    with pytest.raises(ModelError, match="meta device"):
        weights_digest(nn.Linear(1, 1, device="meta"))
