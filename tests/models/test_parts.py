"""Backbone and head reproduce the model's own logits; dropout and adapters switch off."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from torch import Tensor
from transformers import (
    AutoModelForCausalLM,
    Cohere2Config,
    FalconConfig,
    FalconH1Config,
    GraniteConfig,
    PreTrainedConfig,
    PreTrainedModel,
    RecurrentGemmaConfig,
)

from prefopt.errors import ModelError
from prefopt.models.load import (
    LoraSettings,
    adapter_disabled,
    add_lora,
    disable_dropout,
    find_backbone,
    load_model,
    output_head,
)
from tests.tiny import FAMILIES, Family, make_config, make_model_folder

SMALL: dict[str, Any] = {
    "vocab_size": 50,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "pad_token_id": 0,
}
MAMBA: dict[str, Any] = {
    "mamba_d_ssm": 32,
    "mamba_n_heads": 4,
    "mamba_d_head": 8,
    "mamba_d_state": 8,
}
RECURRENT: dict[str, Any] = {"lru_width": 32, "attention_window_size": 16, "num_hidden_layers": 3}


@pytest.mark.parametrize("family", FAMILIES)
def test_head_of_backbone_states_is_the_models_logits(tmp_path: Path, family: Family) -> None:
    model = load_model(make_model_folder(tmp_path / "model", family)).model
    assert torch.equal(*_both_logits(model))
    wrapped = add_lora(model, LoraSettings(r=2))
    assert find_backbone(wrapped) is find_backbone(model)
    assert torch.equal(*_both_logits(wrapped))


@pytest.mark.parametrize(
    ("config", "scale", "softcap"),
    [
        (Cohere2Config(**SMALL, logit_scale=0.25), 0.25, None),
        (GraniteConfig(**SMALL, logits_scaling=8.0), 0.125, None),
        (FalconH1Config(**SMALL, **MAMBA, lm_head_multiplier=3.0), 3.0, None),
        (RecurrentGemmaConfig(**{**SMALL, **RECURRENT}, logits_soft_cap=0.5), 1.0, 0.5),
        (make_config("gemma2", vocab_size=50, final_logit_softcapping=0.25), 1.0, 0.25),
        (make_config("gemma3", vocab_size=50, final_logit_softcapping=0.25), 1.0, 0.25),
    ],
    ids=lambda value: value.model_type if isinstance(value, PreTrainedConfig) else None,
)
def test_scales_and_caps_of_logits_are_known(
    config: PreTrainedConfig, scale: float, softcap: float | None
) -> None:
    model = _fresh(config)
    head = output_head(model)
    assert head.scale == scale
    assert head.softcap == softcap
    torch.testing.assert_close(*_both_logits(model), atol=1e-6, rtol=1e-6)


@pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing:FutureWarning")  # peft 0.21
def test_head_trained_in_full_follows_the_adapter_switch(tmp_path: Path) -> None:
    base = load_model(make_model_folder(tmp_path / "model", "llama")).model
    original = output_head(base).weight
    config = LoraConfig(target_modules=["q_proj"], modules_to_save=["lm_head"])
    wrapped = get_peft_model(base, config)
    assert isinstance(wrapped, PeftModel)
    trained = output_head(wrapped).weight
    assert trained is not original
    assert trained.requires_grad
    with adapter_disabled(wrapped):
        assert output_head(wrapped).weight is original
    assert output_head(wrapped).weight is trained


@pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing:FutureWarning")  # peft 0.21
def test_head_with_lora_weights_is_refused_by_name(tmp_path: Path) -> None:
    base = load_model(make_model_folder(tmp_path / "model", "llama")).model
    wrapped = get_peft_model(base, LoraConfig(target_modules=["lm_head"]))
    with pytest.raises(ModelError, match="the output head 'lm_head' is wrapped by Linear"):
        output_head(wrapped)


def test_head_that_is_no_linear_layer_is_refused_by_name(tmp_path: Path) -> None:
    model = load_model(make_model_folder(tmp_path / "model", "llama")).model
    model.lm_head = torch.nn.Identity()
    with pytest.raises(
        ModelError, match="the output head 'lm_head' \\(Identity\\) is not a linear"
    ):
        output_head(model)


@pytest.mark.parametrize("family", FAMILIES)
def test_without_its_adapter_a_model_computes_what_its_base_does(
    tmp_path: Path, family: Family
) -> None:
    model = load_model(make_model_folder(tmp_path / "model", family)).model
    expected = _logits(model)
    wrapped = add_lora(model, LoraSettings(r=2))
    flags = {}
    for name, parameter in wrapped.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, generator=torch.Generator().manual_seed(0))
        if "layers.0" in name or "h.0" in name:
            parameter.requires_grad = False
        flags[name] = parameter.requires_grad
    assert not torch.equal(_logits(wrapped), expected)
    with adapter_disabled(wrapped):
        assert torch.equal(_logits(wrapped), expected)
    assert not torch.equal(_logits(wrapped), expected)
    assert {name: p.requires_grad for name, p in wrapped.named_parameters()} == flags


def test_a_plain_model_has_no_adapter_to_switch_off(tmp_path: Path) -> None:
    model = load_model(make_model_folder(tmp_path / "model", "llama")).model
    with pytest.raises(ModelError, match="has no adapter to switch off"), adapter_disabled(model):
        pass


@pytest.mark.parametrize(
    "config",
    [
        make_config("llama", vocab_size=50, attention_dropout=0.5),
        make_config("gpt2", vocab_size=50, resid_pdrop=0.5, attn_pdrop=0.5, embd_pdrop=0.5),
        FalconConfig(
            vocab_size=50,
            hidden_size=32,
            num_hidden_layers=2,
            num_attention_heads=4,
            hidden_dropout=0.5,
            attention_dropout=0.5,
        ),
    ],
    ids=lambda config: config.model_type,
)
def test_without_dropout_training_mode_computes_what_eval_mode_does(
    config: PreTrainedConfig,
) -> None:
    model = _fresh(config)
    expected = _logits(model)
    model.train()
    assert not torch.equal(_logits(model), expected)
    disable_dropout(model)
    assert torch.equal(_logits(model), expected)


def test_loras_own_dropout_stays(tmp_path: Path) -> None:
    model = load_model(make_model_folder(tmp_path / "model", "llama")).model
    wrapped = add_lora(model, LoraSettings(r=2, dropout=0.25))
    disable_dropout(wrapped)
    assert {m.p for m in wrapped.modules() if isinstance(m, torch.nn.Dropout)} == {0.25}


def _fresh(config: PreTrainedConfig) -> PreTrainedModel:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return AutoModelForCausalLM.from_config(config, dtype=torch.float32).eval()


def _logits(model: PreTrainedModel | PeftModel) -> Tensor:
    with torch.no_grad():
        return model(torch.tensor([[5, 6, 7, 8, 9]])).logits


def _both_logits(model: PreTrainedModel | PeftModel) -> tuple[Tensor, Tensor]:
    with torch.no_grad():
        hidden = find_backbone(model)(torch.tensor([[5, 6, 7, 8, 9]])).last_hidden_state
        weight, bias, scale, softcap = output_head(model)
        logits = scale * torch.nn.functional.linear(hidden, weight, bias)
        if softcap is not None:
            logits = softcap * torch.tanh(logits / softcap)
    return logits, _logits(model)
