"""From a recipe to everything a run needs: data, model, layout, reference. Typed stages, in reading order."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import torch

from prefopt.build.named_files import template_file
from prefopt.config import RunConfig
from prefopt.errors import ConfigError, ModelError, RecordError
from prefopt.ledger import Ledger
from prefopt.models.load import (
    CausalModel,
    LoadedModel,
    LoraSettings,
    ModelSettings,
    add_lora,
    disable_dropout,
    load_model,
    load_tokenizer,
)
from prefopt.models.locate import locate
from prefopt.models.special_tokens import extend_embeddings
from prefopt.pack.batch import Example
from prefopt.pack.prepare import PrepareSettings, prepare
from prefopt.progress import say
from prefopt.records import Preference
from prefopt.runs.fitness import fitted, with_mismatched
from prefopt.runs.method import Method, Paired
from prefopt.text.nested import STAGE
from prefopt.text.render import RenderSettings
from prefopt.text.sources import load_preferences
from prefopt.train.terms import Demands, demands_of

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast


class Policy(NamedTuple):
    """The model to train."""

    model: CausalModel
    tokenizer: PreTrainedTokenizerFast
    fresh_adapter: bool
    """A LoRA adapter was added just now: switched off, the model is what it was."""


class Data(NamedTuple):
    """One split, ready for training."""

    preferences: list[Preference]
    examples: list[Example]
    ledger: Ledger


def default_cache() -> Path:
    """$PREFOPT_HOME, else ~/.cache/prefopt."""
    return Path(os.environ.get("PREFOPT_HOME") or Path.home() / ".cache" / "prefopt")


def cache_folder(config: RunConfig) -> Path:
    """`cache_dir`, or the default cache."""
    return default_cache() if config.cache_dir is None else Path(config.cache_dir)


def tokenizer_of(config: RunConfig) -> PreTrainedTokenizerFast:
    """The tokenizer that a recipe names."""
    name = config.tokenizer_name_or_path or config.model_name_or_path
    return load_tokenizer(
        name,
        revision=revision_of(config, name),
        trust_remote_code=config.trust_remote_code,
        chat_template=template_file(config),
    )


def revision_of(config: RunConfig, name: str) -> str | None:
    """The revision of a model that the recipe reads: `model_revision` is that of `model_name_or_path` alone."""
    return config.model_revision if name == config.model_name_or_path else None


def special_tokens_of(config: RunConfig, method: Method[RunConfig]) -> Sequence[str]:
    """The markers that the method wants as special tokens."""
    return () if method.special_tokens is None else method.special_tokens(config)


def input_paths(config: RunConfig) -> list[str]:
    """Files and folders on this machine that a run reads.

    Raises:
        ConfigError: `chat_template` is no file.
    """
    files = [config.train_file, config.eval_file, config.built_file]
    named = [name for f in files if f is not None for name in ([f] if isinstance(f, str) else f)]
    shared = [config.model_name_or_path, config.reference_model, config.tokenizer_name_or_path]
    models = [*shared, *config.further_models]
    bases = [_adapter_base(Path(name)) for name in models if name is not None]
    every = [*named, *models, *bases, config.dataset_name]
    found = [name for name in every if name is not None and Path(name).expanduser().exists()]
    template = template_file(config)
    return found if template is None else [*found, template]


def _adapter_base(folder: Path) -> str | None:
    """The base model that an adapter folder names; None for other folders."""
    file = folder.expanduser() / "adapter_config.json"
    if not file.is_file():
        return None
    with suppress(ValueError):
        base = json.loads(file.read_text(encoding="utf-8")).get("base_model_name_or_path")
        return base if isinstance(base, str) else None
    return None


class Records(NamedTuple):
    """The records of one split, before the method chooses among them."""

    preferences: list[Preference]
    ledger: Ledger
    """Where they have entered and have no fate yet."""


def read_records(
    config: RunConfig, *, evaluation: bool, pairing: str | None, speak: bool
) -> Records:
    """The records of one split, all its sources together; ranked and scored lists get pairs by `pairing`, or none."""
    sources, split = _sources(config, evaluation=evaluation)
    name = "evaluation" if evaluation else "training"
    ledger = Ledger(", ".join(sources))
    preferences: list[Preference] = []
    for source in sources:
        room = None if evaluation else _room(config.max_train_samples, len(preferences))
        if room == 0:
            break
        loaded = load_preferences(
            source,
            split=split,
            columns=config.columns or None,
            ledger=ledger,
            pairing=pairing,
            limit=room,
            # Evaluation data are in no stage, and are read under the same `columns`.
            optional=(STAGE,) if evaluation else (),
        )
        preferences += loaded.preferences
        if speak:
            say(
                f"{name} data {source}: "
                + ", ".join(f"{c} -> {r}" for c, r in loaded.mapping.items())
            )
    return Records(preferences, ledger)


def load_data(
    config: RunConfig,
    method: Method[RunConfig],
    tokenizer: PreTrainedTokenizerFast,
    *,
    evaluation: bool,
    speak: bool,
) -> Data:
    """Read, pair and tokenise one split; raises `RecordError` when nothing is left to train on."""
    if STAGE in config.columns and method.stage is None:
        raise ConfigError(
            f"columns.{STAGE} names the column {config.columns[STAGE]!r}, and method {config.method} trains in no "
            "stages: remove it"
        )
    preferences, ledger = read_records(
        config, evaluation=evaluation, pairing=config.pairing, speak=speak
    )
    preferences = _choose(preferences, method, config, ledger)
    if speak:
        _mention_unused(preferences, demands_of(method.objectives(config)))
    weigh = method.weigh
    examples = prepare(
        preferences,
        tokenizer,
        prepare_settings(config),
        ledger,
        weigh=None if weigh is None else lambda given: weigh(given, config),
    )
    ledger.enforce(strict=config.strict)
    if speak:
        for line in ledger.summary():
            say(line)
    if not examples:
        reasons = ", ".join(line.strip() for line in ledger.summary()[1:])
        raise RecordError(
            f"{ledger.source}: none of {ledger.read} records can be used: {reasons}; repair them, or change what "
            "drops them (max_length, columns, pairing, or the policies of the method)"
        )
    return Data(preferences, examples, ledger)


def _choose(
    preferences: list[Preference], method: Method[RunConfig], config: RunConfig, ledger: Ledger
) -> list[Preference]:
    """The records as the method wants them; those it has no use for are dropped by name."""
    demands = demands_of(method.objectives(config))
    kept: list[Preference] = []
    for preference in preferences:
        chosen = preference if method.pair is None else method.pair(preference, config)
        chosen = _noted(chosen, preference.id, ledger)
        if isinstance(chosen, Preference):
            chosen = _noted(fitted(chosen, demands), preference.id, ledger)
        if isinstance(chosen, str):
            ledger.drop(preference.id, reason=chosen)
        else:
            kept.append(chosen)
    if preferences and not any(p.pairs for p in preferences) and demands.pairs:
        raise RecordError(
            f"{ledger.source}: method {config.method} trains on pairs and no record has one; give chosen and rejected "
            "columns, or responses with scores or ranks"
        )
    return with_mismatched(kept, seed=config.seed) if demands.mismatched else kept


def _noted(chosen: Preference | Paired | str, id: str, ledger: Ledger) -> Preference | str:
    """The outcome of choosing pairs, with what is to be said about it in the ledger."""
    if not isinstance(chosen, Paired):
        return chosen
    for note in chosen.notes:
        ledger.note(id, reason=note)
    return chosen.preference


def _room(limit: int | None, taken: int) -> int | None:
    return None if limit is None else max(0, limit - taken)


def _mention_unused(preferences: Sequence[Preference], demands: Demands) -> None:
    """What the data say and no objective of the run looks at: said rather than ignored silently."""
    pairs = [pair for preference in preferences for pair in preference.pairs]
    unused = {
        "a margin": sum(p.margin is not None for p in pairs)
        * ("margins" not in demands.annotations),
        "a weight": sum(p.weight != 1.0 for p in pairs) * (not demands.pairs),
    }
    for what, count in unused.items():
        if count:
            say(f"note: {count} pairs have {what}, which the objectives of this run do not use")


def _sources(config: RunConfig, *, evaluation: bool) -> tuple[list[str], str]:
    files = config.eval_file if evaluation else config.train_file
    if files is None and not evaluation and config.dataset_name is None:
        files = _built(config)
    if files is not None:
        return ([files] if isinstance(files, str) else list(files)), "train"
    if config.dataset_name is None:
        raise ConfigError("no data: set train_file or dataset_name")
    split = config.eval_dataset_split if evaluation else config.dataset_split
    return [config.dataset_name], split or "train"


def _built(config: RunConfig) -> str | None:
    """The data that `prefopt build` made of this recipe."""
    if config.built_file is not None and not Path(config.built_file).exists():
        raise ConfigError(
            f"{config.built_file}: not built yet; run `prefopt build` with this recipe first, or set train_file"
        )
    changed = config.changed_since_built()
    if changed:
        raise ConfigError(
            f"{config.built_file}: built with other settings than this recipe has ({'; '.join(changed)}); run "
            "`prefopt build` again, or set train_file to that file"
        )
    return config.built_file


def prepare_settings(config: RunConfig) -> PrepareSettings:
    """How records become examples, as the recipe says."""
    return PrepareSettings(
        max_length=config.max_length,
        max_prompt_length=config.max_prompt_length,
        overlong_prompt=config.overlong_prompt,
        overlong_response=config.overlong_response,
        render=RenderSettings(
            prompt_format=config.prompt_format, separator=config.response_separator
        ),
    )


def mixed_precision(config: RunConfig) -> str:
    """`bf16` or `no`: asked for, or on by default on GPUs that have it."""
    if config.dtype in ("bfloat16", "float16"):
        return "no"
    wanted = config.bf16
    if wanted is None:
        wanted = torch.cuda.is_available() and torch.cuda.is_bf16_supported()
    return "bf16" if wanted else "no"


def load_policy(
    config: RunConfig,
    tokenizer: PreTrainedTokenizerFast,
    device: torch.device,
    *,
    added: Sequence[int] = (),
) -> Policy:
    """The model to train, on its device, with an adapter if asked for and dropout off.

    Args:
        config: the recipe.
        tokenizer: the tokenizer of the run.
        device: where the model is put.
        added: ids of special tokens that the tokenizer got just now, for which the model needs rows.
    """
    loaded = load_with(config, config.model_name_or_path, device)
    model = loaded.model
    if added and config.use_peft:
        raise ConfigError(
            f"use_peft: {len(added)} special tokens are new to {config.model_name_or_path}, and an adapter does not "
            "train their embeddings; add them in a run with use_peft: false first"
        )
    if added:
        rows = extend_embeddings(model, tokenizer, added)
        say(f"special tokens: {len(added)} added, {rows} embedding rows")
    if loaded.is_adapter and config.use_peft:
        raise ConfigError(
            f"use_peft: {config.model_name_or_path} is an adapter already and is trained on as it is; remove use_peft "
            "and the lora_ keys"
        )
    if config.use_peft and not loaded.is_adapter:
        lora = LoraSettings(
            r=config.lora_r,
            alpha=config.lora_alpha,
            dropout=config.lora_dropout,
            target_modules=config.lora_target_modules,
            seed=config.seed,
        )
        model = add_lora(model, lora)
    if config.disable_dropout:
        disable_dropout(model)
    if model.dtype == torch.bfloat16 and not (config.use_peft or loaded.is_adapter):
        say(
            "warning: all weights are trained in bfloat16, whose steps are coarse: small updates round away; use "
            "dtype: float32 with bf16: true, or an adapter"
        )
    if config.gradient_checkpointing:
        model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
        model.enable_input_require_grads()
    return Policy(model, tokenizer, fresh_adapter=config.use_peft and not loaded.is_adapter)


def load_with(config: RunConfig, name: str, device: torch.device) -> LoadedModel:
    """A model with the attention that suits the device, unless the recipe names one."""
    tokenizer = config.tokenizer_name_or_path
    if tokenizer is not None:  # a folder, since `revision` here is that of the model
        tokenizer = str(locate(tokenizer, revision=revision_of(config, tokenizer)).folder)
    settings = ModelSettings(
        revision=revision_of(config, name),
        dtype=config.dtype,
        attn_implementation=config.attn_implementation,
        trust_remote_code=config.trust_remote_code,
        device=str(device),
        tokenizer=tokenizer,
        chat_template=config.chat_template,
    )
    chosen = config.attn_implementation is not None or config.layout in ("tree", "rows")
    if chosen or device.type != "cuda":
        return load_model(name, settings)
    try:
        return load_model(name, replace(settings, attn_implementation="flex_attention"))
    except ModelError:
        # An architecture without FlexAttention; anything else is wrong with the default attention too.
        return load_model(name, settings)
