"""Loading models: folders, adapters and hub ids become a checked model with its tokenizer.

The only door to transformers and peft for loading. What is done with a loaded model lives beside it and is
re-exported here: `parts` (backbone, head, dropout), `lora`, `weights` (digest, reading back), `tokenizer`.
Models are never loaded with a `device_map`: placing is the runtime's job.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple, cast

import torch
from peft import PeftConfig, PeftModel, PeftType
from peft.utils import load_peft_weights
from safetensors import SafetensorError
from torch import nn
from transformers import AutoModelForCausalLM, PreTrainedModel, PreTrainedTokenizerFast

from prefopt.errors import ConfigError, ModelError
from prefopt.models.configuration import LOAD_ERRORS, load_config, locate_base
from prefopt.models.digest import model_digest, weights_digest
from prefopt.models.head import OutputHead
from prefopt.models.locate import ADAPTER_CONFIG, CONFIG, Located, first_line, locate
from prefopt.models.lora import LoraSettings, add_lora
from prefopt.models.parts import (
    CausalModel,
    adapter_disabled,
    attention_name,
    disable_dropout,
    embedding_rows,
    find_backbone,
    output_head,
    plain_model,
)
from prefopt.models.quiet import quiet_transformers
from prefopt.models.tokenizer import load_tokenizer
from prefopt.models.weights import check_adapter_keys, load_weights, weight_files

__all__ = [
    "CausalModel",
    "LoadedModel",
    "LoraSettings",
    "ModelSettings",
    "OutputHead",
    "adapter_disabled",
    "add_lora",
    "attention_name",
    "disable_dropout",
    "embedding_rows",
    "find_backbone",
    "load_model",
    "load_tokenizer",
    "load_weights",
    "model_digest",
    "output_head",
    "plain_model",
    "weights_digest",
]

logger = logging.getLogger(__name__)

DTYPES = ("float32", "bfloat16", "float16", "auto")


@dataclass(frozen=True, slots=True)
class ModelSettings:
    """How a model is loaded."""

    revision: str | None = None
    """Hub revision; ignored for folders."""
    dtype: str = "float32"
    """Of the weights: float32, bfloat16, float16, or auto (as stored)."""
    attn_implementation: str | None = None
    """None: SDPA where the architecture supports it, else eager."""
    trust_remote_code: bool = False
    device: str = "cpu"
    tokenizer: str | None = None
    """Folder or hub id of the tokenizer; None: the model's own."""
    chat_template: str | None = None
    """File with a jinja template that replaces the tokenizer's own."""


class LoadedModel(NamedTuple):
    """A model ready for use, in eval mode, with its tokenizer."""

    model: PreTrainedModel | PeftModel
    tokenizer: PreTrainedTokenizerFast
    is_adapter: bool
    """Whether `model` is a base model with a trainable adapter loaded from a PEFT folder."""


def load_model(path: str | Path, settings: ModelSettings | None = None) -> LoadedModel:
    """The causal language model and tokenizer of a folder, a PEFT adapter folder or a hub id.

    Every weight the architecture has must come from the files (tied weights excepted): a folder with missing
    or misshapen weights is refused, where transformers would go on with random numbers.

    Raises:
        ModelError: anything wrong with the folder, the weights, the adapter, the tokenizer or the architecture.
        ConfigError: an unknown dtype, device or template.
    """
    settings = settings or ModelSettings()
    _check_settings(settings)
    located = locate(path, revision=settings.revision)
    is_adapter = (located.folder / ADAPTER_CONFIG).is_file()
    load = _load_adapter if is_adapter else _load_plain
    model = load(located, settings)
    tokenizer = load_tokenizer(
        settings.tokenizer or located.folder,
        revision=settings.revision,
        trust_remote_code=settings.trust_remote_code,
        chat_template=settings.chat_template,
    )
    _check_vocabulary(tokenizer, model, str(settings.tokenizer or located.name))
    return LoadedModel(_place(model, settings.device, located.name), tokenizer, is_adapter)


def _check_settings(settings: ModelSettings) -> None:
    if settings.dtype not in DTYPES:
        raise ConfigError(f"dtype {settings.dtype!r} is unknown: use one of {', '.join(DTYPES)}")
    try:
        device = torch.device(settings.device)
    except RuntimeError as error:
        raise ConfigError(f"device {settings.device!r} is unknown: use cpu or cuda") from error
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise ConfigError(
            f"device {settings.device!r} is not there: torch sees {torch.cuda.device_count()} CUDA devices"
        )


