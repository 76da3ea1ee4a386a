"""From sampled answers and their implicit rewards to pairs: what counts, which alpha, and the facts about it all."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal, NamedTuple

import numpy as np

from prefopt.build.answers import Answers
from prefopt.build.bootstrap import (
    BEST_WORST,
    AlphaFit,
    AlphaPoint,
    Candidates,
    Chosen,
    PairRule,
    choose,
    length_gap,
    scan_fully,
    scan_officially,
)
from prefopt.judge.implicit import ImplicitScore
from prefopt.records import Pair, Preference
from prefopt.values import JsonValue

LengthUnit = Literal["chars", "tokens"]


@dataclass(frozen=True, slots=True)
class BootstrapSettings:
    """How scored answers become pairs; the defaults are those of the published code, but for the scan."""

    beta: float = 0.1
    """Of the reward."""
    alpha: float | None = None
    """In units of the reward per unit of length; None: fitted."""
    length_unit: LengthUnit = "chars"
    scan: Literal["full", "official"] = "full"
    allow_negative: bool = False
    min_valid: int = 8
    """Samples with a reward that a prompt needs, repeated ones included."""
    rule: PairRule = BEST_WORST


class ScoredAnswers(NamedTuple):
    """The answers to a prompt with the score of each."""

    answers: Answers
    scores: tuple[ImplicitScore, ...]

    @property
    def rewarded(self) -> list[int]:
        """Positions of the responses that have a reward."""
        return [k for k, score in enumerate(self.scores) if score.reward is not None]

    @property
    def samples(self) -> int:
        """Samples that have a reward, repeated ones included."""
        return sum(self.answers.times[k] for k in self.rewarded)


class Bootstrapped(NamedTuple):
    """Pairs of a policy's own answers."""

    records: list[Preference]
    """One per prompt with a pair; their `meta` holds rewards and lengths."""
    fit: AlphaFit
    """The alpha that was used; no curve where it was given."""
    counts: Counter[str]
    facts: dict[str, JsonValue]
    """Lengths, margins, repetitions: for `counts.json`."""


def pair_by_reward(scored: Sequence[ScoredAnswers], settings: BootstrapSettings) -> Bootstrapped:
    """The pairs of all prompts with enough answers, at the given or at the fitted alpha.

    Alpha is fitted on all of these prompts, before anything is held out or mixed.
    """
    counts = _counts(scored, settings)
    used = [each for each in scored if each.samples >= settings.min_valid]
    candidates = Candidates.of(
        [[each.scores[k].reward or 0.0 for k in each.rewarded] for each in used],
        [[_length(each, k, settings) for k in each.rewarded] for each in used],
        [[each.answers.responses[k].text for k in each.rewarded] for each in used],
        [[settings.beta * each.scores[k].noise for k in each.rewarded] for each in used],
    )
    fit = _fit(candidates, settings)
    chosen = choose(candidates, fit.alpha, settings.rule)
    counts["pairs left out: equal texts"] = chosen.equal
    counts["pairs left out: margin too small"] = chosen.close
    counts["pairs of own answers"] = len(chosen.group)
    records = _records(used, chosen, fit.alpha)
    return Bootstrapped(records, fit, counts, _facts(used, candidates, chosen, fit, settings))


def sample_record(scored: ScoredAnswers) -> Preference:
    """The prompt with its rewarded answers and their rewards as `score`, to be read by any method that takes scores."""
    kept = scored.rewarded
    scores = [scored.scores[k] for k in kept]
    responses = [replace(scored.answers.responses[k], score=scored.scores[k].reward) for k in kept]
    missing: list[JsonValue] = [
        {"text": scored.answers.responses[k].text, "why": score.missing}
        for k, score in enumerate(scored.scores)
        if score.reward is None
    ]
    left_out: list[JsonValue] = [
        *({"text": each.text, "why": each.why} for each in scored.answers.left_out),
        *missing,
    ]
    meta: dict[str, JsonValue] = {
        **scored.answers.prompt.meta,
        "times": [scored.answers.times[k] for k in kept],
        "tokens": [score.tokens for score in scores],
        "policy_logps": [score.policy for score in scores],
        "reference_logps": [score.reference for score in scores],
        "left_out": left_out,
    }
    return replace(scored.answers.record(), responses=tuple(responses), meta=meta)


def _length(scored: ScoredAnswers, k: int, settings: BootstrapSettings) -> float:
    """Characters (not bytes) of the stripped text, or scored tokens."""
    if settings.length_unit == "tokens":
        return float(scored.scores[k].tokens)
    return float(len(scored.answers.responses[k].text.strip()))


