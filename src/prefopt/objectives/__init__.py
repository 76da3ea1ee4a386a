"""Objectives: pure functions from per-response log-probabilities to unreduced losses.

Pairwise ones take `Pairs`, unpaired and listwise ones `Scores`; parameters are keyword arguments. Every function
exported here that is decorated with `needs` is an objective, and may stand in a recipe's `loss_type`.
"""

from difflib import get_close_matches

from prefopt.objectives.adaptive import aot, aot_unpaired, beta_dpo
from prefopt.objectives.listwise import plackett_luce
from prefopt.objectives.modified import with_divergence, with_ld, with_wpo, without_reference
from prefopt.objectives.modifiers import (
    f_divergence,
    f_dpo,
    ld,
    ld_dpo,
    ld_dpo_policy,
    ld_policy,
    wpo,
    wpo_weights,
    zero_reference,
)
from prefopt.objectives.odds import asft, orpo
from prefopt.objectives.offsets import dpo_margin, dpop, home_advantage, mmpo, odpo, odpo_offset
from prefopt.objectives.pairwise import (
    cdpo,
    discopop,
    dpo,
    dpo_norm,
    exo,
    hinge,
    ipo,
    ipo_sum,
    robust,
)
from prefopt.objectives.pointwise import apo_down, apo_zero, bco, bco_pair, cal_dpo, nca, sppo
from prefopt.objectives.reference_free import alphapo, cpo, gold_nll, simpo, slic, tpo, tpo_l
from prefopt.objectives.supervised import sft
from prefopt.objectives.token_level import mallows, mallows_ipo, tdpo, tdpo1
from prefopt.objectives.types import (
    Annotation,
    Extra,
    Losses,
    Mean,
    Needs,
    Objective,
    Pairs,
    Running,
    Scores,
    needs,
    needs_of,
    parameters_of,
    unbound,
)
from prefopt.objectives.unpaired import apo_zero_unpaired, bco_unpaired, kto

__all__ = [
    "Annotation",
    "Extra",
    "Losses",
    "Mean",
    "Needs",
    "Objective",
    "Pairs",
    "Running",
    "Scores",
    "alphapo",
    "aot",
    "aot_unpaired",
    "apo_down",
    "apo_zero",
    "apo_zero_unpaired",
    "asft",
    "bco",
    "bco_pair",
    "bco_unpaired",
    "beta_dpo",
    "cal_dpo",
    "cdpo",
    "cpo",
    "discopop",
    "dpo",
    "dpo_margin",
    "dpo_norm",
    "dpop",
    "exo",
    "f_divergence",
    "f_dpo",
    "find_objective",
    "gold_nll",
    "hinge",
    "home_advantage",
    "ipo",
    "ipo_sum",
    "kto",
    "ld",
    "ld_dpo",
    "ld_dpo_policy",
    "ld_policy",
    "mallows",
    "mallows_ipo",
    "mmpo",
    "nca",
    "needs",
    "needs_of",
    "objective_names",
    "odpo",
    "odpo_offset",
    "orpo",
    "parameters_of",
    "plackett_luce",
    "robust",
    "sft",
    "simpo",
    "slic",
    "sppo",
    "tdpo",
    "tdpo1",
    "tpo",
    "tpo_l",
    "unbound",
    "with_divergence",
    "with_ld",
    "with_wpo",
    "without_reference",
    "wpo",
    "wpo_weights",
    "zero_reference",
]


def objective_names() -> list[str]:
    """Names of all objectives, sorted: what is exported here and declares its needs."""
    return sorted(name for name in __all__ if hasattr(globals()[name], "needs"))


def find_objective(name: str) -> Objective:
    """The objective of that name.

    Raises:
        ValueError: there is none; names the nearest one.
    """
    names = objective_names()
    if name not in names:
        near = get_close_matches(name.lower(), names, n=1)
        hint = f": did you mean {near[0]!r}?" if near else "."
        raise ValueError(f"unknown objective {name!r}{hint} Known: {', '.join(names)}")
    return globals()[name]
