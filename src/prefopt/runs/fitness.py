"""Whether records have what the objectives need, and the answers to other prompts that some of them estimate with."""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

from prefopt.errors import RecordError
from prefopt.objectives import Annotation
from prefopt.records import Preference, Response
from prefopt.train.terms import Demands


def unfit(preference: Preference, demands: Demands) -> str | None:
    """Why objectives with these demands cannot use the record; None where they can."""
    if demands.pairs:
        if not preference.pairs:
            return "no pair"
        if not any(pair.weight for pair in preference.pairs):
            return "every pair has weight 0"
    for annotation in sorted(demands.annotations):
        if lacking := _LACKING[annotation](preference):
            return lacking
    return None


def _without_margin(preference: Preference) -> str | None:
    if all(pair.margin is not None for pair in preference.pairs):
        return None
    return "a pair without a margin"


def _without_score(preference: Preference) -> str | None:
    paired = {i for pair in preference.pairs for i in (pair.chosen, pair.rejected)}
    if all(preference.responses[i].score is not None for i in paired):
        return None
    return "a pair with a response that has no score"


def _without_label(preference: Preference) -> str | None:
    if preference.pairs or any(r.label is not None for r in preference.responses):
        return None
    return "no response labelled desirable or undesirable, and no pair"


def _without_ranking(preference: Preference) -> str | None:
    ranked = sum(r.rank is not None or r.score is not None for r in preference.responses)
    return None if ranked >= 2 else "fewer than two responses with a rank or a score"


_LACKING: Mapping[Annotation, Callable[[Preference], str | None]] = {
    "margins": _without_margin,
    "scores": _without_score,
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
