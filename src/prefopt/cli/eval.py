"""`prefopt eval`: how many problems a model solves."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import argparse
    from collections.abc import Sequence

    from prefopt.evals.harness import HarnessResult
    from prefopt.evals.maths import Evaluation
    from prefopt.evals.suite import EvalSettings, Evaluated
    from prefopt.evals.target import Server

NAME = "eval"
HELP = """\
Evaluate a model on files of problems, or on tasks of lm-evaluation-harness.

  prefopt eval runs/step_dpo gsm8k.jsonl           a run folder: its model, results where the report finds them
  prefopt eval MODEL gsm8k.jsonl math.jsonl        a model or adapter folder, or a hub id
  prefopt eval NAME gsm8k.jsonl --server URL       a model behind an OpenAI-compatible server
  prefopt eval MODEL --harness gsm8k,arc_easy      tasks of lm-evaluation-harness

GSM8K, MATH and any rows with a question and an answer are read (JSONL, JSON, CSV, Parquet). Decoding is greedy.
Every output is saved with its verdict. Killed at any time, the same command goes on where it stopped."""

_BATCH_SIZE = 64
_LEVELS_SHOWN = 12
_CUT_SHOWN = 0.01


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
        "--grader", default="math-verify", metavar="NAME", help="rules of grading (math-verify)"
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
    parser.add_argument("--name", help="of the model, for tables and the report")
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda, cuda:1 (auto)")
    parser.add_argument(
        "--dtype", default="auto", help="auto (as stored), float32, bfloat16, float16 (auto)"
    )
    parser.add_argument(
        "--against", type=Path, metavar="DIR", help="compare with the results in another folder"
    )
    _add_server(parser)
    _add_code(parser)
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


def _add_code(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("solutions with programs")
    group.add_argument(
        "--code", action="store_true", help="run the programs in solutions, in a sandbox"
    )
    group.add_argument(
        "--unsafe-local-execution",
        action="store_true",
        help="run them without isolation where there is none",
    )


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

    if arguments.harness is not None:
        return _run_harness(arguments)
    for option in ("include_path", "num_fewshot", "apply_chat_template"):
        if getattr(arguments, option) not in (None, False):
            raise ConfigError(f"--{option.replace('_', '-')} belongs to --harness TASK")
    if not arguments.problems:
        raise ConfigError(
            f"prefopt eval {arguments.target}: nothing to evaluate on; add a file of problems, or --harness TASK"
        )
    return _run_files(arguments)


def _run_files(arguments: argparse.Namespace) -> int:
    settings = _settings(arguments)

    from prefopt.evals.maths import read_evaluation
    from prefopt.evals.suite import evaluate_files

    earlier: list[Evaluation] = []
    if arguments.against is not None:
        several = len(arguments.problems) > 1
        folders = [
            arguments.against / Path(f).stem if several else arguments.against
            for f in arguments.problems
        ]
        earlier = [read_evaluation(folder) for folder in folders]
    found = evaluate_files(
        arguments.target,
        arguments.problems,
        settings,
        output=arguments.output,
        name=arguments.name,
    )
    _print_table(found)
    for each in found:
        _print_groups(each.evaluation)
        _print_remarks(each, settings)
    for before, each in zip(earlier, found, strict=False):
        _print_comparison(before, each.evaluation)
    for each in found:
        print(f"results: {each.folder}")
    return 0


def _settings(arguments: argparse.Namespace) -> EvalSettings:
    from prefopt.errors import ConfigError
    from prefopt.evals.suite import EvalSettings

    if arguments.unsafe_local_execution and not arguments.code:
        raise ConfigError("--unsafe-local-execution runs programs, so it needs --code")
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
        for option in ("model", "endpoint"):
            if getattr(arguments, option) is not None:
                raise ConfigError(
                    f"--{option} belongs to --server URL; a local model is named by TARGET alone"
                )
        return None
    for option, usual in (("device", "auto"), ("dtype", "auto"), ("batch_size", _BATCH_SIZE)):
        if getattr(arguments, option) != usual:
            raise ConfigError(
                f"--{option.replace('_', '-')} is about a model in this process; the model of --server runs as the "
                "server was started, so leave it out"
            )
    return Server(arguments.server, arguments.model or arguments.target, arguments.endpoint)


def _print_table(found: Sequence[Evaluated]) -> None:
    from rich.console import Console
    from rich.table import Table

    table = Table(box=None, padding=(0, 2, 0, 0))
    table.add_column("problems")
    for title in ("accuracy", "95% interval", "right", "no answer", "cut", "seconds"):
        table.add_column(title, justify="right")
    for evaluation, _, seconds, _ in found:
        table.add_row(
            evaluation.split,
            f"{100 * evaluation.value:.1f}%",
            f"{100 * evaluation.low:.1f} to {100 * evaluation.high:.1f}%",
            f"{evaluation.correct}/{evaluation.total}",
            str(evaluation.unanswered),
            str(evaluation.cut),
            f"{seconds:.1f}",
        )
    Console().print(table)


def _print_groups(evaluation: Evaluation) -> None:
    """Accuracy by level and type, where the file names more than one."""
    from prefopt.evals.maths import by_label

    for name, group in by_label(evaluation.outputs).items():
        if len(group) > 1:
            shown = [
                f"{value} {100 * found.value:.1f}% ({found.correct}/{found.total})"
                for value, found in list(group.items())[:_LEVELS_SHOWN]
            ]
            more = len(group) - _LEVELS_SHOWN
            rest = [f"{more} more in evaluation.json"] if more > 0 else []
            print(f"{evaluation.split} by {name}: " + ", ".join([*shown, *rest]))


def _print_remarks(found: Evaluated, settings: EvalSettings) -> None:
    evaluation = found.evaluation
    for line in found.remarks:
        print(line)
    if evaluation.cut > _CUT_SHOWN * evaluation.total:
        fate = (
            "did not end and count as wrong"
            if settings.code
            else "were cut off and graded as they are"
        )
        print(
            f"{evaluation.split}: {evaluation.cut} of {evaluation.total} solutions {fate}; a higher "
            f"--max-new-tokens than {settings.max_new_tokens} may change the number"
        )
    if evaluation.failed:
        first = next(o for o in evaluation.outputs if o.finish_reason == "error")
        print(
            f"{evaluation.split}: {evaluation.failed} problems got no solution and count as wrong, first "
            f"'{first.id}': {first.output}"
        )


def _print_comparison(before: Evaluation, after: Evaluation) -> None:
    from prefopt.evals.maths import compare

    found = compare(before, after)
    value, low, high = found.difference[:3]
    print(
        f"{after.split}: {after.name} against {before.name}: {100 * value:+.1f} points "
        f"(95% interval {100 * low:+.1f} to {100 * high:+.1f}), {found.gained} gained, {found.lost} lost, "
        f"p = {found.p:.3g} (McNemar)"
    )
    changed = [
        key
        for key in ("style", "grader", "max_new_tokens", "code")
        if before.settings.get(key) != after.settings.get(key) and key in before.settings
    ]
    if changed:
        shown = ", ".join(f"{k} {before.settings[k]} / {after.settings.get(k)}" for k in changed)
        print(f"  the two were not evaluated alike: {shown}")


def _run_harness(arguments: argparse.Namespace) -> int:
    from prefopt.errors import ConfigError

    unused = ("style", "against", "server", "max_new_tokens")
    given = [option for option in unused if getattr(arguments, option) is not None]
    if arguments.problems or arguments.code or given:
        option = "--" + given[0].replace("_", "-") if given else "--code"
        what = f"the file {arguments.problems[0]}" if arguments.problems else option
        raise ConfigError(
            f"{what} means nothing to --harness: its tasks say what is asked and how; evaluate files in a command of "
            "their own"
        )

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
    )
    _print_harness(result)
    print(f"results: {result.folder}")
    return 0


def _print_harness(result: HarnessResult) -> None:
    from rich.console import Console
    from rich.table import Table

    table = Table(box=None, padding=(0, 2, 0, 0))
    for title in ("task", "metric", "filter"):
        table.add_column(title)
    for title in ("value", "standard error", "problems"):
        table.add_column(title, justify="right")
    for score in result.scores:
        table.add_row(
            score.task,
            score.metric,
            score.filter,
            f"{score.value:.4f}",
            "-" if score.stderr is None else f"{score.stderr:.4f}",
            str(score.problems),
        )
    Console().print(table)
