"""Adding LoRA adapters to a model, with the target names checked against it first."""

from __future__ import annotations

import difflib
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import cast

import torch
from peft import LoraConfig, PeftModel, get_peft_model
from torch import nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from prefopt.errors import ConfigError, ModelError
from prefopt.models.quiet import quiet_transformers

ALL_LINEAR = "all-linear"


@dataclass(frozen=True, slots=True)
class LoraSettings:
    """Size and place of a LoRA adapter."""

    r: int = 16
    alpha: float = 32.0
    """The adapter's output is multiplied by alpha / r."""
    dropout: float = 0.0
    target_modules: str | Sequence[str] = ALL_LINEAR
    """`all-linear` (every linear layer but the output head), module names (`q_proj`, or `q_proj,v_proj`), or a
    regular expression over full module names."""
    seed: int = 0
    """Of the random initial weights, which do not touch the global random state."""


def add_lora(model: PreTrainedModel | PeftModel, settings: LoraSettings) -> PeftModel:
    """`model` wrapped in a PEFT model whose LoRA weights are the only trainable ones. Modifies `model`.

    Raises:
        ConfigError: r, alpha or dropout out of range.
        ModelError: the model has an adapter already, or a target is not in it, is no linear layer, or is the
            output head.
    """
    _check_numbers(settings)
    if isinstance(model, PeftModel):
        raise ModelError(
            f"{model.get_base_model().name_or_path} already has an adapter: train that one (use_peft=false), or merge "
            "it into its base first (PEFT merge_and_unload)"
        )
    targets = _targets(model, settings.target_modules)
    kinds = {type(model.get_submodule(name)) for name in targets}
    config = LoraConfig(
        r=settings.r,
        lora_alpha=cast("int", settings.alpha),
        lora_dropout=settings.dropout,
        target_modules=_compact(model, targets),
        fan_in_fan_out=kinds == {Conv1D},
        task_type="CAUSAL_LM",
    )
    with torch.random.fork_rng(devices=[]), quiet_transformers():
        torch.manual_seed(settings.seed)
        wrapped = get_peft_model(model, config)
    return cast("PeftModel", wrapped)


def _check_numbers(settings: LoraSettings) -> None:
    if settings.r < 1:
        raise ConfigError(f"lora_r is {settings.r}: it must be at least 1")
    if settings.alpha <= 0:
        raise ConfigError(f"lora_alpha is {settings.alpha}: it must be above 0")
    if not settings.target_modules:
        raise ConfigError(f"lora_target_modules is empty: name layers, or use {ALL_LINEAR!r}")
    if not 0.0 <= settings.dropout < 1.0:
        raise ConfigError(f"lora_dropout is {settings.dropout}: it must be at least 0 and below 1")


def _targets(model: PreTrainedModel, wanted: str | Sequence[str]) -> list[str]:
    """Full names of the linear layers that `wanted` means."""
    linear = [n for n, m in model.named_modules() if isinstance(m, nn.Linear | Conv1D)]
    head = _head_name(model)
    if wanted == ALL_LINEAR:
        return [name for name in linear if name != head]
    found: list[str] = []
    for item in _items(wanted):
        matching = _matching(model, item)
        if head in matching:
            raise ModelError(
                f"lora_target_modules: {item!r} is the output head of {type(model).__name__}, which takes no LoRA "
                f"weights: leave it out, or use {ALL_LINEAR!r}"
            )
        usable = [name for name in matching if name in linear]
        if not usable:
            raise ModelError(_unknown(model, item, matching, linear))
        found += usable
    return sorted(set(found))


def _items(wanted: str | Sequence[str]) -> list[str]:
    if not isinstance(wanted, str):
        return list(wanted)
    if re.fullmatch(r"[\w.,\s-]+", wanted):
        return [item.strip() for item in wanted.split(",") if item.strip()]
    return [wanted]


def _matching(model: PreTrainedModel, item: str) -> list[str]:
    names = [name for name, _ in model.named_modules() if name]
    if re.fullmatch(r"[\w.-]+", item):
        return [name for name in names if name == item or name.endswith(f".{item}")]
    try:
        pattern = re.compile(item)
    except re.error as error:
        raise ConfigError(
            f"lora_target_modules: {item!r} is no valid regular expression: {error}"
        ) from error
    return [name for name in names if pattern.fullmatch(name)]


def _unknown(model: PreTrainedModel, item: str, matching: list[str], linear: list[str]) -> str:
    short = sorted({name.rsplit(".", 1)[-1] for name in linear if name != _head_name(model)})
    if matching:
        kind = type(model.get_submodule(matching[0])).__name__
        return (
            f"lora_target_modules: {item!r} ({kind}) is not a linear layer; "
            f"linear layers: {', '.join(short)}"
        )
    near = difflib.get_close_matches(item, short, n=1, cutoff=0.5)
    hint = f"did you mean {near[0]}? " if near else ""
    return (
        f"lora_target_modules: {type(model).__name__} has no module {item!r}; "
        f"{hint}linear layers: {', '.join(short)}"
    )


def _head_name(model: PreTrainedModel) -> str:
    head = model.get_output_embeddings()
    return next((name for name, module in model.named_modules() if module is head), "")


def _compact(model: PreTrainedModel, targets: list[str]) -> list[str]:
    """Last name parts where these mean the same layers, for adapter files that read well; full names otherwise."""
    short = sorted({name.rsplit(".", 1)[-1] for name in targets})
    meant = {name for item in short for name in _matching(model, item)}
    return short if meant == set(targets) else targets
