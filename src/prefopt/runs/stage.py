"""Everything that training needs, prepared: data, model, layout, reference, learner, schedule."""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from prefopt.config import RunConfig
from prefopt.errors import ConfigError, RecordError
from prefopt.models.digest import model_digest
from prefopt.models.layout import choose_layout
from prefopt.models.scorer import Scorer
from prefopt.models.special_tokens import extend_tokenizer
from prefopt.objectives import unbound
from prefopt.pack.batch import Example, Layout
from prefopt.pack.plan import PackLimits, Schedule, row_length_for
from prefopt.runs.method import Method
from prefopt.runs.plan import summarise
from prefopt.runs.reference import build_reference, loads_model
from prefopt.runs.setup import (
    Data,
    Policy,
    load_data,
    load_policy,
    mixed_precision,
    special_tokens_of,
    tokenizer_of,
)
from prefopt.train.folder import RunFolder
from prefopt.train.preference import PreferenceLearner
from prefopt.train.runtime import Runtime
from prefopt.train.scoring import Packing
from prefopt.train.terms import demands_of

_NEUTRAL = {
    "cache_dir", "eval_steps", "eval_strategy", "gradient_accumulation_steps", "head_chunk_bytes",
    "hub_model_id", "hub_private_repo", "logging_steps", "output_dir", "overwrite_output_dir",
    "per_device_eval_batch_size", "per_device_train_batch_size", "push_to_hub", "report_to",
    "resume_from_checkpoint", "run_name", "save_steps", "save_strategy", "save_total_limit",
    "pack_tokens", "eval_file", "eval_dataset_split", "strict", "train_file", "dataset_name",
    "evaluate",
}  # fmt: skip
"""Settings that a resumed run may change: they do not alter what is learnt, given the digests of schedule and data
(so the same rows may lie in another file)."""


class Stage(NamedTuple):
    """Everything that training needs, prepared."""

    config: RunConfig
    method: Method[RunConfig]
    folder: RunFolder
    runtime: Runtime
    train: Data
    evaluation: Data | None
    policy: Policy
    learner: PreferenceLearner
    packing: Packing
    schedule: Schedule
    layout_reason: str
    identity: dict[str, str]
    """What a resumed run must share, taken before the first step."""


def prepare_stage(
    config: RunConfig, method: Method[RunConfig], folder: RunFolder, runtime: Runtime
) -> Stage:
    """Load, lay out and score ahead whatever the recipe asks for."""
    tokenizer = tokenizer_of(config)
    added = extend_tokenizer(tokenizer, special_tokens_of(config, method))
    speak = runtime.is_main
    train = load_data(config, method, tokenizer, evaluation=False, speak=speak)
    has_eval = config.eval_file is not None or config.eval_dataset_split is not None
    evaluation = (
        load_data(config, method, tokenizer, evaluation=True, speak=speak) if has_eval else None
    )
    policy = load_policy(config, tokenizer, runtime.device, added=added)
    everything = [*train.examples, *(evaluation.examples if evaluation else [])]
    longest = max(n for e in everything for n in e.row_lengths(Layout.ROWS))
    choice = choose_layout(
        policy.model, requested=config.layout, longest=longest, examples=train.examples
    )
    packing = packing_for(
        everything, choice.layout, config, items=config.per_device_train_batch_size
    )
    learner = _learner(config, method, policy, train, evaluation, packing, runtime)
    schedule = schedule_for(
        config, train.examples, packing, runtime.world_size, stage=stages_of(train, method, config)
    )
    _require_effect(config, learner, schedule)
    return Stage(
        config,
        method,
        folder,
        runtime,
        train,
        evaluation,
        policy,
        learner,
        packing,
        schedule,
        choice.reason,
        _identity(config, policy, learner, schedule),
    )


def _learner(  # noqa: PLR0917 - the parts of a stage
    config: RunConfig,
    method: Method[RunConfig],
    policy: Policy,
    train: Data,
    evaluation: Data | None,
    packing: Packing,
    runtime: Runtime,
) -> PreferenceLearner:
    terms = method.objectives(config)
    demands = demands_of(terms)
    held_out = evaluation.examples if evaluation else []
    statistics = ("collision",) if "alignment" in demands.extras else ()
    scorer = Scorer(policy.model, chunk_bytes=config.head_chunk_bytes, statistics=statistics)
    reference = build_reference(
        config,
        demands,
        policy,
        examples=[*train.examples, *held_out],
        packing=packing,
        runtime=runtime,
    )
    return PreferenceLearner(
        scorer,
        reference=reference,
        objectives=terms,
        examples=train.examples,
        eval_examples=held_out,
        layout=packing.layout,
        row_length=packing.limits.row_length,
        tokenizer=policy.tokenizer,
        device=runtime.device,
        autocast=runtime.autocast,
        seed=config.seed,
    )