def _fit(candidates: Candidates, settings: BootstrapSettings) -> AlphaFit:
    if settings.alpha is not None:
        return AlphaFit(settings.alpha, ())
    if settings.scan == "official":
        return scan_officially(candidates, settings.rule, beta=settings.beta)
    return scan_fully(candidates, settings.rule, allow_negative=settings.allow_negative)


def _counts(scored: Sequence[ScoredAnswers], settings: BootstrapSettings) -> Counter[str]:
    """What became of samples and prompts; all names are there, also with 0."""
    counts: Counter[str] = Counter()
    counts["prompts"] = len(scored)
    counts["samples"] = sum(sum(e.answers.times) + len(e.answers.left_out) for e in scored)
    for each in scored:
        for sample in each.answers.left_out:
            counts[f"samples {sample.why}"] += 1
        for score, times in zip(each.scores, each.answers.times, strict=True):
            if score.missing:
                counts[f"samples without reward: {score.missing}"] += times
    counts["samples with a reward"] = sum(each.samples for each in scored)
    few = sum(each.samples < settings.min_valid for each in scored)
    counts[f"prompts with fewer than {settings.min_valid} such samples"] = few
    return counts


def _records(used: Sequence[ScoredAnswers], chosen: Chosen, alpha: float) -> list[Preference]:
    """One record per prompt, with the responses of its pairs only."""
    pairs: dict[int, list[tuple[int, int, float]]] = {}
    for g, best, worst, margin in zip(
        chosen.group.tolist(),
        chosen.chosen.tolist(),
        chosen.rejected.tolist(),
        chosen.margin.tolist(),
        strict=True,
    ):
        own = used[g].rewarded
        pairs.setdefault(g, []).append((own[best], own[worst], margin))
    return [_record(used[g], found, alpha) for g, found in pairs.items()]


def _record(
    scored: ScoredAnswers, pairs: Sequence[tuple[int, int, float]], alpha: float
) -> Preference:
    places = list(dict.fromkeys(k for best, worst, _ in pairs for k in (best, worst)))
    number = {k: i for i, k in enumerate(places)}
    prompt = scored.answers.prompt
    meta: dict[str, JsonValue] = {
        **prompt.meta,
        "rewards": [scored.scores[k].reward for k in places],
        "tokens": [scored.scores[k].tokens for k in places],
        "margins": [margin for _, _, margin in pairs],
        "length_penalty": alpha,
    }
    return Preference(
        id=f"{prompt.id}/own",
        prompt=prompt.prompt,
        responses=tuple(scored.answers.responses[k] for k in places),
        pairs=tuple(Pair(number[best], number[worst]) for best, worst, _ in pairs),
        meta=meta,
    )


def _facts(
    used: Sequence[ScoredAnswers],
    candidates: Candidates,
    chosen: Chosen,
    fit: AlphaFit,
    settings: BootstrapSettings,
) -> dict[str, JsonValue]:
    unit = "character" if settings.length_unit == "chars" else "token"
    how = "given" if settings.alpha is not None else f"{settings.scan} scan"
    samples = sum(each.samples for each in used)
    different = sum(len({each.answers.responses[k].text for k in each.rewarded}) for each in used)
    plain = choose(candidates, 0.0, settings.rule)
    return {
        "alpha": {
            "value": fit.alpha,
            "unit": f"reward per {unit} (beta {settings.beta:g} included)",
            "before_beta": fit.alpha / settings.beta,
            "how": how,
        },
        "length": {
            "unit": f"{unit}s",
            "gap_without_alpha": length_gap(candidates, plain),
            "gap": length_gap(candidates, chosen),
            "chosen": _mean(candidates.lengths[chosen.group, chosen.chosen]),
            "rejected": _mean(candidates.lengths[chosen.group, chosen.rejected]),
            "all": _mean(candidates.lengths[np.isfinite(candidates.lengths)]),
        },
        "margin": {
            "mean": _mean(chosen.margin),
            "median": float(np.median(chosen.margin)) if len(chosen.margin) else None,
            "smallest": float(chosen.margin.min()) if len(chosen.margin) else None,
        },
        "samples": {
            "different_per_prompt": different / len(used) if used else None,
            "duplicate_rate": 1 - different / samples if samples else None,
        },
    }


def _mean(values: np.ndarray) -> float | None:
    return float(values.mean()) if len(values) else None


def curve_facts(fit: AlphaFit, facts: Mapping[str, JsonValue]) -> dict[str, JsonValue]:
    """The curve for `alpha-curve.json`."""
    return {"alpha": facts["alpha"], "points": [_point_facts(point) for point in fit.curve]}


def _point_facts(point: AlphaPoint) -> JsonValue:
    return {"alpha": point.alpha, "gap": point.gap, "pairs": point.pairs}
