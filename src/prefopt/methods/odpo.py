"""DPO with an offset (Amini, Vieira and Cotterell 2024, arXiv 2402.10571).

The objective is `prefopt.objectives.odpo`; here is what becomes of pairs whose scores it cannot use.
"""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import replace
from typing import ClassVar, Literal, get_args

from pydantic import Field

from prefopt.errors import RecordError
from prefopt.objectives.offsets import Offset, Unscored
from prefopt.records import Pair, Preference
from prefopt.runs.method import Method, Paired
from prefopt.runs.mix import ObjectiveKeys, objective_terms


class OdpoConfig(ObjectiveKeys):
    """Recipe of an ODPO run: preference data whose responses have scores."""

    essential: ClassVar[str | None] = "odpo"
    loss_type: list[str] = Field(default=["odpo"])
    """Objectives, one or several (`prefopt methods` lists them); their losses are added up."""
    alpha: float | None = Field(default=1.0, ge=0)
    """Strength of the offset; 0 is DPO."""
    offset: Offset | None = "log"
    """Offset of a pair: alpha times the log of the score difference, the difference, or the log of the ratio."""
    on_ties: Literal["drop", "keep", "error"] = "drop"
    """Pairs with equal scores; kept ones have no gradient under offset log, and are DPO pairs under the others."""
    on_inverted: Literal["error", "swap", "drop"] = "error"
    """Pairs whose rejected response has the higher score."""
    on_missing: Literal["error", "drop", "dpo"] = "error"
    """Pairs without two finite scores; dpo: they are trained on without an offset."""

    @property
    def unscored(self) -> Unscored:
        """The parameter of the objective that `on_missing` decides."""
        return "dpo" if self.on_missing == "dpo" else "error"


def scored_pairs(preference: Preference, config: OdpoConfig) -> Preference | Paired | str:
    """The record with those pairs that have an offset, inverted ones turned round if asked for; notes say which.

    Raises:
        RecordError: a policy is `error` and a pair breaks it; names record, pair and scores.
    """
    counts: Counter[str] = Counter()
    kept: list[Pair] = []
    for pair in preference.pairs:
        fate = _fate(preference, pair, config)
        counts[fate] += fate != _KEPT
        if fate in (_KEPT, _SWAPPED):
            turned = replace(pair, chosen=pair.rejected, rejected=pair.chosen)
            kept.append(turned if fate == _SWAPPED else pair)
    reasons = tuple(sorted(+counts))
    if not kept:
        return ", ".join(reasons) or "no pair"
    if not reasons:
        return preference
    return Paired(replace(preference, pairs=tuple(kept)), reasons)


_KEPT = "kept"
_SWAPPED = "a pair turned round: its rejected response had the higher score"
_TIED = "a pair with equal scores left out"
_INVERTED = "a pair whose rejected response has the higher score left out"
_MISSING = "a pair without two scores left out"


def _fate(preference: Preference, pair: Pair, config: OdpoConfig) -> str:
    chosen, rejected = (preference.responses[i].score for i in (pair.chosen, pair.rejected))
    if (
        chosen is None
        or rejected is None
        or not (math.isfinite(chosen) and math.isfinite(rejected))
    ):
        policy, key, drop = config.on_missing, "on_missing", _MISSING
        outcomes = {"dpo": _KEPT}
    elif chosen == rejected:
        policy, key, drop = config.on_ties, "on_ties", _TIED
        outcomes = {"keep": _KEPT}
    elif chosen < rejected:
        policy, key, drop = config.on_inverted, "on_inverted", _INVERTED
        outcomes = {"swap": _SWAPPED}
    else:
        return _KEPT
    if policy == "error":
        raise _refusal(preference, pair, key)
    return outcomes.get(policy, drop)


def _refusal(preference: Preference, pair: Pair, key: str) -> RecordError:
    chosen, rejected = (preference.responses[i].score for i in (pair.chosen, pair.rejected))
    known = ", ".join(
        str(choice)
        for choice in get_args(OdpoConfig.model_fields[key].annotation)
        if choice != "error"
    )
    return RecordError(
        f"{preference.origin or preference.id}: the chosen response has score {_shown(chosen)}, the rejected one "
        f"{_shown(rejected)}; set {key} ({known}), or repair the scores"
    )


def _shown(score: float | None) -> str:
    return "none" if score is None else f"{score:g}"


METHOD = Method(
    name="odpo",
    summary="DPO that asks for a larger margin where the scores of a pair lie further apart",
    paper="Amini, Vieira and Cotterell 2024, Direct Preference Optimization with an Offset, arXiv 2402.10571",
    config=OdpoConfig,
    objectives=objective_terms,
    pair=scored_pairs,
)
