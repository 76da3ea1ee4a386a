"""New special tokens: rows that are exactly the mean, tokenizer and model that load again, runs that learn them."""

from __future__ import annotations

import math
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

from prefopt.errors import ConfigError, ModelError
from prefopt.models.load import LoraSettings, add_lora, load_model
from prefopt.models.save import save_model
from prefopt.models.special_tokens import add_special_tokens, extend_embeddings, extend_tokenizer
from prefopt.text.blocks import END_OF_MESSAGE, SPECIAL_TOKENS, Block, conversation, serialise
from tests.integration.runs import Settings, losses, weights, write_rows
from tests.tiny import FAMILIES, make_model_folder, make_tokenizer

PLAIN = make_tokenizer(chat_template=None)
OLD = len(PLAIN)


def opened(folder: Path) -> tuple[Any, Any]:
    """Model and tokenizer of a folder; transformers types embeddings as modules without weights."""
    loaded = load_model(folder)
    return loaded.model, loaded.tokenizer


def tables_of(model: Any) -> list[torch.Tensor]:
    return [model.get_input_embeddings().weight, model.get_output_embeddings().weight]


@pytest.mark.parametrize("family", FAMILIES)
def test_new_rows_are_the_mean_of_the_old_ones_and_the_old_ones_stay(
    family: str, tmp_path: Path
) -> None:
    folder = make_model_folder(tmp_path / "m", family, tokenizer=PLAIN)  # type: ignore[arg-type]
    model, tokenizer = opened(folder)
    before = [table.detach().clone() for table in tables_of(model)]
    state = torch.get_rng_state()
    assert add_special_tokens(model, tokenizer, SPECIAL_TOKENS) == 8
    assert torch.equal(torch.get_rng_state(), state)
    for old, new in zip(before, tables_of(model), strict=True):
        assert new.shape[0] == 384 == math.ceil((OLD + 8) / 128) * 128
        assert torch.equal(new[:OLD], old)
        assert torch.equal(new[OLD:], old.mean(dim=0).expand(384 - OLD, -1))
    assert model.config.vocab_size == 384


def test_a_tied_table_and_a_bias(tmp_path: Path) -> None:
    folder = make_model_folder(tmp_path / "m", "llama", tokenizer=PLAIN, tie_word_embeddings=True)
    model, tokenizer = opened(folder)
    add_special_tokens(model, tokenizer, SPECIAL_TOKENS, multiple=1)
    head = model.get_output_embeddings()
    assert head.weight is model.get_input_embeddings().weight
    assert head.weight.shape[0] == OLD + 8

    untied, tokenizer = opened(make_model_folder(tmp_path / "u", "llama", tokenizer=PLAIN))
    untied.get_output_embeddings().bias = torch.nn.Parameter(torch.arange(OLD, dtype=torch.float32))
    add_special_tokens(untied, tokenizer, SPECIAL_TOKENS)
    bias = untied.get_output_embeddings().bias
    assert bias[OLD:].tolist() == [(OLD - 1) / 2] * (384 - OLD)


def test_unused_rows_of_the_table_are_taken_first_and_do_not_count_for_the_mean(
    tmp_path: Path,
) -> None:
    folder = make_model_folder(tmp_path / "m", "llama", tokenizer=PLAIN, vocab_size=512)
    model, tokenizer = opened(folder)
    old = model.get_input_embeddings().weight.detach().clone()
    add_special_tokens(model, tokenizer, SPECIAL_TOKENS)
    now = model.get_input_embeddings().weight
    assert torch.equal(now[OLD : OLD + 8], old[:OLD].mean(dim=0).expand(8, -1))
    assert torch.equal(now[OLD + 8 :], old[OLD + 8 :])
    assert torch.equal(now[:OLD], old[:OLD])


def test_tokens_that_are_there_are_left_and_nothing_is_resized(tmp_path: Path) -> None:
    folder = make_model_folder(tmp_path / "m", "llama", tokenizer=PLAIN)
    model, tokenizer = opened(folder)
    assert add_special_tokens(model, tokenizer, ["<eos>"]) == 0
    assert model.get_input_embeddings().weight.shape[0] == OLD
    assert add_special_tokens(model, tokenizer, ["<eos>", "<|text|>"], multiple=1) == 1
    assert add_special_tokens(model, tokenizer, SPECIAL_TOKENS) == 7
    assert tokenizer.all_special_tokens.count("<|text|>") == 1


