"""The parts of a causal language model that the scorer needs: backbone, output head, adapter switch, dropout."""

from __future__ import annotations

from collections.abc import Generator
from contextlib import contextmanager
from typing import TypeAlias

import torch
from peft import PeftModel
from peft.tuners.tuners_utils import BaseTunerLayer
from peft.utils.other import AuxiliaryTrainingWrapper, ModulesToSaveWrapper
from torch import nn
from transformers import PreTrainedConfig, PreTrainedModel

from prefopt.errors import ModelError
from prefopt.models.head import OutputHead

_DROPOUTS = (
    nn.Dropout,
    nn.Dropout1d,
    nn.Dropout2d,
    nn.Dropout3d,
    nn.AlphaDropout,
    nn.FeatureAlphaDropout,
)
_SOFTCAPS = ("final_logit_softcapping", "logits_soft_cap")
_RUNTIME_DROPOUTS = ("attention_dropout", "hidden_dropout")
"""Configuration fields that some models (Falcon) read in every forward pass."""


CausalModel: TypeAlias = PreTrainedModel | PeftModel
"""What is trained and scored: a transformers causal language model, bare or with a PEFT adapter."""


def attention_name(model: CausalModel) -> str:
    """The attention implementation that a model runs with (`sdpa`, `eager`, `flex_attention`, ...)."""
    # transformers has no public reader for it.
    return str(plain_model(model).config._attn_implementation)  # noqa: SLF001 # pyright: ignore[reportPrivateUsage]


def plain_model(model: PreTrainedModel | PeftModel) -> PreTrainedModel:
    """The transformers model inside a PEFT wrapper, or the model itself. Adapters inside it stay active."""
    inner = model.get_base_model() if isinstance(model, PeftModel) else model
    if not isinstance(inner, PreTrainedModel):
        raise ModelError(f"{type(inner).__name__} is no transformers model")
    return inner


def find_backbone(model: PreTrainedModel | PeftModel) -> PreTrainedModel:
    """The inner transformer, whose `last_hidden_state` the output head is applied to.

    Raises:
        ModelError: the model is not built as backbone and head.
    """
    inner = plain_model(model)
    backbone = inner.get_decoder()
    if backbone is inner or not isinstance(backbone, PreTrainedModel):
        raise ModelError(
            f"{type(inner).__name__} has no separate backbone; a causal language model is needed"
        )
    return backbone


def output_head(model: PreTrainedModel | PeftModel) -> OutputHead:
    """Weight, bias, scale and soft cap of the layer that turns hidden states into logits, as it is now.

    A head that PEFT trains in full (`modules_to_save`) is taken from the active adapter, or from the base while
    adapters are switched off; so call this in each forward pass.

    Raises:
        ModelError: the head carries LoRA weights, is quantised, or is no linear layer.
    """
    inner = plain_model(model)
    layer: nn.Module | None = inner.get_output_embeddings()
    if layer is None:
        raise ModelError(
            f"{type(inner).__name__} has no output head; a causal language model is needed"
        )
    name = next((n for n, module in inner.named_modules() if module is layer), type(layer).__name__)
    if isinstance(layer, ModulesToSaveWrapper):
        layer = _active_copy(layer)
    if isinstance(layer, BaseTunerLayer | AuxiliaryTrainingWrapper):
        raise ModelError(
            f"the output head {name!r} is wrapped by {type(layer).__name__}: leave it out of lora_target_modules "
            "(train it in full with modules_to_save instead)"
        )
    if not isinstance(layer, nn.Linear):
        raise ModelError(f"the output head {name!r} ({type(layer).__name__}) is not a linear layer")
    if not layer.weight.is_floating_point():
        raise ModelError(
            f"the output head {name!r} is quantised ({layer.weight.dtype}): load it unquantised"
        )
    config = inner.config.get_text_config(decoder=True)
    return OutputHead(layer.weight, layer.bias, _scale(config), _softcap(config))


def _active_copy(wrapper: ModulesToSaveWrapper) -> nn.Module:
    if wrapper.disable_adapters or not wrapper.active_adapters:
        return wrapper.original_module
    return wrapper.modules_to_save[wrapper.active_adapters[0]]


def _scale(config: PreTrainedConfig) -> float:
    """What the logits are multiplied by. The same field divides in some families and multiplies in others."""
    family = config.model_type
    if family.startswith("cohere"):
        return _number(config, "logit_scale")
    if family.startswith(("granite", "minicpm3")):
        return 1.0 / _number(config, "logits_scaling")
    if family.startswith("hyperclovax"):
        return _number(config, "logits_scaling")
    if family == "falcon_h1":
        return _number(config, "lm_head_multiplier")
    return 1.0


def _number(config: PreTrainedConfig, field: str) -> float:
    value = getattr(config, field, None)
    return 1.0 if value is None else float(value)


def _softcap(config: PreTrainedConfig) -> float | None:
    for field in _SOFTCAPS:
        value = getattr(config, field, None)
        if value is not None:
            return float(value)
    return None


@contextmanager
def adapter_disabled(model: PreTrainedModel | PeftModel) -> Generator[None]:
    """A context in which a PEFT model computes what its base model does; `requires_grad` is put back exactly.

    Raises:
        ModelError: the model has no adapter, so that "without it" would silently be the policy itself.
    """
    if not isinstance(model, PeftModel):
        raise ModelError(
            f"{type(model).__name__} has no adapter to switch off: train with use_peft=true"
        )
    layers = [
        m for m in model.modules() if isinstance(m, BaseTunerLayer | AuxiliaryTrainingWrapper)
    ]
    trainable = [p for p in model.parameters() if p.requires_grad]
    for layer in layers:
        layer.enable_adapters(enabled=False)
    try:
        yield
    finally:
        for layer in layers:
            layer.enable_adapters(enabled=True)
        model.requires_grad_(requires_grad=False)
        for parameter in trainable:
            parameter.requires_grad = True


def disable_dropout(model: nn.Module) -> None:
    """Set every dropout probability of the model to 0, for log-probabilities that do not depend on chance.

    Covers dropout modules, probabilities kept as plain attributes of modules, and the configuration fields
    `attention_dropout` and `hidden_dropout` (so the saved configuration records 0 for these). LoRA's own dropout
    stays: it is asked for by its own key.
    """
    for name, module in model.named_modules():
        if "lora_dropout" in name:
            continue
        if isinstance(module, _DROPOUTS):
            module.p = 0.0
        for field, value in list(vars(module).items()):
            if "drop" in field and type(value) is float:
                setattr(module, field, 0.0)
        config = getattr(module, "config", None)
        if isinstance(config, PreTrainedConfig):
            _zero_dropouts(config)


def _zero_dropouts(config: PreTrainedConfig) -> None:
    for field in _RUNTIME_DROPOUTS:
        if isinstance(getattr(config, field, None), float):
            setattr(config, field, 0.0)


def embedding_rows(model: PreTrainedModel | PeftModel) -> int:
    """Number of token ids that the model has an input embedding for."""
    weight = getattr(model.get_input_embeddings(), "weight", None)
    if not isinstance(weight, torch.Tensor):
        raise ModelError(f"{type(model).__name__} has no input embedding")
    return int(weight.shape[0])
