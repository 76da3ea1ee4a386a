"""What a method is: a few named parts and the paper they come from."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Generic, NamedTuple, TypeVar

from prefopt.config import RunConfig
from prefopt.pack.prepare import Weighable
from prefopt.records import Preference
from prefopt.train.terms import Term

C = TypeVar("C", bound=RunConfig)


class RunResult(NamedTuple):
    """What a finished run leaves."""

    folder: Path
    model: Path
    """An ordinary Hugging Face folder or PEFT adapter."""
    metrics: dict[str, float]
    """The last logged values."""
    report: Path


class Paired(NamedTuple):
    """A record whose pairs were changed, with what the ledger is to say about it."""

    preference: Preference
    notes: tuple[str, ...]


@dataclass(frozen=True)
class Method(Generic[C]):
    """A published method as a composition of parts; absent parts are ordinary preference training."""

    name: str
    summary: str
    """One line for `prefopt methods`."""
    paper: str
    """Authors, year, title, arXiv id; empty for folklore."""
    config: type[C]
    """The recipe's schema: a subclass of `RunConfig` whose extra fields are this method's parameters."""
    objectives: Callable[[C], Sequence[Term]]
    """Objectives with bound parameters and their factors: `lambda config: [Term(partial(dpo, beta=config.beta))]`."""
    pair: Callable[[Preference, C], Preference | Paired | str] | None = None
    """Choose the responses and pairs of a record that the method trains on; a string is the reason to drop it."""
    weigh: Callable[[Weighable, C], tuple[float, ...]] | None = None
    """Weight [M] of each (token, response) incidence of a tree, in the order of `TokenTree.incidences`; empty: 1."""
    special_tokens: Callable[[C], Sequence[str]] | None = None
    """Markers that tokenizer and model are to know as special tokens; those they lack are added before training."""
    stage: Callable[[Preference, C], int] | None = None
    """Stage of a record: the whole run trains on those of a lower stage before it goes on to the next."""
    train: Callable[[C], RunResult] | None = None
    """Train in a way of its own, such as several trainings one after another."""
    build: Callable[[C], Path] | None = None
    """Make the preference data (resumable); returns the file of records."""
    measure: Callable[[C, Path], None] | None = None
    """Evaluate the model of a finished run folder as the recipe says and write the results into that folder."""
