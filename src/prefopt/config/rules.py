"""Rules about several keys of a recipe at once. Each broken one is a sentence that names all keys involved."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from prefopt.config.schema import RunConfig


def contradictions_of(config: RunConfig) -> Iterator[str]:
    """The broken rules among the keys that all methods share."""
    yield from _data(config)
    yield from _evaluation(config)
    yield from _training(config)
    yield from _output(config)


def _data(config: RunConfig) -> Iterator[str]:
    if config.train_file is None and config.dataset_name is None and config.built_file is None:
        yield "no training data: set train_file (files or a folder) or dataset_name (a hub id)"
    if config.train_file is not None and config.dataset_name is not None:
        yield (
            f"train_file {config.train_file!r} and dataset_name {config.dataset_name!r} exclude "
            "each other: remove one"
        )
    limit = config.max_prompt_length
    if limit is not None and limit >= config.max_length:
        yield (
            f"max_prompt_length {limit} leaves no room for a response: it must be below "
            f"max_length, which is {config.max_length}"
        )


def _evaluation(config: RunConfig) -> Iterator[str]:
    file, split, strategy = config.eval_file, config.eval_dataset_split, config.eval_strategy
    if file is not None and split is not None:
        yield f"eval_file {file!r} and eval_dataset_split {split!r} exclude each other: remove one"
    if split is not None and config.dataset_name is None:
        yield (
            f"eval_dataset_split {split!r} is a split of dataset_name, which is not set: "
            "use eval_file"
        )
    if strategy != "no" and file is None and split is None:
        yield f"eval_strategy {strategy!r} needs data: set eval_file or eval_dataset_split"
    if strategy == "steps" and config.eval_steps is None:
        yield "eval_strategy 'steps' needs eval_steps, the number of steps between two evaluations"
    if strategy != "steps" and config.eval_steps is not None:
        yield (
            f"eval_steps {config.eval_steps} has no effect with eval_strategy {strategy!r}: "
            "set eval_strategy: steps or remove eval_steps"
        )


def _training(config: RunConfig) -> Iterator[str]:
    if config.warmup_ratio > 0 and config.warmup_steps is not None:
        yield (
            f"warmup_ratio {config.warmup_ratio} and warmup_steps {config.warmup_steps} exclude "
            "each other: remove one"
        )
    if config.bf16 is True and config.dtype in {"float16", "bfloat16"}:
        yield (
            f"bf16 true and dtype {config.dtype!r} exclude each other (bf16 computes in bfloat16 over float32 "
            "weights): set dtype: float32 or bf16: false"
        )
    fields = type(config).model_fields
    for key in ("lora_r", "lora_alpha", "lora_dropout", "lora_target_modules"):
        if not config.use_peft and getattr(config, key) != fields[key].default:
            yield f"{key} {getattr(config, key)!r} has no effect without an adapter: set use_peft: true or remove it"
    for key in ("reference_mixup_alpha", "reference_sync_steps"):
        if config.reference != "moving" and getattr(config, key) != fields[key].default:
            yield f"{key} {getattr(config, key)!r} has no effect unless reference is moving: set it, or remove the key"
    if config.reference == "adapter_off" and config.reference_model is not None:
        yield (
            f"reference 'adapter_off' and reference_model {config.reference_model!r} exclude each "
            "other: remove one"
        )


def _output(config: RunConfig) -> Iterator[str]:
    if config.overwrite_output_dir and config.resume_from_checkpoint is not False:
        yield (
            "overwrite_output_dir and resume_from_checkpoint exclude each other: the first deletes "
            "what the second needs"
        )
    if config.push_to_hub and config.hub_model_id is None:
        yield "push_to_hub needs hub_model_id, the repository to upload to (owner/name)"
