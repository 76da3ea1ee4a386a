"""The two models of a reward: that both are there, that they share a vocabulary, and that they are two."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import torch
from safetensors import SafetensorError, safe_open

from prefopt.errors import ModelError
from prefopt.models.load import ModelSettings, load_tokenizer
from prefopt.models.locate import ADAPTER_CONFIG, locate

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast


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
    """Whether two folders hold the same weights, in whatever files; adapters count with the name of their base."""
    if one.resolve() == other.resolve():
        return True
    if _base(one) != _base(other):
        return False
    try:
        ours, theirs = _places(one), _places(other)
        same_names = bool(ours) and ours.keys() == theirs.keys()
        return same_names and all(_equal(name, ours[name], theirs[name]) for name in ours)
    except (OSError, SafetensorError):
        return False  # loading says what is wrong with a file


def _base(folder: Path) -> str:
    """What an adapter is on; empty for a model."""
    file = folder / ADAPTER_CONFIG
    if not file.is_file():
        return ""
    try:
        return str(json.loads(file.read_text(encoding="utf-8")).get("base_model_name_or_path"))
    except (OSError, ValueError, AttributeError):
        return str(folder)


def _places(folder: Path) -> dict[str, Path]:
    """Which file holds each weight."""
    found: dict[str, Path] = {}
    for file in sorted(folder.glob("*.safetensors")):
        with safe_open(file, framework="pt") as weights:
            found |= dict.fromkeys(weights.keys(), file)
    return found


def _equal(name: str, one: Path, other: Path) -> bool:
    with safe_open(one, framework="pt") as ours, safe_open(other, framework="pt") as theirs:
        a, b = ours.get_tensor(name), theirs.get_tensor(name)
    return a.shape == b.shape and torch.equal(a.float(), b.float())
