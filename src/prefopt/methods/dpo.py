"""Direct Preference Optimization (Rafailov et al. 2023, arXiv 2305.18290)."""

from __future__ import annotations

from functools import partial

from pydantic import Field

from prefopt.config import RunConfig
from prefopt.objectives import dpo
from prefopt.runs.method import Method


class DpoConfig(RunConfig):
    """Recipe of a DPO run."""

    beta: float = Field(default=0.1, gt=0)
    """Strength of the implicit KL anchor to the reference."""


METHOD = Method(
    name="dpo",
    summary="pairs of responses; raises the chosen against the rejected relative to a frozen reference",
    paper="Rafailov et al. 2023, Direct Preference Optimization, arXiv 2305.18290",
    config=DpoConfig,
    objective=lambda config: partial(dpo, beta=config.beta),
)
