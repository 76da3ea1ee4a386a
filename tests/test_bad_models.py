"""Every wrong model folder, adapter or tokenizer is one line: what is wrong, where, what to do."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import huggingface_hub
import pytest
import torch
from safetensors.torch import load_file, save_file

from prefopt.errors import ConfigError, ModelError, PrefoptError
from prefopt.models.load import (
    LoraSettings,
    ModelSettings,
    add_lora,
    load_model,
    load_tokenizer,
    load_weights,
)
from prefopt.models.save import save_model
from tests.tiny import make_model_folder, make_tokenizer

Damage = Callable[[Path], object]


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with `model` (a whole Llama) and `adapter` (LoRA on it)."""
    root = tmp_path_factory.mktemp("whole")
    model, tokenizer, _ = load_model(make_model_folder(root / "model", "llama"))
    save_model(add_lora(model, LoraSettings(r=2)), tokenizer, root / "adapter")
    return root


def _write(name: str, text: str) -> Damage:
    return lambda folder: (folder / name).write_text(text)


def _delete(*names: str) -> Damage:
    return lambda folder: [(folder / name).unlink() for name in names]


def _set(file: str, **fields: Any) -> Damage:
    def change(folder: Path) -> None:
        stored = json.loads((folder / file).read_text())
        stored.update(fields)
        (folder / file).write_text(json.dumps({k: v for k, v in stored.items() if v is not ...}))

    return change


def _config(**fields: Any) -> Damage:
    return _set("config.json", **fields)


def _adapter(**fields: Any) -> Damage:
    return _set("adapter_config.json", **fields)


def _weights(change: Callable[[dict[str, torch.Tensor]], object], file: str = "model") -> Damage:
    def rewrite(folder: Path) -> None:
        tensors = load_file(folder / f"{file}.safetensors")
        change(tensors)
        save_file(tensors, folder / f"{file}.safetensors", metadata={"format": "pt"})

    return rewrite


