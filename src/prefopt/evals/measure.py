"""The section `evaluate` of a recipe: what `prefopt run` measures about the model that it has trained."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Literal, Protocol

from pydantic import Field

from prefopt.agents.suites import find_suite
from prefopt.config import Section
from prefopt.errors import ConfigError
from prefopt.evals.agent_remarks import doubts
from prefopt.evals.agents import AgentSettings, evaluate_agent, tasks_of
from prefopt.evals.settings import EvalSettings
from prefopt.evals.suite import evaluate_files
from prefopt.progress import say
from prefopt.text.problems import load_problems
from prefopt.values import JsonValue

Count = Annotated[int, Field(ge=1)]
Text = Annotated[str, Field(min_length=1)]


class Acting(Protocol):
    """What a section `build` says about the environment that an agent acts in."""

    @property
    def environment(self) -> str:
        """Its name."""
        ...

    @property
    def environment_options(self) -> Mapping[str, JsonValue]:
        """Its options."""
        ...

    @property
    def example(self) -> bool:
        """Whether its first training task stands in the prompt, solved."""
        ...


class Measure(Section):
    """Every section `evaluate`."""

    def require_possible(self, acting: Acting | None) -> None:
        """Nothing, where it can be measured as far as that can be told without a model.

        Args:
            acting: where the agent acts; None for what no agent does.

        Raises:
            ConfigError, RecordError, StorageError: there are no such problems or tasks.
        """


class ProblemMeasure(Measure):
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

    @property
    def files(self) -> list[str]:
        """The files of problems."""
        return [self.problems] if isinstance(self.problems, str) else self.problems

    def require_possible(self, acting: Acting | None) -> None:
        """As `Measure`: every file is read."""
        del acting
        stems = [Path(file).stem for file in self.files]
        twice = next((stem for stem in stems if stems.count(stem) > 1), None)
        if twice is not None:
            raise ConfigError(
                f"evaluate.problems: two files are called {twice!r}, so their results would share a folder; rename one"
            )
        for file in self.files:
            load_problems(file, style=self.style or "chat", limit=self.limit)


class AgentMeasure(Measure):
    """Reward and success in the environment of the section `build`, as `prefopt eval --environment` measures them."""

    splits: list[Text] | None = None
    """Splits to play; null: all but the first, which is for training."""
    limit: Count | None = None
    """Only the first tasks of each split."""

    def require_possible(self, acting: Acting | None) -> None:
        """As `Measure`: the tasks are listed."""
        if acting is not None:
            suite = find_suite(acting.environment, acting.environment_options)
            tasks_of(suite, self.splits or (), self.limit, example=acting.example)


def measure_problems(section: ProblemMeasure, folder: Path) -> None:
    """Evaluate the model of a run folder on the files, greedily, and write the results into the folder."""
    settings = EvalSettings(
        style=section.style,
        grader=section.grader,
        max_new_tokens=section.max_new_tokens,
        limit=section.limit,
        batch_size=section.batch_size,
    )
    for each in evaluate_files(str(folder), section.files, settings, overwrite=True):
        found = each.evaluation
        say(f"{found.split}: {found.correct}/{found.total} right")


def measure_agent(settings: AgentSettings, folder: Path) -> None:
    """Let the model of a run folder act, and write the results into the folder."""
    found = evaluate_agent(str(folder), settings, overwrite=True)
    for split in found.results:
        solved = split.success
        say(
            f"{split.split}: reward {split.reward.value:.3f}, {solved.correct}/{solved.total} solved"
        )
    for line in (*found.remarks, *doubts(found)):
        say(line)
