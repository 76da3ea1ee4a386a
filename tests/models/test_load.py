"""Folders, adapters and tokenizers become checked models."""

from __future__ import annotations

import json
import logging
from pathlib import Path

import huggingface_hub
import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file, save_file
from transformers import PreTrainedTokenizerFast

from prefopt.models.load import (
    LoraSettings,
    ModelSettings,
    add_lora,
    load_model,
    load_tokenizer,
    load_weights,
    weights_digest,
)
from prefopt.models.locate import looks_like_path
from prefopt.models.save import save_model
from tests.tiny import CHATML, END, FAMILIES, PAD, Family, make_model_folder, make_tokenizer

TEXT = "Hello, wörld!  3 + 4 = 77 \U0001f642\n\n it's <|im_end|>"


@pytest.mark.parametrize("family", FAMILIES)
def test_every_family_loads_the_stored_weights(tmp_path: Path, family: Family) -> None:
    folder = make_model_folder(tmp_path / family, family)
    model, tokenizer, is_adapter = load_model(folder)
    stored = load_file(folder / "model.safetensors")
    own = dict(model.named_parameters())
    assert not is_adapter
    assert not model.training
    assert {name for name in stored if torch.equal(stored[name], own[name])} == set(own)
    assert tokenizer.pad_token == PAD
    assert tokenizer.chat_template == CHATML


@pytest.mark.parametrize("family", FAMILIES)
def test_save_and_reload_gives_equal_weights_and_logits(tmp_path: Path, family: Family) -> None:
    model, tokenizer, _ = load_model(make_model_folder(tmp_path / "first", family))
    ids = torch.tensor([tokenizer.encode("Step 1: 3 + 4 = 7")])
    saved = save_model(model, tokenizer, tmp_path / "second")
    again, same_tokenizer, _ = load_model(saved)
    assert weights_digest(again) == weights_digest(model)
    with torch.no_grad():
        assert torch.equal(again(ids).logits, model(ids).logits)
    assert same_tokenizer.encode(TEXT) == tokenizer.encode(TEXT)


@pytest.mark.parametrize(
    ("family", "expected"), [("llama", "sdpa"), ("gemma2", "eager"), ("gemma3", "sdpa")]
)
def test_attention_defaults_to_what_the_architecture_supports(
    tmp_path: Path, family: Family, expected: str
) -> None:
    model = load_model(make_model_folder(tmp_path / "model", family)).model
    assert model.config._attn_implementation == expected


def test_dtype_is_float32_unless_asked_for(tmp_path: Path) -> None:
    folder = make_model_folder(tmp_path / "model", "llama")
    assert load_model(folder).model.dtype == torch.float32
    half = load_model(folder, ModelSettings(dtype="bfloat16"))
    assert half.model.dtype == torch.bfloat16
    save_model(half.model, half.tokenizer, tmp_path / "half")
    assert load_model(tmp_path / "half").model.dtype == torch.float32
    assert load_model(tmp_path / "half", ModelSettings(dtype="auto")).model.dtype == torch.bfloat16


@pytest.mark.parametrize("family", FAMILIES)
def test_adapter_folder_loads_on_its_base_and_is_trainable(tmp_path: Path, family: Family) -> None:
    base = make_model_folder(tmp_path / "base", family)
    model, tokenizer, _ = load_model(base)
    wrapped = add_lora(model, LoraSettings(r=4, alpha=8))
    _randomise(wrapped)
    ids = torch.tensor([tokenizer.encode("The answer is 5")])
    with torch.no_grad():
        expected = wrapped(ids).logits
    save_model(wrapped, tokenizer, tmp_path / "adapter")
    loaded = load_model(tmp_path / "adapter")
    assert loaded.is_adapter
    assert isinstance(loaded.model, PeftModel)
    trainable = {name for name, p in loaded.model.named_parameters() if p.requires_grad}
    assert trainable == {name for name, p in wrapped.named_parameters() if p.requires_grad}
    with torch.no_grad():
        assert torch.equal(loaded.model(ids).logits, expected)


def test_adapter_finds_a_base_given_relative_to_it(tmp_path: Path) -> None:
    model, tokenizer, _ = load_model(make_model_folder(tmp_path / "base", "llama"))
    adapter = save_model(add_lora(model, LoraSettings(r=2)), tokenizer, tmp_path / "adapter")
    config = json.loads((adapter / "adapter_config.json").read_text())
    assert config["base_model_name_or_path"] == str((tmp_path / "base").resolve())
    config["base_model_name_or_path"] = "../base"
    (adapter / "adapter_config.json").write_text(json.dumps(config))
    assert load_model(adapter).is_adapter


def test_adapter_without_tokenizer_takes_that_of_its_base(tmp_path: Path) -> None:
    model, tokenizer, _ = load_model(make_model_folder(tmp_path / "base", "qwen2"))
    adapter = save_model(add_lora(model, LoraSettings(r=2)), tokenizer, tmp_path / "adapter")
    for name in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja"):
        (adapter / name).unlink()
    assert load_model(adapter).tokenizer.encode(TEXT) == tokenizer.encode(TEXT)
    assert load_tokenizer(adapter).encode(TEXT) == tokenizer.encode(TEXT)


