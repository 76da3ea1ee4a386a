"""From the sections of a recipe to the parts of a pipeline: problems, writers, graders, judges.

Judges, graders and servers are imported where they are used: most recipes name one of each, and training none.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import torch

from prefopt.build.grading import Grade
from prefopt.build.held_out import repeated_questions
from prefopt.build.named_files import template_file
from prefopt.build.settings import BuildSection, Judge, ProblemBuild, Writer
from prefopt.build.steps import problem_id
from prefopt.config import RunConfig
from prefopt.errors import RecordError
from prefopt.generate.base import Generator, Sampling
from prefopt.generate.local import LocalGenerator
from prefopt.judge.base import Locator, WrongSolution
from prefopt.models.load import LoadedModel, ModelSettings, load_model, load_tokenizer
from prefopt.progress import say
from prefopt.text.problems import MathProblem, load_problems
from prefopt.text.render import RenderSettings

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

    from prefopt.grade.maths import Grader


_NAMED = 3
"""Rows that a message names."""
REPEATED = "problems that repeat a question"
"""What counts.json calls them."""


class Parts(NamedTuple):
    """What a pipeline is made of."""

    problems: list[MathProblem]
    generator: Generator
    grade: Grade[MathProblem]


class Shelf:
    """The models of a recipe, each loaded once however many parts use it.

    Raises:
        ConfigError: `chat_template` is no file, whether a tokenizer here needs it or not.
    """

    def __init__(self, config: RunConfig) -> None:
        template_file(config)
        self.config = config
        self._loaded: dict[str, LoadedModel] = {}

    def model(self, name: str) -> LoadedModel:
        """A folder or hub id, loaded as the recipe says; the recipe's own settings hold for its own model only."""
        if name not in self._loaded:
            self._loaded[name] = self.load(name)
        return self._loaded[name]

    def load(
        self, name: str, *, revision: str | None = None, tokenizer: str | None = None
    ) -> LoadedModel:
        """The same, but not kept: the caller alone holds it. Another model has its own revision and tokenizer."""
        return load_model(name, self.settings(name, revision=revision, tokenizer=tokenizer))

    def settings(
        self, name: str, *, revision: str | None = None, tokenizer: str | None = None
    ) -> ModelSettings:
        """How that model is loaded; revision and tokenizer are those of any but the recipe's own model."""
        if name == self.config.model_name_or_path:
            return _model_settings(self.config, own=True)
        settings = _model_settings(self.config, own=False)
        return replace(settings, revision=revision, tokenizer=tokenizer)

    def clear(self) -> None:
        """Let go of all models."""
        self._loaded.clear()

    @property
    def render(self) -> RenderSettings:
        """How prompts become text."""
        config = self.config
        return RenderSettings(
            prompt_format=config.prompt_format, separator=config.response_separator
        )


def read_problems(section: ProblemBuild, style: str) -> list[MathProblem]:
    """The problems of all files, in their prompt style; says which questions stand there several times.

    Raises:
        RecordError: a row has no question or answer, or two files have problems of the same id.
    """
    files = [section.problems] if isinstance(section.problems, str) else section.problems
    stems = [Path(file).stem for file in files]
    problems: list[MathProblem] = []
    for file in files:
        room = None if section.max_problems is None else section.max_problems - len(problems)
        if room == 0:
            break
        columns = section.problem_columns or None
        found = load_problems(file, style=style, limit=room, columns=columns)
        if stems.count(Path(file).stem) > 1:  # rows without ids are named after their file
            folder = Path(file).parent.name
            found = [replace(problem, id=f"{folder}/{problem.id}") for problem in found]
        problems += found
    seen: dict[str, MathProblem] = {}
    for problem in problems:
        other = seen.setdefault(problem.id, problem)
        if other is not problem:
            raise RecordError(
                f"{problem.origin}: id {problem.id!r} is that of {other.origin} as well; make ids unique"
            )
    _tell_repeats(problems)
    return problems


def _tell_repeats(problems: Sequence[MathProblem]) -> None:
    repeated = repeated_questions(problems)
    if repeated:
        some = ", ".join(problem.origin for problem in repeated[:_NAMED])
        more = ", ..." if len(repeated) > _NAMED else ""
        say(
            f"{len(repeated):,} of {len(problems):,} problems repeat the question of an earlier one ({some}{more}); "
            "all are used"
        )


def own_writer(section: BuildSection, shelf: Shelf) -> Generator:
    """Who writes the solutions: the section's writer, or the recipe's own model."""
    if section.writer is not None:
        return open_writer(section.writer, shelf)
    name = shelf.config.model_name_or_path
    return open_writer(Writer(model_name_or_path=name, batch_size=section.batch_size), shelf)


