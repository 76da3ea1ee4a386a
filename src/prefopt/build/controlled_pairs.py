"""`prefopt build` for Step-Controlled DPO: from the section of a recipe to the files of a build."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import Field, field_validator, model_validator

from prefopt.build.controlled import ControlledSettings, build_controlled_pairs
from prefopt.build.controlled_code import ControlledCodeSettings, build_controlled_code_pairs
from prefopt.build.controlled_sections import CodeSection, TextSection
from prefopt.build.folder import COUNTS, HELD_OUT, BuildFolder, open_build, tell
from prefopt.build.grading import Grade
from prefopt.build.held_out import repeated_questions
from prefopt.build.label_noise import label_noise
from prefopt.build.mixing import ControlledData
from prefopt.build.parts import REPEATED, Shelf, graded_by, own_writer, read_problems
from prefopt.build.settings import PAIRS, Count, Positive, ProblemBuild, Text
from prefopt.config import RunConfig
from prefopt.errors import RecordError
from prefopt.generate.schedule import Rising, schedule
from prefopt.progress import say
from prefopt.text.blocks import parse_blocks
from prefopt.text.problems import MathProblem
from prefopt.text.styles import find_style
from prefopt.values import JsonValue

NAIVE, CONTROLLED, DATA_EQUAL = "naive.jsonl", "controlled.jsonl", "data-equal.jsonl"


class ControlledBuild(ProblemBuild):
    """How naive and controlled pairs are made; the defaults are those published for Mistral-7B."""

    style: Text = "chat-boxed-step"
    """How a problem is put to the writer of chains of thought; with `code` the block format is the style."""
    text: TextSection | None = None
    """Chains of thought; null: with these defaults, unless `code` is set."""
    code: CodeSection | None = None
    """Solutions with code that really runs."""
    samples: Count = 4
    """Whole solutions per problem."""
    max_samples: Count | None = None
    """Problems that lack a right or a wrong solution get `samples` more, up to so many; published: 100."""
    naive_correct: Count = 1
    """Right solutions of a question that make naive pairs."""
    naive_wrong: Count = 1
    """Wrong solutions of a question, each paired with each of those."""
    add_naive: bool = True
    """Train on the naive pairs too; false with start_zero controlled: the published builder for Mistral."""
    per_question: Count | None = 2
    """Controlled pairs of a question; null: all. Published: 2 for GSM8K, 3 for MATH."""
    compat_limit: bool = False
    """Count that limit down over the whole data set, as published, so that it soon limits nothing."""
    start_zero: Literal["drop", "controlled", "naive"] = "drop"
    """Whole solutions written anew at the rising temperatures: none, controlled pairs, or naive pairs."""
    cut: Literal["all", "random"] = "all"
    """Cut points of a solution: every one (published code), or one drawn at random (paper)."""
    attempts: Count = 10
    """Tails written at most from one cut until one of them is wrong."""
    schedule: Text | Positive | list[float] = "code"
    """Temperatures of new steps: paper, code, mathcoder-math, internlm-math, a constant, or [start, step, cap]."""
    temperature: Positive = 1.0
    """Of whole solutions."""
    top_p: Annotated[float, Field(gt=0, le=1)] = 1.0
    """Nucleus of everything."""
    max_new_tokens: Count | None = None
    """Tokens of a solution (1024), or of one block with `code` (512)."""
    seed: Annotated[int, Field(ge=0, lt=2**32)] = 0
    """Source of the randomness of the build."""

    @field_validator("style")
    @classmethod
    def _known_style(cls, value: str) -> str:
        return find_style(value).name

    @field_validator("schedule")
    @classmethod
    def _known_schedule(cls, value: str | float | list[float]) -> str | float | list[float]:
        _schedule(value)
        return value

    @model_validator(mode="after")
    def _one_kind(self) -> Self:
        if self.code is not None and self.text is not None:
            raise ValueError("text and code exclude each other: remove one section")
        if self.code is not None and self.style != type(self).model_fields["style"].default:
            raise ValueError(
                f"style {self.style!r} has no effect with code, whose style is the block format: remove it"
            )
        return self

    @model_validator(mode="after")
    def _sound(self) -> Self:
        """The settings of the pipeline check themselves."""
        _ = self.text_settings() if self.code is None else self.code_settings(self.code)
        return self

    def _shared(self) -> dict[str, Any]:
        """What the settings of both pipelines have in common."""
        names = (
            "samples", "max_samples", "naive_correct", "naive_wrong", "add_naive", "per_question",
            "compat_limit", "start_zero", "cut", "attempts", "temperature", "top_p", "held_out", "seed",
        )  # fmt: skip
        # Without a value the default of the pipeline holds: texts and blocks have different ones.
        given = () if self.max_new_tokens is None else ("max_new_tokens",)
        shared = {n: getattr(self, n) for n in (*names, *given)}
        return {"schedule": _schedule(self.schedule), **shared}

    def text_settings(self) -> ControlledSettings:
        """The settings for chains of thought."""
        return ControlledSettings(**self._shared(), **(self.text or TextSection()).model_dump())

    def code_settings(self, code: CodeSection) -> ControlledCodeSettings:
        """The settings for code-integrated solutions."""
        return ControlledCodeSettings(
            **self._shared(),
            system=code.system,
            max_calls=code.max_calls,
            drop_apologies=code.drop_apologies,
            drop_similar=code.drop_similar,
            drop_noisy=code.drop_noisy,
            count_failures_as_wrong=code.count_failures_as_wrong,
        )


def _schedule(value: str | float | list[float]) -> Rising:
    if not isinstance(value, list):
        return schedule(value)
    if len(value) != 3 or value[0] <= 0 or value[1] < 0 or value[2] < value[0]:
        raise ValueError(f"{value} is no schedule; write [start, step, cap] with 0 < start <= cap")
    return Rising(*value)


def build_controlled(section: ControlledBuild, config: RunConfig) -> Path:
    """Make the pairs of a recipe and write its build folder; returns the file of all pairs.

    Started again it goes on where it stopped: nothing is sampled or run twice.

    Raises:
        PrefoptError: anything a user can cause, one line each.
    """
    from prefopt.grade.maths import Grader  # needs the extra `maths`

    style = "scdpo" if section.code is not None else section.style
    problems = read_problems(section, style)
    folder = section.folder(config.method)
    with (
        open_build(folder, config, section, _FILES) as build,
        Grader(
            section.grader, workers=section.grader_workers, seconds=section.grader_seconds
        ) as grader,
    ):
        grade = graded_by(grader)
        make = _text_pairs if section.code is None else _code_pairs
        data = make(section, config, problems, grade, build)
        data.counts[REPEATED] = len(repeated_questions(problems))
        tell(data.counts)
        build.write_records(NAIVE, data.naive)
        build.write_records(CONTROLLED, data.controlled)
        build.write_records(DATA_EQUAL, data.data_equal)
        build.write_records(HELD_OUT, data.held_out)
        noise = _noise(section, problems, data, grade)
        build.write_facts(COUNTS, {"counts": data.counts, "label_noise": noise})
        kept = data.mixed()
        if not kept:
            (folder / PAIRS).unlink(missing_ok=True)
            raise RecordError(f"{folder}: {_why_nothing(data)}")
        pairs = build.write_records(PAIRS, kept)
    naive = f"{len(data.naive):,} naive and " if data.add_naive else ""
    say(f"{naive}{len(data.controlled):,} controlled pairs: {pairs}")
    return pairs


def _why_nothing(data: ControlledData) -> str:
    if data.held_out:
        number = f"{len(data.held_out):,}"
        return f"all {number} pairs are of held-out questions; use more problems, or a smaller build.held_out"
    return (
        "no pair could be made; the counts above say where solutions were lost (more problems, more samples or a "
        "hotter schedule may help)"
    )


_FILES = (PAIRS, NAIVE, CONTROLLED, DATA_EQUAL, HELD_OUT, COUNTS)


def _noise(
    section: ControlledBuild,
    problems: list[MathProblem],
    data: ControlledData,
    grade: Grade[MathProblem],
) -> dict[str, JsonValue] | None:
    """With a published grader: the share of wrong solutions that are right by comparison of values."""
    from prefopt.grade.maths import Grader

    strict = "math-verify"
    if section.grader == strict:
        return None
    by_id = {problem.id: problem for problem in problems}
    rejected = [
        (by_id[str(r.meta["problem"])], r.prefix + r.responses[r.pairs[0].rejected].text)
        for r in (*data.mixed(), *data.held_out)
    ]
    if section.code is not None:
        rejected = [(p, parse_blocks(text).blocks[-1].content) for p, text in rejected]
    with Grader(strict, workers=section.grader_workers, seconds=section.grader_seconds) as other:
        found = label_noise(rejected, used=grade, strict=graded_by(other))
    say(
        f"label noise: {found.right:,} of {found.wrong:,} rejected solutions ({100 * found.share:.1f}%) are right by "
        f"{strict}; build.grader={strict} leaves them out"
    )
    return dict(found._asdict())


def _text_pairs(
    section: ControlledBuild,
    config: RunConfig,
    problems: list[MathProblem],
    grade: Grade[MathProblem],
    build: BuildFolder,
) -> ControlledData:
    return build_controlled_pairs(
        problems,
        own_writer(section, Shelf(config)),
        grade=grade,
        settings=section.text_settings(),
        journal=build.journal,
    )


def _code_pairs(
    section: ControlledBuild,
    config: RunConfig,
    problems: list[MathProblem],
    grade: Grade[MathProblem],
    build: BuildFolder,
) -> ControlledData:
    from prefopt.sandbox.base import Limits
    from prefopt.sandbox.sandbox import Sandbox

    code = section.code or CodeSection()
    limits = Limits(
        seconds=code.seconds,
        cpu_seconds=code.cpu_seconds,
        memory_bytes=code.memory_bytes,
        processes=code.processes,
        output_chars=code.output_chars,
        disk_bytes=code.disk_bytes,
    )
    with Sandbox(
        limits,
        workers=code.workers,
        unsafe_local_execution=code.unsafe_local_execution,
        packages=code.packages,
    ) as sandbox:
        return build_controlled_code_pairs(
            problems,
            own_writer(section, Shelf(config)),
            sandbox,
            grade=grade,
            settings=section.code_settings(code),
            journal=build.journal,
        )
