"""Step-Controlled DPO: preference pairs whose errors start after a known step (Lu et al. 2024, arXiv 2407.00782).

The loss is DPO on whole solutions and on tails that share a correct front, mixed in one data set, so that
each kind weighs what its number of pairs is (eq. 5). A shared front adds the same to both sides of a pair: the same
value and gradient come from whole solutions. What the method changes is which pairs there are
(`prefopt.build.controlled`), not the loss.

Departure from the published code: the output of the interpreter can be left out of the loss (`mask_execution`).
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from pydantic import Field

from prefopt.build.controlled_pairs import ControlledBuild, build_controlled
from prefopt.build.settings import changes_since, require_section
from prefopt.evals.measure import ProblemMeasure, measure_problems
from prefopt.records import Preference
from prefopt.runs.method import Method
from prefopt.runs.mix import ObjectiveKeys, objective_terms
from prefopt.text.blocks import execution_spans


class ScdpoConfig(ObjectiveKeys):
    """Recipe of a Step-Controlled DPO run; data as the pipelines for chains of thought and for code make it."""

    beta: float | None = Field(default=0.1, gt=0)
    """Strength of the implicit KL anchor to the reference; published: 0.1, and 0.5 for MetaMath."""
    mask_execution: bool = False
    """Leave the interpreter's output in code-integrated solutions out of the loss: the model does not write it. The
    published code trains on it."""
    build: ControlledBuild | None = None
    """How the training data are made (`prefopt build`)."""
    evaluate: ProblemMeasure | None = None
    """What `prefopt run` measures about the trained model."""

    @property
    def built_file(self) -> str | None:
        """The pairs of the section `build`."""
        return None if self.build is None else str(self.build.pairs_file(self.method))

    def changed_since_built(self) -> list[str]:
        """What the section `build` would make differently now."""
        build = self.build
        return [] if build is None else changes_since(build.folder(self.method), self, build)


def masked(preference: Preference, config: ScdpoConfig) -> Preference:
    """The record; with `mask_execution` its execution blocks are context, unless it says itself what is."""
    if not config.mask_execution:
        return preference
    responses = tuple(
        r if r.turns or r.masked else replace(r, masked=tuple(execution_spans(r.text)))
        for r in preference.responses
    )
    return replace(preference, responses=responses)


def build(config: ScdpoConfig) -> Path:
    """The file of pairs that the recipe's section `build` describes."""
    return build_controlled(require_section(config.build, config), config)


def measure(config: ScdpoConfig, folder: Path) -> None:
    """Accuracy of the trained model; nothing without a section `evaluate`."""
    if config.evaluate is not None:
        measure_problems(config.evaluate, folder)


METHOD = Method(
    name="scdpo",
    summary="pairs of tails after a shared correct front, the wrong one sampled at rising temperatures",
    paper="Lu et al. 2024, Step-Controlled DPO: Leveraging Stepwise Error for Enhanced Mathematical Reasoning, "
    "arXiv 2407.00782",
    config=ScdpoConfig,
    objectives=objective_terms,
    pair=masked,
    build=build,
    measure=measure,
)
