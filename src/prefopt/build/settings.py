"""The sections of a recipe that say how its data are made: who writes, who judges, and where it goes."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Annotated, Literal, Self, TypeVar

from pydantic import Field, field_validator, model_validator
from pydantic import JsonValue as Json

from prefopt.build.contents import Contents, contents_since, file_digests, model_digests
from prefopt.config import RunConfig, Section, load_recipe
from prefopt.errors import ConfigError
from prefopt.values import JsonValue

Count = Annotated[int, Field(ge=1)]
Positive = Annotated[float, Field(gt=0)]
Text = Annotated[str, Field(min_length=1)]


PAIRS = "pairs.jsonl"
"""Name of the file of pairs in the folder of a build."""
RECIPE = "build.yaml"
"""Name of the recipe there, as it was when the files were made."""
INPUTS = "inputs.json"
"""Name of the digests there of the files and models that were read, by path as the recipe has it."""
OUTPUTS = "outputs.json"
"""Name of the digests there of the files that were written."""

_WITHOUT_EFFECT = frozenset({
    "batch_size", "grader_workers", "output_dir", "concurrency", "timeout", "patience", "workers",
    "api_key_variable", "rounds", "later_rounds", "step_seconds",
})  # fmt: skip
"""Keys that decide how fast the data are made, or where they go, and not what they are."""
_OUTSIDE = (
    "model_name_or_path", "tokenizer_name_or_path", "chat_template", "prompt_format", "response_separator",
)  # fmt: skip
"""Keys outside the section that decide what writers are shown."""
_OF_MODELS_HERE = ("model_revision", "dtype")
"""Those that decide what a model in this process writes."""
_OF_TOKENIZERS_HERE = ("model_revision",)
"""Those that decide how the recipe's tokenizer writes the prompts of a server."""


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
    tokenizer_name_or_path: Text | None = None
    """Folder or hub id of its tokenizer, whose chat template `completions` needs; null: that of the recipe."""
    api_key_variable: Text = "OPENAI_API_KEY"
    """Environment variable that holds the key; it is never written anywhere."""
    concurrency: Count = 16
    """Requests under way at once."""
    timeout: Positive = 120.0
    """Seconds after which a request is given up and tried again."""
    patience: Positive = 600.0
    """Seconds of failed attempts after which the server counts as gone; 10 for one that never answered."""
    extra_body: dict[str, Json] | None = None
    """Further fields of each request, such as top_k: 20; null as a value leaves one of ours out."""

    @model_validator(mode="after")
    def _one_of_two(self) -> Self:
        if (self.model_name_or_path is None) == (self.server is None):
            raise ValueError("set either model_name_or_path or server (with model)")
        if (self.server is None) != (self.model is None):
            raise ValueError("server and model belong together: set both or none")
        if self.server is None and self.extra_body is not None:
            raise ValueError("extra_body is for requests to a server: remove it")
        return self

    @property
    def runs_here(self) -> bool:
        """Whether the model is run in this process."""
        return self.server is None

    @property
    def shown_by_recipe(self) -> bool:
        """Whether a server gets prompts that the recipe's tokenizer has made text."""
        text = self.server is not None and self.endpoint == "completions"
        return text and self.tokenizer_name_or_path is None


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
    """The first step with a lower score is the wrong one (reward_model)."""
    samples: Count = 8
    """Continuations per step (rollouts); places in doubt get up to eight times as many."""
    labels: Text | None = None
    """File that `prefopt label` writes; null: labels.jsonl in the folder of the build."""

    @model_validator(mode="after")
    def _no_other_keys(self) -> Self:
        used = {"by", *_KEYS_OF_JUDGES[self.by]}
        other = [key for key in type(self).model_fields if key in self.model_fields_set - used]
        changed = [k for k in other if getattr(self, k) != type(self).model_fields[k].default]
        if changed:
            raise ValueError(f"{changed[0]} has no effect with by: {self.by}; remove it")
        return self

    @model_validator(mode="after")
    def _complete(self) -> Self:
        for by, key in (("writer", "writer"), ("reward_model", "reward_model")):
            if (self.by == by) != (getattr(self, key) is not None):
                raise ValueError(f"by: {by} and the key {key} belong together: set both or none")
        return self


_KEYS_OF_JUDGES = {
    "writer": ("writer", "rules", "attempts", "max_new_tokens", "skip_diagrams"),
    "reward_model": ("reward_model", "step_tag", "good", "bad", "threshold"),
    "rollouts": ("samples",),
    "labels": ("labels",),
}


