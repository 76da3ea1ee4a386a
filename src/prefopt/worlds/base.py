"""What worlds share: a small Llama of random weights."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from transformers import LlamaConfig, LlamaForCausalLM

from prefopt.worlds.tokenizer import BOS, EOS, PAD

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

_HEADS = 4
_INITIAL_SPREAD = 0.08
"""Standard deviation of the random weights, near 1 / sqrt(128): with the usual 0.02 so narrow a network needs
much longer before it learns anything."""


def tiny_llama(
    tokenizer: PreTrainedTokenizerFast,
    *,
    hidden_size: int,
    layers: int,
    positions: int,
    seed: int,
) -> LlamaForCausalLM:
    """A float32 Llama of random weights for a tokenizer of `word_tokenizer`: four heads, MLP twice the width.

    Equal arguments give equal weights; the global random state is left as it was.
    """
    ids = tokenizer.get_vocab()
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=hidden_size,
        intermediate_size=2 * hidden_size,
        num_hidden_layers=layers,
        num_attention_heads=_HEADS,
        num_key_value_heads=_HEADS,
        max_position_embeddings=positions,
        initializer_range=_INITIAL_SPREAD,
        bos_token_id=ids[BOS],
        eos_token_id=ids[EOS],
        pad_token_id=ids[PAD],
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return LlamaForCausalLM(config)