def _cut(file: str) -> Damage:
    def cut(folder: Path) -> None:
        data = (folder / file).read_bytes()
        (folder / file).write_bytes(data[: len(data) // 2])

    return cut


def _shards(**present: bool) -> Damage:
    def split(folder: Path) -> None:
        (folder / "model.safetensors").rename(folder / "part1.safetensors")
        names = {"weight_map": {"a": "part1.safetensors", "b": "part2.safetensors"}}
        (folder / "model.safetensors.index.json").write_text(json.dumps(names))

    del present
    return split


UP = "model.layers.1.mlp.up_proj.weight"
HEAD = "lm_head.weight"

MODELS: dict[str, tuple[Damage, str]] = {
    "config absent": (
        _delete("config.json"),
        "{0} has no config.json: give the folder that holds the model",
    ),
    "config not JSON": (
        _write("config.json", '{"model_type":'),
        "{0}/config.json is not valid JSON (Expecting value: line 1 column 15 (char 14)): correct it or copy it "
        "again",
    ),
    "config a list": (
        _write("config.json", "[]"),
        "{0}/config.json holds a list, not a JSON object: copy it again",
    ),
    "config of something else": (
        _write("config.json", "{}"),
        "{0}/config.json has no model_type: it is not the configuration of a transformers model",
    ),
    "unknown model type": (
        _config(model_type="lama"),
        "{0} has the model type 'lama', which the installed transformers does not know: correct config.json or "
        "upgrade transformers",
    ),
    "wrong type in config": (
        _config(hidden_size="big"),
        "{0}/config.json is not usable (...): correct it or copy it again",
    ),
    "own code not trusted": (
        _config(model_type="mine", auto_map={"AutoConfig": "m.C", "AutoModelForCausalLM": "m.M"}),
        "{0} runs its own Python code: read it, then set trust_remote_code=true if you trust it",
    ),
    "encoder-decoder": (
        _write("config.json", '{"model_type": "t5"}'),
        "{0} is a t5 model, not a causal language model: use a decoder such as Llama, Qwen, Gemma, Mistral or "
        "GPT-2",
    ),
    "encoder": (
        _write("config.json", '{"model_type": "bert"}'),
        "{0} is a bert model, not a causal language model: use a decoder such as Llama, Qwen, Gemma, Mistral or "
        "GPT-2",
    ),
    "weights absent": (
        _delete("model.safetensors"),
        "{0} has no weights (model.safetensors or pytorch_model.bin expected): the copy or the save was "
        "interrupted; copy the folder again or use another checkpoint",
    ),
    "weights cut short": (
        _cut("model.safetensors"),
        "{0}/model.safetensors is damaged or cut short (...): copy it"
        " again or use another checkpoint",
    ),
    "weights empty": (
        _write("model.safetensors", ""),
        "{0}/model.safetensors is empty: copy it again or use another checkpoint",
    ),
    "shard absent": (
        _shards(),
        "{0} lacks 1 of 2 weight files, first part2.safetensors: copy the folder again",
    ),
    "index not JSON": (
        lambda folder: (
            _delete("model.safetensors")(folder),
            _write("model.safetensors.index.json", "{")(folder),
        ),
        "{0}/model.safetensors.index.json is not a valid weight index (Expecting property name enclosed in double "
        "quotes: line 1 column 2 (char 1)): copy the folder again",
    ),
    "one weight missing": (
        _weights(lambda tensors: tensors.pop(UP)),
        f"{{0}} lacks 1 of the model's weights, first {UP}: the folder is incomplete or belongs to another "
        "architecture; copy it again or correct config.json",
    ),
    "untied head missing": (
        _weights(lambda tensors: tensors.pop(HEAD)),
        f"{{0}} lacks 1 of the model's weights, first {HEAD}: the folder is incomplete or belongs to another "
        "architecture; copy it again or correct config.json",
    ),
    "weights of a smaller model": (
        _config(num_hidden_layers=3),
        "{0} lacks 9 of the model's weights, first model.layers.2.input_layernorm.weight: the folder is incomplete "
        "or belongs to another architecture; copy it again or correct config.json",
    ),
    "weight of another shape": (
        _weights(lambda tensors: tensors.update({UP: torch.zeros(3, 3)})),
        f"{{0}}: weights and config.json belong to different models: {UP} is [3, 3] in the file and [64, 32] by "
        "config.json (1 such); use the config.json saved with the weights",
    ),
    "tokenizer absent": (
        _delete("tokenizer.json", "tokenizer_config.json"),
        "{0} has no tokenizer (tokenizer.json expected): copy it there or set tokenizer_name_or_path",
    ),
    "tokenizer not JSON": (
        _write("tokenizer.json", "{"),
        "{0}: a tokenizer file is not valid JSON (Expecting property name enclosed in double quotes: line 1 column "
        "2 (char 1)): copy it again",
    ),
    "tokenizer cut out": (
        _set("tokenizer.json", model=...),
        "{0}/tokenizer.json is damaged (...): copy it again",
    ),
    "tokenizer of a larger model": (
        lambda folder: make_tokenizer([f"word{i}" for i in range(200)]).save_pretrained(folder),
        "the tokenizer of {0} has ids up to 460 ('word199') but the model embeds only 375: use the tokenizer that "
        "belongs to the model (tokenizer_name_or_path)",
    ),
    "tokenizer without any end": (
        _set("tokenizer_config.json", eos_token=None, pad_token=None),
        "the tokenizer of {0} has no pad, eos or unk token: add an eos_token to tokenizer_config.json",
    ),
    "template with a typing error": (
        _write("chat_template.jinja", "{% for m in messages %}\n{% endfro %}"),
        "the chat template of {0} is not valid jinja: line 2: Encountered unknown tag 'endfro'. Jinja was looking "
        "for the following tags: 'endfor' or 'else'. The innermost block that needs to be closed is 'for'.",
    ),
}

ADAPTERS: dict[str, tuple[Damage, str]] = {
    "adapter config not JSON": (
        _write("adapter_config.json", "nothing"),
        "{0}/adapter_config.json is not valid JSON (Expecting value: line 1 column 1 (char 0)): correct it or copy "
        "it again",
    ),
    "base not named": (
        _adapter(base_model_name_or_path=None),
        "{0}/adapter_config.json does not name its base model: set base_model_name_or_path there",
    ),
    "base moved": (
        _adapter(base_model_name_or_path="/nowhere/base"),
        "the base model of adapter {0} is missing: model folder /nowhere/base does not exist: check the path; or "
        "correct base_model_name_or_path in {0}/adapter_config.json",
    ),
    "adapter weights absent": (
        _delete("adapter_model.safetensors"),
        "{0} has no weights (adapter_model.safetensors or adapter_model.bin expected): the copy or the save was "
        "interrupted; copy the folder again or use another checkpoint",
    ),
    "adapter weights cut short": (
        _cut("adapter_model.safetensors"),
        "{0}/adapter_model.safetensors is damaged or cut short (...): copy it"
        " again or use another checkpoint",
    ),
    "one adapter weight missing": (
        _weights(lambda tensors: tensors.pop(min(tensors)), "adapter_model"),
        "adapter {0} lacks 1 of its weights, first base_model.model.model.layers.0.mlp.down_proj.lora_A.weight: "
        "copy the folder again",
    ),
    "adapter also replaces the embedding": (
        _weights(
            lambda tensors: tensors.update(
                {"base_model.model.model.embed_tokens.weight": torch.zeros(375, 32)}
            ),
            "adapter_model",
        ),
        "adapter {0} also replaces weights of its base model, first base_model.model.model.embed_tokens.weight: "
        "merge it into the base first (PEFT merge_and_unload), or use the base model it was trained on",
    ),
    "adapter of another rank": (
        _adapter(r=3),
        "adapter {0} does not fit its base model {1} (...): use the base model it was trained on",
    ),
    "virtual tokens": (
        _adapter(peft_type="PROMPT_TUNING", num_virtual_tokens=4),
        "adapter {0} is of type PROMPT_TUNING, whose virtual tokens cannot be packed: use LoRA",
    ),
}

SETTINGS: dict[str, tuple[ModelSettings, str]] = {
    "unknown dtype": (
        ModelSettings(dtype="fp8"),
        "dtype 'fp8' is unknown: use one of float32, bfloat16, float16, auto",
    ),
    "unknown device": (
        ModelSettings(device="gpu"),
        "device 'gpu' is unknown: use cpu or cuda",
    ),
    "absent device": (
        ModelSettings(device="cuda:99"),
        f"device 'cuda:99' is not there: torch sees {torch.cuda.device_count()} CUDA devices",
    ),
    "unknown attention": (
        ModelSettings(attn_implementation="fast"),
        "{0} cannot use attn_implementation 'fast' (...): leave it unset, or use eager",
    ),
    "absent template": (
        ModelSettings(chat_template="no/such.jinja"),
        "chat_template no/such.jinja cannot be read: No such file or directory",
    ),
    "absent tokenizer": (
        ModelSettings(tokenizer="./no-tokenizer"),
        "model folder no-tokenizer does not exist: check the path",
    ),
}


def _check(message: str, expected: str) -> None:
    """Equal, but for what another library says at `(...)`."""
    assert "\n" not in message
    pattern = re.escape(expected).replace(re.escape("(...)"), r"\(.+\)")
    assert re.fullmatch(pattern, message), message


@pytest.mark.parametrize("case", MODELS)
def test_wrong_model_folder(whole: Path, tmp_path: Path, case: str) -> None:
    damage, expected = MODELS[case]
    folder = shutil.copytree(whole / "model", tmp_path / "model")
    load_model(folder)
    damage(folder)
    with pytest.raises(PrefoptError) as caught:
        load_model(folder)
    _check(str(caught.value), expected.format(folder))


@pytest.mark.parametrize("case", ADAPTERS)
def test_wrong_adapter_folder(whole: Path, tmp_path: Path, case: str) -> None:
    damage, expected = ADAPTERS[case]
    folder = shutil.copytree(whole / "adapter", tmp_path / "adapter")
    damage(folder)
    with pytest.raises(ModelError) as caught:
        load_model(folder)
    _check(str(caught.value), expected.format(folder, (whole / "model").resolve()))


@pytest.mark.parametrize("case", SETTINGS)
def test_wrong_settings(whole: Path, case: str) -> None:
    settings, expected = SETTINGS[case]
    with pytest.raises(PrefoptError) as caught:
        load_model(whole / "model", settings)
    _check(str(caught.value), expected.format(whole / "model"))


def test_missing_folder_names_the_nearest_one_at_once(whole: Path) -> None:
    with pytest.raises(ModelError) as caught:
        load_model(f"{whole}/modle")
    assert str(caught.value) == (
        f"model folder {whole}/modle does not exist: did you mean {whole}/model?"
    )


def test_run_folder_names_the_model_inside_it(whole: Path, tmp_path: Path) -> None:
    shutil.copytree(whole / "model", tmp_path / "run" / "model")
    with pytest.raises(ModelError) as caught:
        load_model(tmp_path / "run")
    assert str(caught.value) == (
        f"{tmp_path}/run has no config.json: did you mean {tmp_path}/run/model?"
    )


def test_weight_file_instead_of_its_folder(whole: Path) -> None:
    with pytest.raises(ModelError) as caught:
        load_model(whole / "model" / "model.safetensors")
    assert str(caught.value) == (
        f"{whole}/model/model.safetensors is a file: give the folder that holds config.json and the weights"
    )


def test_empty_name() -> None:
    with pytest.raises(
        ModelError, match="model_name_or_path is empty: give a model folder or a hub"
    ):
        load_model("")


def test_unsupported_attention_is_named(tmp_path: Path) -> None:
    folder = make_model_folder(tmp_path / "model", "gemma2")
    with pytest.raises(ModelError, match="cannot use attn_implementation 'sdpa'") as caught:
        load_model(folder, ModelSettings(attn_implementation="sdpa"))
    assert str(caught.value).endswith("leave it unset, or use eager")


@pytest.mark.parametrize(
    ("constant", "value"), [("ENDPOINT", "http://127.0.0.1:9"), ("HF_HUB_OFFLINE", True)]
)
def test_hub_out_of_reach(
    monkeypatch: pytest.MonkeyPatch, constant: str, value: str | bool
) -> None:
    monkeypatch.setattr(huggingface_hub.constants, constant, value)
    with pytest.raises(ModelError) as caught:
        load_model("someone/no-such-model")
    _check(
        str(caught.value),
        "no folder 'someone/no-such-model' here, and the hub cannot be reached or is switched off (...): give the path "
        "of a local model folder, or check the network",
    )


def test_name_that_no_hub_model_can_have() -> None:
    with pytest.raises(ModelError) as caught:
        load_model("my model")
    assert str(caught.value) == "'my model' is neither a folder here nor a valid hub id"


def test_template_with_a_typing_error_in_its_own_file(whole: Path, tmp_path: Path) -> None:
    file = tmp_path / "chat.jinja"
    file.write_text("{{ messages[0].content }")
    with pytest.raises(ConfigError) as caught:
        load_tokenizer(whole / "model", chat_template=file)
    assert str(caught.value) == (
        f"the chat template of {file} is not valid jinja: line 1: unexpected '}}'"
    )


def test_weights_of_another_model_are_not_read_back(whole: Path, tmp_path: Path) -> None:
    other = load_model(make_model_folder(tmp_path / "wide", "llama", intermediate_size=48)).model
    with pytest.raises(ModelError) as caught:
        load_weights(other, whole / "model")
    assert str(caught.value) == (
        f"{whole}/model: model.layers.0.mlp.down_proj.weight is float32 [32, 64] there and float32 [32, 48] in the "
        "model; load it into the model it was saved from"
    )
    deeper = load_model(make_model_folder(tmp_path / "deep", "llama", num_hidden_layers=3)).model
    with pytest.raises(ModelError) as caught:
        load_weights(deeper, whole / "model")
    assert str(caught.value) == (
        f"{whole}/model holds the weights of another model: it lacks model.layers.2.input_layernorm.weight"
    )


def test_adapter_of_another_rank_is_not_read_back(whole: Path) -> None:
    model = add_lora(load_model(whole / "model").model, LoraSettings(r=3))
    with pytest.raises(ModelError) as caught:
        load_weights(model, whole / "adapter")
    assert str(caught.value).endswith("use the same lora_r and base model")
