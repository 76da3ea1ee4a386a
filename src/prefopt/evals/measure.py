"""The section `evaluate` of a recipe: what `prefopt run` measures about the model that it has trained."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field

from prefopt.config import Section
from prefopt.evals.agents import AgentSettings, evaluate_agent
from prefopt.evals.settings import EvalSettings
from prefopt.evals.suite import evaluate_files
from prefopt.progress import say

Count = Annotated[int, Field(ge=1)]
Text = Annotated[str, Field(min_length=1)]


class ProblemMeasure(Section):
    """Accuracy on files of problems, as `prefopt eval` measures it."""

    problems: Text | Annotated[list[Text], Field(min_length=1)]
    """Files of problems with answers."""
    style: Text | None = None
    """Prompt style; null: chat, for models with a chat template."""
    grader: Literal["math-verify", "step_dpo", "scdpo"] = "math-verify"
    """Who compares final answers."""
    max_new_tokens: Count = 1024
    """Length of a solution in tokens."""
    limit: Count | None = None
    """Only the first problems of each file."""
    batch_size: Count = 64
    """Rows decoded together."""


class AgentMeasure(Section):
    """Reward and success in the environment of the section `build`, as `prefopt eval --environment` measures them."""

    splits: list[Text] | None = None
    """Splits to play; null: all but the first, which is for training."""
    limit: Count | None = None
    """Only the first tasks of each split."""


def measure_problems(section: ProblemMeasure, folder: Path) -> None:
    """Evaluate the model of a run folder on the files, greedily, and write the results into the folder."""
    files = [section.problems] if isinstance(section.problems, str) else section.problems
    settings = EvalSettings(
        style=section.style,
        grader=section.grader,
        max_new_tokens=section.max_new_tokens,
        limit=section.limit,
        batch_size=section.batch_size,
    )
    for each in evaluate_files(str(folder), files, settings, overwrite=True):
        found = each.evaluation
        say(f"{found.split}: {found.correct}/{found.total} right")


def measure_agent(settings: AgentSettings, folder: Path) -> None:
    """Let the model of a run folder act, and write the results into the folder."""
    for split in evaluate_agent(str(folder), settings, overwrite=True).results:
        solved = split.success
        say(
            f"{split.split}: reward {split.reward.value:.3f}, {solved.correct}/{solved.total} solved"
        )
