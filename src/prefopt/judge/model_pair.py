"""The two models of a reward: that both are there, that they share a vocabulary, and that they are two."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from pickle import UnpicklingError
from typing import TYPE_CHECKING, NamedTuple

import torch
from safetensors import SafetensorError, safe_open

from prefopt.errors import ModelError
from prefopt.models.load import ModelSettings, load_tokenizer
from prefopt.models.locate import ADAPTER_CONFIG, locate

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

    from prefopt.judge.implicit import ImplicitScore


class Models(NamedTuple):
    """The two models that make a reward: folders, adapters or hub ids."""

    policy: str
    reference: str


def require_two_models(models: Models, *, policy: ModelSettings, reference: ModelSettings) -> None:
    """Nothing where the two can make a reward; reads tokenizers, and weights up to the first that differ.

    Args:
        models: their names.
        policy: how the policy is loaded.
        reference: how the reference is loaded.

    Raises:
        ModelError: one of them is not there, their vocabularies differ, or their weights do not.
    """
    folders = (
        locate(models.policy, revision=policy.revision).folder,
        locate(models.reference, revision=reference.revision).folder,
    )
    own, other = (
        load_tokenizer(
            settings.tokenizer or folder,
            revision=settings.revision,
            trust_remote_code=settings.trust_remote_code,
            chat_template=settings.chat_template,
        )
        for folder, settings in zip(folders, (policy, reference), strict=True)
    )
    require_one_vocabulary(own, other, models)
    if _same_weights(*folders):
        raise ModelError(
            f"policy {models.policy} and reference {models.reference} have the same weights: every reward would be 0; "
            "use the model that the policy was trained from"
        )


def require_some_reward(scores: Iterable[ImplicitScore], models: Models) -> None:
    """Nothing where a response has a reward that is more than rounding, or none has any.

    Raises:
        ModelError: every reward is nothing but rounding.
    """
    gaps = [
        (abs(score.policy - score.reference), score.noise)
        for score in scores
        if score.reward is not None and score.policy is not None and score.reference is not None
    ]
    if gaps and all(gap <= noise for gap, noise in gaps):
        raise ModelError(
            f"policy {models.policy} and reference {models.reference} are the same model to all {len(gaps)} responses: "
            f"their log-probabilities differ by {max(gaps)[0]:.1g} nats at most, which is rounding; use the model that "
            "the policy was trained from"
        )


def require_one_vocabulary(
    policy: PreTrainedTokenizerFast, reference: PreTrainedTokenizerFast, models: Models
) -> None:
    """Nothing where each token that both tokenizers know has one id in both; one may know more of them.

    Raises:
        ModelError: else.
    """
    ours: Mapping[str, int] = policy.get_vocab()
    theirs: Mapping[str, int] = reference.get_vocab()
    shared = ours.keys() & theirs.keys()
    other = next((token for token in sorted(shared) if ours[token] != theirs[token]), None)
    if other is not None or len(shared) < min(len(ours), len(theirs)):
        detail = "" if other is None else f" ({other!r} is {ours[other]} and {theirs[other]})"
        raise ModelError(
            f"policy {models.policy} and reference {models.reference} have different vocabularies{detail}: a log-ratio "
            "needs one; use the model that the policy was trained from"
        )


def _same_weights(one: Path, other: Path) -> bool:
    """Whether two folders hold the same weights, in whatever files; adapters count with the name of their base.

    An adapter that has not been trained yet is its base.
    """
    one, other = _trained(one), _trained(other)
    if one.resolve() == other.resolve():
        return True
    if _base(one) != _base(other):
        return False
    try:
        ours, theirs = _Weights(one), _Weights(other)
        same_names = bool(ours.places) and ours.places.keys() == theirs.places.keys()
        return same_names and all(_equal(ours[name], theirs[name]) for name in ours.places)
    except (OSError, SafetensorError, RuntimeError, UnpicklingError):
        return False  # loading says what is wrong with a file


def _trained(folder: Path) -> Path:
    """The folder; of an adapter all of whose products are 0, as LoRA starts, that of its base."""
    base = _base(folder)
    try:
        return locate(base).folder if base and _adds_nothing(_Weights(folder)) else folder
    except (ModelError, OSError, SafetensorError, RuntimeError, UnpicklingError):
        return folder  # loading says what is wrong with it


def _adds_nothing(adapter: _Weights) -> bool:
    """Whether one factor of each product of an adapter is 0, and the adapter is made of nothing else."""
    products: dict[str, list[str]] = {}
    for name in adapter.places:
        module = _FACTOR.sub("", name)
        if module == name:
            return False
        products.setdefault(module, []).append(name)
    return bool(products) and all(
        len(factors) == 2 and any(not adapter[name].any() for name in factors)
        for factors in products.values()
    )


_FACTOR = re.compile(r"\.lora_(?:embedding_)?[AB](?=\.|$)")


def _base(folder: Path) -> str:
    """What an adapter is on; empty for a model."""
    file = folder / ADAPTER_CONFIG
    if not file.is_file():
        return ""
    try:
        return str(json.loads(file.read_text(encoding="utf-8")).get("base_model_name_or_path"))
    except (OSError, ValueError, AttributeError):
        return str(folder)


class _Weights:
    """The weights of a folder by name, read one at a time; of .bin files only where there are no .safetensors."""

    def __init__(self, folder: Path) -> None:
        self.places: dict[str, Path] = {}
        self._pickled: dict[str, torch.Tensor] = {}
        for file in sorted(folder.glob("*.safetensors")):
            with safe_open(file, framework="pt") as weights:
                self.places |= dict.fromkeys(weights.keys(), file)
        for file in sorted(folder.glob("*model*.bin")) if not self.places else ():
            found = torch.load(file, map_location="cpu", weights_only=True, mmap=True)
            tied: set[int] = {tensor.data_ptr() for tensor in self._pickled.values()}
            for name, tensor in found.items():
                if tensor.data_ptr() not in tied:  # .safetensors hold tied weights once
                    self._pickled[name], self.places[name] = tensor, file
                    tied.add(tensor.data_ptr())

    def __getitem__(self, name: str) -> torch.Tensor:
        if name in self._pickled:
            return self._pickled[name]
        with safe_open(self.places[name], framework="pt") as weights:
            return weights.get_tensor(name)


def _equal(one: torch.Tensor, other: torch.Tensor) -> bool:
    return one.shape == other.shape and torch.equal(one.float(), other.float())
