"""Curry-DPO (Pattnaik et al. 2024, arXiv 2403.07230): DPO on several pairs of each prompt, the easy ones first.

The objective is that of DPO. What the method adds is which pairs there are (`build/curriculum.py`), how easy they are
(`build/difficulty.py`) and which stages they become (`build/stages.py`), and that each stage starts from the model of
the stage before, which is its reference (`runs/chain.py`). There is no official code; where the paper is silent, keys
say what is done.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Literal, cast

from pydantic import Field

from prefopt.config import RunConfig, parse
from prefopt.records import JsonValue, Preference
from prefopt.runs.method import Method, RunResult
from prefopt.runs.mix import ObjectiveKeys, objective_terms

if TYPE_CHECKING:
    from prefopt.build.stages import CurriculumRules
    from prefopt.runs.curriculum import CurriculumFiles
    from prefopt.runs.difficulty import Difficulty

_WITH_REFERENCE = ("reference_gap", "implicit_reward")
_MEASURES = ("score_gap", "rank_gap", *_WITH_REFERENCE)


class CurryDpoConfig(ObjectiveKeys):
    """Recipe of a Curry-DPO run: ranked or scored responses, or pairs with a stage."""

    beta: float | None = Field(default=0.1, gt=0)
    """Strength of the implicit KL anchor to the reference, which is the model of the stage before."""
    stages: Literal["ranks", "quantiles", "pooled", "given"] = "ranks"
    """ranks: stage k is the k-th easiest pair of every prompt; quantiles: all pairs cut into equal parts; pooled: one
    stage of everything; given: the column `stage` of the data (easy, medium, hard, or a number)."""
    quantiles: int | None = Field(default=None, ge=1)
    """Number of parts of `quantiles`, the remainder in the last one; null: 3."""
    difficulty: str | None = Field(default=None, min_length=1)
    """What makes a pair easy: score_gap, rank_gap, reference_gap (log-probabilities of the reference), implicit_reward
    (of difficulty_policy), or package.module:function of (record, pair), higher is easier; null: score_gap."""
    difficulty_policy: str | None = Field(default=None, min_length=1)
    """Folder or hub id of the model whose implicit reward is the difficulty."""
    difficulty_reference: str | None = Field(default=None, min_length=1)
    """Folder or hub id of the reference of reference_gap and implicit_reward; null: reference_model, or the model that
    is trained."""
    order: Literal["easy_to_hard", "hard_to_easy", "random"] = "easy_to_hard"
    """Order of the stages; random: the same stages with pairs dealt out by chance."""
    align: Literal["hard", "easy"] | None = None
    """Where `ranks` puts prompts with fewer pairs than others: in the last stages, or in the first; null: hard."""
    only: Literal["easiest", "hardest"] | int | None = None
    """Train on this stage alone, counted from the easiest, from 1; for `ranks`, that pair of every prompt; for `given`,
    a number is the stage that the data say."""
    drop_hardest: float = Field(default=0.0, ge=0, lt=1)
    """Share of all pairs, the hardest, that is left out."""
    on_ties: Literal["drop", "keep"] = "drop"
    """Pairs of equal scores; kept ones are the hardest."""
    on_missing: Literal["error", "drop"] = "error"
    """Responses without a score or rank, and pairs without a difficulty."""
    schedule: Literal["iterative", "single_run"] = "iterative"
    """iterative: a training per stage, each from the model of the one before, which is its reference, optimiser and
    learning rate anew; single_run: one training through all stages with one reference. num_train_epochs counts per
    stage."""

    @property
    def one_stage(self) -> bool:
        """Whether there is one stage for sure."""
        return self.stages == "pooled" or self.only is not None

    @property
    def further_models(self) -> list[str]:
        """The models that difficulties are measured by."""
        named = (self.difficulty_policy, self.difficulty_reference)
        return [name for name in named if name is not None]

    def contradictions(self) -> list[str]:
        """The shared rules, and those about stages."""
        return [*super().contradictions(), *_idle(self), *_broken(self)]


def _idle(config: CurryDpoConfig) -> Iterator[str]:
    """Keys that would do nothing."""
    stages = config.stages
    if config.quantiles is not None and stages != "quantiles":
        yield f"quantiles {config.quantiles} has no effect with stages {stages!r}: set stages: quantiles, or remove it"
    if config.align is not None and (stages != "ranks" or config.only is not None):
        yield f"align {config.align!r} has no effect unless stages is ranks and `only` is not set: remove it"
    if config.order != "easy_to_hard" and config.one_stage:
        yield f"order {config.order!r} has no effect with one stage (stages: pooled, or only): remove it"
    if config.only is not None and stages == "pooled":
        yield f"only {config.only!r} names a stage, and stages: pooled has one: remove one of them"
    if (column := config.columns.get("stage")) is not None and stages != "given":
        yield f"columns.stage {column!r} has no effect with stages {stages!r}: set stages: given, or remove it"
    if stages == "given" and config.difficulty is not None:
        yield f"difficulty {config.difficulty!r} has no effect with stages: given: remove one of them"
    if stages == "given" and config.drop_hardest:
        yield "drop_hardest has no meaning with stages: given, which does not measure pairs: remove one of them"
    if (config.difficulty == "implicit_reward") != (config.difficulty_policy is not None):
        yield "difficulty: implicit_reward and difficulty_policy belong together: set both or none"
    if config.difficulty_reference is not None and config.difficulty not in _WITH_REFERENCE:
        yield f"difficulty_reference has no effect unless difficulty is {' or '.join(_WITH_REFERENCE)}: remove it"


def _broken(config: CurryDpoConfig) -> Iterator[str]:
    """Keys that have no meaning in several stages."""
    if isinstance(config.only, int) and config.only < 1:
        yield f"only {config.only} is no stage: they are counted from 1, the easiest"
    if config.difficulty not in (None, *_MEASURES) and ":" not in str(config.difficulty):
        yield (
            f"difficulty {config.difficulty!r} is unknown: use {', '.join(_MEASURES)}, or package.module:function"
        )
    if config.one_stage:
        return
    if config.schedule == "single_run":
        if config.max_steps is not None:
            yield f"max_steps {config.max_steps} would cut stages off in schedule: single_run: use num_train_epochs"
        return
    if config.reference == "adapter_off":
        yield (
            "reference 'adapter_off' is the model before the first stage, and in schedule: iterative the reference of "
            "a later stage is the adapter as the stage before left it: remove it, or set schedule: single_run"
        )
    if config.reference_model is not None:
        yield (
            f"reference_model {config.reference_model!r} has no place in schedule: iterative, where the reference is "
            "the model of the stage before: remove it, or set schedule: single_run"
        )


def rules_of(config: CurryDpoConfig) -> CurriculumRules:
    """Which pairs the recipe trains on, and in which stages."""
    from prefopt.build.stages import CurriculumRules

    return CurriculumRules(
        pairing=config.pairing,
        stages=config.stages,
        quantiles=config.quantiles or 3,
        align=config.align or "hard",
        order=config.order,
        only=config.only,
        drop_hardest=config.drop_hardest,
        on_ties=config.on_ties,
        on_missing=config.on_missing,
        seed=config.seed,
        stage_column=config.columns.get("stage"),
    )


def difficulty_of(config: CurryDpoConfig) -> Difficulty:
    """What makes a pair easy, as the recipe says."""
    from prefopt.runs.difficulty import Difficulty

    return Difficulty(
        config.difficulty or "score_gap",
        policy=config.difficulty_policy,
        reference=config.difficulty_reference
        or config.reference_model
        or config.model_name_or_path,
        beta=config.beta or 1.0,
    )


def stage_of_record(record: Preference, config: CurryDpoConfig) -> int:
    """The stage of a record of a single run; one stage otherwise."""
    from prefopt.build.stages import stage_of

    return stage_of(record, config.columns.get("stage")) if config.stages == "given" else 1


def train_in_stages(config: CurryDpoConfig) -> RunResult:
    """Make the curriculum and train through it.

    Raises:
        PrefoptError: anything a user can cause, one line each.
    """
    from prefopt.runs.chain import Link, forget_chain, run_chain, written
    from prefopt.runs.curriculum import alone_in_folder, write_curriculum
    from prefopt.runs.curriculum_folder import settle_earlier
    from prefopt.runs.setup import mixed_precision
    from prefopt.runs.train import run_training
    from prefopt.train.runtime import Runtime
    from prefopt.train.terms import demands_of

    runtime = Runtime(mixed_precision=mixed_precision(config))
    method = cast("Method[RunConfig]", METHOD)

    def files() -> CurriculumFiles:
        return write_curriculum(
            config,
            rules_of(config),
            difficulty_of(config),
            demands_of(objective_terms(config)),
            runtime.device,
        )

    def links() -> list[Link]:
        made = files()
        return [
            Link(path.stem, _training_on([path], made.held_out, stages="pooled"))
            for path in made.stages
        ]

    try:
        if config.schedule == "iterative":
            return run_chain(config, method, links, runtime)
        made = runtime.on_main(lambda: alone_in_folder(config, files))
        raw = {**written(config), **_training_on(made.stages, made.held_out, stages="given")}
        result = run_training(parse(raw, CurryDpoConfig), method)
        runtime.on_main(lambda: forget_chain(result.folder))
        return result
    finally:
        if runtime.is_main:
            settle_earlier(Path(config.output_dir))


def _training_on(
    files: Sequence[Path], held_out: Path | None, *, stages: str
) -> dict[str, JsonValue]:
    """What the recipe of an ordinary training on files of finished stages has otherwise."""
    return {
        "train_file": [str(path) for path in files],
        "eval_file": None if held_out is None else str(held_out),
        "dataset_name": None,
        "eval_dataset_split": None,
        "columns": {},
        "max_train_samples": None,
        "schedule": "single_run",
        "stages": stages,
        "quantiles": None,
        "difficulty": None,
        "difficulty_policy": None,
        "difficulty_reference": None,
        "order": "easy_to_hard",
        "align": None,
        "only": None,
        "drop_hardest": 0.0,
    }


METHOD = Method(
    name="curry_dpo",
    summary="DPO on several pairs of each prompt in stages, easy ones first, each stage from the model before it",
    paper="Pattnaik et al. 2024, Curry-DPO: Enhancing Alignment using Curriculum Learning & Ranked Preferences, "
    "arXiv 2403.07230",
    config=CurryDpoConfig,
    objectives=objective_terms,
    stage=stage_of_record,
    train=train_in_stages,
)
