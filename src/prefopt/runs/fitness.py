"""Whether records have what the objectives need, and the answers to other prompts that some of them estimate with."""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

from prefopt.errors import RecordError
from prefopt.objectives import Annotation
from prefopt.records import Pair, Preference, Response
from prefopt.runs.method import Paired
from prefopt.train.terms import Demands


def fitted(preference: Preference, demands: Demands) -> Preference | Paired | str:
    """The record with those pairs that objectives with these demands can use, or why there are none.

    Raises:
        RecordError: pairs have weights that an objective would put on other pairs.
    """
    found, notes = preference, ()
    if demands.pairs:
        found, notes = _usable_pairs(preference, demands)
        if not found.pairs:
            return ", ".join(notes) or "no pair"
        if not any(pair.weight for pair in found.pairs):
            return "every pair has weight 0"
        if demands.positional and any(pair.weight != 1.0 for pair in found.pairs):
            raise RecordError(
                f"{preference.origin or preference.id}: a pair has a weight, and {demands.positional} sorts the batch, "
                "so that it would fall on another pair: remove the weights, or use another objective"
            )
        if not demands.lists:
            found = _only_paired(found)
    if "ranking" in demands.annotations:
        found = _ranked_by_pair(found)
    for annotation in sorted(demands.annotations & _OF_RECORDS.keys()):
        if lacking := _OF_RECORDS[annotation](found):
            return lacking
    return Paired(found, notes) if notes else found


def _usable_pairs(preference: Preference, demands: Demands) -> tuple[Preference, tuple[str, ...]]:
    """The record without pairs that lack an annotation, and what those lack."""
    checks = [
        _OF_PAIRS[annotation] for annotation in sorted(demands.annotations & _OF_PAIRS.keys())
    ]
    lacking = [
        next((what for holds, what in checks if not holds(preference, pair)), "")
        for pair in preference.pairs
    ]
    if not any(lacking):
        return preference, ()
    kept = tuple(p for p, what in zip(preference.pairs, lacking, strict=True) if not what)
    return replace(preference, pairs=kept), tuple(sorted({what for what in lacking if what}))


def _only_paired(preference: Preference) -> Preference:
    """The record without responses that are in no pair: nothing would look at them, and they cost time."""
    used = sorted({i for pair in preference.pairs for i in (pair.chosen, pair.rejected)})
    if len(used) == len(preference.responses):
        return preference
    place = {old: new for new, old in enumerate(used)}
    pairs = (
        replace(p, chosen=place[p.chosen], rejected=place[p.rejected]) for p in preference.pairs
    )
    return replace(
        preference,
        responses=tuple(preference.responses[i] for i in used),
        pairs=tuple(pairs),
    )


def _ranked_by_pair(preference: Preference) -> Preference:
    """A record of one pair and nothing else as the ranking of two that it is."""
    bare = all(r.rank is None and r.score is None for r in preference.responses)
    if not bare or len(preference.pairs) != 1:
        return preference
    (pair,) = preference.pairs
    ranks = {pair.chosen: 1, pair.rejected: 2}
    return replace(
        preference,
        responses=tuple(replace(r, rank=ranks.get(i)) for i, r in enumerate(preference.responses)),
    )


def _has_margin(preference: Preference, pair: Pair) -> bool:
    del preference
    return pair.margin is not None


def _has_scores(preference: Preference, pair: Pair) -> bool:
    return all(preference.responses[i].score is not None for i in (pair.chosen, pair.rejected))


_OF_PAIRS: Mapping[Annotation, tuple[Callable[[Preference, Pair], bool], str]] = {
    "margins": (_has_margin, "a pair without a margin left out"),
    "scores": (_has_scores, "a pair without two scores left out"),
}


def _without_label(preference: Preference) -> str | None:
    if preference.pairs or any(r.label is not None for r in preference.responses):
        return None
    return "no response labelled desirable or undesirable, and no pair"


def _without_ranking(preference: Preference) -> str | None:
    scores = [r.score for r in preference.responses]
    ranks = [r.rank for r in preference.responses]
    by_rank = None in scores and (None not in ranks or all(s is None for s in scores))
    placed = [value for value in (ranks if by_rank else scores) if value is not None]
    return None if len(placed) >= 2 else "fewer than two responses with a rank, or with a score"


_OF_RECORDS: Mapping[Annotation, Callable[[Preference], str | None]] = {
    "labels": _without_label,
    "ranking": _without_ranking,
}


def with_mismatched(preferences: Sequence[Preference], *, seed: int) -> list[Preference]:
    """Each record with one response to another prompt, marked `mismatched`; which one is drawn from `seed`.

    KTO estimates its KL term from such answers (Ethayarajh et al. 2024, arXiv 2402.01306, section 3.1). They share
    the prompt's tokens and are scored once, so the estimate costs one answer per record.

    Raises:
        RecordError: there is only one prompt, so that no answer belongs to another one.
    """
    if not preferences:
        return []
    order = list(range(len(preferences)))
    random.Random(f"mismatched/{seed}").shuffle(order)
    donor: dict[int, Preference] = {}
    for place, index in enumerate(order):
        own = preferences[index].prompt
        others = (preferences[order[(place + k) % len(order)]] for k in range(1, len(order)))
        other = next((p for p in others if p.prompt != own), None)
        if other is None:
            raise RecordError(
                "this objective needs answers to other prompts, and all records have the same prompt: add prompts, or "
                "use loss_type: apo_zero_unpaired"
            )
        donor[index] = other
    return [
        replace(preference, responses=(*preference.responses, _answer(donor[i], seed)))
        for i, preference in enumerate(preferences)
    ]


def _answer(preference: Preference, seed: int) -> Response:
    rng = random.Random(f"mismatched/{seed}/{preference.id}")
    response = rng.choice(preference.responses)
    return replace(response, score=None, rank=None, label=None, mismatched=True)
