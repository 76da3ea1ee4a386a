"""Step-DPO: preference optimisation of single reasoning steps (Lai et al. 2024, arXiv 2406.18629).

A pair shares the problem and the correct steps before the first error; it differs in one step. The loss is DPO on
that step alone (eq. 2): context tokens are not scored and no end token is added, since a step does not end an
answer. The pipeline makes such pairs from the policy's own samples: sample solutions, keep wrong ones, locate the
first wrong step, sample new continuations from there, keep those that reach the right answer.

Departures from the published code: pairs whose steps are equal are dropped (their loss is ln 2 with gradient 0);
samples cut at the token limit are not taken for wrong solutions; one seed per sample instead of one per engine;
every stage is journaled.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Generic, NamedTuple, TypeVar

from pydantic import Field

from prefopt.evals.maths import Problem
from prefopt.generate.base import Completion, Generator, Request, Sampling
from prefopt.generate.journal import Journal, complete
from prefopt.progress import counted
from prefopt.records import Pair, Preference, Response
from prefopt.runs.method import Method
from prefopt.runs.mix import ObjectiveKeys, objective_terms
from prefopt.text.steps import cut_at_step, take_step


class StepDpoConfig(ObjectiveKeys):
    """Recipe of a Step-DPO run; data in the columns of the published set, or as `build_step_pairs` makes it."""

    beta: float | None = Field(default=0.5, gt=0)
    """Strength of the implicit KL anchor to the reference; the published scripts use 0.4 to 0.5."""


P = TypeVar("P", bound=Problem)


@dataclass(frozen=True, slots=True)
class StepSettings:
    """Sizes and sampling of the pipeline; defaults as published."""

    samples: int = 2
    """Solutions sampled per problem."""
    corrections: int = 20
    """Continuations sampled per located error."""
    errors_per_problem: int = 1
    """Wrong solutions of one problem that are taken further."""
    pairs_per_error: int | None = None
    """Distinct corrected steps kept per error; None keeps all."""
    temperature: float = 0.8
    top_p: float = 0.95
    max_new_tokens: int = 2048
    seed: int = 0
    opening: str = ""
    """Unfinished assistant text that every solution starts with, such as `Let's think step by step.`"""


class StepError(NamedTuple, Generic[P]):
    """A wrong solution, cut around its first wrong step."""

    problem: P
    id: str
    solution: str
    number: int
    """The first wrong step, from 1."""
    prefix: str
    """The correct steps before it and its marker."""
    step: str
    """The wrong step."""


class StepData(NamedTuple):
    """What the pipeline made."""

    steps: list[Preference]
    """Step-DPO records: a shared prefix, one rejected step, one or more chosen steps."""
    solutions: list[Preference]
    """The same corrections and errors as whole solutions: data for the DPO baseline, pair for pair."""
    counts: Counter[str]
    """How many there were at each stage, and what became of the rest."""


def build_step_pairs(
    problems: Sequence[P],
    generator: Generator,
    *,
    is_correct: Callable[[P, str], bool],
    first_wrong_step: Callable[[P, str], int | None],
    settings: StepSettings,
    journal: Journal | None = None,
) -> StepData:
    """Step pairs and whole-solution pairs from the generator's own samples.

    Args:
        problems: with unique ids.
        generator: the policy that is to be trained; corrections come from the same one.
        is_correct: whether a whole solution reaches the right answer.
        first_wrong_step: number of the first wrong step of a wrong solution; None if it cannot be located.
        settings: sizes and sampling.
        journal: keeps every completion; the same call with the same journal goes on where it stopped.
    """
    counts: Counter[str] = Counter(problems=len(problems))
    errors = _collect_errors(
        problems, generator, is_correct, first_wrong_step, settings, journal, counts
    )
    corrections = _correct(errors, generator, settings, journal)
    data = StepData([], [], counts)
    for error in errors:
        right = [
            c for c in corrections[error.id]
            if c.finish_reason == "stop" and is_correct(error.problem, error.prefix + c.text)
        ]  # fmt: skip
        counts["corrections sampled"] += len(corrections[error.id])
        counts["corrections right"] += len(right)
        distinct = _distinct_steps(error, right)
        if not right:
            counts["errors without a right correction"] += 1
        elif not distinct:
            counts["errors whose corrections repeat the wrong step"] += 1
        else:
            chosen = distinct[: settings.pairs_per_error]
            counts["errors corrected"] += 1
            counts["pairs"] += len(chosen)
            data.steps.append(_step_record(error, chosen))
            data.solutions.append(_solution_record(error, chosen))
    return data


class _Correction(NamedTuple):
    step: str
    continuation: str


def _collect_errors(  # noqa: PLR0917 - one stage of the pipeline above
    problems: Sequence[P],
    generator: Generator,
    is_correct: Callable[[P, str], bool],
    first_wrong_step: Callable[[P, str], int | None],
    settings: StepSettings,
    journal: Journal | None,
    counts: Counter[str],
) -> list[StepError[P]]:
    by_id = {p.id: p for p in problems}
    requests = [
        Request(p.id, sample, p.prompt, settings.opening)
        for p in problems
        for sample in range(settings.samples)
    ]
    sampling = _sampling(settings, "errors")
    errors: list[StepError[P]] = []
    taken: Counter[str] = Counter()
    with counted("sampling solutions") as tick:
        samples = complete(generator, requests, sampling, journal, progress=tick)
    for sample in samples:
        problem, solution = by_id[sample.id], settings.opening + sample.text
        counts["solutions sampled"] += 1
        if sample.finish_reason != "stop":
            counts["solutions cut at the token limit"] += 1
            continue
        if is_correct(problem, solution):
            continue
        counts["solutions wrong"] += 1
        if taken[problem.id] >= settings.errors_per_problem:
            counts["errors beyond the limit per problem"] += 1
            continue
        error = _cut(problem, sample, solution, first_wrong_step(problem, solution))
        if error is None:
            counts["errors not located at a step"] += 1
            continue
        taken[problem.id] += 1
        errors.append(error)
    counts["errors located"] = len(errors)
    return errors


def _cut(problem: P, sample: Completion, solution: str, number: int | None) -> StepError[P] | None:
    if number is None:
        return None
    try:
        cut = cut_at_step(solution, number)
    except ValueError:
        return None
    name = f"{problem.id}/{sample.sample}"
    return StepError(problem, name, solution, number, cut.prefix, cut.step)


def _correct(
    errors: Sequence[StepError[P]],
    generator: Generator,
    settings: StepSettings,
    journal: Journal | None,
) -> dict[str, list[Completion]]:
    requests = [
        Request(error.id, sample, error.problem.prompt, error.prefix)
        for error in errors
        for sample in range(settings.corrections)
    ]
    with counted("sampling corrections") as tick:
        done = complete(
            generator, requests, _sampling(settings, "corrections"), journal, progress=tick
        )
    grouped: dict[str, list[Completion]] = {error.id: [] for error in errors}
    for completion in done:
        grouped[completion.id].append(completion)
    return grouped


def _sampling(settings: StepSettings, purpose: str) -> Sampling:
    return Sampling(
        temperature=settings.temperature,
        top_p=settings.top_p,
        max_new_tokens=settings.max_new_tokens,
        seed=settings.seed,
        purpose=purpose,
    )


def _distinct_steps(error: StepError[P], right: Sequence[Completion]) -> list[_Correction]:
    """Corrected steps that differ from the wrong one and from each other, in the order they were sampled."""
    found: dict[str, _Correction] = {}
    for completion in right:
        step = take_step(completion.text, error.number)
        if step.strip() and not _repeats(step.strip(), error.step.strip()):
            found.setdefault(step, _Correction(step, completion.text))
    return list(found.values())


def _repeats(step: str, wrong: str) -> bool:
    """Whether one is the other, apart from further lines (a last step carries the answer line with it)."""
    return f"{step}\n".startswith(f"{wrong}\n") or f"{wrong}\n".startswith(f"{step}\n")


def _step_record(error: StepError[P], chosen: Sequence[_Correction]) -> Preference:
    responses = [Response(error.step, ends=False), *(Response(c.step, ends=False) for c in chosen)]
    return _record(error, responses, prefix=error.prefix)


def _solution_record(error: StepError[P], chosen: Sequence[_Correction]) -> Preference:
    whole = [Response(error.prefix + c.continuation) for c in chosen]
    return _record(error, [Response(error.solution), *whole], prefix="")


def _record(error: StepError[P], responses: Sequence[Response], *, prefix: str) -> Preference:
    """The rejected response first, every other one chosen against it."""
    return Preference(
        id=error.id,
        prompt=error.problem.prompt,
        responses=tuple(responses),
        pairs=tuple(Pair(chosen=i, rejected=0) for i in range(1, len(responses))),
        prefix=prefix,
        meta={"answer": error.problem.answer, "step": error.number},
    )


METHOD = Method(
    name="step_dpo",
    summary="pairs of single reasoning steps after a shared correct prefix",
    paper="Lai et al. 2024, Step-DPO: Step-wise Preference Optimization for Long-chain Reasoning of LLMs, "
    "arXiv 2406.18629",
    config=StepDpoConfig,
    objectives=objective_terms,
)
