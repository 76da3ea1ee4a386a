"""Direct Preference Optimization (Rafailov et al. 2023, arXiv 2305.18290) and, by `loss_type`, its whole family."""

from __future__ import annotations

from prefopt.runs.method import Method
from prefopt.runs.mix import ObjectiveKeys, objective_terms


class DpoConfig(ObjectiveKeys):
    """Recipe of a DPO run; `loss_type` replaces the objective, or adds others to it."""


METHOD = Method(
    name="dpo",
    summary="pairs of responses; raises the chosen against the rejected relative to a frozen reference",
    paper="Rafailov et al. 2023, Direct Preference Optimization, arXiv 2305.18290",
    config=DpoConfig,
    objectives=objective_terms,
)
