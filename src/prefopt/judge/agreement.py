"""How well scores of responses agree with annotations that are there already: pairs, and single labels."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

from prefopt.grade.statistics import Interval, wilson
from prefopt.records import Preference

Scores = Mapping[str, Sequence[float | None]]
"""Record id -> the score of each response; None where it has none."""


class Agreement(NamedTuple):
    """How many verdicts the scores repeat."""

    right: int
    """Verdicts that the scores repeat."""
    total: int
    """Verdicts that the scores could be compared with, ties included."""
    ties: int
    """Pairs whose two scores are equal, and labels of a score of 0; they count as not repeated."""
    missing: int
    """Verdicts about a response without a score; they are not in `total`."""

    @property
    def interval(self) -> Interval:
        """Wilson's 95% interval of the share that is repeated."""
        return wilson(self.right, self.total)


def agreement_with_pairs(records: Sequence[Preference], scores: Scores) -> Agreement:
    """How often the chosen response of a pair has the higher score."""
    right = total = ties = missing = 0
    for record in records:
        for pair in record.pairs:
            chosen, rejected = scores[record.id][pair.chosen], scores[record.id][pair.rejected]
            if chosen is None or rejected is None:
                missing += 1
                continue
            total += 1
            right += chosen > rejected
            ties += chosen == rejected
    return Agreement(right, total, ties, missing)


def agreement_with_labels(records: Sequence[Preference], scores: Scores) -> Agreement:
    """How often the score of a response is above 0 just where its label is "desirable".

    0 is where an implicit reward says nothing, a tie: the policy finds the response as likely as the reference does.
    """
    right = total = ties = missing = 0
    for record in records:
        for response, score in zip(record.responses, scores[record.id], strict=True):
            if response.label is None:
                continue
            if score is None:
                missing += 1
                continue
            total += 1
            ties += score == 0
            right += score != 0 and (score > 0) == response.label
    return Agreement(right, total, ties, missing)
