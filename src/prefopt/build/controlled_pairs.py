"""`prefopt build` for Step-Controlled DPO: from the section of a recipe to the files of a build."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, field_validator

from prefopt.build.controlled import ControlledSettings, build_controlled_pairs
from prefopt.build.controlled_code import ControlledCodeSettings, build_controlled_code_pairs
from prefopt.build.folder import COUNTS, BuildFolder, open_build, tell
from prefopt.build.grading import Grade
from prefopt.build.mixing import ControlledData
from prefopt.build.parts import graded_by, own_writer, read_problems
from prefopt.build.settings import PAIRS, BuildSection, Count, Positive, Text
from prefopt.config import RunConfig, Section
from prefopt.errors import RecordError
from prefopt.generate.schedule import Rising, schedule
from prefopt.progress import say
from prefopt.text.problems import MathProblem
from prefopt.text.segments import How
from prefopt.text.styles import find_style

NAIVE, CONTROLLED, DATA_EQUAL = "naive.jsonl", "controlled.jsonl", "data-equal.jsonl"


class CodeSection(Section):
    """Solutions of text, code and interpreter output."""

    system: str = ""
    """System text of the conversation; published: empty, and a request to solve step by step for MathCoder."""
    max_calls: Count = 64
    """Blocks of text and code of one solution or tail."""
    packages: list[Text] = Field(default=[])
    """Packages that the code may import besides the standard library, such as sympy."""
    seconds: Positive = 6.0
    """Time for one block of code."""
    memory_bytes: Count = 1 << 30
    """Memory of one solution."""
    workers: Count = 32
    """Interpreters alive at once; a solution that has to give up its own runs its code again later."""
    unsafe_local_execution: bool = False
    """Run model-written code without isolation, with your files and your network in its reach."""
    drop_apologies: bool = True
    """Leave out right solutions with "error" or "apolog" in any block."""
    drop_similar: bool = True
    """Keep only one of the solutions of a problem with as many blocks and a length within 500 characters."""
    drop_noisy: bool = True
    """Leave out tails with more than 24 messages, overlong blocks, or output that the model made up."""
    count_failures_as_wrong: bool = False
    """Solutions that failed, were cut or never ended count as wrong ones, as published for Mistral."""


class ControlledBuild(BuildSection):
    """How naive and controlled pairs are made; the defaults are those published for Mistral-7B."""

    style: Text = "chat-boxed-step"
    """How a problem is put to the writer (chains of thought; with `code` the block format is the style)."""
    code: CodeSection | None = None
    """Solutions with code that really runs; null: chains of thought."""
    samples: Count = 4
    """Whole solutions per problem."""
    max_samples: Count | None = None
    """Problems that lack a right or a wrong solution get `samples` more, up to so many; published: 100."""
    naive_correct: Count = 1
    """Right solutions of a question that make naive pairs."""
    naive_wrong: Count = 1
    """Wrong solutions of a question, each paired with each of those."""
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
    segments: How = "auto"
    """What a step of a chain of thought is: markers ("Step 1:"), lines, or whichever a solution has."""
    leave: Count = 1
    """Steps of a chain of thought that are always written anew."""
    count_truncated_as_wrong: bool = False
    """Chains of thought cut at the token limit count as wrong ones."""
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

    def _shared(self) -> dict[str, Any]:
        """What the settings of both pipelines have in common."""
        names = (
            "samples", "max_samples", "naive_correct", "naive_wrong", "per_question", "compat_limit",
            "start_zero", "cut", "attempts", "temperature", "top_p", "seed",
        )  # fmt: skip
        return {"schedule": _schedule(self.schedule), **{n: getattr(self, n) for n in names}}

    def text_settings(self) -> ControlledSettings:
        """The settings for chains of thought."""
        return ControlledSettings(
            **self._shared(),
            max_new_tokens=self.max_new_tokens or ControlledSettings.max_new_tokens,
            segments=self.segments,
            leave=self.leave,
            count_truncated_as_wrong=self.count_truncated_as_wrong,
        )

    def code_settings(self, code: CodeSection) -> ControlledCodeSettings:
        """The settings for code-integrated solutions."""
        return ControlledCodeSettings(
            **self._shared(),
            max_new_tokens=self.max_new_tokens or ControlledCodeSettings.max_new_tokens,
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
        open_build(folder, config) as build,
        Grader(
            section.grader, workers=section.grader_workers, seconds=section.grader_seconds
        ) as grader,
    ):
        make = _text_pairs if section.code is None else _code_pairs
        data = make(section, config, problems, graded_by(grader), build)
        tell(data.counts)
        build.write_records(NAIVE, data.naive)
        build.write_records(CONTROLLED, data.controlled)
        build.write_records(DATA_EQUAL, data.data_equal)
        pairs = build.write_records(PAIRS, data.mixed())
        build.write_facts(COUNTS, {"counts": data.counts})
    if not data.mixed():
        raise RecordError(
            f"{folder}: no pair could be made; the counts above say where solutions were lost (more problems, more "
            "samples or a hotter schedule may help)"
        )
    say(f"{len(data.naive):,} naive and {len(data.controlled):,} controlled pairs: {pairs}")
    return pairs


def _text_pairs(
    section: ControlledBuild,
    config: RunConfig,
    problems: list[MathProblem],
    grade: Grade[MathProblem],
    build: BuildFolder,
) -> ControlledData:
    return build_controlled_pairs(
        problems,
        own_writer(section, config),
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
    limits = Limits(seconds=code.seconds, memory_bytes=code.memory_bytes)
    with Sandbox(
        limits,
        workers=code.workers,
        unsafe_local_execution=code.unsafe_local_execution,
        packages=code.packages,
    ) as sandbox:
        return build_controlled_code_pairs(
            problems,
            own_writer(section, config),
            sandbox,
            grade=grade,
            settings=section.code_settings(code),
            journal=build.journal,
        )
