"""LoRA adapters: where they go, that they start as nothing, and which names are refused."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
from peft import LoraConfig, PeftModel

from prefopt.errors import ConfigError, ModelError
from prefopt.models.load import LoraSettings, add_lora, load_model, weights_digest
from tests.tiny import FAMILIES, Family, make_model_folder

LINEAR = ["down_proj", "gate_proj", "k_proj", "o_proj", "q_proj", "up_proj", "v_proj"]


@pytest.mark.parametrize("family", FAMILIES)
def test_adapter_starts_as_nothing_and_only_it_is_trained(tmp_path: Path, family: Family) -> None:
    model, tokenizer, _ = load_model(make_model_folder(tmp_path / "model", family))
    ids = torch.tensor([tokenizer.encode("The capital of France")])
    with torch.no_grad():
        expected = model(ids).logits
    wrapped = add_lora(model, LoraSettings(r=4))
    with torch.no_grad():
        assert torch.equal(wrapped(ids).logits, expected)
    trained = [name for name, p in wrapped.named_parameters() if p.requires_grad]
    assert trained
    assert all("lora_" in name and "lm_head" not in name for name in trained)
    wrapped(ids).logits.square().mean().backward()
    moved = [n for n, p in wrapped.named_parameters() if p.grad is not None and p.grad.any()]
    assert {name.split(".")[-3] for name in moved} == {"lora_B"}


@pytest.mark.parametrize(
    ("wanted", "expected"),
    [
        ("all-linear", LINEAR),
        ("q_proj", ["q_proj"]),
        ("q_proj, v_proj", ["q_proj", "v_proj"]),
        (["q_proj", "v_proj"], ["q_proj", "v_proj"]),
        (r".*\.(up|down)_proj", ["down_proj", "up_proj"]),
        ("layers.1.mlp.up_proj", ["model.layers.1.mlp.up_proj"]),
    ],
)
def test_targets_mean_what_they_say(
    tmp_path: Path, wanted: str | Sequence[str], expected: list[str]
) -> None:
    model = load_model(make_model_folder(tmp_path / "model", "llama")).model
    wrapped = add_lora(model, LoraSettings(r=2, target_modules=wanted))
    assert sorted(_config(wrapped).target_modules or ()) == expected


def test_gpt2_layers_are_adapted_with_their_transposed_weights(tmp_path: Path) -> None:
    model = load_model(make_model_folder(tmp_path / "model", "gpt2")).model
    config = _config(add_lora(model, LoraSettings(r=2)))
    assert sorted(config.target_modules or ()) == ["c_attn", "c_fc", "c_proj"]
    assert config.fan_in_fan_out


def test_initial_weights_follow_the_seed_and_leave_the_global_state_alone(tmp_path: Path) -> None:
    folder = make_model_folder(tmp_path / "model", "llama")
    state = torch.random.get_rng_state()
    digests = [
        weights_digest(add_lora(load_model(folder).model, LoraSettings(r=2, seed=seed)))
        for seed in (0, 0, 1)
    ]
    assert digests[0] == digests[1] != digests[2]
    assert torch.equal(torch.random.get_rng_state(), state)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (
            LoraSettings(target_modules="q_porj"),
            "lora_target_modules: LlamaForCausalLM has no module 'q_porj'; did you mean q_proj? "
            f"linear layers: {', '.join(LINEAR)}",
        ),
        (
            LoraSettings(target_modules=["q_proj", "lm_head"]),
            "lora_target_modules: 'lm_head' is the output head of LlamaForCausalLM, which takes no LoRA weights: "
            "leave it out, or use 'all-linear'",
        ),
        (
            LoraSettings(target_modules=r".*(q_proj|lm_head)"),
            "lora_target_modules: '.*(q_proj|lm_head)' is the output head of LlamaForCausalLM, which takes no LoRA "
            "weights: leave it out, or use 'all-linear'",
        ),
        (
            LoraSettings(target_modules="embed_tokens"),
            "lora_target_modules: 'embed_tokens' (Embedding) is not a linear layer; linear layers: "
            f"{', '.join(LINEAR)}",
        ),
    ],
)
def test_wrong_targets_are_refused_by_name(
    tmp_path: Path, settings: LoraSettings, message: str
) -> None:
    model = load_model(make_model_folder(tmp_path / "model", "llama")).model
    with pytest.raises(ModelError) as caught:
        add_lora(model, settings)
    assert str(caught.value) == message


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (LoraSettings(r=0), "lora_r is 0: it must be at least 1"),
        (LoraSettings(alpha=-1), "lora_alpha is -1: it must be above 0"),
        (LoraSettings(dropout=1.0), "lora_dropout is 1.0: it must be at least 0 and below 1"),
        (
            LoraSettings(target_modules=""),
            "lora_target_modules is empty: name layers, or use 'all-linear'",
        ),
    ],
)
def test_numbers_out_of_range_are_refused(
    tmp_path: Path, settings: LoraSettings, message: str
) -> None:
    model = load_model(make_model_folder(tmp_path / "model", "llama")).model
    with pytest.raises(ConfigError) as caught:
        add_lora(model, settings)
    assert str(caught.value) == message


def test_a_second_adapter_is_refused(tmp_path: Path) -> None:
    folder = make_model_folder(tmp_path / "model", "llama")
    wrapped = add_lora(load_model(folder).model, LoraSettings(r=2))
    with pytest.raises(ModelError) as caught:
        add_lora(wrapped, LoraSettings(r=2))
    assert str(caught.value) == (
        f"{folder.resolve()} already has an adapter: train that one (use_peft=false), or merge it into its base "
        "first (PEFT merge_and_unload)"
    )


def _config(model: PeftModel) -> LoraConfig:
    config = model.peft_config["default"]
    assert isinstance(config, LoraConfig)
    return config
