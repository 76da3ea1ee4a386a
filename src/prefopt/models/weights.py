"""Weight files: which ones a folder must have, whether they are whole, reading them back bit for bit."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import torch
from peft import PeftModel, get_peft_model_state_dict, set_peft_model_state_dict
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file
from torch import Tensor
from transformers import PreTrainedModel

from prefopt.errors import ModelError
from prefopt.models.quiet import quiet_transformers

_SINGLE = ("model.safetensors", "pytorch_model.bin")
_INDEX = ("model.safetensors.index.json", "pytorch_model.bin.index.json")
ADAPTER_WEIGHTS = ("adapter_model.safetensors", "adapter_model.bin")


def weight_files(folder: Path, *, adapter: bool = False) -> list[Path]:
    """The weight files of a model or adapter folder, each checked to be there and whole (headers only).

    Raises:
        ModelError: no weights, a missing shard, a broken index, or a truncated safetensors file.
    """
    names = ADAPTER_WEIGHTS if adapter else _SINGLE
    files = [folder / name for name in names if (folder / name).is_file()][:1]
    if not files and not adapter:
        files = _shards(folder)
    if not files:
        raise ModelError(
            f"{folder} has no weights ({' or '.join(names)} expected): the copy or the save was interrupted; "
            "copy the folder again or use another checkpoint"
        )
    for file in files:
        _check_whole(file)
    return files


def _shards(folder: Path) -> list[Path]:
    index = next((folder / name for name in _INDEX if (folder / name).is_file()), None)
    if index is None:
        return []
    try:
        names = sorted(set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()))
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ModelError(
            f"{index} is not a valid weight index ({error}): copy the folder again"
        ) from error
    missing = [name for name in names if not (folder / name).is_file()]
    if missing:
        raise ModelError(
            f"{folder} lacks {len(missing)} of {len(names)} weight files, first {missing[0]}: "
            "copy the folder again"
        )
    return [folder / name for name in names]


def _check_whole(file: Path) -> None:
    try:
        if file.stat().st_size == 0:
            raise ModelError(f"{file} is empty: copy it again or use another checkpoint")
        if file.suffix == ".safetensors":
            with safe_open(file, framework="pt"):
                pass
    except SafetensorError as error:
        raise ModelError(
            f"{file} is damaged or cut short ({error}): copy it again or use another checkpoint"
        ) from error
    except OSError as error:
        raise ModelError(f"{file} cannot be read: {error.strerror}") from error


def load_weights(model: PreTrainedModel | PeftModel, folder: Path | str) -> None:
    """Read the weights that `save_model` wrote into `model`, in place and bit for bit.

    A PEFT model takes its adapter's weights only. Names, shapes and dtypes must agree.

    Raises:
        ModelError: the folder is incomplete or belongs to another model.
    """
    folder = Path(folder)
    if isinstance(model, PeftModel):
        _load_adapter_weights(model, folder)
        return
    stored = _read(weight_files(folder))
    own = model.state_dict()
    if not stored.keys() <= own.keys():
        # transformers stores some architectures (fused experts) under other names than it uses in memory.
        stored = _converted(model, folder)
    _copy(own, stored, folder)


def _read(files: Sequence[Path]) -> dict[str, Tensor]:
    stored: dict[str, Tensor] = {}
    for file in files:
        if file.suffix == ".safetensors":
            stored.update(load_file(file))
        else:
            stored.update(torch.load(file, map_location="cpu", weights_only=True))
    return stored


def _converted(model: PreTrainedModel, folder: Path) -> dict[str, Tensor]:
    with quiet_transformers():
        fresh = type(model).from_pretrained(folder, dtype=model.dtype, local_files_only=True)
    return fresh.state_dict()


def _copy(own: Mapping[str, Tensor], stored: Mapping[str, Tensor], folder: Path) -> None:
    written = {own[name].data_ptr() for name in stored.keys() & own.keys()}
    missing = sorted(
        name for name in own.keys() - stored.keys() if own[name].data_ptr() not in written
    )
    unknown = sorted(stored.keys() - own.keys())
    if missing or unknown:
        raise ModelError(
            f"{folder} holds the weights of another model: "
            + (
                f"it lacks {missing[0]}"
                if missing
                else f"it has {unknown[0]}, which this model has not"
            )
        )
    for name, value in stored.items():
        target = own[name]
        if target.shape != value.shape or target.dtype != value.dtype:
            raise ModelError(
                f"{folder}: {name} is {_describe(value)} there and {_describe(target)} in the model; "
                "load it into the model it was saved from"
            )
    with torch.no_grad():
        for name, value in stored.items():
            own[name].copy_(value)


def _describe(tensor: Tensor) -> str:
    return f"{str(tensor.dtype).removeprefix('torch.')} {list(tensor.shape)}"


def adapter_keys(model: PeftModel) -> set[str]:
    """Names under which the adapter of `model` is stored."""
    with quiet_transformers():
        return set(get_peft_model_state_dict(model, save_embedding_layers=False))


def check_adapter_keys(stored: Iterable[str], model: PeftModel, folder: Path) -> None:
    """Raise `ModelError` unless the stored adapter names are those of `model`."""
    expected, found = adapter_keys(model), set(stored)
    missing, unknown = sorted(expected - found), sorted(found - expected)
    if missing:
        raise ModelError(
            f"adapter {folder} lacks {len(missing)} of its weights, first {missing[0]}: copy the folder again"
        )
    if unknown:
        raise ModelError(
            f"adapter {folder} also replaces weights of its base model, first {unknown[0]}: merge it into the base "
            "first (PEFT merge_and_unload), or use the base model it was trained on"
        )


def _load_adapter_weights(model: PeftModel, folder: Path) -> None:
    stored = _read(weight_files(folder, adapter=True))
    check_adapter_keys(stored, model, folder)
    own = get_peft_model_state_dict(model, save_embedding_layers=False)
    for name, value in stored.items():
        if own[name].shape != value.shape:
            raise ModelError(
                f"adapter {folder}: {name} is {list(value.shape)} there and {list(own[name].shape)} in the "
                "model; use the same lora_r and base model"
            )
    with quiet_transformers():
        set_peft_model_state_dict(model, stored)
