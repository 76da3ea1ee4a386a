"""Tiny random models and tokenizers of the families users bring, made on the spot. No downloads.

Everything is deterministic: the same arguments give the same bytes.
"""

from __future__ import annotations

from collections.abc import Generator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal, cast, get_args

import torch
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, trainers
from tokenizers.processors import TemplateProcessing
from transformers import (
    AutoModelForCausalLM,
    Gemma2Config,
    Gemma3TextConfig,
    GPT2Config,
    LlamaConfig,
    MistralConfig,
    PreTrainedConfig,
    PreTrainedTokenizerFast,
    Qwen2Config,
    Qwen3Config,
)
from transformers.utils import logging as transformers_logging

Family = Literal["llama", "qwen2", "qwen3", "gpt2", "gemma2", "gemma3", "mistral"]
FAMILIES: tuple[Family, ...] = get_args(Family)

BOS, EOS, PAD, START, END = "<bos>", "<eos>", "<pad>", "<|im_start|>", "<|im_end|>"

CHATML = (
    "{% for message in messages %}"
    "{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>\n' }}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)

SENTENCES = (
    "Step 1: 3 + 4 = 7. Step 2: 7 - 2 = 5. The answer is 5.",
    "What is the capital of France? The capital of France is Paris.",
    "You are a helpful assistant. Please answer the question of the user.",
    "The summary of this post: she said that they were not there on time.",
    "system user assistant tool\n",
)

_ABSENT = object()
_COMMON: dict[str, Any] = {
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "max_position_embeddings": 256,
}
_GEMMA = {"query_pre_attn_scalar": 8, "sliding_window": 64}
_FAMILIES: dict[str, tuple[type[PreTrainedConfig], dict[str, Any]]] = {
    "llama": (LlamaConfig, {}),
    "qwen2": (Qwen2Config, {"head_dim": _ABSENT}),
    "qwen3": (Qwen3Config, {}),
    "gpt2": (
        GPT2Config,
        {"intermediate_size": _ABSENT, "num_key_value_heads": _ABSENT, "head_dim": _ABSENT},
    ),
    "gemma2": (Gemma2Config, _GEMMA),
    "gemma3": (Gemma3TextConfig, _GEMMA),
    "mistral": (MistralConfig, {"sliding_window": 64}),
}

_SIZE_LIMIT = 400
"""Ids of the trained tokenizer, special tokens included, stay below this."""


def make_tokenizer(
    vocabulary: Sequence[str] | None = None,
    *,
    chat_template: str | None = CHATML,
    pad: bool = True,
    bos: bool = False,
) -> PreTrainedTokenizerFast:
    """A byte-level BPE tokenizer that encodes any text and decodes back to it.

    Args:
        vocabulary: words that become one token each; None learns a few merges from built-in sentences.
        chat_template: jinja template, None for a base-model tokenizer.
        pad: whether there is a pad token.
        bos: whether encoding prepends `<bos>`, as Llama and Gemma tokenizers do.
    """
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=_SIZE_LIMIT - 20,
        special_tokens=[BOS, EOS, *([PAD] if pad else []), START, END],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator(SENTENCES if vocabulary is None else (), trainer)
    if vocabulary is not None:
        words = [AddedToken(word, normalized=False) for word in vocabulary]
        tokenizer.add_tokens(words)
    if bos:
        tokenizer.post_processor = TemplateProcessing(
            single=f"{BOS} $A", special_tokens=[(BOS, tokenizer.token_to_id(BOS))]
        )
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token=BOS if bos else None,
        eos_token=END if chat_template is not None else EOS,
        pad_token=PAD if pad else None,
        additional_special_tokens=[START, END],
    )
    fast.chat_template = chat_template
    return fast


def make_config(family: Family, *, vocab_size: int, **overrides: Any) -> PreTrainedConfig:
    """The configuration of a two-layer model of `family`: hidden 32, four heads, 256 positions."""
    kind, own = _FAMILIES[family]
    fields = {**_COMMON, **own, **overrides, "vocab_size": vocab_size}
    names = kind.attribute_map
    known = {
        names.get(field, field): value for field, value in fields.items() if value is not _ABSENT
    }
    return kind(**cast("dict[str, Any]", known))


@contextmanager
def _no_bars() -> Generator[None]:
    shown = transformers_logging.is_progress_bar_enabled()
    transformers_logging.disable_progress_bar()
    yield
    if shown:
        transformers_logging.enable_progress_bar()


def make_model_folder(
    path: Path | str,
    family: Family,
    *,
    tokenizer: PreTrainedTokenizerFast | None = None,
    seed: int = 0,
    **overrides: float | bool | str | None,
) -> Path:
    """Folder of a random float32 model of `family` with its tokenizer, as `save_pretrained` writes it.

    `overrides` are fields of the family's configuration. The global random state is left as it was.
    """
    folder = Path(path)
    tokenizer = make_tokenizer() if tokenizer is None else tokenizer
    special: dict[str, Any] = {
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": tokenizer.pad_token_id,
    }
    fields = {"vocab_size": len(tokenizer), **special, **overrides}
    config = make_config(family, **cast("dict[str, Any]", fields))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    with _no_bars():
        model.save_pretrained(folder)
        tokenizer.save_pretrained(folder)
    return folder
