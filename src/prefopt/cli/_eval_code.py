"""Options of `prefopt eval` for solutions with programs."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import argparse
    from collections.abc import Sequence

    from prefopt.sandbox.base import Limits

OPTIONS = ("code", "packages", "code_limit", "unsafe_local_execution")
"""Their names among the arguments."""


def add_code_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare them."""
    group = parser.add_argument_group("solutions with programs")
    group.add_argument(
        "--code", action="store_true", help="run the programs in solutions, in a sandbox"
    )
    group.add_argument(
        "--packages",
        metavar="NAME[,NAME]",
        help="what they may import besides the standard library, such as sympy,numpy",
    )
    group.add_argument(
        "--code-limit",
        metavar="NAME=NUMBER",
        action="append",
        default=[],
        help="a limit of one solution: seconds (of a block of code), cpu_seconds, memory_bytes, processes, "
        "output_chars, disk_bytes, files; may be repeated",
    )
    group.add_argument(
        "--unsafe-local-execution",
        action="store_true",
        help="run them without isolation where there is none",
    )


def require_code(arguments: argparse.Namespace) -> None:
    """Nothing, unless an option about programs is given without them."""
    from prefopt.errors import ConfigError

    if arguments.code:
        return
    for option in OPTIONS:
        if getattr(arguments, option):
            raise ConfigError(f"--{option.replace('_', '-')} is about programs, so it needs --code")


def packages(given: str | None) -> tuple[str, ...]:
    """Names between commas."""
    return tuple(name for part in (given or "").split(",") if (name := part.strip()))


def limits(given: Sequence[str]) -> Limits:
    """The usual limits with those that are given.

    Raises:
        ConfigError: no such limit, or no number.
        SandboxError: the number is of the wrong kind or out of range.
    """
    from dataclasses import asdict

    from prefopt.config.mistakes import unknown_name
    from prefopt.errors import ConfigError
    from prefopt.sandbox.base import Limits

    found = asdict(Limits())
    for text in given:
        name, _, value = text.partition("=")
        if name not in found:
            raise unknown_name("limit of programs", name, list(found))
        try:
            found[name] = int(value) if value.strip().isdigit() else float(value)
        except ValueError as error:
            raise ConfigError(
                f"--code-limit {text}: write NAME=NUMBER, such as --code-limit seconds=10"
            ) from error
    return Limits(**found)
