"""`prefopt demo`: the main job from nothing, on a small exact world and two processor cores.

Trains a base model from scratch, makes step pairs and whole-solution pairs from its own mistakes, trains Step-DPO
and DPO on equally many of them, evaluates all three on held-out problems and writes one report. Started again, it
goes on where it stopped.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

import torch

from prefopt.build.grading import one_by_one
from prefopt.build.steps import StepData, StepSettings, build_step_pairs, problem_id
from prefopt.config import parse
from prefopt.errors import ModelError, ResumeError
from prefopt.evals.maths import Evaluation, evaluate, write_evaluation
from prefopt.generate.base import Sampling
from prefopt.generate.journal import Journal
from prefopt.generate.local import LocalGenerator
from prefopt.judge.base import WrongSolution
from prefopt.judge.oracle import OracleLocator
from prefopt.methods.base import find_method
from prefopt.models.load import load_model
from prefopt.progress import counted, say
from prefopt.records import JsonValue, write_preferences
from prefopt.report.page import write_report
from prefopt.runs.base_model import base_model
from prefopt.runs.environment import environment
from prefopt.runs.train import run_training
from prefopt.train.folder import RunFolder
from prefopt.worlds.arithmetic import ArithmeticProblem, ArithmeticWorld

BATCH = 256
"""Rows decoded together: the model is small, so wide batches cost little more than narrow ones."""


@dataclass(frozen=True, slots=True)
class DemoSettings:
    """Sizes of the demonstration."""

    problems: int = 1000
    """Problems the base model is sampled on."""
    test_problems: int = 1000
    """Held-out problems of the evaluation."""
    steps: StepSettings = field(
        default_factory=lambda: StepSettings(
            samples=2, corrections=8, pairs_per_error=1, top_p=1.0, max_new_tokens=160
        )
    )
    training: Mapping[str, JsonValue] = field(
        default_factory=lambda: {
            "beta": 0.3,
            "learning_rate": 5e-5,
            "per_device_train_batch_size": 16,
            "num_train_epochs": 2.0,
            "lr_scheduler_type": "linear",
            "warmup_ratio": 0.1,
            "logging_steps": 1,
            "save_strategy": "no",
        }
    )
    """The same for both methods."""
    seed: int = 0


class DemoResult(NamedTuple):
    """What the demonstration found."""

    evaluations: dict[str, Evaluation]
    """By run name: base, dpo, step_dpo."""
    counts: Mapping[str, int]
    """What the data pipeline saw and made."""
    report: Path
    runs: tuple[Path, ...]


def run_demo(
    folder: Path, settings: DemoSettings | None = None, *, world: ArithmeticWorld | None = None
) -> DemoResult:
    """Run or continue the demonstration in `folder`; returns what it found and where it wrote."""
    # For matrices this small a second thread gains little, and loses a lot when anything else is running.
    torch.set_num_threads(1)
    settings = settings or DemoSettings()
    world = world or ArithmeticWorld()
    base = base_model(world, find_method("sft"))
    say(f"base model: {base}")
    data = _build(world, base, folder, settings)
    files = {"dpo": folder / "solution-pairs.jsonl", "step_dpo": folder / "step-pairs.jsonl"}
    write_preferences(files["dpo"], data.solutions)
    write_preferences(files["step_dpo"], data.steps)
    runs = {"base": folder / "base"}
    for name, file in files.items():
        runs[name] = folder / name
        _train(name, base, file, runs[name], settings)
    models = {"base": base, **{name: runs[name] / "model" for name in files}}
    evaluations = {
        name: _evaluate(name, models[name], runs[name], world, settings) for name in models
    }
    report = write_report(
        list(runs.values()), folder / "report.html", title="prefopt demo: Step-DPO against DPO"
    )
    return DemoResult(evaluations, data.counts, report, tuple(runs.values()))


def _build(world: ArithmeticWorld, base: Path, folder: Path, settings: DemoSettings) -> StepData:
    problems = world.problems("preference", settings.problems, seed=settings.seed)
    folder.mkdir(parents=True, exist_ok=True)
    with Journal(folder / "build.sqlite") as journal:
        data = build_step_pairs(
            problems,
            _generator(base),
            grade=one_by_one(world.grade),
            locator=oracle(world, problems),
            settings=settings.steps,
            journal=journal,
        )
    for name, count in data.counts.items():
        say(f"  {count:6d} {name}")
    if not data.steps:
        raise ModelError(
            f"{base}: no pair could be made from {settings.problems} problems; use more problems"
        )
    return data


def oracle(world: ArithmeticWorld, problems: Sequence[ArithmeticProblem]) -> OracleLocator:
    """The judge that knows the first wrong step exactly."""
    by_id = {problem.id: problem for problem in problems}

    def first_wrong(solution: WrongSolution) -> int | None:
        return world.verify(by_id[problem_id(solution)], solution.text).first_wrong

    return OracleLocator(first_wrong)


def _generator(model: Path) -> LocalGenerator:
    loaded = load_model(model)
    return LocalGenerator(loaded.model, loaded.tokenizer, batch_size=BATCH)


def _train(name: str, base: Path, file: Path, output: Path, settings: DemoSettings) -> None:
    method = find_method(name)
    recipe: dict[str, JsonValue] = {
        **settings.training,
        "method": name,
        "model_name_or_path": str(base),
        "train_file": str(file),
        "output_dir": str(output),
        "seed": settings.seed,
    }
    say(f"\n{name}:")
    if (output / "finished.json").exists():
        try:
            run_training(parse({**recipe, "resume_from_checkpoint": True}, method.config), method)
        except ResumeError:
            say("other data or settings than last time: training anew")
        else:
            return
    run_training(parse({**recipe, "overwrite_output_dir": True}, method.config), method)


def _evaluate(
    name: str, model: Path, run: Path, world: ArithmeticWorld, settings: DemoSettings
) -> Evaluation:
    run.mkdir(parents=True, exist_ok=True)
    sampling = Sampling(max_new_tokens=settings.steps.max_new_tokens, purpose="evaluation")
    with counted(f"evaluating {name}") as tick, Journal(run / "evaluation.sqlite") as journal:
        result = evaluate(
            _generator(model),
            world.problems("test", settings.test_problems, seed=settings.seed),
            lambda problem, text: world.verify(problem, text).correct,
            sampling=sampling,
            name=name,
            journal=journal,
            progress=tick,
        )
    write_evaluation(result, run)
    if not (run / "env.json").exists():
        RunFolder(run).write_json(run / "env.json", environment())
    return result
