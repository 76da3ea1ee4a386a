"""`prefopt eval`: how many problems a model solves."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from prefopt.cli._eval_agents import add_environment_arguments, require_no_environment, run_agents
from prefopt.cli._eval_code import add_code_arguments, limits, packages, require_code
from prefopt.cli._writer import add_extra_body, read_fields

if TYPE_CHECKING:
    import argparse
    from collections.abc import Sequence

    from prefopt.evals.settings import EvalSettings
    from prefopt.evals.target import Server

NAME = "eval"
HELP = """\
Evaluate a model on problems, as an agent, or with lm-evaluation-harness.

  prefopt eval runs/step_dpo gsm8k.jsonl           a run folder: its model, results where the report finds them
  prefopt eval MODEL gsm8k.jsonl math.jsonl        a model or adapter folder, or a hub id
  prefopt eval NAME gsm8k.jsonl --server URL       a model behind an OpenAI-compatible server
  prefopt eval MODEL --environment rooms           the model acts: average reward, tasks solved, turns
  prefopt eval MODEL --harness gsm8k,arc_easy      tasks of lm-evaluation-harness

GSM8K, MATH and any rows with a question and an answer are read (JSONL, JSON, CSV, Parquet). Decoding is greedy.
Every output is saved with its verdict. Killed at any time, the same command goes on where it stopped."""

_BATCH_SIZE = 64
_GRADER = "math-verify"
_OF_FILES = (
    "style", "against", "max_new_tokens", "column", "server", "model", "endpoint", "patience", "extra_body", "code",
    "packages", "code_limit", "unsafe_local_execution", "environment",
)  # fmt: skip
"""Options that mean nothing to tasks of the harness."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare target, problems and how they are put, solved and graded."""
    parser.add_argument(
        "target",
        metavar="TARGET",
        help="run folder, model or adapter folder, or hub id; with --server the model's name there",
    )
    parser.add_argument("problems", metavar="PROBLEMS", nargs="*", help="files of problems")
    parser.add_argument(
        "--style", metavar="NAME", help="prompt style (chat, where the model has a chat template)"
    )
    parser.add_argument(
        "--grader", default=_GRADER, metavar="NAME", help="rules of grading (math-verify)"
    )
    parser.add_argument(
        "--max-new-tokens", type=int, default=None, metavar="N", help="longest solution (1024)"
    )
    parser.add_argument(
        "--batch-size",
        type=int,
        default=_BATCH_SIZE,
        metavar="N",
        help=f"rows decoded together ({_BATCH_SIZE})",
    )
    parser.add_argument("--limit", type=int, metavar="N", help="first N problems of each file")
    parser.add_argument(
        "--column",
        metavar="ROLE=NAME",
        action="append",
        default=[],
        help="what a column means, e.g. question=text; may be repeated",
    )
    parser.add_argument("--output", type=Path, metavar="DIR", help="folder for the results")
    parser.add_argument(
        "--overwrite",
        action="store_true",
        help="replace earlier results that were made with other settings",
    )
    parser.add_argument("--name", help="of the model, for tables and the report")
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda, cuda:1 (auto)")
    parser.add_argument(
        "--dtype", default="auto", help="auto (as stored), float32, bfloat16, float16 (auto)"
    )
    parser.add_argument(
        "--against", type=Path, metavar="DIR", help="compare with the results in another folder"
    )
    _add_server(parser)
    add_code_arguments(parser)
    add_environment_arguments(parser)
    _add_harness(parser)


