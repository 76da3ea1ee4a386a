"""Scores by trying: how often a policy still gets there from after a step (Math-Shepherd, arXiv 2312.08935).

No judge and no trained verifier: only a writer and a grader of final answers.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

from prefopt.errors import ConfigError
from prefopt.generate.base import Completion, Generator, Request, Sampling
from prefopt.generate.journal import Journal, Progress, complete
from prefopt.judge.base import WrongSolution
from prefopt.records import Message
from prefopt.text.steps import Solution, join_steps, split_steps

Grade = Callable[[Sequence[tuple[WrongSolution, str]]], list[bool]]
"""Which whole solutions have the right final answer."""
Prompt = Callable[[WrongSolution], str | tuple[Message, ...]]

_SAMPLING = Sampling(temperature=0.8, top_p=0.95, max_new_tokens=2048, purpose="roll-outs")


class _Prefix(NamedTuple):
    """A solution up to the end of one step."""

    place: int
    """Of the solution."""
    step: int
    text: str


class RolloutScorer:
    """`StepScorer` by Monte Carlo: ``score(k) = right / n`` over n continuations from after step k.

    A continuation that is cut at the token limit is wrong. The score of the last step is 0 and takes no samples: the
    solution ends there, with a wrong answer. Scores are multiples of 1/n, so that ``threshold = 0.5 / n`` of
    `ThresholdLocator` finds the first step from which no continuation recovers.
    """

    name = "roll-outs"

    def __init__(
        self,
        generator: Generator,
        is_right: Grade,
        *,
        prompt: Prompt,
        samples: int = 8,
        sampling: Sampling = _SAMPLING,
    ) -> None:
        """Take a writer and a grader.

        Args:
            generator: who continues; usually the policy that wrote the solutions.
            is_right: called once, with all continuations joined to what they continue.
            prompt: what the policy is shown for a solution's problem, as when the solution was written.
            samples: continuations per step.
            sampling: how they are drawn.

        Raises:
            ConfigError: `samples` is below 1, or several greedy samples, which are all the same.
        """
        if samples < 1:
            raise ConfigError(f"roll-outs: samples is {samples}; use 1 or more")
        if samples > 1 and sampling.temperature == 0:
            raise ConfigError(
                f"roll-outs: {samples} samples at temperature 0 are all the same; raise the temperature"
            )
        self._generator = generator
        self._is_right = is_right
        self._prompt = prompt
        self._samples = samples
        self._sampling = sampling

    def scores(
        self,
        solutions: Sequence[WrongSolution],
        *,
        journal: Journal | None,
        progress: Progress | None = None,
    ) -> list[list[float]]:
        """Share of right continuations after each step; NaN after a step none of whose continuations was answered.

        Progress counts continuations.

        Raises:
            RecordError: two solutions have the same id.
        """
        split = [split_steps(solution.text) for solution in solutions]
        prefixes = [p for k, solution in enumerate(split) for p in _prefixes(k, solution)]
        requests = [
            self._request(solutions[p.place], p, sample)
            for p in prefixes
            for sample in range(self._samples)
        ]
        written = complete(self._generator, requests, self._sampling, journal, progress=progress)
        groups = [
            written[start : start + self._samples]
            for start in range(0, len(written), self._samples)
        ]
        values = self._values(solutions, prefixes, groups)
        scores = [[0.0] * len(solution.steps) for solution in split]
        for prefix, value in zip(prefixes, values, strict=True):
            scores[prefix.place][prefix.step - 1] = value
        return scores

    def _request(self, solution: WrongSolution, prefix: _Prefix, sample: int) -> Request:
        # The name is part of each sample's seed: what comes after different steps is drawn independently.
        name = f"{solution.id} after step {prefix.step}"
        return Request(name, sample, self._prompt(solution), prefix.text)

    def _values(
        self,
        solutions: Sequence[WrongSolution],
        prefixes: Sequence[_Prefix],
        groups: Sequence[Sequence[Completion]],
    ) -> list[float]:
        """Share of right continuations of each prefix."""
        whole = [
            (solutions[prefix.place], prefix.text + completion.text)
            for prefix, group in zip(prefixes, groups, strict=True)
            for completion in group
            if completion.finish_reason == "stop"
        ]
        verdicts = iter(self._is_right(whole) if whole else ())
        values: list[float] = []
        for group in groups:
            right = sum(next(verdicts) for c in group if c.finish_reason == "stop")
            answered = sum(c.finish_reason != "error" for c in group)
            values.append(right / answered if answered else math.nan)
        return values


def _prefixes(place: int, solution: Solution) -> list[_Prefix]:
    """The solution up to the end of each step but the last."""
    opening, steps = solution
    return [_Prefix(place, k, join_steps(opening, steps[:k])) for k in range(1, max(1, len(steps)))]