def open_writer(writer: Writer, shelf: Shelf) -> Generator:
    """The generator of a section; conversations are rendered as the recipe says."""
    if writer.model_name_or_path is not None:
        loaded = shelf.model(writer.model_name_or_path)
        return LocalGenerator(
            loaded.model,
            loaded.tokenizer,
            batch_size=writer.batch_size,
            render=shelf.render,
            overlong="refuse",
        )
    from prefopt.generate.openai import OpenAIGenerator

    return OpenAIGenerator(
        str(writer.model),
        base_url=str(writer.server),
        api_key=os.environ.get(writer.api_key_variable),
        endpoint=writer.endpoint,
        tokenizer=_tokenizer(writer, shelf.config) if writer.endpoint == "completions" else None,
        concurrency=writer.concurrency,
        timeout=writer.timeout,
        patience=writer.patience,
        extra_body=writer.extra_body,
        render=shelf.render,
    )


def _tokenizer(writer: Writer, config: RunConfig) -> PreTrainedTokenizerFast:
    """What turns conversations into the text that a completions endpoint continues."""
    if writer.tokenizer_name_or_path is not None:
        return load_tokenizer(writer.tokenizer_name_or_path)
    return load_tokenizer(
        config.tokenizer_name_or_path or config.model_name_or_path,
        revision=config.model_revision,
        trust_remote_code=config.trust_remote_code,
        chat_template=config.chat_template,
    )


def _model_settings(config: RunConfig, *, own: bool) -> ModelSettings:
    """How a model of the recipe is loaded; `own`: the one that it trains."""
    return ModelSettings(
        revision=config.model_revision if own else None,
        dtype=config.dtype,
        trust_remote_code=config.trust_remote_code,
        device="cuda" if torch.cuda.is_available() else "cpu",
        tokenizer=config.tokenizer_name_or_path if own else None,
        chat_template=config.chat_template if own else None,
    )


def graded_by(grader: Grader) -> Grade[MathProblem]:
    """The verdicts of a grader of mathematical answers; says how many comparisons ended without one."""
    from prefopt.grade.maths import mishaps, told

    def grade(solutions: Sequence[tuple[MathProblem, str]]) -> list[bool]:
        graded = grader.grade_answers([(p.question, p.answers, text) for p, text in solutions])
        ended = mishaps(each.reason for each in graded)
        if ended:
            say(f"grading: {told(ended, len(graded))}")
        return [each.correct for each in graded]

    return grade


class Bench(NamedTuple):
    """What judges may need."""

    judge: Judge
    """The section."""
    folder: Path
    """Of the build, where labels lie by default."""
    parts: Parts
    """Of the pipeline: roll-outs are written by its generator and graded by its grade."""
    shelf: Shelf
    """The recipe and its models."""
    sampling: Sampling
    """How roll-outs are drawn."""


def open_judge(bench: Bench) -> Locator:
    """The locator that a section names."""
    return _JUDGES[bench.judge.by](bench)


def _asked(bench: Bench) -> Locator:
    from prefopt.judge.llm import LlmLocator

    judge = bench.judge
    assert judge.writer is not None  # noqa: S101 - the section's own rule
    return LlmLocator(
        open_writer(judge.writer, bench.shelf),
        rules=judge.rules,
        sampling=Sampling(
            max_new_tokens=judge.max_new_tokens, purpose="judge", seed=bench.sampling.seed
        ),
        attempts=judge.attempts,
        skip_diagrams=judge.skip_diagrams,
    )


def _scored(bench: Bench) -> Locator:
    from prefopt.judge.reward import RewardModelScorer, ThresholdLocator

    judge = bench.judge
    loaded = bench.shelf.model(str(judge.reward_model))
    scorer = RewardModelScorer(
        loaded.model, loaded.tokenizer, step_tag=judge.step_tag, good=judge.good, bad=judge.bad
    )
    return ThresholdLocator(scorer, threshold=judge.threshold)


def _rolled_out(bench: Bench) -> Locator:
    from prefopt.judge.rollout import RolloutScorer
    from prefopt.judge.turning import RolloutLocator

    judge, parts = bench.judge, bench.parts
    by_id = {problem.id: problem for problem in parts.problems}

    def is_right(solutions: Sequence[tuple[WrongSolution, str]]) -> list[bool]:
        return list(parts.grade([(by_id[problem_id(w)], text) for w, text in solutions]))

    scorer = RolloutScorer(
        parts.generator,
        is_right,
        prompt=lambda w: by_id[problem_id(w)].prompt,
        samples=judge.samples,
        sampling=bench.sampling,
    )
    return RolloutLocator(scorer)


def _labelled(bench: Bench) -> Locator:
    from prefopt.judge.human import HumanLocator

    return HumanLocator(bench.judge.labels or bench.folder / "labels.jsonl")


_JUDGES: Mapping[str, Callable[[Bench], Locator]] = {
    "writer": _asked,
    "reward_model": _scored,
    "rollouts": _rolled_out,
    "labels": _labelled,
}