def _require_effect(config: RunConfig, learner: PreferenceLearner, schedule: Schedule) -> None:
    """Refuse what would silently do nothing: an objective without anything to train on, a reference that stays."""
    totals = learner.totals(range(len(learner.examples)), training=True)
    for term, total in zip(learner.terms.terms, totals, strict=True):
        if not total:
            raise RecordError(
                f"objective {unbound(term.objective).__name__} has nothing to train on in these "
                f"{len(learner.examples)} records: no response or pair counts for it; check labels, ranks and weights"
            )
    if config.reference == "moving" and schedule.total_steps < config.reference_sync_steps:
        raise ConfigError(
            f"reference: moving would never move: the run has {schedule.total_steps} steps and reference_sync_steps is "
            f"{config.reference_sync_steps}; lower it"
        )


def plan_training(config: RunConfig, method: Method[RunConfig]) -> dict[str, object]:
    """The facts of `plan.json`, from the data and the model, without scoring or training anything."""
    tokenizer = tokenizer_of(config)
    added = extend_tokenizer(tokenizer, special_tokens_of(config, method))
    train = load_data(config, method, tokenizer, evaluation=False, speak=True)
    runtime = Runtime(mixed_precision=mixed_precision(config))
    policy = load_policy(config, tokenizer, runtime.device, added=added)
    longest = max(n for e in train.examples for n in e.row_lengths(Layout.ROWS))
    choice = choose_layout(
        policy.model, requested=config.layout, longest=longest, examples=train.examples
    )
    packing = packing_for(
        train.examples, choice.layout, config, items=config.per_device_train_batch_size
    )
    schedule = schedule_for(
        config, train.examples, packing, runtime.world_size, stage=stages_of(train, method, config)
    )
    return summarise(
        train.examples,
        schedule,
        policy.model,
        chunk_bytes=config.head_chunk_bytes,
        second_model=loads_model(config, demands_of(method.objectives(config)), policy),
    )


def packing_for(
    examples: Sequence[Example], layout: Layout, config: RunConfig, *, items: int
) -> Packing:
    """Micro-batch limits of a run."""
    limits = PackLimits(layout, items, config.pack_tokens)
    if layout is Layout.PACKED:
        lengths = [e.row_lengths(layout) for e in examples]
        limits = limits._replace(row_length=row_length_for(lengths, limits))
    return Packing(layout, limits)


def stages_of(train: Data, method: Method[RunConfig], config: RunConfig) -> tuple[int, ...]:
    """The stage of each example as the method has it; empty where there is one stage."""
    if method.stage is None:
        return ()
    by_id = {record.id: method.stage(record, config) for record in train.preferences}
    stages = tuple(by_id[example.id] for example in train.examples)
    return stages if len(set(stages)) > 1 else ()


def schedule_for(
    config: RunConfig,
    examples: Sequence[Example],
    packing: Packing,
    world_size: int,
    *,
    stage: tuple[int, ...] = (),
) -> Schedule:
    """The optimiser steps of a run."""
    per_process = config.per_device_train_batch_size * config.gradient_accumulation_steps
    return Schedule(
        lengths=tuple(e.row_lengths(packing.layout) for e in examples),
        batch_size=per_process * world_size,
        world_size=world_size,
        limits=packing.limits,
        seed=config.seed,
        epochs=config.num_train_epochs,
        max_steps=config.max_steps,
        stage=stage,
    )


def _identity(
    config: RunConfig, policy: Policy, learner: PreferenceLearner, schedule: Schedule
) -> dict[str, str]:
    """Settings, data and starting weights that a resumed run must share."""
    settings = {
        key: json.dumps(value)
        for key, value in config.model_dump(mode="json").items()
        if key not in _NEUTRAL
    }
    settings["model_name_or_path"] = json.dumps(_model_name(config))
    keys = hashlib.blake2b(digest_size=16)
    for example in learner.examples:
        keys.update(example.key(learner.layout))
        # Everything but tokens that a loss may depend on: pairs, weights, margins, scores, ranks, labels.
        keys.update(repr(example._replace(id="", tree=None, source=())).encode())
    return {
        **settings,
        "data": keys.hexdigest(),
        "schedule": schedule.digest(),
        "starting weights": model_digest(policy.model, adapter=not policy.fresh_adapter),
        **learner.identity(),
    }


def _model_name(config: RunConfig) -> str:
    """The model as the recipe names it; that of the training before, in a chain or in rounds, from where this one lies.

    Its place is decided by `output_dir`, which a resumed run may spell otherwise or have moved.
    """
    model, folder = Path(config.model_name_or_path), Path(config.output_dir)
    name, own = _NUMBERED.fullmatch(model.parent.name), _NUMBERED.fullmatch(folder.name)
    if name is None or own is None or model.parent.parent != folder.parent:
        return config.model_name_or_path
    before = name[1] == own[1] and int(name[2]) + 1 == int(own[2])
    return os.path.relpath(model, folder) if before else config.model_name_or_path


_NUMBERED = re.compile(r"(stage|round)-([0-9]+)")
"""Folders of a chain's stages, and of the rounds of `prefopt run`."""
