"""The `prefopt` command: finds the verb, parses its arguments, turns errors into one line and an exit code.

A verb is a module of this package that defines `NAME` (equal to the module's name), `HELP`,
`add_arguments(parser)` and `run(arguments) -> int`, and imports everything heavy inside `run`. Modules
whose names start with an underscore are shared parts, not verbs.

Exit codes: 0 fine, 1 a bug (traceback) or a check that failed, 2 something the user can repair, 130 interrupted.
"""

from __future__ import annotations

import argparse
import difflib
import importlib
import os
import pkgutil
import re
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import NoReturn, Protocol, cast

from prefopt.errors import JudgeError, NonFiniteError, PrefoptError, SandboxError

_OF_ONE_PROCESS = (NonFiniteError, JudgeError, SandboxError)
"""Errors that can hit one process of a launch and no other; all others look the same everywhere."""

_PATIENCE = 5.0
"""Seconds by which processes of one machine may differ in reaching the same error."""

_INTRODUCTION = """\
Preference optimisation: from preference data to a trained model, an evaluation and a report.

usage: prefopt VERB [arguments]     `prefopt VERB --help` explains one verb"""


class Verb(Protocol):
    """What a verb module offers."""

    NAME: str
    HELP: str

    def add_arguments(self, parser: argparse.ArgumentParser) -> None:
        """Declare the verb's arguments."""
        ...

    def run(self, arguments: argparse.Namespace) -> int:
        """Do it; returns the exit code."""
        ...


class UsageError(Exception):
    """The command line has no meaning; the message says what to write instead."""


class VerbParser(argparse.ArgumentParser):
    """An argument parser whose errors are one line with the nearest valid option."""

    def error(self, message: str) -> NoReturn:
        """Raise `UsageError` instead of printing the usage and exiting."""
        raise UsageError(f"{message}{self._hint(message)} (see `{self.prog} --help`)")

    def _hint(self, message: str) -> str:
        unknown = re.search(r"unrecognized arguments: (--?[\w-]+)", message)
        if unknown is None:
            return ""
        option = unknown[1]
        page = self.format_help()
        near = difflib.get_close_matches(option, re.findall(r"--[a-z][\w-]*", page), n=1)
        if near:
            return f": did you mean {near[0]}?"
        key = option.lstrip("-").replace("-", "_")
        return f": settings are written {key}=VALUE" if "key=value" in page else ""


def main(argv: Sequence[str] | None = None) -> int:
    """The exit code of the command; `argv` without the program's name, by default from the system."""
    words = list(sys.argv[1:] if argv is None else argv)
    try:
        code = _dispatch(words)
        sys.stdout.flush()
    except (PrefoptError, UsageError) as error:
        _print_error(error)
        _let_the_first_process_speak()
        return 2
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return 130
    except BrokenPipeError:
        # The reader of a pipe (`prefopt methods | head`) has gone; what is still buffered has nowhere to go.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 141
    return code


def verb_names() -> list[str]:
    """Names of the verbs, from a listing of this package that imports none of them."""
    modules = pkgutil.iter_modules([str(Path(__file__).parent)])
    return sorted(m.name for m in modules if m.name != "main" and not m.name.startswith("_"))


def load_verb(name: str) -> Verb:
    """The module of a verb."""
    return cast("Verb", importlib.import_module(f"prefopt.cli.{name}"))


def _dispatch(words: list[str]) -> int:
    names = verb_names()
    if not words or words[0] in {"-h", "--help", "help"}:
        if len(words) > 1 and words[1] in names:
            return _dispatch([words[1], "--help"])
        print(_overview(names))
        return 0
    if words[0] in {"-V", "--version"}:
        from importlib.metadata import version

        print(f"prefopt {version('prefopt')}")
        return 0
    if words[0] not in names:
        near = difflib.get_close_matches(words[0], names, n=1)
        hint = f": did you mean {near[0]!r}?" if near else "."
        raise UsageError(f"unknown verb {words[0]!r}{hint} Known: {', '.join(names)}")
    return _run_verb(load_verb(words[0]), words[1:])


def _run_verb(verb: Verb, words: list[str]) -> int:
    parser = VerbParser(
        prog=f"prefopt {verb.NAME}",
        description=verb.HELP,
        allow_abbrev=False,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    verb.add_arguments(parser)
    try:
        arguments = _parse(parser, words)
    except SystemExit as finished:  # --help
        return int(finished.code or 0)
    return verb.run(arguments)


def _parse(parser: VerbParser, words: list[str]) -> argparse.Namespace:
    """The arguments, options and positionals in any order: `train recipe.yaml --resume seed=1`."""
    try:
        return parser.parse_intermixed_args(words)
    except (
        TypeError
    ):  # argparse cannot mix them where verbs follow, as in `data check`, and says so first
        return parser.parse_args(words)


def _overview(names: Sequence[str]) -> str:
    width = max(len(name) for name in names)
    rows = [f"  {name:<{width}}  {load_verb(name).HELP.splitlines()[0]}" for name in names]
    return "\n".join([_INTRODUCTION, "", "verbs:", *rows, "", "options: --help, --version"])


def _let_the_first_process_speak() -> None:
    """Wait a little in the other processes of a launch: the launcher ends all of them with the first that fails."""
    if int(os.environ.get("LOCAL_RANK", "0")) > 0:
        time.sleep(_PATIENCE)


def _print_error(error: Exception) -> None:
    """On stderr; in a launch of many processes once per machine, unless only one process can know it."""
    rank = int(os.environ.get("RANK", "0"))
    if isinstance(error, _OF_ONE_PROCESS) and not error.everywhere and rank > 0:
        print(f"error (process {rank}): {error}", file=sys.stderr)
    elif int(os.environ.get("LOCAL_RANK", rank)) == 0:
        print(f"error: {error}", file=sys.stderr)