class BuildSection(Section):
    """What every build has."""

    writer: Writer | None = None
    """Who writes the texts; null: the recipe's own model, in this process."""
    batch_size: Count = 64
    """Rows that the recipe's own model decodes together."""
    held_out: Annotated[float, Field(ge=0, lt=1)] = 0.0
    """Share of the questions whose pairs go to held-out.jsonl (for eval_file) instead; none is on both sides."""
    output_dir: Text = "data/{method}"
    """Folder of the build; {method} stands for the method's name."""
    rounds: Count = 1
    """Times that data are made and trained on (`prefopt run`): each round starts from the model of the one before,
    which is its reference too."""
    later_rounds: dict[str, Json] = Field(default={})
    """Settings of the recipe that are others from the second round on, such as beta and learning_rate; those of this
    section in a section `build` of their own."""

    @property
    def runs_models(self) -> bool:
        """Whether a model in this process has a part in what the data are."""
        return self.writer is None or self.writer.runs_here

    @property
    def shown_by_recipe(self) -> bool:
        """Whether any server gets prompts that the recipe's tokenizer has made text."""
        return any(writer.shown_by_recipe for writer in _writers(self))

    def inputs(self) -> list[str]:
        """The files whose content decides what the data are."""
        return []

    def models(self, config: RunConfig) -> list[str]:
        """The models in this process whose weights decide what the data are."""
        if not self.runs_models:
            return []
        own = [config.model_name_or_path] if self.writer is None else []
        return [*own, *(w.model_name_or_path for w in _writers(self) if w.model_name_or_path)]

    def keys_outside(self) -> list[str]:
        """The keys of the recipe outside this section that decide what the data are."""
        of_tokenizers = _OF_TOKENIZERS_HERE if self.shown_by_recipe else ()
        return [*_OUTSIDE, *(_OF_MODELS_HERE if self.runs_models else of_tokenizers)]

    def later(self, before: Sequence[RunConfig]) -> dict[str, JsonValue]:
        """Keys of this section that are others in a later round; `before`: the recipes of the rounds before it."""
        del before
        return {}

    def folder(self, method: str) -> Path:
        """Where the build of that method lies."""
        return Path(self.output_dir.replace("{method}", method)).expanduser()

    def pairs_file(self, method: str) -> Path:
        """The file that `prefopt train` reads."""
        return self.folder(method) / PAIRS


class ProblemBuild(BuildSection):
    """What every build from problems with answers has."""

    problems: Text | list[Text]
    """Files of problems with answers: GSM8K, MATH, or any JSONL, JSON, CSV or Parquet with a question and an answer."""
    problem_columns: dict[str, Text] = Field(default={})
    """Which column holds question, answer, solution, where the names are not recognised."""
    max_problems: Count | None = None
    """Use only the first so many."""
    grader: Literal["math-verify", "step_dpo", "scdpo"] = "math-verify"
    """Who compares final answers; step_dpo and scdpo are the published rules."""
    grader_workers: Count | None = None
    """Processes that compare; null: one per core."""
    grader_seconds: Positive = 5.0
    """Time for one comparison; beyond it the answer counts as wrong."""

    @field_validator("problems")
    @classmethod
    def _some_file(cls, value: str | list[str]) -> str | list[str]:
        if not value:
            raise ValueError("the list is empty; name a file of problems")
        return value

    def inputs(self) -> list[str]:
        """The files of problems."""
        return [self.problems] if isinstance(self.problems, str) else self.problems


def _writers(section: Section) -> Iterator[Writer]:
    """All language models of a section and of the sections in it."""
    for name in type(section).model_fields:
        value = getattr(section, name)
        if isinstance(value, Writer):
            yield value
        elif isinstance(value, Section):
            yield from _writers(value)


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


def differences(before: JsonValue, after: JsonValue, name: str, contents: Contents) -> list[str]:
    """What two sections of a recipe would make differently, as `key: before -> after`; speed and place do not count."""
    if isinstance(before, dict) and isinstance(after, dict):
        keys = [k for k in {**before, **after} if k not in _WITHOUT_EFFECT]
        return [
            line
            for key in keys
            for line in differences(before.get(key), after.get(key), f"{name}.{key}", contents)
        ]
    if contents.are_alike(before, after):
        return []
    return [f"{name}: {json.dumps(before)} -> {json.dumps(after)}"]


def changes_since(folder: Path, config: RunConfig, section: BuildSection) -> list[str]:
    """How the recipe differs from the one that the files of a build were made with; empty where there are none.

    Raises:
        ConfigError: the recipe in the folder is damaged.
    """
    file = folder / RECIPE
    if not file.exists():
        return []
    earlier, now = load_recipe(file), config.model_dump(mode="json")
    contents = contents_of(folder, config, section)
    changed = [
        line
        for key in section.keys_outside()
        for line in differences(earlier.get(key), now[key], key, contents)
    ]
    changed += differences(earlier.get("build"), section.model_dump(mode="json"), "build", contents)
    return changed + replaced_inputs(contents)


def contents_of(folder: Path, config: RunConfig, section: BuildSection) -> Contents:
    """What the build in that folder has read, and what the recipe's files and models hold now.

    Raises:
        RecordError: the digests in the folder are damaged.
    """
    return contents_since(folder / INPUTS, input_digests(config, section))


def input_digests(config: RunConfig, section: BuildSection) -> dict[str, str]:
    """Digest of each file and model whose content decides what the data are, 32 hex digits; only of those there."""
    template = [] if config.chat_template is None else [config.chat_template]
    return {
        **file_digests([*section.inputs(), *template]),
        **model_digests(section.models(config)),
    }


def replaced_inputs(contents: Contents) -> list[str]:
    """A line for each input whose content is another one than the build has read."""
    return [f"{name}: its content is not what it was" for name in contents.replaced()]
