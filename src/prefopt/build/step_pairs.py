"""`prefopt build` for Step-DPO: from the section of a recipe to the files of a build."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Literal, NamedTuple

from pydantic import Field, field_validator

from prefopt.build.folder import (
    COUNTS,
    ERRORS,
    HELD_OUT,
    RELEASED,
    SOLUTIONS,
    open_build,
    tell,
)
from prefopt.build.held_out import repeated_questions, split_held_out
from prefopt.build.parts import (
    REPEATED,
    Bench,
    Parts,
    Shelf,
    graded_by,
    open_judge,
    open_writer,
    own_writer,
    read_problems,
)
from prefopt.build.released import released_rows
from prefopt.build.rules import CORRECTED, OFFICIAL
from prefopt.build.settings import PAIRS, Count, Judge, ProblemBuild, Text, Writer
from prefopt.build.steps import StepData, StepSettings, build_step_pairs
from prefopt.config import RunConfig
from prefopt.errors import RecordError
from prefopt.generate.base import Sampling
from prefopt.models.likelihood import ResponseLogp, response_logps
from prefopt.progress import say
from prefopt.records import Preference
from prefopt.text.styles import find_style
from prefopt.values import JsonValue


class StepBuild(ProblemBuild):
    """How step pairs are made; the defaults are those of the published scripts."""

    style: Text = "chat-boxed-step"
    """How a problem is put to the writer; unless the model writes steps by itself, one that begins with `Step 1:`."""
    judge: Judge
    """Who finds the first wrong step."""
    source: Literal["self", "other"] = "self"
    """Who writes corrections: self, the writer of the errors; other, `corrector` (out of distribution)."""
    corrector: Writer | None = None
    """The other writer."""
    samples: Count = 2
    """Solutions per problem."""
    corrections: Count = 20
    """Continuations per located error."""
    errors_per_problem: Count = 1
    """Wrong solutions of one problem that are taken further."""
    pairs_per_error: Count | None = None
    """Distinct corrected steps kept per error; null: all."""
    temperature: Annotated[float, Field(ge=0)] = 0.8
    """Of solutions and corrections."""
    top_p: Annotated[float, Field(gt=0, le=1)] = 0.95
    """Nucleus of solutions and corrections."""
    max_new_tokens: Count = 2048
    """Length of a solution in tokens."""
    rules: Literal["corrected", "official"] = "corrected"
    """official: what the published scripts do in another way than is right (docs/step_dpo.md lists it)."""
    first_step: Literal["step", "solution", "drop"] = "step"
    """Errors in the first step: a step pair, a pair of whole solutions, or none."""
    check_chosen: bool = False
    """Ask the judge about corrected solutions too; leave out those that are right through a wrong step."""
    end_last_step: bool = False
    """Train the end token after a step that is the last of its solution."""
    measure_reference: bool = True
    """Score the pairs under the recipe's reference (in this process) and report mean log-probabilities."""
    seed: Annotated[int, Field(ge=0, lt=2**32)] = 0
    """Source of the randomness of the build."""

    @field_validator("style")
    @classmethod
    def _known_style(cls, value: str) -> str:
        return find_style(value).name

    def steps(self) -> StepSettings:
        """The settings of the pipeline."""
        return StepSettings(
            samples=self.samples,
            corrections=self.corrections,
            errors_per_problem=self.errors_per_problem,
            pairs_per_error=self.pairs_per_error,
            temperature=self.temperature,
            top_p=self.top_p,
            max_new_tokens=self.max_new_tokens,
            seed=self.seed,
            first_step=self.first_step,
            check_chosen=self.check_chosen,
            end_last_step=self.end_last_step,
            rules=OFFICIAL if self.rules == "official" else CORRECTED,
        )

    @property
    def runs_models(self) -> bool:
        """Whether a model in this process has a part in what the data are."""
        others = [w for w in (self.corrector, self.judge.writer) if w is not None]
        scored = self.judge.reward_model is not None
        return super().runs_models or scored or any(writer.runs_here for writer in others)

    def inputs(self) -> list[str]:
        """The files of problems, and that of labels."""
        labels = self.judge.labels or str(self.folder("step_dpo") / "labels.jsonl")
        return [*super().inputs(), *([labels] if self.judge.by == "labels" else [])]

    def models(self, config: RunConfig) -> list[str]:
        """Those that write, and one that scores steps."""
        scorer = self.judge.reward_model
        return [*super().models(config), *([] if scorer is None else [scorer])]

    def contradictions(self) -> list[str]:
        """Broken rules about several keys."""
        if (self.source == "other") != (self.corrector is not None):
            return ["build: source: other and the key corrector belong together: set both or none"]
        if self.check_chosen and self.judge.by == "labels":
            asked = "the judge about corrections too, which `prefopt label` does not show"
            return [f"build: check_chosen asks {asked}: remove it"]
        if self.temperature == 0 and (self.samples > 1 or self.corrections > 1):
            return [
                "build: temperature 0 makes all samples the same: raise it, or set samples and corrections to 1"
            ]
        if self.temperature == 0 and self.judge.by == "rollouts":
            return [
                "build: temperature 0 makes all roll-outs the same: raise it, or choose another judge"
            ]
        return []


