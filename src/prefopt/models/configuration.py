"""Reading a model folder's JSON files, and refusing what is no causal language model before weights are touched."""

from __future__ import annotations

import json
from pathlib import Path
from typing import cast

from huggingface_hub.errors import StrictDataclassError
from transformers import AutoConfig, PreTrainedConfig
from transformers.models.auto.configuration_auto import CONFIG_MAPPING
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING

from prefopt.errors import ModelError
from prefopt.models.locate import ADAPTER_CONFIG, CONFIG, Located, locate
from prefopt.models.quiet import quiet_transformers

LOAD_ERRORS = (OSError, ValueError, KeyError, TypeError, ImportError, RuntimeError, AttributeError)
"""What transformers and peft raise on folders they cannot use."""


def load_config(located: Located, *, trust_remote_code: bool = False) -> PreTrainedConfig:
    """The configuration of a model folder, checked to be that of a causal language model.

    Raises:
        ModelError: it is missing, damaged, inconsistent, of an unknown type, or not causal.
    """
    folder, name = located
    raw = read_object(folder, CONFIG, name)
    if not raw.get("model_type") and not raw.get("auto_map"):
        raise ModelError(
            f"{folder / CONFIG} has no model_type: it is not the configuration of a transformers model"
        )
    if raw.get("auto_map") and not trust_remote_code and not _is_known(raw.get("model_type")):
        raise ModelError(
            f"{name} runs its own Python code: read it, then set trust_remote_code=true if you trust it"
        )
    if not raw.get("auto_map") and not _is_known(raw.get("model_type")):
        raise ModelError(
            f"{name} has the model type {raw['model_type']!r}, which the installed transformers does not know: "
            f"correct {CONFIG} or upgrade transformers"
        )
    try:
        with quiet_transformers():
            config = AutoConfig.from_pretrained(
                folder, local_files_only=True, trust_remote_code=trust_remote_code
            )
    except (*LOAD_ERRORS, StrictDataclassError) as error:
        detail = " ".join(str(error).split())[:300].rstrip(".")
        raise ModelError(
            f"{folder / CONFIG} is not usable ({detail}): correct it or copy it again"
        ) from error
    _check_causal(config, name)
    return config


def _is_known(model_type: object) -> bool:
    return isinstance(model_type, str) and model_type in CONFIG_MAPPING


def _check_causal(config: PreTrainedConfig, name: str) -> None:
    causal = type(config) in MODEL_FOR_CAUSAL_LM_MAPPING or bool(getattr(config, "auto_map", None))
    # GPT-NeoX inherits `is_decoder = False` and is a decoder all the same.
    encoder = getattr(config, "is_decoder", None) is False and not config.model_type.startswith(
        "gpt_neox"
    )
    if not causal or encoder or getattr(config, "is_encoder_decoder", False):
        raise ModelError(
            f"{name} is a {config.model_type} model, not a causal language model: use a decoder such as Llama, "
            "Qwen, Gemma, Mistral or GPT-2"
        )


def read_object(folder: Path, file_name: str, name: str) -> dict[str, object]:
    """The JSON object in `folder / file_name`; `name` is what the user calls the folder."""
    file = folder / file_name
    if not file.is_file():
        inside = sorted(p.parent for n in (CONFIG, ADAPTER_CONFIG) for p in folder.glob(f"*/{n}"))
        hint = f"did you mean {inside[0]}?" if inside else "give the folder that holds the model"
        raise ModelError(f"{name} has no {file_name}: {hint}")
    try:
        raw = json.loads(file.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ModelError(
            f"{file} is not valid JSON ({error}): correct it or copy it again"
        ) from error
    if not isinstance(raw, dict):
        raise ModelError(f"{file} holds a {type(raw).__name__}, not a JSON object: copy it again")
    return cast("dict[str, object]", raw)


def locate_base(adapter: Located) -> Located:
    """The base model that an adapter's configuration names, looked for here, beside the adapter, on the hub.

    Raises:
        ModelError: the configuration is damaged or names none, or the base is nowhere to be found.
    """
    file = adapter.folder / ADAPTER_CONFIG
    raw = read_object(adapter.folder, ADAPTER_CONFIG, adapter.name)
    base, revision = raw.get("base_model_name_or_path"), raw.get("revision")
    if not isinstance(base, str) or not base:
        raise ModelError(f"{file} does not name its base model: set base_model_name_or_path there")
    beside = adapter.folder / base
    if beside.is_dir() and not Path(base).expanduser().is_dir():
        return Located(beside, str(beside))
    try:
        return locate(base, revision=revision if isinstance(revision, str) else None)
    except ModelError as error:
        raise ModelError(
            f"the base model of adapter {adapter.name} is missing: {error}; or correct "
            f"base_model_name_or_path in {file}"
        ) from error
