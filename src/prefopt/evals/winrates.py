"""Win rates of models that were judged against one baseline: of each, of one over another, and ratings of all.

What `prefopt winrate` computes; `evals/entrants.py` reads what was judged.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import combinations
from typing import NamedTuple

from prefopt.errors import ConfigError, RecordError
from prefopt.evals.given import Entrant, Key
from prefopt.evals.pairings import Pairing, Pairings
from prefopt.evals.same_judge import judged_alike
from prefopt.evals.standings import LengthData, Standing, standing
from prefopt.grade.bradley_terry import Match, Ranking, rank_models
from prefopt.grade.winrate import share_of
from prefopt.values import JsonValue, quote


class Comparisons(NamedTuple):
    """Everything about some models and one baseline."""

    baseline: str
    standings: list[Standing]
    pairings: list[Pairing]
    ranking: Ranking | None
    """With the baseline in it, on what all models have a verdict on; None for one model, or where there is none."""
    remarks: tuple[str, ...]
    """What keeps the models apart: other judges, other prompts. Why there is no ranking, what it leaves out, and whose
    rating in it is not to be relied on."""

    def to_json(self) -> dict[str, JsonValue]:
        """As the written file holds it."""
        ranked: dict[str, JsonValue] | None = None
        if self.ranking is not None:
            ranked = {
                "models": {
                    name: {key: _finite(value) for key, value in strength._asdict().items()}
                    for name, strength in self.ranking.models.items()
                },
                "missing": self.ranking.missing,
                "unbounded": self.ranking.unbounded,
            }
        return {
            "baseline": self.baseline,
            "models": [standing.to_json() for standing in self.standings],
            "comparisons": [pairing.to_json() for pairing in self.pairings],
            "ranking": ranked,
            "remarks": list(self.remarks),
        }


def compare_entrants(
    entrants: Sequence[Entrant],
    data: LengthData | None = None,
    *,
    anchor: str | None = None,
    prior: float = 0.0,
    mixed: bool = False,
) -> Comparisons:
    """Each model's win rates, and for two or more: one over another, and a ranking.

    Pairs are compared on what both have verdicts on, all are ranked on what all have verdicts on.

    Args:
        entrants: at least one.
        data: AlpacaEval's files; None: the length-controlled fits stand on the verdicts alone.
        anchor: the model with rating 1000; None: the mean of all.
        prior: ties added to each pair of models that met, for the ranking.
        mixed: whether models are compared that were judged differently (`judged_alike`).

    Raises:
        ConfigError: an anchor that is no model, or a prior below 0.
        RecordError: judges or baselines differ, two models share no prompt, or AlpacaEval's files do not fit.
    """
    baseline = next((e.baseline for e in entrants if not e.itself), entrants[0].baseline)
    _check_ranking(entrants, baseline, anchor, prior)
    remarks = [*judged_alike(entrants, mixed=mixed), *_other_prompts(entrants)]
    for first, second in combinations(entrants, 2):
        _check_baseline(first, second)
    data = data or LengthData()
    standings = [standing(entrant, data) for entrant in entrants]
    pairs = Pairings(data)
    pairings = [pairs.pair(a, b) for a, b in combinations(standings, 2)]
    ranking = None
    if len(entrants) > 1:
        ranking, more = _ranking(entrants, baseline, anchor, prior)
        remarks += more
    return Comparisons(baseline, standings, pairings, ranking, tuple(remarks))


def _check_ranking(
    entrants: Sequence[Entrant], baseline: str, anchor: str | None, prior: float
) -> None:
    names = [baseline, *(e.name for e in entrants if not e.itself)]
    if not (prior >= 0 and math.isfinite(prior)):
        raise ConfigError(f"--prior is {prior}; give a number of ties per pair, 0 or more")
    if anchor is not None and len(entrants) == 1:
        raise ConfigError("--anchor belongs to a ranking; give two or more judged models")
    if anchor is not None and anchor not in names:
        raise ConfigError(f"--anchor {anchor!r} was not judged; known are {', '.join(names)}")


def _check_baseline(first: Entrant, second: Entrant) -> None:
    """That both were judged against the same answers wherever the prompts are the same."""
    answers = {g.key: g.answers[1] for g in first.given}
    for given in second.given:
        answer = answers.get(given.key)
        if answer is not None and answer != given.answers[1]:
            raise RecordError(
                f"{first.source} and {second.source}: the baseline's answers to one prompt are {quote(answer)} and "
                f"{quote(given.answers[1])}; give models that were judged against the same baseline"
            )
    if answers.keys().isdisjoint(g.key for g in second.given):
        raise RecordError(
            f"{first.source} and {second.source} have no prompt in common; give models that were judged on the same"
        )


def _other_prompts(entrants: Sequence[Entrant]) -> list[str]:
    """A remark where models were judged on other prompts, so that their win rates say nothing of each other."""
    asked = [{g.prompt for g in e.given} for e in entrants]
    if all(prompts == asked[0] for prompts in asked):
        return []
    counts = ", ".join(f"{e.name} {len(p):,}" for e, p in zip(entrants, asked, strict=True))
    remark = (
        f"the models were judged on different prompts ({counts}; {len(set.intersection(*asked)):,} are common to all), "
        "so their own win rates cannot be compared with each other"
    )
    return [remark]


def _ranking(
    entrants: Sequence[Entrant], baseline: str, anchor: str | None, prior: float
) -> tuple[Ranking | None, list[str]]:
    """The ranking, on what all models have a verdict on, and what is to be said of it."""
    judged = {e.name: {g.key for g in e.given if not g.is_missing} for e in entrants}
    ranked = [e for e in entrants if judged[e.name] and not e.itself]
    remarks = [f"{e.name} has no verdict and is not ranked" for e in entrants if not judged[e.name]]
    common: set[Key] = set.intersection(*(judged[e.name] for e in ranked)) if ranked else set()
    if not common:
        return None, [*remarks, "no ranking: there is no prompt on which all models have a verdict"]
    seen = {g.key for e in ranked for g in e.given}
    if len(common) < len(seen):
        remarks.append(_partial(len(common), len(seen)))
    games = [
        (Match(e.name, baseline, g.judged), g.prompt)
        for e in ranked
        for g in e.given
        if g.key in common
    ]
    try:
        found = rank_models(
            [match for match, _ in games],
            prior=prior,
            anchor=anchor,
            clusters=[prompt for _, prompt in games],
        )
    except ValueError as error:
        return None, [*remarks, "no ranking: " + str(error).replace("prior=1", "--prior 1")]
    shares = {e.name: {share_of(g.judged) for g in e.given if g.key in common} for e in ranked}
    sure = [name for name in found.models if shares.get(name) in ({0.0}, {1.0})]
    if sure:
        remarks.append(
            f"{', '.join(sure)}: all verdicts are wins, or all losses; the prior alone says how far away the rating "
            "is, and its interval says nothing"
        )
    return found, remarks


def _partial(common: int, seen: int) -> str:
    return f"the ranking stands on the {common:,} of {seen:,} prompts (or turns) on which all models have a verdict"


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None
