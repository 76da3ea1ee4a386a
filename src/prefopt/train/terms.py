"""The objectives of a run: what they are given, their running statistics, and their sum."""

from __future__ import annotations

import hashlib
from collections.abc import Generator, Mapping, Sequence
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


def demands_of(terms: Sequence[Term]) -> Demands:
    """The union of what the objectives declare."""
    needs = [needs_of(term.objective) for term in terms]
    return Demands(
        reference=any(need.reference for need in needs),
        pairs=any(need.view == "pairs" for need in needs),
        extras=frozenset(extra for need in needs for extra in need.extras),
        annotations=frozenset(a for need in needs for a in need.annotations),
        mismatched=any(need.mismatched for need in needs),
    )


class _Step(NamedTuple):
    """The optimiser step in progress; outside of one, statistics stay as they are and nothing is drawn."""

    number: int | None
    """None in an evaluation."""
    parts: Sequence[Part]
    """All micro-batches of all processes; empty where this process has the only one."""
    first: int
    """Number of this process's first part."""


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
        if step is None or not step.parts:
            whole = join([part], 0, part)
        else:
            whole = join(step.parts, _position(part, step), part)
        losses = self.terms[number].objective(
            _view(whole.scores, need), **self._provided(number, whole)
        )
        own = whole.pairs if need.view == "pairs" else whole.responses
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
        parts = self._step.parts if self._step is not None else ()
        scores = join(parts, 0, parts[0]).scores if parts else whole.scores
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
    return scores.pairs() if need.view == "pairs" else scores


def _position(part: Part, step: _Step) -> int:
    """Number of the gathered part that holds the same records."""
    return next(i for i in range(step.first, len(step.parts)) if step.parts[i].ids == part.ids)


def _generator(seed: int, number: int, step: int) -> torch.Generator:
    """A generator that belongs to (run, objective, step), so that micro-batches and resumed runs draw the same."""
    digest = hashlib.blake2b(f"objective/{seed}/{number}/{step}".encode(), digest_size=8).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest, "little") >> 1)
