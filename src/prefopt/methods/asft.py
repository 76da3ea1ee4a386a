"""Aligned supervised fine-tuning (Wang et al. 2024, arXiv 2409.10571): likelihood and unlikelihood, no reference.

Not to be confused with Anchored Supervised Fine-Tuning (arXiv 2509.23753), which some libraries call ASFT.
"""

from __future__ import annotations

from typing import ClassVar

from pydantic import Field

from prefopt.runs.method import Method
from prefopt.runs.mix import ObjectiveKeys, objective_terms


class AsftConfig(ObjectiveKeys):
    """Recipe of an ASFT run. `ce_coef: 0` trains the alignment term alone, as a second stage after `sft`."""

    essential: ClassVar[str | None] = "asft"
    loss_type: list[str] = Field(default=["asft"])
    """Objectives, one or several (`prefopt methods` lists them); their losses are added up."""
    beta: float | None = Field(default=None, gt=0)
    """Temperature of the odds; null: 1, the paper's objective; 0.1 to 0.5 did best as a second stage elsewhere."""
    lambda_: float | None = Field(default=None, ge=0)
    """Weight of the alignment term; null: 1."""
    ce_coef: float | None = Field(default=None, ge=0)
    """Weight of the likelihood term; null: 1; 0 leaves the alignment term alone."""


METHOD = Method(
    name="asft",
    summary="raises the likelihood of chosen and lowers that of rejected responses, each by itself; no reference",
    paper="Wang et al. 2024, ASFT: Aligned Supervised Fine-Tuning through Absolute Likelihood, arXiv 2409.10571",
    config=AsftConfig,
    objectives=objective_terms,
)
