"""What is poor but well-formed in a record: empty, identical and repeated responses. Decides fates, changes no text."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import replace

from prefopt.ledger import Ledger
from prefopt.records import Pair, Preference, Response, preference_to_json
from prefopt.text.pairing import comparable, count_ties, pair_responses
from prefopt.values import JsonValue

EMPTY = "empty response"
IDENTICAL = "chosen equals rejected"
DUPLICATE = "duplicate of an earlier row"

EMPTY_REMOVED = "empty response left out of the list"
IDENTICAL_REMOVED = "pair of equal texts left out"
CONTRADICTION = "contradicts an earlier row: same responses, opposite preference"
EMPTY_PROMPT = "empty prompt"
INVERTED = "chosen scores lower than rejected"
ALL_EQUAL = "no pair: every score or rank is equal"
UNANNOTATED = "no pair: several responses without a score or rank for each"
ONE_SCORED = "no pair: only one response has a score"
UNSCORED_UNPAIRED = "responses without a score are in no pair"
TIES_LEFT_OUT = "some pairs left out by pairing: equal scores or ranks"
GOLD_IS_REJECTED = "the gold response equals the rejected one"


class QualityGate:
    """Lets sound records through and writes the fate of the others into the ledger.

    Dropped: a supervised, labelled or paired row with an empty response, a pair of equal texts, a row whose
    content an earlier row had. In longer lists only the response or the pair in question is left out. Lists get
    their pairs here, unless `pairing` is None.
    """

    def __init__(self, ledger: Ledger, pairing: str | None) -> None:
        self.ledger = ledger
        self.pairing = pairing
        self._seen: set[str] = set()

    def pass_on(self, preference: Preference) -> Preference | None:
        """The record as it goes on, with its pairs; None when it was dropped."""
        checked = self._without_empty(preference)
        if checked is None:
            return self._drop(preference, EMPTY)
        paired = self._paired(checked)
        distinct = tuple(
            p
            for p in paired.pairs
            if not _equal(paired.responses[p.chosen], paired.responses[p.rejected])
        )
        if paired.pairs and not distinct:
            return self._drop(preference, IDENTICAL)
        if len(distinct) < len(paired.pairs):
            self.ledger.note(preference.id, reason=IDENTICAL_REMOVED)
        final = replace(paired, pairs=distinct)
        if self._repeats(final):
            return self._drop(preference, DUPLICATE)
        self._remark(final)
        return final

    def _drop(self, preference: Preference, reason: str) -> None:
        self.ledger.drop(preference.id, reason=reason)

    def _without_empty(self, preference: Preference) -> Preference | None:
        keep = [i for i, response in enumerate(preference.responses) if not is_empty(response)]
        if len(keep) == len(preference.responses):
            return preference
        number = {old: new for new, old in enumerate(keep)}
        pairs = tuple(
            replace(p, chosen=number[p.chosen], rejected=number[p.rejected])
            for p in preference.pairs
            if p.chosen in number and p.rejected in number
        )
        if not keep or (preference.pairs and not pairs):
            return None
        self.ledger.note(preference.id, reason=EMPTY_REMOVED)
        responses = tuple(preference.responses[i] for i in keep)
        return replace(preference, responses=responses, pairs=pairs)

    def _paired(self, preference: Preference) -> Preference:
        """The record with pairs by rank or score, where it came without pairs."""
        if self.pairing is None or preference.pairs or len(preference.responses) < 2:
            return preference
        pairs = pair_responses(preference.responses, self.pairing)
        for reason in _pairing_notes(preference.responses, pairs, self.pairing):
            self.ledger.note(preference.id, reason=reason)
        return replace(preference, pairs=pairs)

    def _repeats(self, preference: Preference) -> bool:
        key = _content(preference)
        if key in self._seen:
            return True
        if _content(_opposite(preference)) in self._seen:
            self.ledger.note(preference.id, reason=CONTRADICTION)
        self._seen.add(key)
        return False

    def _remark(self, preference: Preference) -> None:
        if not preference.prompt:
            self.ledger.note(preference.id, reason=EMPTY_PROMPT)
        for pair in preference.pairs:
            chosen = preference.responses[pair.chosen].score
            rejected = preference.responses[pair.rejected].score
            if chosen is not None and rejected is not None and chosen < rejected:
                self.ledger.note(preference.id, reason=INVERTED)
        if any(
            _equal(preference.responses[i], preference.responses[pair.rejected])
            for i in gold_responses(preference)
            for pair in preference.pairs
        ):
            self.ledger.note(preference.id, reason=GOLD_IS_REJECTED)


def _pairing_notes(
    responses: Sequence[Response], pairs: Sequence[Pair], pairing: str
) -> Iterator[str]:
    """What the pairing of a list left out."""
    value = comparable(responses)
    if not value:
        yield UNANNOTATED
        return
    if len(value) < len(responses):
        yield UNSCORED_UNPAIRED
    if len(value) == 1:
        yield ONE_SCORED
    elif not pairs:
        yield ALL_EQUAL
    elif count_ties(responses, pairing):
        yield TIES_LEFT_OUT


def gold_responses(preference: Preference) -> list[int]:
    """Positions of the responses that are in no pair and ranked better than every chosen one."""
    paired = {i for pair in preference.pairs for i in (pair.chosen, pair.rejected)}
    ranks = [preference.responses[pair.chosen].rank for pair in preference.pairs]
    known = [rank for rank in ranks if rank is not None]
    if not known or len(known) < len(ranks):
        return []
    return [
        i
        for i, response in enumerate(preference.responses)
        if i not in paired and response.rank is not None and response.rank < min(known)
    ]


def is_empty(response: Response) -> bool:
    """Whether the response says nothing: white space only, in every assistant turn, and no tool called."""
    if response.turns:
        return all(
            m.role != "assistant" or not (m.content.strip() or m.extra) for m in response.turns
        )
    return not response.text.strip()


def _equal(a: Response, b: Response) -> bool:
    return a.text == b.text and a.turns == b.turns and a.ends == b.ends


def _content(preference: Preference) -> str:
    row: dict[str, JsonValue] = preference_to_json(preference)
    return json.dumps([row.get(key) for key in ("prompt", "prefix", "responses", "pairs")])


def _opposite(preference: Preference) -> Preference:
    """The same responses with the opposite verdict; the record itself where there is none to turn round."""
    if len(preference.pairs) == 1:
        (pair,) = preference.pairs
        turned = list(preference.responses)
        chosen, rejected = turned[pair.chosen], turned[pair.rejected]
        turned[pair.chosen] = replace(rejected, rank=chosen.rank)
        turned[pair.rejected] = replace(chosen, rank=rejected.rank)
        return replace(preference, responses=tuple(turned))
    if len(preference.responses) == 1 and preference.responses[0].label is not None:
        only = preference.responses[0]
        return replace(preference, responses=(replace(only, label=not only.label),))
    return preference
