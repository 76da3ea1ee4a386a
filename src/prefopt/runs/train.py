"""`prefopt train`: recipe in, run folder out."""

from __future__ import annotations

import json
import math
from pathlib import Path

import torch

from prefopt.config import RunConfig, write_recipe
from prefopt.errors import ResumeError
from prefopt.models.card import CardFacts, framework_versions, write_card
from prefopt.models.citation import TrainedObjective, trained_objective
from prefopt.models.reference import LiveReference
from prefopt.models.save import push_model, require_hub_token, save_model
from prefopt.objectives import find_objective
from prefopt.pack.plan import StepPlan, plan_steps
from prefopt.progress import say
from prefopt.report.page import write_report
from prefopt.runs.environment import environment
from prefopt.runs.method import Method, RunResult
from prefopt.runs.plan import summarise
from prefopt.runs.samples import sample_rows
from prefopt.runs.setup import (
    input_paths,
    mixed_precision,
)
from prefopt.runs.stage import Stage, prepare_stage
from prefopt.train.checkpoint import check_identity, read_state
from prefopt.train.folder import RunFolder, open_folder
from prefopt.train.loop import LoopSettings, fit
from prefopt.train.optim import OptimSettings
from prefopt.train.runtime import Runtime
from prefopt.train.scoring import policy_reference_gap, require_small_gap

__all__ = ["RunResult", "run_training", "train_method"]


def train_method(config: RunConfig, method: Method[RunConfig]) -> RunResult:
    """Train the way that the method has of its own, or else as `run_training` does.

    Raises:
        PrefoptError: anything a user can cause, one line each.
    """
    return run_training(config, method) if method.train is None else method.train(config)


def run_training(config: RunConfig, method: Method[RunConfig]) -> RunResult:
    """Train as the recipe says and write the run folder; a finished run that is resumed is left as it is.

    Raises:
        PrefoptError: anything a user can cause, one line each.
    """
    folder = RunFolder(Path(config.output_dir))
    runtime = Runtime(
        mixed_precision=mixed_precision(config),
        report_to=config.report_to,
        logging_dir=folder.trackers,
    )
    if config.push_to_hub:
        require_hub_token()
    runtime.on_main(folder.acquire)
    try:
        return _run(config, method, folder, runtime)
    finally:
        folder.release()


def _run(
    config: RunConfig, method: Method[RunConfig], folder: RunFolder, runtime: Runtime
) -> RunResult:
    resume = config.resume_from_checkpoint
    checkpoint = runtime.on_main(
        lambda: open_folder(
            folder,
            resume=resume,
            overwrite=config.overwrite_output_dir,
            inputs=input_paths(config),
        )
    )
    torch.manual_seed(config.seed)
    stage = prepare_stage(config, method, folder, runtime)
    if resume is True and folder.finished.exists():
        return _earlier_result(stage)
    if checkpoint is None:
        _check_start(stage)
    else:
        check_identity(read_state(checkpoint).identity, stage.identity, checkpoint)
    runtime.on_main(lambda: _make_room(stage, resumed=checkpoint is not None))
    _describe(stage)
    settings = _loop_settings(stage)
    name = config.run_name or folder.path.name
    runtime.start_trackers("prefopt", config.model_dump(mode="json"), name=name)
    metrics = fit(stage.learner, settings, runtime, resume_from=checkpoint)
    result = _finish(stage, metrics)
    runtime.finish()
    return result


def _make_room(stage: Stage, *, resumed: bool) -> None:
    """Remove what an earlier run left, now that this one is ready: all of it only where that was asked for."""
    if stage.config.overwrite_output_dir:
        stage.folder.clear()
    elif resumed:
        stage.folder.finished.unlink(missing_ok=True)
    else:
        stage.folder.begin()


def _earlier_result(stage: Stage) -> RunResult:
    """What a finished run left, after making sure that it is the run that is asked for."""
    folder = stage.folder
    try:
        earlier = json.loads(folder.finished.read_text(encoding="utf-8"))
        identity, metrics = earlier["identity"], earlier["metrics"]
    except (ValueError, KeyError, TypeError) as error:
        raise ResumeError(
            f"{folder.finished}: is not what this version writes; pass --overwrite to start anew, or set another "
            "output_dir"
        ) from error
    check_identity(identity, stage.identity, folder.finished)
    if stage.runtime.is_main:
        say(f"{folder.path}: this run is already finished")
        if not folder.report.exists():
            write_report([folder.path], folder.report)
    return RunResult(folder.path, folder.model, metrics, folder.report)


def _describe(stage: Stage) -> None:
    """Write what is known before the first step, and say the gist of it."""
    if not stage.runtime.is_main:
        return
    folder = stage.folder
    write_recipe(stage.config, folder.recipe)
    folder.write_json(folder.environment, environment())
    ledgers = {"train": stage.train.ledger.to_json()}
    if stage.evaluation is not None:
        ledgers["eval"] = stage.evaluation.ledger.to_json()
    folder.write_json(folder.ledger, ledgers)
    facts = summarise(
        stage.train.examples,
        stage.schedule,
        stage.policy.model,
        chunk_bytes=stage.config.head_chunk_bytes,
        second_model=isinstance(stage.learner.reference, LiveReference),
    )
    folder.write_json(folder.plan, facts)
    say(
        f"layout {stage.packing.layout}: {stage.layout_reason}; {facts['tokens_tree']} tokens instead of "
        f"{facts['tokens_rows']} ({facts['saved']:.0%} saved by sharing)"
    )
    say(f"{stage.schedule.total_steps} steps of {stage.schedule.batch_size} records")


