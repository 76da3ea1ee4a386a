"""The objectives of a run: what they are given, their running statistics, and their sum."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import contextmanager
from typing import NamedTuple

import torch
from torch import Tensor

from prefopt.errors import RecordError
from prefopt.objectives import (
    Annotation,
    Extra,
    Losses,
    Needs,
    Objective,
    Pairs,
    Scores,
    needs_of,
    parameters_of,
    unbound,
)
from prefopt.train.coupling import Part, Whole, join, own_share
from prefopt.train.learner import Weighted

State = dict[str, Tensor]
"""Values of a running statistic, float64 scalars."""


class Term(NamedTuple):
    """One objective of a sum."""

    objective: Objective
    coefficient: float = 1.0


class Demands(NamedTuple):
    """What a sum of objectives needs, taken together."""

    reference: bool
    pairs: bool
    """Some objective takes pairs, so that a record without one is of no use."""
    extras: frozenset[Extra]
    annotations: frozenset[Annotation]
    mismatched: bool
    lists: bool
    """Some objective looks at responses that are in no pair."""
    positional: str
    """The objective whose losses belong to sorted positions, not to pairs; empty: none."""


def demands_of(terms: Sequence[Term]) -> Demands:
    """The union of what the objectives declare."""
    needs = [needs_of(term.objective) for term in terms]
    return Demands(
        reference=any(need.reference for need in needs),
        pairs=any(need.view == "pairs" for need in needs),
        extras=frozenset(extra for need in needs for extra in need.extras),
        # An objective told to train unscored pairs without their scores does not need them.
        annotations=frozenset(
            a
            for term, need in zip(terms, needs, strict=True)
            for a in need.annotations
            if getattr(term.objective, "keywords", {}).get("unscored") != "dpo" or a != "scores"
        ),
        mismatched=any(need.mismatched for need in needs),
        lists=any(need.view == "responses" or "gold" in need.extras for need in needs),
        positional=next(
            (
                unbound(t.objective).__name__
                for t, n in zip(terms, needs, strict=True)
                if n.positional
            ),
            "",
        ),
    )


class _Step:
    """The optimiser step in progress; outside of one, statistics stay as they are and nothing is drawn.

    Args:
        number: None in an evaluation.
        parts: all micro-batches of all processes; empty where this process has the only one.
        first: number of this process's first part.
    """

    def __init__(self, number: int | None, parts: Sequence[Part], first: int) -> None:
        self.number = number
        self.parts = parts
        self._place = {part.ids: i for i, part in reversed(list(enumerate(parts))) if i >= first}
        self._losses: dict[int, Losses] = {}
        self._whole: Whole | None = None

    @property
    def whole(self) -> Whole:
        """All parts as they were scored ahead, joined once."""
        if self._whole is None:
            self._whole = join(self.parts)
        return self._whole

    def place(self, part: Part) -> int:
        """Number of the gathered part that holds the same records."""
        return self._place[part.ids]

    def evaluated(self, number: int, evaluate: Callable[[Whole], Losses]) -> Losses:
        """The losses of the whole evaluation under objective `number`, computed once: no part needs a gradient."""
        if number not in self._losses:
            self._losses[number] = evaluate(self.whole)
        return self._losses[number]


class Terms:
    """Several objectives, added up.

    Args:
        terms: objectives with their coefficients.
        seed: of what objectives draw at random.
        device: where running statistics live.
    """

    def __init__(self, terms: Sequence[Term], *, seed: int, device: torch.device) -> None:
        self.terms = list(terms)
        self.needs = [needs_of(term.objective) for term in self.terms]
        self.coupled = any(need.coupled for need in self.needs)
        self.seed = seed
        self.device = device
        self._running = {
            i: self._state(need.running.start)
            for i, need in enumerate(self.needs)
            if need.running is not None
        }
        self._pending: dict[int, State] = {}
        self._step: _Step | None = None

    @contextmanager
    def step(self, number: int | None, parts: Sequence[Part], *, first: int) -> Generator[None]:
        """The span of step `number` (None: an evaluation); its statistics count once it has ended well."""
        self._step = _Step(number, parts, first)
        self._pending = {}
        try:
            yield
        finally:
            self._step = None
        self._running |= self._pending

    def apply(self, part: Part) -> list[Weighted]:
        """The losses of one micro-batch, one entry per objective."""
        out: list[Weighted] = []
        for number, (term, need) in enumerate(zip(self.terms, self.needs, strict=True)):
            losses = self._losses(number, part)
            loss = losses.loss if term.coefficient == 1.0 else term.coefficient * losses.loss
            name = unbound(term.objective).__name__
            out.append(Weighted(Losses(loss, losses.terms), part.weights[need.mean], name))
        return out

    def state(self) -> dict[str, dict[str, float]]:
        """Running statistics by number of the objective, for a checkpoint."""
        return {
            str(number): {name: float(value) for name, value in state.items()}
            for number, state in self._running.items()
        }

    def load_state(self, state: Mapping[str, Mapping[str, float]]) -> None:
        """Take them back."""
        self._running = {int(number): self._state(values) for number, values in state.items()}

    def _losses(self, number: int, part: Part) -> Losses:
        objective, need = self.terms[number].objective, self.needs[number]
        try:
            if need.coupled:
                return self._coupled(number, part)
            return objective(_view(part.scores, need))
        except ValueError as error:
            # Objectives are pure functions and know no records: what they refuse is named here.
            shown = ", ".join(part.ids[:8]) + (", ..." if len(part.ids) > 8 else "")
            raise RecordError(f"records {shown}: {error}") from error

    def _coupled(self, number: int, part: Part) -> Losses:
        need, step = self.needs[number], self._step

        def evaluate(whole: Whole) -> Losses:
            provided = self._provided(number, whole)
            return self.terms[number].objective(_view(whole.scores, need), **provided)

        if step is None or not step.parts:
            place, whole = 0, join([part])
            losses = evaluate(whole)
        elif step.number is None:
            place, whole = step.place(part), step.whole
            losses = step.evaluated(number, evaluate)
        else:
            place = step.place(part)
            whole = join([part if i == place else other for i, other in enumerate(step.parts)])
            losses = evaluate(whole)
        own = (whole.pairs if need.view == "pairs" else whole.responses)[place]
        return own_share(losses, whole.weights[need.mean], own)

    def _provided(self, number: int, whole: Whole) -> dict[str, object]:
        """Keyword arguments that are not parameters: running statistics of this step, and a random generator."""
        need, step = self.needs[number], self._step
        index = None if step is None else step.number
        given: dict[str, object] = {}
        if need.running is not None:
            if index is not None and number not in self._pending:
                self._pending[number] = self._advance(number, whole)
            state = self._running[number] if index is None else self._pending[number]
            given |= {name: state[name] for name in need.running.arguments}
        if need.random and index is not None:
            given["generator"] = _generator(self.seed, number, index)
        return given

    def _advance(self, number: int, whole: Whole) -> State:
        """The running statistics including this step, from what all processes have alike."""
        need, objective = self.needs[number], self.terms[number].objective
        assert need.running is not None  # noqa: S101 - the caller has looked
        step = self._step
        scores = step.whole.scores if step is not None and step.parts else whole.scores
        detached = scores.each(lambda values: values.detach())
        bound = {**parameters_of(objective), **getattr(objective, "keywords", {})}
        with torch.no_grad():
            after = need.running.advance(_view(detached, need), self._running[number], **bound)
        return dict(after)

    def _state(self, values: Mapping[str, float]) -> State:
        return {
            name: torch.tensor(value, dtype=torch.float64, device=self.device)
            for name, value in values.items()
        }


def _view(scores: Scores, need: Needs) -> Pairs | Scores:
    return scores.pairs(gold="gold" in need.extras) if need.view == "pairs" else scores


def _generator(seed: int, number: int, step: int) -> torch.Generator:
    """A generator that belongs to (run, objective, step), so that micro-batches and resumed runs draw the same."""
    digest = hashlib.blake2b(f"objective/{seed}/{number}/{step}".encode(), digest_size=8).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest, "little") >> 1)