def _add_server(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("a model behind a server")
    group.add_argument(
        "--server", metavar="URL", help="OpenAI-compatible, such as http://localhost:8000/v1"
    )
    group.add_argument(
        "--model", metavar="NAME", help="the model's name on the server, where TARGET is its folder"
    )
    group.add_argument(
        "--endpoint",
        choices=["chat", "completions"],
        help="chat for chat styles, completions for text styles (by the style)",
    )
    group.add_argument(
        "--patience",
        type=float,
        metavar="SECONDS",
        help="how long a server in trouble is tried again (600); one that never answered, 10 at most",
    )
    add_extra_body(group)


def _add_harness(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("lm-evaluation-harness (pip install 'prefopt[harness]')")
    group.add_argument("--harness", metavar="TASK[,TASK]", help="run these tasks")
    group.add_argument(
        "--include-path", type=Path, metavar="DIR", help="folder of your own tasks' YAML files"
    )
    group.add_argument("--num-fewshot", type=int, metavar="N", help="examples in the prompt")
    group.add_argument(
        "--apply-chat-template", action="store_true", help="prompts as user messages of the model"
    )


def run(arguments: argparse.Namespace) -> int:
    """Evaluate and print one table; returns 0."""
    from prefopt.errors import ConfigError

    if arguments.environment is None:
        require_no_environment(arguments)
    if arguments.harness is not None:
        return _run_harness(arguments)
    for option in ("include_path", "num_fewshot", "apply_chat_template"):
        if getattr(arguments, option) not in (None, False):
            raise ConfigError(f"--{option.replace('_', '-')} belongs to --harness TASK")
    if arguments.environment is not None:
        return run_agents(arguments, _server(arguments))
    if not arguments.problems:
        raise ConfigError(
            f"prefopt eval {arguments.target}: nothing to evaluate on; add a file of problems, or --harness TASK"
        )
    return _run_files(arguments)


def _run_files(arguments: argparse.Namespace) -> int:
    settings = _settings(arguments)

    from prefopt.cli._evaluated import print_comparison, print_groups, print_remarks, print_table
    from prefopt.evals.suite import evaluate_files

    found = evaluate_files(
        arguments.target,
        arguments.problems,
        settings,
        output=arguments.output,
        name=arguments.name,
        against=arguments.against,
        overwrite=arguments.overwrite,
    )
    print_table(found)
    for each in found:
        print_groups(each.evaluation)
        print_remarks(each, settings)
    for each in found:
        if each.against is not None:
            print_comparison(each.against, each)
    for each in found:
        print(f"results: {each.folder}")
    return 0


def _settings(arguments: argparse.Namespace) -> EvalSettings:
    from prefopt.evals.settings import EvalSettings

    require_code(arguments)
    length = arguments.max_new_tokens
    return EvalSettings(
        style=arguments.style,
        grader=arguments.grader,
        max_new_tokens=length if length is not None else (512 if arguments.code else 1024),
        batch_size=arguments.batch_size,
        limit=arguments.limit,
        columns=_columns(arguments.column),
        device=arguments.device,
        dtype=arguments.dtype,
        server=_server(arguments),
        code=arguments.code,
        packages=packages(arguments.packages),
        limits=limits(arguments.code_limit),
        unsafe_local_execution=arguments.unsafe_local_execution,
    )


def _columns(given: Sequence[str]) -> dict[str, str]:
    from prefopt.errors import ConfigError

    pairs = [text.partition("=") for text in given]
    for role, equals, name in pairs:
        if not (role and equals and name):
            raise ConfigError(
                f"--column {role}{equals}{name}: write ROLE=NAME, such as --column question=text"
            )
    return {role: name for role, _, name in pairs}


def _server(arguments: argparse.Namespace) -> Server | None:
    from prefopt.errors import ConfigError
    from prefopt.evals.target import Server

    if arguments.server is None:
        for option in ("model", "endpoint", "patience", "extra_body"):
            if getattr(arguments, option) is not None:
                raise ConfigError(
                    f"--{option.replace('_', '-')} belongs to --server URL; without it TARGET is loaded in this process"
                )
        return None
    for option, usual in (("device", "auto"), ("dtype", "auto"), ("batch_size", _BATCH_SIZE)):
        if getattr(arguments, option) != usual:
            raise ConfigError(
                f"--{option.replace('_', '-')} is about a model in this process; the model of --server runs as the "
                "server was started, so leave it out"
            )
    chosen: dict[str, Any] = {}
    if arguments.patience is not None:
        chosen["patience"] = arguments.patience
    if arguments.extra_body is not None:
        chosen["extra_body"] = read_fields(arguments.extra_body)
    name = arguments.model or arguments.target
    return Server(arguments.server, name, arguments.endpoint, **chosen)


def _run_harness(arguments: argparse.Namespace) -> int:
    from prefopt.errors import ConfigError

    given = [option for option in _OF_FILES if getattr(arguments, option) not in (None, False, [])]
    given += ["grader"] if arguments.grader != _GRADER else []
    if arguments.problems or given:
        option = f"--{given[0].replace('_', '-')}" if given else ""
        what = f"the file {arguments.problems[0]}" if arguments.problems else option
        raise ConfigError(
            f"{what} means nothing to --harness: its tasks say what is asked and how; evaluate files in a command of "
            "their own"
        )

    from prefopt.cli._evaluated import print_harness
    from prefopt.evals.harness import HarnessSettings, run_harness

    result = run_harness(
        arguments.target,
        arguments.harness.split(","),
        HarnessSettings(
            include_path=arguments.include_path,
            limit=arguments.limit,
            num_fewshot=arguments.num_fewshot,
            apply_chat_template=arguments.apply_chat_template,
            batch_size=arguments.batch_size,
            device=arguments.device,
            dtype=arguments.dtype,
        ),
        output=arguments.output,
        name=arguments.name,
        overwrite=arguments.overwrite,
    )
    print_harness(result)
    print(f"results: {result.folder}")
    return 0
