"""The sections of a recipe that say how its data are made: who writes, who judges, and where it goes."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal, Self, TypeVar

from pydantic import Field, model_validator

from prefopt.config import RunConfig, Section
from prefopt.errors import ConfigError

Count = Annotated[int, Field(ge=1)]
Positive = Annotated[float, Field(gt=0)]
Text = Annotated[str, Field(min_length=1)]


PAIRS = "pairs.jsonl"
"""Name of the file of pairs in the folder of a build."""


class Writer(Section):
    """A language model that writes texts: a folder on this machine, or one behind a server."""

    model_name_or_path: Text | None = None
    """Folder or hub id of a model that is run in this process."""
    batch_size: Count = 64
    """Rows that it decodes together."""
    server: Text | None = None
    """Base URL of an OpenAI-compatible server, instead: http://127.0.0.1:8000/v1."""
    model: Text | None = None
    """What the server calls the model."""
    endpoint: Literal["chat", "completions"] = "chat"
    """Of the server. Continuing a prefix through `chat` needs a server that knows continue_final_message."""
    api_key_variable: Text = "OPENAI_API_KEY"
    """Environment variable that holds the key; it is never written anywhere."""
    concurrency: Count = 16
    """Requests under way at once."""
    timeout: Positive = 120.0
    """Seconds after which a request is given up and tried again."""
    patience: Positive = 600.0
    """Seconds of failed attempts after which the server counts as gone."""

    @model_validator(mode="after")
    def _one_of_two(self) -> Self:
        if (self.model_name_or_path is None) == (self.server is None):
            raise ValueError("set either model_name_or_path or server (with model)")
        if (self.server is None) != (self.model is None):
            raise ValueError("server and model belong together: set both or none")
        return self


class Judge(Section):
    """Who finds the first wrong step of a wrong solution."""

    by: Literal["writer", "reward_model", "rollouts", "labels"]
    """writer: a language model that is asked (key writer); reward_model: a process reward model (reward_model);
    rollouts: the share of the policy's own continuations that end right; labels: people (`prefopt label`)."""
    writer: Writer | None = None
    """The language model that is asked."""
    rules: Literal["corrected", "official"] = "corrected"
    """How its verdict is read; official: as published, a neutral step counts as wrong."""
    attempts: Count = 2
    """Times it is asked while no verdict can be read."""
    max_new_tokens: Count = 1024
    """Length of its answer in tokens."""
    skip_diagrams: bool = True
    """Leave out problems about a diagram that is not given as code."""
    reward_model: Text | None = None
    """Folder or hub id of a causal language model that scores steps."""
    step_tag: Text = "ки"
    """Text after each step, where the score is read; this and the next two as in Math-Shepherd."""
    good: Text = "+"
    """Token whose probability against `bad` is the score of a step."""
    bad: Text = "-"
    """Its counterpart."""
    threshold: Annotated[float, Field(gt=0, le=1)] = 0.5
    """The first step with a lower score is the wrong one (reward_model, rollouts)."""
    samples: Count = 8
    """Continuations per step (rollouts)."""
    labels: Text | None = None
    """File that `prefopt label` writes; null: labels.jsonl in the folder of the build."""

    @model_validator(mode="after")
    def _complete(self) -> Self:
        for by, key in (("writer", "writer"), ("reward_model", "reward_model")):
            if (self.by == by) != (getattr(self, key) is not None):
                raise ValueError(f"by: {by} and the key {key} belong together: set both or none")
        return self


class BuildSection(Section):
    """What every build has."""

    problems: Text | list[Text]
    """Files of problems with answers: GSM8K, MATH, or any JSONL, JSON, CSV or Parquet with a question and an answer."""
    problem_columns: dict[str, Text] = Field(default={})
    """Which column holds question, answer, solution, where the names are not recognised."""
    max_problems: Count | None = None
    """Use only the first so many."""
    writer: Writer | None = None
    """Who writes the solutions; null: the recipe's own model, in this process."""
    batch_size: Count = 64
    """Rows that the recipe's own model decodes together."""
    grader: Literal["math-verify", "step_dpo", "scdpo"] = "math-verify"
    """Who compares final answers; step_dpo and scdpo are the published rules."""
    grader_workers: Count | None = None
    """Processes that compare; null: one per core."""
    grader_seconds: Positive = 5.0
    """Time for one comparison; beyond it the answer counts as wrong."""
    output_dir: Text = "data/{method}"
    """Folder of the build; {method} stands for the method's name."""

    def folder(self, method: str) -> Path:
        """Where the build of that method lies."""
        return Path(self.output_dir.replace("{method}", method)).expanduser()

    def pairs_file(self, method: str) -> Path:
        """The file that `prefopt train` reads."""
        return self.folder(method) / PAIRS


B = TypeVar("B", bound=BuildSection)


def require_section(section: B | None, config: RunConfig) -> B:
    """The section of a recipe.

    Raises:
        ConfigError: there is none.
    """
    if section is None:
        raise ConfigError(
            f"method {config.method}: the recipe has no section `build`, which says how its data are made; "
            f"`prefopt methods {config.method}` lists the keys"
        )
    return section
