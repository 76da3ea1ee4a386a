"""What has to be known about the numbers of an agent's evaluation, in words. No models; nothing is printed here."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from prefopt.agents.environment import Suite, Task
from prefopt.agents.failures import first_of, troubles
from prefopt.agents.suites import find_suite
from prefopt.config import load_recipe
from prefopt.errors import ConfigError, PrefoptError
from prefopt.evals.agent_outcome import AgentComparison, SplitResult
from prefopt.evals.earlier import differences
from prefopt.evals.target import RUN_FILE
from prefopt.values import JsonValue

if TYPE_CHECKING:
    from prefopt.evals.agents import AgentEvaluation, AgentSettings

_BUILD_FILE = "build.yaml"
"""The recipe beside the files of a build."""
_NOT_CONDITIONS = frozenset({
    "model", "splits", "limit", "environment", "environment_options", "environment_identity",
})  # fmt: skip
"""Settings that may differ in a comparison: the model is what is compared, tasks and environment are known to be the
same."""


def prompt_remarks(run: Path | None, settings: AgentSettings, suite: Suite) -> list[str]:
    """Where a run was trained on trajectories with another prompt, or in another form of the environment."""
    section = {} if run is None else _section_of_data(run)
    if section.get("environment") != settings.environment:
        return []
    now: dict[str, JsonValue] = {"format": settings.format, "example": settings.example}
    before = section.get("environment_options")
    options = dict(settings.options)
    if isinstance(before, dict) and before != options and not _is_same(before, settings, suite):
        now["environment_options"] = options
    return [
        f"trained with {key} {section[key]!r}, evaluated with {value!r}: the agent sees another prompt or task"
        for key, value in now.items()
        if key in section and section[key] != value
    ]


def _section_of_data(run: Path) -> Mapping[str, JsonValue]:
    """The section `build` that the training data of a run were made with; empty where that is not known.

    It stands beside the data: a run may train on what another recipe has built, experts' trajectories above all.
    """
    recipe = load_recipe(run / RUN_FILE)
    files = recipe.get("train_file")
    recipes = [recipe]
    for file in files if isinstance(files, list) else [files]:
        beside = Path(str(file)).expanduser().parent / _BUILD_FILE
        if file is not None and beside.is_file():
            try:
                recipes.insert(0, load_recipe(beside))
            except ConfigError:  # another program's file, or a broken one
                continue
    sections = (found.get("build") for found in recipes)
    return next((section for section in sections if isinstance(section, dict)), {})


def _is_same(options: Mapping[str, JsonValue], settings: AgentSettings, now: Suite) -> bool:
    """Whether an environment with these options shows an agent the same; how many tasks it has does not matter."""

    def shown(suite: Suite) -> tuple[str, str, Sequence[Task]]:
        example = suite.tasks(suite.splits[0], 1) if settings.example else ()
        return suite.identity, suite.instruction, example

    try:
        return shown(find_suite(settings.environment, options)) == shown(now)
    except PrefoptError:  # options that are no longer taken
        return False


def condition_remarks(
    against: Path, before: Mapping[str, JsonValue], after: Mapping[str, JsonValue]
) -> list[str]:
    """In which settings, but for the model, two evaluations that are compared differ."""
    found = differences(before, after)
    other = [f"{key} {both}" for key, both in found.items() if key not in _NOT_CONDITIONS]
    if not other:
        return []
    return [
        f"{against}: evaluated with other settings (there / here: {'; '.join(other)}), which are part of the difference"
    ]


def doubts(found: AgentEvaluation) -> list[str]:
    """What should be known about the numbers: failures, episodes that were cut, turns without an action."""
    said = [troubles(found.events)]
    for split in found.results:
        said += [_failures(split, found), _cut(split), _unread(split)]
    return [line for line in said if line]


def _failures(split: SplitResult, found: AgentEvaluation) -> str:
    if not split.failures:
        return ""
    failed = [t for t in found.trajectories if t.task.split == split.split and t.reward is None]
    known = (
        "none has one"
        if split.rewarded is None
        else f"the others have {split.rewarded.value:.3f} on average"
    )
    return (
        f"{split.split}: {split.failures} of {split.tasks} tasks got no reward and count 0; {known}. First "
        f"{first_of(failed)}. The same command tries them again"
    )


def _cut(split: SplitResult) -> str:
    if not split.cut:
        return ""
    return (
        f"{split.split}: {split.cut} of {split.tasks} episodes ended at the token limit or in a full context; a higher "
        "max_new_tokens may change the numbers"
    )


def _unread(split: SplitResult) -> str:
    turns = round(split.steps * split.tasks)
    if split.format_errors * 2 <= turns:
        return ""
    return (
        f"{split.split}: no action could be read in {split.format_errors} of {turns} turns; the agent may have learnt "
        "another format, or another prompt (format, example)"
    )


def comparison_line(split: str, against: Path, compared: AgentComparison) -> str:
    """How the second evaluation of a split compares with the first, in one line."""
    start, missing = f"{split} against {against}: ", ""
    if compared.failures != (0, 0):
        there, here = compared.failures
        missing = f"environment or server failed in {there} tasks there and {here} here"
    if compared.reward is None:
        return f"{start}no task has a reward on both sides; {missing}"
    value, low, high = compared.reward
    return (
        f"{start}{value:+.3f} average reward (95% interval {low:+.3f} to {high:+.3f}), {compared.gained} tasks gained, "
        f"{compared.lost} lost, p = {compared.p:.3g} (McNemar)"
        + (
            f"; over the {compared.tasks} tasks with a reward on both sides: {missing}"
            if missing
            else ""
        )
    )
