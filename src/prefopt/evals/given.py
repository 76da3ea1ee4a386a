"""What was said of a model's answers, prompt by prompt: the form that judged files of all kinds are read into."""

from __future__ import annotations

from collections import Counter
from collections.abc import Hashable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple, TypeAlias

from prefopt.grade.winrate import Judged, Verdict, share_of
from prefopt.values import JsonValue

Key: TypeAlias = tuple[Hashable, int]
"""A prompt and a turn of it."""


class Given(NamedTuple):
    """What was said of one answer (one turn of a conversation)."""

    prompt: Hashable
    """The same for the same prompt to whatever model, and for all turns of a conversation."""
    turn: int
    """From 1."""
    judged: Judged
    """About the model; of both orders together where both were asked."""
    orders: tuple[Verdict, Verdict] | None
    """About the model, when its answer came first and when it came second; None: one order was asked."""
    answers: tuple[str, str]
    """The model's and the baseline's."""
    place: int
    """Of the prompt in the baseline's (or the annotations') file, from 0."""
    number: JsonValue
    """The field `index` of that file's row, unread: with AlpacaEval's data files the number of its instruction."""
    origin: str
    """`file:line` of that row."""

    @property
    def key(self) -> Key:
        """What the answers of several models to the same turn have in common."""
        return self.prompt, self.turn

    @property
    def is_missing(self) -> bool:
        """Whether there is no verdict."""
        return share_of(self.judged) is None


class Entrant(NamedTuple):
    """A model that was judged against a baseline."""

    name: str
    baseline: str
    source: Path
    given: list[Given]
    left_out: int
    """Rows that were not judged."""
    places: int
    """Rows of the file that `Given.place` counts in."""
    itself: bool
    """Whether the model is the baseline."""
    judge: Mapping[str, JsonValue]
    """Who judged, and how: the settings of a judgement, or the `annotator`; empty where nobody is named."""


def prompts_asked(
    questions: Sequence[tuple[Sequence[object], Sequence[str]]],
) -> list[Hashable]:
    """What each row (opening and turns) asks, and how often that was asked before it."""
    seen: Counter[Hashable] = Counter()
    found: list[Hashable] = []
    for opening, turns in questions:
        asked = (tuple(map(str, opening)), tuple(text.strip() for text in turns))
        seen[asked] += 1
        found.append((*asked, seen[asked]))
    return found
