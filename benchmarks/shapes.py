"""The three shapes of preference data that the benchmarks train on, as plain text of known token counts."""

from __future__ import annotations

import json
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

VOCABULARY = 16_000
SHAPES = ("step", "plain", "ranked")


class Record(NamedTuple):
    """One prompt with its responses, best first; every other one is rejected against the first."""

    prompt: str
    responses: tuple[str, ...]


def make_records(shape: str, count: int, *, seed: int = 0) -> list[Record]:
    """`count` records of random words, one token each.

    step: context (problem and shared steps) of 80-460 tokens, two steps of 30-80.
    plain: prompt and two responses of 80-300 each.
    ranked: prompt and four responses of 80-300 each.
    """
    g = np.random.default_rng(seed)

    def words(low: int, high: int) -> str:
        ids = g.integers(4, VOCABULARY, int(g.integers(low, high + 1)))
        return " ".join(f"w{i}" for i in ids)

    if shape == "step":
        return [Record(words(80, 460), (words(30, 80), words(30, 80))) for _ in range(count)]
    responses = {"plain": 2, "ranked": 4}[shape]
    return [
        Record(words(80, 300), tuple(words(80, 300) for _ in range(responses)))
        for _ in range(count)
    ]


def make_model(folder: Path, *, hidden: int = 384, layers: int = 6, seed: int = 0) -> Path:
    """A random Llama of about 20M parameters (hidden 384, 6 layers, vocabulary 16,000) with a word tokenizer."""
    vocabulary = {"<pad>": 0, "<s>": 1, "</s>": 2, "<unk>": 3}
    vocabulary |= {f"w{i}": i for i in range(4, VOCABULARY)}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="<pad>", eos_token="</s>", unk_token="<unk>"
    )
    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=VOCABULARY,
        hidden_size=hidden,
        intermediate_size=8 * hidden // 3,
        num_hidden_layers=layers,
        num_attention_heads=hidden // 64,
        num_key_value_heads=hidden // 64,
        max_position_embeddings=2048,
        bos_token_id=None,
        eos_token_id=2,
        pad_token_id=0,
        tie_word_embeddings=False,
    )
    LlamaForCausalLM(config).save_pretrained(folder)
    fast.save_pretrained(folder)
    return folder


def write_records(records: list[Record], path: Path) -> Path:
    """The records as JSON lines with `prompt`, `responses` and `scores` (best first)."""
    with path.open("w", encoding="utf-8") as file:
        for r in records:
            scores = list(range(len(r.responses), 0, -1))
            # The separating space belongs to the response, as in data made for plain concatenation.
            row = {
                "prompt": r.prompt,
                "responses": [" " + text for text in r.responses],
                "scores": scores,
            }
            file.write(json.dumps(row) + "\n")
    return path
