"""What a model is, as one number: digests of weights and architecture, and how many bytes the weights take."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import torch
from peft import PeftModel
from peft.tuners.tuners_utils import BaseTunerLayer
from peft.utils.other import ModulesToSaveWrapper
from torch import Tensor, nn
from transformers import PreTrainedModel

from prefopt.errors import ModelError
from prefopt.models.parts import plain_model

_VOLATILE = {
    "_name_or_path",
    "architectures",
    "dtype",
    "torch_dtype",
    "transformers_version",
    "use_cache",
}
"""Configuration fields that do not change what the model computes; so are token ids and dropout probabilities."""


def model_bytes(model: nn.Module) -> int:
    """Bytes of all parameters and persistent buffers, tied ones once."""
    return sum(
        t.numel() * t.element_size() for t in {id(t): t for _, t in _named_tensors(model)}.values()
    )


def adapter_bytes(model: PeftModel) -> int:
    """Bytes of the adapter's weights."""
    return model_bytes(model) - sum(
        t.numel() * t.element_size() for t in {id(t): t for _, t in _base_tensors(model)}.values()
    )


def weights_digest(model: nn.Module, *, adapter: bool = True) -> str:
    """SHA-256 (hex) of all parameters and persistent buffers: names, dtypes, shapes and bytes.

    Independent of device, memory layout and of which of the tied names a weight is stored under. With
    ``adapter=False`` the adapter of a PEFT model is left out and the base weights count under their original
    names, so the digest is that of the plain base model. Tensors are hashed in parallel, in name order.
    """
    named = dict(_named_tensors(model) if adapter else _base_tensors(model))
    distinct = {id(tensor): tensor for tensor in named.values()}
    with ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool:
        hashes = dict(zip(distinct, pool.map(_hash, distinct.values()), strict=True))
    total = hashlib.sha256()
    for name in sorted(named):
        total.update(f"{name}\0{named[name].dtype} {list(named[name].shape)}\0".encode())
        total.update(hashes[id(named[name])])
    return total.hexdigest()


_ADAPTER_SCALING = (
    "peft_type", "r", "lora_alpha", "rank_pattern", "alpha_pattern", "use_rslora", "use_dora", "fan_in_fan_out",
)  # fmt: skip
"""What decides an adapter's effect beside its weights, whose names already say where it sits."""


def model_digest(model: PreTrainedModel | PeftModel, *, adapter: bool = True) -> str:
    """SHA-256 (hex) of weights, architecture and configuration: equal digests compute equal log-probabilities.

    `weights_digest` alone cannot tell a Llama from a Mistral with the same weights, or two values of
    `rope_theta`. What scores are cached under must be this digest.
    """
    inner = plain_model(model)
    fields = {
        key: value
        for key, value in inner.config.to_dict().items()
        if key not in _VOLATILE and "drop" not in key and not key.endswith("_token_id")
    }
    described = json.dumps(fields, sort_keys=True, default=str)
    weights = weights_digest(model, adapter=adapter)
    settings = ""
    if adapter and isinstance(model, PeftModel):
        own = {name: config.to_dict() for name, config in model.peft_config.items()}
        scaling = {n: {k: c.get(k) for k in _ADAPTER_SCALING} for n, c in own.items()}
        settings = json.dumps(scaling, sort_keys=True, default=str)
    return hashlib.sha256(
        f"{weights}\0{type(inner).__name__}\0{described}\0{settings}".encode()
    ).hexdigest()


def _hash(tensor: Tensor) -> bytes:
    if tensor.is_meta:
        raise ModelError(
            "a weight lies on the meta device and has no value: load the model before digesting it"
        )
    data = tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8)
    return hashlib.sha256(data.numpy().data).digest()


def _named_tensors(module: nn.Module, prefix: str = "") -> Iterator[tuple[str, Tensor]]:
    yield from _direct_tensors(module, prefix)
    for name, child in module.named_children():
        yield from _named_tensors(child, f"{prefix}{name}.")


def _base_tensors(module: nn.Module, prefix: str = "") -> Iterator[tuple[str, Tensor]]:
    """Like `_named_tensors`, looking through PEFT's wrappers at what they wrap."""
    if isinstance(module, PeftModel):
        yield from _base_tensors(module.get_base_model(), prefix)
    elif isinstance(module, BaseTunerLayer):
        yield from _base_tensors(module.get_base_layer(), prefix)
    elif isinstance(module, ModulesToSaveWrapper):
        yield from _base_tensors(module.original_module, prefix)
    else:
        yield from _direct_tensors(module, prefix)
        for name, child in module.named_children():
            yield from _base_tensors(child, f"{prefix}{name}.")


def _direct_tensors(module: nn.Module, prefix: str) -> Iterator[tuple[str, Tensor]]:
    transient = module._non_persistent_buffers_set  # noqa: SLF001  # pyright: ignore[reportPrivateUsage] - torch has no public reader
    for name, parameter in module.named_parameters(recurse=False):
        yield prefix + name, parameter
    for name, buffer in module.named_buffers(recurse=False):
        if name not in transient:
            yield prefix + name, buffer
