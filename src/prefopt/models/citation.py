"""What a trained model owes to whom: the method's paper, the sources of its objectives, and BibTeX entries of them."""

from __future__ import annotations

import inspect
import re
from collections import Counter
from collections.abc import Sequence
from typing import NamedTuple

from prefopt.objectives import Objective, unbound

_ARXIV = re.compile(r"\b(\d{4}\.\d{4,5})(v\d+)?\b")
_YEAR = re.compile(r"\b((?:19|20)\d\d)\b(?!\.\d)")


class TrainedObjective(NamedTuple):
    """An objective that a model was trained with."""

    name: str
    source: str
    """Where it comes from, as its docstring says; empty: nowhere in particular."""
    weight: float = 1.0


class Credits(NamedTuple):
    """The method and the objectives of a training run."""

    method: str
    paper: str
    """Authors, year, title and arXiv id; empty for folklore."""
    objectives: Sequence[TrainedObjective] = ()
    """What was minimised; empty: what the method minimises by itself."""
    own: Sequence[TrainedObjective] = ()
    """What the method minimises when a recipe names no objective."""

    @property
    def plain(self) -> bool:
        """Whether nothing but the method's own objective was used."""
        return not self.objectives or list(self.objectives) == list(self.own)

    @property
    def of_method(self) -> bool:
        """Whether the method's paper describes the training.

        It does not where the paper is about the method's own objective and others were used in its place.
        """
        names = {objective.name for objective in self.objectives}
        if self.plain or any(objective.name in names for objective in self.own):
            return True
        return not any(_arxiv(self.paper) & _arxiv(objective.source) for objective in self.own)


class _Reference(NamedTuple):
    key: str
    """Method or objective."""
    text: str
    is_paper: bool
    """Of the method."""


def trained_objective(objective: Objective, *, weight: float = 1.0) -> TrainedObjective:
    """The objective's name and the source that its docstring names, also through partials and modifiers."""
    function = unbound(objective)
    text = inspect.getdoc(function) or ""
    found = re.search(
        r"^Source:(.+?)(?=^(?:Args|Peers|Departures):|\Z)", text, re.MULTILINE | re.DOTALL
    )
    source = " ".join(found[1].split()) if found else ""
    return TrainedObjective(function.__name__, source, weight)


def captions(credits: Credits) -> list[str]:
    """One line for each reference; empty where there is nothing to cite."""
    return [
        f"The method: {text}" if is_paper else f"Objective {key}: {text}"
        for key, text, is_paper in _references(credits)
    ]


def bibtex(credits: Credits, *, of_paper: str = "") -> str:
    """One entry for each publication; `of_paper` stands for that of the method's paper if it is not empty.

    A source may name several publications, parted by semicolons; parts without a year have no entry.
    """
    entries: list[str] = []
    known: set[str] = set()
    keys: Counter[str] = Counter()
    for key, text, is_paper in _references(credits):
        for work in [text] if is_paper else re.split(r";\s+", text):
            repeated = bool(_arxiv(work)) and _arxiv(work) <= known
            if repeated or not (is_paper or _YEAR.search(work)):
                continue
            known |= _arxiv(work)
            keys[key] += 1
            name = key if keys[key] == 1 else f"{key}-{keys[key]}"
            entry = bibtex_from_reference(name, work.strip().rstrip("."))
            entries.append(of_paper if of_paper and is_paper else entry)
    return "\n\n".join(entries)


def bibtex_from_reference(key: str, reference: str) -> str:
    """A BibTeX `@misc` entry holding what a one-line reference says: the line, its year, its arXiv id."""
    line = " ".join(reference.replace("`", "'").split())
    fields = {"note": "{" + re.sub(r"([&%$#_{}])", r"\\\1", line) + "}"}
    arxiv = _ARXIV.search(reference)
    year = _YEAR.search(reference)
    if year:
        fields["year"] = "{" + year[1] + "}"
    if arxiv:
        fields |= {
            "eprint": "{" + arxiv[1] + "}",
            "archivePrefix": "{arXiv}",
            "url": "{https://arxiv.org/abs/" + arxiv[1] + "}",
        }
    lines = ",\n".join(f"  {name} = {value}" for name, value in fields.items())
    return f"@misc{{{re.sub(r'[^A-Za-z0-9]+', '-', key)},\n{lines}\n}}"


def _references(credits: Credits) -> list[_Reference]:
    """The method's paper first, then the sources of objectives that say more than what is cited already."""
    found: list[_Reference] = []
    if credits.paper and credits.of_method:
        found.append(_Reference(credits.method, credits.paper, is_paper=True))
    if credits.plain and not credits.paper:
        return found
    known = _arxiv(credits.paper) if found else set[str]()
    for name, source, _ in credits.objectives:
        if source and not (_arxiv(source) and _arxiv(source) <= known):
            found.append(_Reference(name, source, is_paper=False))
            known |= _arxiv(source)
    return found


def _arxiv(reference: str) -> set[str]:
    return {found[1] for found in _ARXIV.finditer(reference)}