def build_steps(section: StepBuild, config: RunConfig) -> Path:
    """Make the pairs of a recipe and write its build folder; returns the file of pairs, or of what waits for labels.

    Started again it goes on where it stopped: nothing is sampled or judged twice.

    Raises:
        PrefoptError: anything a user can cause, one line each.
    """
    from prefopt.grade.maths import Grader  # needs the extra `maths`

    problems = read_problems(section, section.style)
    folder = section.folder(config.method)
    with (
        open_build(folder, config, section, _FILES) as build,
        Grader(
            section.grader, workers=section.grader_workers, seconds=section.grader_seconds
        ) as grader,
    ):
        shelf = Shelf(config)
        parts = Parts(problems, own_writer(section, shelf), graded_by(grader))
        settings = section.steps()
        drawn = Sampling(
            temperature=settings.temperature,
            top_p=settings.top_p,
            max_new_tokens=settings.max_new_tokens,
            seed=settings.seed,
            purpose="rollouts",
        )
        data = build_step_pairs(
            problems,
            parts.generator,
            grade=parts.grade,
            locator=open_judge(Bench(section.judge, folder, parts, shelf, drawn)),
            settings=settings,
            journal=build.journal,
            corrector=None if section.corrector is None else open_writer(section.corrector, shelf),
        )
        data.counts[REPEATED] = len(repeated_questions(problems))
        tell(data.counts)
        build.write_rows(ERRORS, _judged_rows(data))
        by_id = {problem.id: problem for problem in problems}
        share = section.held_out
        steps, held_out = split_held_out(data.steps, problems, share)
        build.write_records(SOLUTIONS, split_held_out(data.solutions, problems, share)[0])
        build.write_rows(RELEASED, released_rows(steps, by_id))
        build.write_records(HELD_OUT, held_out)
        measured = _measured(steps, section, shelf)
        build.write_facts(COUNTS, {"counts": data.counts, "reference": measured})
        if steps:
            build.write_records(PAIRS, steps)
        else:  # of an earlier build whose verdicts have changed since
            (folder / PAIRS).unlink(missing_ok=True)
    _say_what_is_missing(data, steps, folder)
    return folder / (PAIRS if steps else ERRORS)


_FILES = (PAIRS, SOLUTIONS, RELEASED, ERRORS, HELD_OUT, COUNTS)


class MeanLogp(NamedTuple):
    """Of one side of all pairs, under the reference policy, nats."""

    per_step: float
    """Mean over pairs of the sum over the tokens of a step."""
    per_token: float
    """Mean over all tokens."""


def mean_logps(
    records: Sequence[Preference], scores: Sequence[tuple[ResponseLogp, ...]]
) -> dict[str, MeanLogp]:
    """How likely the chosen and the rejected side of the pairs are.

    Corrections by the policy itself are likelier under it than those of another writer; the gap between the two is what
    the paper calls in- and out-of-distribution.
    """
    found: dict[str, MeanLogp] = {}
    for side in ("chosen", "rejected"):
        picked = [
            logps[getattr(pair, side)]
            for record, logps in zip(records, scores, strict=True)
            for pair in record.pairs
        ]
        total = sum(logp.total for logp in picked)
        tokens = sum(logp.tokens for logp in picked)
        found[side] = MeanLogp(total / max(1, len(picked)), total / max(1, tokens))
    return found


def _measured(
    records: Sequence[Preference], section: StepBuild, shelf: Shelf
) -> dict[str, JsonValue] | None:
    if not records or not section.measure_reference:
        return None
    config = shelf.config
    loaded = shelf.model(config.reference_model or config.model_name_or_path)
    scores = response_logps(
        loaded.model, loaded.tokenizer, records, render=shelf.render, batch_size=section.batch_size
    )
    found = mean_logps(records, scores)
    for side, mean in found.items():
        say(
            f"reference log-probability of {side} steps: {mean.per_step:.2f} a step, {mean.per_token:.3f} a token"
        )
    return {side: dict(mean._asdict()) for side, mean in found.items()}


def _judged_rows(data: StepData) -> list[dict[str, JsonValue]]:
    return [
        {
            **solution._asdict(),
            "step": location.number,
            "verdict": location.verdict,
            "remark": location.remark,
        }
        for solution, location in data.judged
    ]


def _say_what_is_missing(data: StepData, steps: Sequence[Preference], folder: Path) -> None:
    if data.awaited:
        say(
            f"{data.awaited:,} wrong solutions have no verdict yet: label them with `prefopt label {folder / ERRORS}`, "
            "or, where a server failed, run the same build again"
        )
    if not steps and not data.awaited:
        raise RecordError(f"{folder}: {_why_nothing(data)}")
    if steps:
        say(f"{sum(len(p.pairs) for p in steps):,} pairs: {folder / PAIRS}")


def _why_nothing(data: StepData) -> str:
    if data.steps:
        return (
            f"all {len(data.steps):,} errors with pairs are of held-out questions; use more problems, or a smaller "
            "build.held_out"
        )
    return (
        "no pair could be made; the counts above say where solutions were lost (more problems, more samples or "
        "another judge may help)"
    )