@pytest.mark.parametrize("family", ["llama", "gpt2", "gemma3"])
def test_load_weights_puts_saved_weights_back_in_place(tmp_path: Path, family: Family) -> None:
    model, tokenizer, _ = load_model(make_model_folder(tmp_path / "base", family))
    saved, before = save_model(model, tokenizer, tmp_path / "saved"), weights_digest(model)
    addresses = [p.data_ptr() for p in model.parameters()]
    _randomise(model)
    assert weights_digest(model) != before
    load_weights(model, saved)
    assert weights_digest(model) == before
    assert [p.data_ptr() for p in model.parameters()] == addresses


def test_load_weights_puts_an_adapter_back_in_place(tmp_path: Path) -> None:
    model, tokenizer, _ = load_model(make_model_folder(tmp_path / "base", "llama"))
    wrapped = add_lora(model, LoraSettings(r=2))
    _randomise(wrapped)
    saved, before = save_model(wrapped, tokenizer, tmp_path / "saved"), weights_digest(wrapped)
    addresses = [p.data_ptr() for p in wrapped.parameters()]
    _randomise(wrapped, seed=1)
    load_weights(wrapped, saved)
    assert weights_digest(wrapped) == before
    assert [p.data_ptr() for p in wrapped.parameters()] == addresses


@pytest.mark.parametrize("family", FAMILIES)
def test_a_generic_tokenizer_file_is_taken_as_it_is(tmp_path: Path, family: Family) -> None:
    """AutoTokenizer of transformers 5.23 gives another tokenization for the qwen2 folder."""
    folder = make_model_folder(tmp_path / family, family)
    tokenizer = load_tokenizer(folder)
    assert isinstance(tokenizer, PreTrainedTokenizerFast)
    assert tokenizer.encode(TEXT) == make_tokenizer().encode(TEXT)


def test_missing_pad_token_becomes_eos_and_is_logged(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    make_tokenizer(pad=False).save_pretrained(tmp_path)
    with caplog.at_level(logging.INFO, logger="prefopt"):
        tokenizer = load_tokenizer(tmp_path)
    assert tokenizer.pad_token == tokenizer.eos_token == END
    assert f"the tokenizer of {tmp_path} has no pad token: using '<|im_end|>'" in caplog.messages


def test_chat_template_file_replaces_the_tokenizers_own(tmp_path: Path) -> None:
    make_tokenizer().save_pretrained(tmp_path)
    file = tmp_path / "own.jinja"
    file.write_text("{% for m in messages %}[{{ m.role }}] {{ m.content }}{% endfor %}")
    tokenizer = load_tokenizer(tmp_path, chat_template=file)
    conversation = [{"role": "user", "content": "hi"}]
    assert tokenizer.apply_chat_template(conversation, tokenize=False) == "[user] hi"


def test_template_that_refuses_a_lone_user_message_is_no_error(tmp_path: Path) -> None:
    template = "{{ raise_exception('a system message is needed') }}"
    make_tokenizer(chat_template=template).save_pretrained(tmp_path)
    assert load_tokenizer(tmp_path).chat_template == template


def test_a_hub_model_in_the_cache_loads_without_network(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    repository = tmp_path / "models--someone--tiny"
    make_model_folder(repository / "snapshots" / ("a" * 40), "llama")
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text("a" * 40)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    model, tokenizer, is_adapter = load_model("someone/tiny")
    assert not is_adapter
    assert model.name_or_path == "someone/tiny"
    adapter = save_model(add_lora(model, LoraSettings(r=2)), tokenizer, tmp_path / "adapter")
    assert load_model(adapter).is_adapter


def test_weights_nobody_uses_are_remarked_upon(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    folder = make_model_folder(tmp_path / "model", "llama")
    tensors = load_file(folder / "model.safetensors")
    save_file({**tensors, "v_head.weight": torch.zeros(1)}, folder / "model.safetensors")
    with caplog.at_level(logging.WARNING, logger="prefopt"):
        load_model(folder)
    assert caplog.messages == [f"{folder}: weights not used: 1, first v_head.weight"]


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        ("gpt2", False),
        ("Qwen/Qwen3-0.6B", False),
        ("./gpt2", True),
        ("../runs/dpo", True),
        ("/models/llama", True),
        ("~/models/llama", True),
        ("runs/dpo/model", True),
        ("there/mistyped", True),
        ("C:\\models\\llama", True),
        ("there", True),
    ],
)
def test_paths_are_told_from_hub_ids(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, source: str, expected: bool
) -> None:
    (tmp_path / "there").mkdir()
    monkeypatch.chdir(tmp_path)
    assert looks_like_path(source) is expected


def _randomise(model: torch.nn.Module, seed: int = 0) -> None:
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.copy_(0.1 * torch.randn(parameter.shape, generator=generator))