def _check_start(stage: Stage) -> None:
    """Policy and reference must agree at step 0 where they are the same weights."""
    if stage.config.reference_model is not None or not stage.learner.reference.digest:
        return
    packs = stage.packing.batches(stage.train.examples[:64], rank=0, world_size=1)
    batch = stage.packing.collate(stage.train.examples, packs[0]).to(stage.runtime.device)
    gap = policy_reference_gap(stage.learner.module, stage.learner.reference, batch, stage.runtime)
    if gap is None:
        return
    precision = mixed_precision(stage.config)
    if stage.policy.model.dtype != torch.float32:
        precision = "bf16" if stage.policy.model.dtype == torch.bfloat16 else "fp16"
    bound = require_small_gap(gap, precision=precision)
    if stage.runtime.is_main:
        say(f"step 0: policy and reference agree to {gap:.1e} nats per token (bound {bound:g})")


def _loop_settings(stage: Stage) -> LoopSettings:
    config, schedule = stage.config, stage.schedule
    warmup = config.warmup_steps
    if warmup is None:
        warmup = math.ceil(config.warmup_ratio * schedule.total_steps)
    per_epoch = schedule.steps_per_epoch
    eval_steps = {"no": None, "steps": config.eval_steps, "epoch": per_epoch}[config.eval_strategy]
    save_steps = {"no": None, "steps": config.save_steps, "epoch": per_epoch}[config.save_strategy]
    return LoopSettings(
        schedule=schedule,
        folder=stage.folder.path,
        optim=OptimSettings(
            learning_rate=config.learning_rate,
            lr_scheduler_type=config.lr_scheduler_type,
            warmup_steps=warmup,
            weight_decay=config.weight_decay,
            adam_beta1=config.adam_beta1,
            adam_beta2=config.adam_beta2,
            adam_epsilon=config.adam_epsilon,
        ),
        max_grad_norm=config.max_grad_norm or 0.0,
        logging_steps=config.logging_steps,
        eval_steps=eval_steps if stage.evaluation else None,
        eval_plan=_eval_plan(stage),
        save_steps=save_steps,
        save_total_limit=config.save_total_limit,
        identity=stage.identity,
    )


def _eval_plan(stage: Stage) -> list[StepPlan]:
    if stage.evaluation is None:
        return []
    examples = stage.evaluation.examples
    limits = stage.packing.limits._replace(items=stage.config.per_device_eval_batch_size)
    return plan_steps(
        [e.row_lengths(stage.packing.layout) for e in examples],
        range(len(examples)),
        batch_size=max(1, len(examples)),
        world_size=stage.runtime.world_size,
        limits=limits,
    )


def _finish(stage: Stage, metrics: dict[str, float]) -> RunResult:
    folder, runtime = stage.folder, stage.runtime
    result = RunResult(folder.path, folder.model, metrics, folder.report)
    runtime.wait()
    if not runtime.is_main:
        return result
    save_model(stage.policy.model, stage.policy.tokenizer, folder.model)
    write_card(folder.model, _card(stage, metrics))
    held_out = stage.evaluation or stage.train
    rows = sample_rows(
        stage.learner,
        held_out.preferences,
        held_out.examples,
        stage.packing,
        runtime,
        training=stage.evaluation is None,
    )
    folder.write_lines(folder.samples, rows)
    write_report([folder.path], folder.report)
    say(f"model: {folder.model}")
    say(f"report: {folder.report}")
    if stage.config.push_to_hub and stage.config.hub_model_id:
        push_model(folder.model, stage.config.hub_model_id, private=stage.config.hub_private_repo)
    # Last of all: whatever was cut short before this is done again on resume.
    folder.write_json(folder.finished, {"metrics": metrics, "identity": stage.identity})
    return result


def _card(stage: Stage, metrics: dict[str, float]) -> CardFacts:
    changed = stage.config.model_dump(mode="json", exclude_defaults=True)
    return CardFacts(
        method=stage.method.name,
        paper=stage.method.paper,
        objectives=tuple(
            trained_objective(term.objective, weight=term.coefficient)
            for term in stage.learner.terms.terms
        ),
        own=_own_objectives(stage),
        base_model=stage.config.model_name_or_path,
        ledger=stage.train.ledger.to_json(),
        settings=changed,
        metrics=metrics,
        versions=framework_versions(),
        is_adapter=hasattr(stage.policy.model, "peft_config"),
    )


def _own_objectives(stage: Stage) -> tuple[TrainedObjective, ...]:
    """Those of a recipe of this method that names none; for methods without a choice, what there is."""
    key = stage.method.config.model_fields.get("loss_type")
    if key is None:
        return tuple(
            trained_objective(term.objective, weight=term.coefficient)
            for term in stage.method.objectives(stage.config)
        )
    return tuple(trained_objective(find_objective(name)) for name in key.default)
