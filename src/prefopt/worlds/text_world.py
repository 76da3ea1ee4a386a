"""What worlds of texts have in common: corpus file, untrained model, SFT settings, the digest to cache them under."""

from __future__ import annotations

import hashlib
import json
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar, Generic, TypeVar

from prefopt.errors import ConfigError
from prefopt.models.save import save_model
from prefopt.values import JsonValue
from prefopt.worlds.base import tiny_llama, write_corpus

if TYPE_CHECKING:
    from transformers import LlamaForCausalLM, PreTrainedTokenizerFast

    from prefopt.records import Preference

Rule = tuple[bool, str, str]
"""Whether a setting is wrong, its name, and what to use instead."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelSize:
    """The part of a world's settings that its model is made of."""

    hidden_size: int = 128
    layers: int = 2

    def refuse(self, world: str, rules: Iterable[Rule]) -> None:
        """Nothing where no rule is broken, those of the model's size included.

        Raises:
            ConfigError: the first broken rule, in one line.
        """
        size: list[Rule] = [
            (
                self.hidden_size < 8 or self.hidden_size % 8 > 0,
                "hidden_size",
                "use a multiple of 8",
            ),
            (self.layers < 1, "layers", "use 1 or more"),
        ]
        for broken, key, remedy in [*rules, *size]:
            if broken:
                raise ConfigError(f"{world} world: {key} is {getattr(self, key)}; {remedy}")


S = TypeVar("S", bound=ModelSize)


class TextWorld(ABC, Generic[S]):
    """A world that makes a corpus and the tokenizer for it; training its model is the business of the methods."""

    name: ClassVar[str]
    edition: ClassVar[int] = 1
    """Raised when equal settings begin to make other texts, another tokenizer or another model."""
    positions: ClassVar[int]
    """Tokens that the model has room for, and the `max_length` of its training."""
    epochs: float = 1.0
    """Times that the base model sees the corpus."""

    def __init__(self, settings: S) -> None:
        self.settings = settings

    @abstractmethod
    def corpus(self) -> Iterator[Preference]:
        """The training corpus."""

    @abstractmethod
    def tokenizer(self) -> PreTrainedTokenizerFast:
        """The tokenizer of its texts."""

    def digest(self) -> str:
        """Digest of everything that decides the trained base model, 16 hex digits: what to cache it under."""
        facts = json.dumps(self.facts(), sort_keys=True)
        return hashlib.sha256(facts.encode()).hexdigest()[:16]

    def facts(self) -> list[JsonValue]:
        """Everything that decides the trained base model."""
        return [asdict(self.settings), self.sft_settings(), self.edition]

    def write_sft_data(self, path: Path | str) -> Path:
        """The file `path` with the corpus, written whole or not at all; its folder is made.

        Raises:
            StorageError: it cannot be written.
        """
        return write_corpus(path, self.corpus())

    def blank_model(self, seed: int = 0) -> LlamaForCausalLM:
        """A Llama of random weights, of 0.2 to 0.4 million parameters with the worlds' own sizes."""
        return tiny_llama(
            self.tokenizer(),
            hidden_size=self.settings.hidden_size,
            layers=self.settings.layers,
            positions=self.positions,
            seed=seed,
        )

    def save_blank(self, folder: Path | str, *, seed: int = 0) -> Path:
        """An ordinary Hugging Face folder with the untrained model and its tokenizer.

        Raises:
            StorageError: it cannot be written.
        """
        return save_model(self.blank_model(seed), self.tokenizer(), folder)

    def sft_settings(self) -> dict[str, JsonValue]:
        """Recipe values, by `RunConfig` key, with which `sft` trains the blank model on the corpus."""
        return {
            "learning_rate": 3e-3,
            "lr_scheduler_type": "linear",
            "warmup_ratio": 0.1,
            "adam_beta2": 0.98,
            "per_device_train_batch_size": 32,
            "num_train_epochs": self.epochs,
            "max_length": self.positions,
            "logging_steps": 25,
        }