def _load_plain(located: Located, settings: ModelSettings) -> PreTrainedModel:
    folder, name = located
    config = load_config(located, trust_remote_code=settings.trust_remote_code)
    weight_files(folder)
    try:
        with quiet_transformers():
            loaded: object = AutoModelForCausalLM.from_pretrained(
                folder,
                config=config,
                dtype="auto" if settings.dtype == "auto" else getattr(torch, settings.dtype),
                attn_implementation=settings.attn_implementation,
                trust_remote_code=settings.trust_remote_code,
                local_files_only=True,
                ignore_mismatched_sizes=True,
                output_loading_info=True,
            )
    except SafetensorError as error:
        raise ModelError(
            f"the weights of {name} cannot be read ({first_line(error)}): copy them again"
        ) from error
    except LOAD_ERRORS as error:
        raise ModelError(_load_failure(name, settings, error)) from error
    model, info = cast("tuple[PreTrainedModel, dict[str, object]]", loaded)
    _check_weights(name, info)
    model.name_or_path = model.config.name_or_path = _lasting_name(located)
    return model.eval()


def _lasting_name(located: Located) -> str:
    """What a saved adapter says its base is: absolute for folders, so that it holds in any working directory."""
    is_hub_id = not Path(located.name).expanduser().exists()
    return located.name if is_hub_id else str(located.folder.resolve())


def _load_failure(name: str, settings: ModelSettings, error: BaseException) -> str:
    detail = first_line(error)
    if isinstance(error, torch.OutOfMemoryError):
        return f"{name} does not fit in memory: use a smaller dtype than {settings.dtype} or a smaller model"
    wanted = settings.attn_implementation
    if wanted is not None and isinstance(error, ImportError | ValueError):
        return f"{name} cannot use attn_implementation {wanted!r} ({detail}): leave it unset, or use eager"
    if isinstance(error, ImportError):
        return f"{name} needs a package that is not installed: {detail}"
    return f"transformers cannot load {name}: {detail}"


def _check_weights(name: str, info: dict[str, object]) -> None:
    mismatched = sorted(cast("set[tuple[str, torch.Size, torch.Size]]", info["mismatched_keys"]))
    if mismatched:
        key, found, expected = mismatched[0]
        raise ModelError(
            f"{name}: weights and {CONFIG} belong to different models: {key} is {list(found)} in the file and "
            f"{list(expected)} by {CONFIG} ({len(mismatched)} such); use the {CONFIG} saved with the weights"
        )
    missing = sorted(cast("set[str]", info["missing_keys"]))
    if missing:
        raise ModelError(
            f"{name} lacks {len(missing)} of the model's weights, first {missing[0]}: the folder is incomplete or "
            f"belongs to another architecture; copy it again or correct {CONFIG}"
        )
    unexpected = sorted(cast("set[str]", info["unexpected_keys"]))
    if unexpected:
        logger.warning("%s: weights not used: %d, first %s", name, len(unexpected), unexpected[0])


def _load_adapter(located: Located, settings: ModelSettings) -> PeftModel:
    folder, name = str(located.folder), located.name
    base = locate_base(located)
    weight_files(located.folder, adapter=True)
    model = _load_plain(base, settings)
    try:
        with quiet_transformers():
            config = PeftConfig.from_pretrained(folder)
            _refuse_virtual_tokens(config, name)
            wrapped = PeftModel.from_pretrained(
                model, folder, is_trainable=True, config=config, torch_device="cpu"
            )
            stored = load_peft_weights(folder, device="cpu")
    except ModelError:
        raise
    except (*LOAD_ERRORS, SafetensorError) as error:
        detail = " ".join(str(error).split())[-200:].rstrip(".")
        raise ModelError(
            f"adapter {name} does not fit its base model {base.name} ({detail}): use the base model it was trained on"
        ) from error
    check_adapter_keys(stored, wrapped, located.folder)
    return wrapped.eval()


def _refuse_virtual_tokens(config: PeftConfig, name: str) -> None:
    if config.is_prompt_learning:
        kind = PeftType(config.peft_type).value
        raise ModelError(
            f"adapter {name} is of type {kind}, whose virtual tokens cannot be packed: use LoRA"
        )


def _check_vocabulary(
    tokenizer: PreTrainedTokenizerFast, model: PreTrainedModel | PeftModel, name: str
) -> None:
    rows = embedding_rows(model)
    token, largest = max(tokenizer.get_vocab().items(), key=lambda item: item[1])
    if largest >= rows:
        raise ModelError(
            f"the tokenizer of {name} has ids up to {largest} ({token!r}) but the model embeds only {rows}: use the "
            "tokenizer that belongs to the model (tokenizer_name_or_path)"
        )


def _place(
    model: PreTrainedModel | PeftModel, device: str, name: str
) -> PreTrainedModel | PeftModel:
    try:
        cast("nn.Module", model).to(device)
    except torch.OutOfMemoryError as error:
        size = sum(p.numel() * p.element_size() for p in model.parameters()) / 2**30
        raise ModelError(
            f"{name} does not fit on {device} ({size:.1f} GiB of weights): use a smaller dtype or model"
        ) from error
    return model
