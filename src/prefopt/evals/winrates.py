"""Win rates of models that were judged against one baseline: of each, of one over another, and ratings of all.

What `prefopt winrate` computes; `evals/entrants.py` reads what was judged.
"""

from __future__ import annotations

import math
from collections.abc import Hashable, Sequence
from itertools import combinations
from typing import NamedTuple

from prefopt.errors import ConfigError, RecordError
from prefopt.evals.entrants import Entrant
from prefopt.evals.standings import LengthData, Standing, standing
from prefopt.grade.bradley_terry import Match, Ranking, rank_models
from prefopt.grade.length_controlled import winrate_between
from prefopt.grade.winrate import Comparison, Judged, compare_models, share_of
from prefopt.values import JsonValue, quote


class Pairing(NamedTuple):
    """The second of two models over the first, both judged against the baseline."""

    first: str
    second: str
    shared: int
    """Prompts on which both were judged."""
    apart: int
    """Prompts on which one of them was."""
    difference: Comparison | None
    """Of their win rates on the shared prompts; None where none of them has verdicts for both."""
    controlled: float | None
    """The length-controlled win rate of the second over the first, from the weights of both fits."""

    def to_json(self) -> dict[str, JsonValue]:
        """As the written file holds it."""
        return {
            "first": self.first,
            "second": self.second,
            "shared": self.shared,
            "apart": self.apart,
            "difference": None if self.difference is None else self.difference._asdict(),
            "length_controlled": self.controlled,
        }


class Comparisons(NamedTuple):
    """Everything about some models and one baseline."""

    baseline: str
    standings: list[Standing]
    pairings: list[Pairing]
    ranking: Ranking | None
    """With the baseline in it; None for one model, or where there is none."""
    remark: str
    """Why there is no ranking, or whose rating in it is not to be relied on; else empty."""

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
            "remark": self.remark,
        }


def compare_entrants(
    entrants: Sequence[Entrant],
    data: LengthData | None = None,
    *,
    anchor: str | None = None,
    prior: float = 0.0,
) -> Comparisons:
    """Each model's win rates, and for two or more: one over another, and a ranking.

    Args:
        entrants: at least one.
        data: AlpacaEval's files; None: the length-controlled fits stand on the verdicts alone.
        anchor: the model with rating 1000; None: the mean of all.
        prior: ties added to each pair of models that met, for the ranking.

    Raises:
        ConfigError: an anchor that is no model, or a prior below 0.
        RecordError: the baselines differ, two models share no prompt, or AlpacaEval's files do not fit.
    """
    baseline = next((e.baseline for e in entrants if not e.itself), entrants[0].baseline)
    _check_ranking(entrants, baseline, anchor, prior)
    for first, second in combinations(entrants, 2):
        _check_baseline(first, second)
    data = data or LengthData()
    standings = [standing(entrant, data) for entrant in entrants]
    pairings = [_pairing(a, b, data) for a, b in combinations(standings, 2)]
    ranking, remark = (
        (None, "") if len(entrants) == 1 else _ranking(entrants, baseline, anchor, prior)
    )
    return Comparisons(baseline, standings, pairings, ranking, remark)


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
    answers = {(g.prompt, g.turn): g.answers[1] for g in first.given}
    for given in second.given:
        answer = answers.get((given.prompt, given.turn))
        if answer is not None and answer != given.answers[1]:
            raise RecordError(
                f"{first.source} and {second.source}: the baseline's answers to one prompt are {quote(answer)} and "
                f"{quote(given.answers[1])}; give models that were judged against the same baseline"
            )
    if answers.keys().isdisjoint((g.prompt, g.turn) for g in second.given):
        raise RecordError(
            f"{first.source} and {second.source} have no prompt in common; give models that were judged on the same"
        )


def _pairing(first: Standing, second: Standing, data: LengthData) -> Pairing:
    judged, others = _by_prompt(first.entrant), _by_prompt(second.entrant)
    shared = [key for key in judged if key in others]
    sides: tuple[list[Judged], list[Judged]] = (
        [judged[key] for key in shared],
        [others[key] for key in shared],
    )
    there = any(
        share_of(a) is not None and share_of(b) is not None for a, b in zip(*sides, strict=True)
    )
    weights, against = second.weights, first.weights
    hard = None if data.compared is None else list(data.compared.values())
    prompts = {prompt for prompt, _ in shared}
    return Pairing(
        first.entrant.name,
        second.entrant.name,
        shared=len(prompts),
        apart=len({prompt for prompt, _ in [*judged, *others]} - prompts),
        difference=compare_models(*sides, clusters=[key[0] for key in shared]) if there else None,
        controlled=None
        if weights is None or against is None
        else winrate_between(weights, against, difficulty=hard),
    )


def _by_prompt(entrant: Entrant) -> dict[tuple[Hashable, int], Judged]:
    return {(g.prompt, g.turn): g.judged for g in entrant.given}


def _ranking(
    entrants: Sequence[Entrant], baseline: str, anchor: str | None, prior: float
) -> tuple[Ranking | None, str]:
    """The ranking, and what is to be said of it."""
    games = [
        (Match(e.name, baseline, g.judged), g.prompt)
        for e in entrants
        if not e.itself
        for g in e.given
    ]
    try:
        found = rank_models(
            [match for match, _ in games],
            prior=prior,
            anchor=anchor,
            clusters=[prompt for _, prompt in games],
        )
    except ValueError as error:
        return None, "no ranking: " + str(error).replace("prior=1", "--prior 1")
    shares = {e.name: {share_of(g.judged) for g in e.given} - {None} for e in entrants}
    sure = [name for name in found.models if shares.get(name) in ({0.0}, {1.0})]
    if not sure:
        return found, ""
    return found, (
        f"{', '.join(sure)}: all verdicts are wins, or all losses; the prior alone says how far away the rating is, "
        "and its interval says nothing"
    )


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None
