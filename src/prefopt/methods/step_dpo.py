"""Step-DPO: preference optimisation of single reasoning steps (Lai et al. 2024, arXiv 2406.18629).

A pair shares the problem and the correct steps before the first error; it differs in one step. The loss is DPO on
that step alone (eq. 2): context tokens are not scored and no end token is added, since a step does not end an
answer. `prefopt.build.steps` makes such pairs from the policy's own samples.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from pydantic import Field, field_validator

from prefopt.build.settings import changes_since, require_section
from prefopt.build.step_pairs import StepBuild, build_steps
from prefopt.evals.measure import ProblemMeasure, measure_problems
from prefopt.records import Preference
from prefopt.runs.method import Method
from prefopt.runs.mix import ObjectiveKeys, objective_terms
from prefopt.text.styles import find_style


class StepDpoConfig(ObjectiveKeys):
    """Recipe of a Step-DPO run; data in the columns of the published set, or as `prefopt build` makes them."""

    beta: float | None = Field(default=0.5, gt=0)
    """Strength of the implicit KL anchor to the reference; the published scripts use 0.4 to 0.5."""
    prompt_style: str | None = None
    """Wrapper around problems that are plain texts: a prompt style such as qwen2-boxed, alpaca or deepseek-math; null:
    none, prompts are what they are."""
    build: StepBuild | None = None
    """How the training data are made (`prefopt build`)."""
    evaluate: ProblemMeasure | None = None
    """What `prefopt run` measures about the trained model."""

    @field_validator("prompt_style")
    @classmethod
    def _known_style(cls, value: str | None) -> str | None:
        return None if value is None else find_style(value).name

    @property
    def built_file(self) -> str | None:
        """The pairs of the section `build`."""
        return None if self.build is None else str(self.build.pairs_file(self.method))

    def changed_since_built(self) -> list[str]:
        """What the section `build` would make differently now."""
        build = self.build
        return [] if build is None else changes_since(build.folder(self.method), self, build)

    def contradictions(self) -> list[str]:
        """Those of every recipe and of the section `build`."""
        own = [] if self.build is None else self.build.contradictions()
        trained_on = self.train_file or self.dataset_name
        if self.build is not None and self.prompt_style is not None and trained_on is None:
            own.append(
                f"prompt_style {self.prompt_style!r} would wrap prompts again that build.style has wrapped: remove it"
            )
        return [*super().contradictions(), *own]


def styled(preference: Preference, config: StepDpoConfig) -> Preference:
    """The record with its problem in the recipe's prompt style; conversations are left as they are."""
    if config.prompt_style is None or not isinstance(preference.prompt, str):
        return preference
    style = find_style(config.prompt_style)
    prompt, prefix = style.with_steps(preference.prompt, preference.prefix)
    return replace(preference, prompt=prompt, prefix=prefix)


def build(config: StepDpoConfig) -> Path:
    """The file of pairs that the recipe's section `build` describes."""
    return build_steps(require_section(config.build, config), config)


def measure(config: StepDpoConfig, folder: Path) -> None:
    """Accuracy of the trained model; nothing without a section `evaluate`."""
    if config.evaluate is not None:
        measure_problems(config.evaluate, folder)


METHOD = Method(
    name="step_dpo",
    summary="pairs of single reasoning steps after a shared correct prefix",
    paper="Lai et al. 2024, Step-DPO: Step-wise Preference Optimization for Long-chain Reasoning of LLMs, "
    "arXiv 2406.18629",
    config=StepDpoConfig,
    objectives=objective_terms,
    pair=styled,
    build=build,
    measure=measure,
)