def test_saved_and_loaded_again(tmp_path: Path) -> None:
    folder = make_model_folder(tmp_path / "m", "llama", tokenizer=PLAIN)
    model, tokenizer = opened(folder)
    add_special_tokens(model, tokenizer, SPECIAL_TOKENS)
    again, learnt = opened(save_model(model, tokenizer, tmp_path / "saved"))
    assert set(SPECIAL_TOKENS) <= set(learnt.all_special_tokens)
    assert set(PLAIN.all_special_tokens) <= set(learnt.all_special_tokens)
    text = conversation("", "3 + 4?") + serialise([Block("text", "7")]) + END_OF_MESSAGE
    ids = learnt(text, add_special_tokens=False).input_ids
    assert ids == tokenizer(text, add_special_tokens=False).input_ids
    assert learnt.decode(ids) == text
    assert sum(i >= OLD for i in ids) == text.count("<|") == 12
    with torch.no_grad():
        a, b = (m(torch.tensor([ids])).logits for m in (model, again))
    assert torch.equal(a, b)


@pytest.mark.parametrize(
    ("tokens", "error", "message"),
    [
        (["<|a|>", "<|a|>"], ConfigError, "'<|a|>' is no usable token"),
        ([" <|a|>"], ConfigError, "' <|a|>' is no usable token"),
        ([""], ConfigError, "'' is no usable token"),
    ],
)
def test_unusable_tokens_are_refused(
    tokens: list[str], error: type[Exception], message: str
) -> None:
    with pytest.raises(error) as refusal:
        extend_tokenizer(make_tokenizer(chat_template=None), tokens)
    assert message in str(refusal.value)


def test_an_ordinary_word_that_running_text_does_not_show_is_refused() -> None:
    tokenizer = make_tokenizer(chat_template=None)
    words = [w for w in tokenizer.get_vocab() if w.isascii() and w.isalpha() and len(w) > 2]
    hidden = next(
        w for w in words
        if tokenizer.get_vocab()[w] not in tokenizer(f"a{w}a", add_special_tokens=False).input_ids
    )  # fmt: skip
    with pytest.raises(
        ModelError, match="is a word of the tokenizer but not found in running text"
    ):
        extend_tokenizer(tokenizer, [hidden])


def test_adapters_are_refused(tmp_path: Path) -> None:
    model, tokenizer = opened(make_model_folder(tmp_path / "m", "llama", tokenizer=PLAIN))
    wrapped = add_lora(model, LoraSettings(r=2))
    added = extend_tokenizer(tokenizer, SPECIAL_TOKENS)
    with pytest.raises(ConfigError, match="8 are new to the model, and an adapter does not train"):
        extend_embeddings(wrapped, tokenizer, added)
    assert extend_embeddings(wrapped, tokenizer, ()) == OLD


ROWS = [
    {
        "prompt": conversation("", f"{i} + 4?"),
        "response": serialise([Block("code", f"{i} + 4"), Block("execution", str(i + 4))]) + END_OF_MESSAGE,
    }
    for i in range(8)
]  # fmt: skip


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    model = make_model_folder(tmp_path / "model", "llama", tokenizer=PLAIN)
    return Settings.of(tmp_path, model=model).with_(
        method="sft",
        special_tokens="blocks",
        train_file=str(write_rows(tmp_path / "solutions.jsonl", ROWS)),
    )


def test_a_run_learns_the_markers_and_leaves_a_whole_folder(settings: Settings) -> None:
    result = settings.train()
    found = losses(result.folder)
    assert all(math.isfinite(loss) for loss in found)
    assert found[-1] < found[0]
    trained, tokenizer = opened(result.model)
    rows = trained.get_input_embeddings().weight
    assert rows.shape[0] == 384
    code = tokenizer.convert_tokens_to_ids("<|code|>")
    assert not torch.equal(rows[code], rows[383])
    assert (result.folder / "run.yaml").read_text(encoding="utf-8").count(
        "special_tokens: blocks"
    ) == 1
    # The trained model knows them: a second run adds nothing.
    second = settings.with_(model_name_or_path=str(result.model), output_dir=f"{result.folder}-2")
    assert second.train().metrics["loss"] < found[0]


@pytest.mark.slow
def test_resumed_from_a_checkpoint_is_the_uninterrupted_run(
    settings: Settings, tmp_path: Path
) -> None:
    settings = settings.with_(num_train_epochs=4.0, save_strategy="steps", save_steps=2)
    whole = settings.with_(output_dir=str(tmp_path / "whole")).train()
    # What a run leaves that was killed after its first checkpoint.
    cut = tmp_path / "cut"
    shutil.copytree(whole.folder / "checkpoints" / "checkpoint-2", cut / "checkpoints/checkpoint-2")
    resumed = settings.with_(output_dir=str(cut), resume_from_checkpoint=True).train()
    a, b = weights(whole.model), weights(resumed.model)
    assert a.keys() == b.keys()
    assert all(torch.equal(a[k], b[k]) for k in a)
    assert {table.shape[0] for name, table in a.items() if "embed" in name} == {384}


def test_an_adapter_run_is_refused_in_one_line(settings: Settings) -> None:
    with pytest.raises(
        ConfigError, match=r"use_peft: 8 special tokens are new to .*use_peft: false first"
    ):
        settings.with_(use_peft=True).train()
