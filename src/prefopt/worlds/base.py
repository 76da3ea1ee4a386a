"""What worlds share: their protocol, splits by digest, the corpus file, a small Llama of random weights."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Literal, Protocol

import torch
from transformers import LlamaConfig, LlamaForCausalLM

from prefopt.errors import StorageError
from prefopt.records import Preference, write_preferences
from prefopt.values import JsonValue
from prefopt.worlds.tokenizer import BOS, EOS, PAD

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

Split = Literal["train", "preference", "test"]

_PERCENT: Mapping[Split, range] = {
    "train": range(70),
    "preference": range(70, 90),
    "test": range(90, 100),
}
"""Which hundredths of all questions, by their digest, belong to which split."""
_HEADS = 4
_INITIAL_SPREAD = 0.08
"""Standard deviation of the random weights, near 1 / sqrt(128): with the usual 0.02 so narrow a network needs
much longer before it learns anything."""


class World(Protocol):
    """What `prefopt.runs.base_model` needs to train a world's base model."""

    name: str

    def digest(self) -> str:
        """Digest of everything that decides the trained base model."""
        ...

    def write_sft_data(self, path: Path | str) -> Path:
        """Write the training corpus."""
        ...

    def save_blank(self, folder: Path | str, *, seed: int = 0) -> Path:
        """Write the untrained model with its tokenizer."""
        ...

    def sft_settings(self) -> dict[str, JsonValue]:
        """Recipe values of the training."""
        ...


def belongs_to(question: str, split: Split) -> bool:
    """Whether a question is one of the split's: each belongs to exactly one, by its digest."""
    digest = hashlib.blake2b(question.encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little") % 100 in _PERCENT[split]


def write_corpus(path: Path | str, corpus: Iterable[Preference]) -> Path:
    """The file `path` with the records, written whole or not at all; its folder is made.

    Raises:
        StorageError: it cannot be written.
    """
    file = Path(path)
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise StorageError(
            f"{file}: cannot make its folder ({error.strerror}); check the path"
        ) from error
    write_preferences(file, corpus)
    return file


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
