"""Scores by trying: how often a policy still gets there from after a step (Math-Shepherd, arXiv 2312.08935).

No judge and no trained verifier: only a writer and a grader of final answers. Which step is wrong is decided in
`prefopt.judge.turning`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

from prefopt.errors import ConfigError
from prefopt.generate.base import Bounded, Generator, Request, Sampling
from prefopt.generate.journal import Journal, Progress, complete
from prefopt.judge.base import WrongSolution
from prefopt.records import Message
from prefopt.text.steps import join_steps, split_steps

Grade = Callable[[Sequence[tuple[WrongSolution, str]]], list[bool]]
"""Which whole solutions have the right final answer."""
Prompt = Callable[[WrongSolution], str | tuple[Message, ...]]

_SAMPLING = Sampling(temperature=0.8, top_p=0.95, max_new_tokens=2048, purpose="roll-outs")


class Draw(NamedTuple):
    """Continuations that are wanted of one solution from one place."""

    place: int
    """Index of the solution."""
    step: int
    """They go on after this step; 0: before the first one."""
    start: int
    """Number of the first sample."""
    samples: int


class Tally(NamedTuple):
    """What came of a draw."""

    right: int
    answered: int
    """Without those that a server refused."""


class RolloutScorer:
    """`StepScorer` by Monte Carlo: ``score(k) = right / n`` over n continuations from after step k.

    A continuation that is cut at the token limit is wrong. The score of the last step takes no samples: the solution
    ends there, with a wrong answer (0) or a right one (1).
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
        self.samples = samples
        self.sampling = sampling

    def scores(
        self,
        solutions: Sequence[WrongSolution],
        *,
        journal: Journal | None,
        progress: Progress | None = None,
        right: bool = False,
    ) -> list[list[float]]:
        """Share of right continuations after each step; NaN after a step none of whose continuations was answered.

        Progress counts continuations.

        Raises:
            RecordError: two solutions have the same id.
        """
        lengths = [len(split_steps(solution.text).steps) for solution in solutions]
        draws = [
            Draw(place, step, 0, self.samples)
            for place, length in enumerate(lengths)
            for step in range(1, length)
        ]
        scores = [[float(right)] * length for length in lengths]
        tallies = self.draw(solutions, draws, journal=journal, progress=progress)
        for draw, tally in zip(draws, tallies, strict=True):
            share = tally.right / tally.answered if tally.answered else math.nan
            scores[draw.place][draw.step - 1] = share
        return scores

    def draw(
        self,
        solutions: Sequence[WrongSolution],
        draws: Sequence[Draw],
        *,
        journal: Journal | None,
        progress: Progress | None = None,
    ) -> list[Tally]:
        """One tally per draw, in their order.

        Raises:
            RecordError: two solutions have the same id, or two draws have a sample in common.
        """
        split = [split_steps(solution.text) for solution in solutions]
        prefixes = [join_steps(split[d.place][0], split[d.place][1][: d.step]) for d in draws]
        requests = [
            # The name is part of each sample's seed: what comes after different steps is drawn independently.
            Request(
                f"{solution.id} after step {d.step}", d.start + k, self._prompt(solution), prefix
            )
            for d, prefix in zip(draws, prefixes, strict=True)
            for solution in [solutions[d.place]]
            for k in range(d.samples)
        ]
        written = iter(
            complete(self._generator, requests, self.sampling, journal, progress=progress)
        )
        groups = [[next(written) for _ in range(d.samples)] for d in draws]
        whole = [
            (solutions[d.place], prefix + c.text)
            for d, prefix, group in zip(draws, prefixes, groups, strict=True)
            for c in group
            if c.finish_reason == "stop"
        ]
        verdicts = iter(self._is_right(whole) if whole else ())
        return [
            Tally(
                right=sum(next(verdicts) for c in group if c.finish_reason == "stop"),
                answered=sum(c.finish_reason != "error" for c in group),
            )
            for group in groups
        ]

    def refuses_for_good(self) -> bool:
        """Whether a refused continuation is refused again: a model in this process has no bad days."""
        return isinstance(self._generator, Bounded)
