"""The part of `prefopt eval` that lets a model act in an environment: arguments, and what is printed."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import argparse
    from collections.abc import Sequence

    from prefopt.evals.agents import AgentEvaluation, AgentSettings
    from prefopt.evals.target import Server
    from prefopt.values import JsonValue

_GRADER = "math-verify"
"""What `prefopt eval` grades with where nothing else is said."""
_MAX_NEW_TOKENS = 512
_KINDS_SHOWN = 30
_OWN = (
    "option",
    "split",
    "format",
    "no_example",
    "max_turns",
    "temperature",
    "workers",
    "step_seconds",
)
"""Options that mean something to environments only."""
_OF_PROBLEMS = ("style", "column", "code", "packages", "code_limit", "unsafe_local_execution")
"""Options that mean nothing to them."""


def add_environment_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare environment, splits and how the agent acts."""
    group = parser.add_argument_group("an agent in an environment")
    group.add_argument(
        "--environment", metavar="NAME", help="rooms, scienceworld, ..., or package.module:Class"
    )
    group.add_argument(
        "--option",
        metavar="KEY=VALUE",
        nargs="+",
        action="extend",
        help="options of the environment",
    )
    group.add_argument(
        "--split", metavar="SPLIT", nargs="+", action="extend", help="splits (all but the first)"
    )
    group.add_argument(
        "--format", metavar="NAME", help="of the agent's turns: react, tool_call, action (react)"
    )
    group.add_argument(
        "--no-example", action="store_true", help="no worked training task in the prompt"
    )
    group.add_argument(
        "--max-turns", type=int, metavar="N", help="of an episode (as the task says)"
    )
    group.add_argument("--temperature", type=float, metavar="T", help="of sampling (0, greedy)")
    group.add_argument(
        "--workers", type=int, metavar="N", help="processes that hold environments (4)"
    )
    group.add_argument(
        "--step-seconds", type=float, metavar="S", help="time for a step of the environment (60)"
    )


def require_no_environment(arguments: argparse.Namespace) -> None:
    """Nothing, where no option of environments is given.

    Raises:
        ConfigError: one is.
    """
    from prefopt.errors import ConfigError

    given = next(
        (option for option in _OWN if getattr(arguments, option) not in (None, False)), None
    )
    if given is not None:
        raise ConfigError(f"--{given.replace('_', '-')} belongs to --environment NAME")


def run_agents(arguments: argparse.Namespace, server: Server | None) -> int:
    """Evaluate and print one table; returns 0."""
    settings = _settings(arguments, server)

    from prefopt.evals.agent_remarks import comparison_line, doubts
    from prefopt.evals.agents import evaluate_agent

    found = evaluate_agent(
        arguments.target,
        settings,
        output=arguments.output,
        name=arguments.name,
        against=arguments.against,
        overwrite=arguments.overwrite,
    )
    _print_table(found)
    _print_kinds(found)
    for remark in (*found.remarks, *doubts(found)):
        print(remark)
    for split, compared in zip(found.results, found.against, strict=False):
        print(comparison_line(split.split, arguments.against, compared))
    print(f"results: {found.folder}")
    return 0


def _settings(arguments: argparse.Namespace, server: Server | None) -> AgentSettings:
    from prefopt.errors import ConfigError
    from prefopt.evals.agents import AgentSettings

    given = [o for o in _OF_PROBLEMS if getattr(arguments, o) not in (None, False, [])]
    given += ["grader"] if arguments.grader != _GRADER else []
    if arguments.problems or given:
        what = f"--{given[0].replace('_', '-')}" if given else f"the file {arguments.problems[0]}"
        raise ConfigError(
            f"{what} means nothing to --environment: its tasks are its own; evaluate files in a command of their own"
        )
    length = arguments.max_new_tokens
    return AgentSettings(
        environment=arguments.environment,
        options=_options(arguments.option or ()),
        splits=tuple(arguments.split or ()),
        limit=arguments.limit,
        format=arguments.format or "react",
        example=not arguments.no_example,
        max_turns=arguments.max_turns,
        max_new_tokens=_MAX_NEW_TOKENS if length is None else length,
        temperature=arguments.temperature or 0.0,
        workers=4 if arguments.workers is None else arguments.workers,
        step_seconds=60.0 if arguments.step_seconds is None else arguments.step_seconds,
        batch_size=arguments.batch_size,
        device=arguments.device,
        dtype=arguments.dtype,
        server=server,
    )


def _options(given: Sequence[str]) -> dict[str, JsonValue]:
    """Values are read as in recipes: numbers, true, [lists]; what JSON does not know, such as a date, is a text."""
    from ruamel.yaml import YAML
    from ruamel.yaml.error import YAMLError

    from prefopt.errors import ConfigError

    found: dict[str, JsonValue] = {}
    for text in given:
        key, equals, value = text.partition("=")
        if not (key and equals):
            raise ConfigError(f"--option {text}: write KEY=VALUE, such as --option doors=2")
        try:
            read = YAML(typ="safe", pure=True).load(value)
            found[key] = read if _is_json(read) else value
        except YAMLError as error:
            raise ConfigError(
                f"--option {text}: the value cannot be read ({str(error).splitlines()[0]}); quote it"
            ) from error
    return found


def _is_json(value: object) -> bool:
    import json

    try:
        json.dumps(value)
    except (TypeError, ValueError):
        return False
    return True


def _print_table(found: AgentEvaluation) -> None:
    from rich.console import Console
    from rich.table import Table

    table = Table(box=None, padding=(0, 2, 0, 0))
    table.add_column("split")
    for title in ("reward", "95% interval", "solved", "95% interval", "turns", "format errors"):
        table.add_column(title, justify="right")
    for split in found.results:
        reward, solved = split.reward, split.success
        table.add_row(
            split.split,
            f"{reward.value:.3f}",
            f"{reward.low:.3f} to {reward.high:.3f}",
            f"{solved.correct}/{solved.total}",
            f"{100 * solved.low:.1f} to {100 * solved.high:.1f}%",
            f"{split.steps:.1f}",
            str(split.format_errors),
        )
    Console().print(table)


def _print_kinds(found: AgentEvaluation) -> None:
    for split in found.results:
        if len(split.kinds) > 1:
            shown = [
                f"{kind} {each.reward:.3f} ({each.solved}/{each.tasks} solved)"
                for kind, each in list(split.kinds.items())[:_KINDS_SHOWN]
            ]
            print(f"{split.split} by kind: " + ", ".join(shown))
