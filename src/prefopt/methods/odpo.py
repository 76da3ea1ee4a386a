"""DPO with an offset (Amini, Vieira and Cotterell 2024, arXiv 2402.10571).

The objective is `prefopt.objectives.odpo`; here is what becomes of pairs whose scores it cannot use.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace
from typing import ClassVar, Literal, get_args

import numpy as np
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
    alpha: float | None = Field(default=None, ge=0)
    """Strength of the offset; null: 1; 0 is DPO."""
    offset: Offset | None = None
    """Offset of a pair: alpha times the log of the score difference, the difference, or the log_ratio; null: log."""
    pairing: Literal["best_vs_rest", "best_worst", "all", "adjacent"] = "all"
    """Pairs made of scored lists; all: every two responses with different scores."""
    on_ties: Literal["drop", "keep", "error"] = "drop"
    """Pairs with equal scores; kept ones have no gradient under offset log, and are DPO pairs under the others."""
    on_inverted: Literal["error", "swap", "drop"] = "error"
    """Pairs whose rejected response has the higher score."""
    on_missing: Literal["error", "drop", "dpo"] = "error"
    """Pairs without two finite scores; dpo: they are trained on without an offset."""

    @property
    def unscored(self) -> Unscored:
        """The parameter of the objective that `on_missing` decides."""
        return "dpo" if self.on_missing == "dpo" or self.alpha == 0 else "error"


def scored_pairs(preference: Preference, config: OdpoConfig) -> Preference | Paired | str:
    """The record with those pairs that have an offset, inverted ones turned round if asked for; notes say which.

    Raises:
        RecordError: a policy is `error` and a pair breaks it; names record, pair and scores.
    """
    said: set[str] = set()
    kept: list[Pair] = []
    for pair in preference.pairs:
        fate = _fate(preference, pair, config)
        said |= {fate} - {_KEPT}
        if fate in (_KEPT, _SWAPPED, _TIE_KEPT, _UNSCORED_KEPT):
            margin = None if pair.margin is None else -pair.margin
            turned = replace(pair, chosen=pair.rejected, rejected=pair.chosen, margin=margin)
            kept.append(turned if fate == _SWAPPED else pair)
    reasons = tuple(sorted(said))
    if not kept:
        return ", ".join(reasons) or "no pair"
    if not reasons:
        return preference
    return Paired(replace(preference, pairs=tuple(kept)), reasons)


_KEPT = "kept"
_SWAPPED = "a pair turned round: its rejected response had the higher score"
_TIE_KEPT = "a pair with equal scores kept: it has no gradient under offset log"
_UNSCORED_KEPT = "a pair without two scores trained on without an offset"
_TIED = "a pair with equal scores left out"
_INVERTED = "a pair whose rejected response has the higher score left out"
_MISSING = "a pair without two scores left out"


def _fate(preference: Preference, pair: Pair, config: OdpoConfig) -> str:
    """What becomes of a pair: kept, swapped, or the reason why it is left out."""
    if config.alpha == 0:
        return _KEPT
    chosen, rejected = (
        _in_float32(preference.responses[i].score) for i in (pair.chosen, pair.rejected)
    )
    if not math.isfinite(_in_float32(chosen - rejected)):
        fates = {"dpo": _UNSCORED_KEPT, "drop": _MISSING}
        return _by_policy("on_missing", fates, preference, pair, config)
    if config.offset == "log_ratio" and min(chosen, rejected) <= 0:
        raise RecordError(
            f"{preference.origin or preference.id}: a pair has scores {chosen:g} and {rejected:g}, and offset "
            "log_ratio has no value for 0 and below: shift the scores, or set offset: log or difference"
        )
    if chosen == rejected:
        silent = config.offset == "log" and config.delta_min is None
        fates = {"keep": _TIE_KEPT if silent else _KEPT, "drop": _TIED}
        return _by_policy("on_ties", fates, preference, pair, config)
    if chosen < rejected:
        fates = {"swap": _SWAPPED, "drop": _INVERTED}
        return _by_policy("on_inverted", fates, preference, pair, config)
    return _KEPT


def _in_float32(score: float | None) -> float:
    """The score as the objective will see it: what is equal there has no gap, what overflows is no score."""
    if score is None:
        return math.nan
    with np.errstate(over="ignore"):
        return float(np.float32(score))


def _by_policy(
    key: str, fates: Mapping[str, str], preference: Preference, pair: Pair, config: OdpoConfig
) -> str:
    policy = str(getattr(config, key))
    if policy == "error":
        raise _refusal(preference, pair, key)
    return fates[policy]


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
