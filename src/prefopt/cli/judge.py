"""`prefopt judge`: a language model grades answers, or compares them with another model's."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from prefopt.cli._writer import add_sampling_arguments, add_writer_arguments, writer_settings

if TYPE_CHECKING:
    import argparse
    from collections.abc import Sequence

    from prefopt.evals.judgement import Grades, GradeTable, RateTable
    from prefopt.evals.judging import Effort, Judgement, JudgeSettings
    from prefopt.grade.winrate import WinRate
    from prefopt.judge.asking import Spent

NAME = "judge"
HELP = """\
Let a language model judge answers.

  prefopt judge answers.jsonl --single --server URL --model NAME              grades from 1 to 10 for each turn
  prefopt judge answers.jsonl --against base.jsonl --server URL --model NAME  win rates
  prefopt judge answers.jsonl --single --judge-model FOLDER                   a judge in this process

The files hold rows with a question and an output, as `prefopt generate` and `prefopt eval` write them, and AlpacaEval.
A verdict that cannot be read is asked for again; what has none in the end is missing and counted, never a score. Killed
at any time, the same command goes on where it stopped."""

_SHOWN = 3


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the files, the judge and how it is read."""
    parser.add_argument("outputs", metavar="OUTPUTS", help="answers to be judged")
    kind = parser.add_mutually_exclusive_group(required=True)
    kind.add_argument("--single", action="store_true", help="grade each answer from 1 to 10")
    kind.add_argument(
        "--against", type=Path, metavar="BASELINE", help="compare with the answers of this file"
    )
    parser.add_argument("--model", metavar="NAME", help="the judge's name on the --server")
    parser.add_argument(
        "--judge-model",
        metavar="FOLDER",
        help="run, model or adapter folder of a judge without server",
    )
    parser.add_argument(
        "--output", type=Path, metavar="DIR", help="folder (judgements/OUTPUTS[-against-BASELINE])"
    )
    parser.add_argument(
        "--overwrite", action="store_true", help="replace a judgement made with other settings"
    )
    parser.add_argument(
        "--order",
        choices=["both", "random"],
        help="both: judged twice, answers swapped; random: once, order drawn by seed and id (both)",
    )
    parser.add_argument(
        "--join", choices=["question", "id"], help="how rows of the two files are joined (question)"
    )
    parser.add_argument(
        "--rules", default="agreed", metavar="NAME", help="how verdicts are read (agreed)"
    )
    parser.add_argument(
        "--template", type=Path, metavar="FILE", help="what the judge is shown, instead of ours"
    )
    parser.add_argument(
        "--attempts", type=int, default=3, metavar="N", help="while a verdict cannot be read (3)"
    )
    add_sampling_arguments(parser, tokens=1024)
    add_writer_arguments(parser)


def run(arguments: argparse.Namespace) -> int:
    """Judge, write and print the numbers; returns 0."""
    from prefopt.evals.judging import judge_against, judge_single
    from prefopt.evals.writer import open_writer

    settings = _settings(arguments)
    writer = writer_settings(arguments, settings.judge)
    settings = replace(settings, extra_body=writer.extra_body, known_as=writer.known_as)
    generator = open_writer(writer).generator
    outputs, folder = Path(arguments.outputs), _folder(arguments)
    if arguments.against is None:
        found = judge_single(outputs, generator, settings, folder, overwrite=arguments.overwrite)
    else:
        found = judge_against(
            outputs,
            arguments.against,
            generator,
            settings,
            folder,
            overwrite=arguments.overwrite,
        )
    print("\n".join([*_numbers(found), *_remarks(found)]))
    return 0


def _settings(arguments: argparse.Namespace) -> JudgeSettings:
    from prefopt.errors import ConfigError
    from prefopt.evals.judging import JudgeSettings
    from prefopt.generate.base import Sampling

    if (arguments.server is None) == (arguments.judge_model is None):
        raise ConfigError(
            "who judges? give --server URL and --model NAME, or --judge-model FOLDER for one in this process"
        )
    if (arguments.server is None) != (arguments.model is None):
        raise ConfigError(
            "--server URL and --model NAME belong together: an address and a name there"
        )
    for option in ("order", "join"):
        if arguments.single and getattr(arguments, option) is not None:
            raise ConfigError(f"--{option} belongs to --against BASELINE; leave it out")
    return JudgeSettings(
        judge=arguments.model or arguments.judge_model,
        server=arguments.server,
        rules=arguments.rules,
        template=arguments.template,
        sampling=Sampling(
            temperature=arguments.temperature,
            top_p=arguments.top_p,
            max_new_tokens=arguments.max_new_tokens,
            seed=arguments.seed,
            purpose="judge",
        ),
        attempts=arguments.attempts,
        order=arguments.order or "both",
        join=arguments.join or "question",
    )


def _folder(arguments: argparse.Namespace) -> Path:
    if arguments.output is not None:
        return arguments.output
    name = Path(arguments.outputs).stem
    return Path("judgements") / (
        name if arguments.against is None else f"{name}-against-{arguments.against.stem}"
    )


def _numbers(found: Judgement) -> list[str]:
    from prefopt.evals.judgement import GradeTable

    return (
        _grades(found.name, found.table)
        if isinstance(found.table, GradeTable)
        else _rates(found.name, found.table)
    )


def _grades(name: str, table: GradeTable) -> list[str]:
    lines = [f"{name}: {_grade(table.all)}"]
    lines += [f"  turn {turn}: {_grade(found)}" for turn, found in table.by_turn.items()]
    return lines + [f"  {group}: {_grade(found)}" for group, found in table.by_category.items()]


def _grade(found: Grades) -> str:
    if found.value is None:
        return f"no grade ({found.missing:,} missing)"
    missing = f", {found.missing:,} missing" if found.missing else ""
    interval = f"95% interval {found.low:.2f} to {found.high:.2f}"
    return f"{found.value:.2f} of 10 ({interval}; {found.graded:,} graded{missing})"


def _rates(name: str, table: RateTable) -> list[str]:
    lines = [f"{name}: win rate {_rate(table.raw)}"]
    if table.adjusted is not None:
        lines.append(f"  {_adjusted(table.adjusted)}")
    controlled = table.length_controlled
    if controlled.value is not None:
        lines.append(
            f"  length-controlled: {controlled.value:.1f}% "
            f"(95% interval {controlled.low:.1f} to {controlled.high:.1f}%)"
        )
    lines += [f"  length-controlled: {remark}" for remark in controlled.remarks]
    for group, rates in table.by_category.items():
        lines.append(f"  {group}: {_rate(rates.raw, rates.turns)}")
        if rates.adjusted is not None:
            lines.append(f"  {group}, {_adjusted(rates.adjusted)}")
    lines.append(f"  mean characters: {table.lengths[0]:.0f}, baseline {table.lengths[1]:.0f}")
    if table.first_preferred is not None:
        lines.append(
            f"  verdicts for the answer shown first: {table.first_preferred:.0f}% (fair is 50%)"
        )
    return lines


def _adjusted(rate: WinRate) -> str:
    return f"adjusted for position: {_rate(rate)}; {rate.inconsistent:,} changed with the order"


def _rate(rate: WinRate | None, turns: int | None = None) -> str:
    if rate is None:
        return "unknown: no verdict is there" + ("" if turns is None else f" on {turns:,} answers")
    missing = f", {rate.missing:,} missing" if rate.missing else ""
    return (
        f"{rate.value:.1f}% (95% interval {rate.low:.1f} to {rate.high:.1f}%; {rate.wins:,} won, {rate.ties:,} drawn, "
        f"{rate.losses:,} lost{missing})"
    )


def _remarks(found: Judgement) -> list[str]:
    lines: list[str] = []
    if found.left_out:
        lines.append(f"not judged: {_named(found.left_out)}")
    if found.unused:
        some = ", ".join(f"'{name}'" for name in found.unused[:_SHOWN])
        lines.append(
            f"only in the baseline's file: {len(found.unused):,} rows ({some}{_more(found.unused)})"
        )
    if found.missing:
        lines.append(f"without a verdict: {_named(found.missing)}")
    return [*lines, *_cost(found.cost, found.effort), f"results: {found.folder}"]


def _cost(spent: Spent, effort: Effort) -> list[str]:
    read = _tokens(spent.prompt_tokens, "tokens read", spent.prompts_uncounted)
    written = _tokens(spent.tokens, "written", spent.uncounted)
    asked = f"{spent.requests:,} requests ({effort.new:,} replies are new)"
    failed = f"{spent.refused:,} refused, {spent.unread:,} unreadable"
    lines = [f"cost of these verdicts: {asked}, {read}, {written}; {failed}"]
    tally, held = effort.tally, effort.held
    if tally.retries:
        lines.append(
            f"in this run: {tally.retries:,} further attempts; {tally.timeouts:,} brought no reply in time"
        )
    if held.completions > spent.replies:
        lines.append(
            f"the journal holds {held.completions:,} replies, those to other settings too: {held.prompt_tokens:,} "
            f"tokens read, {held.tokens:,} written, as far as they are known"
        )
    return lines


def _tokens(count: int, what: str, uncounted: int) -> str:
    if not uncounted:
        return f"{count:,} {what}"
    if not count:
        return f"{what}: unknown (not counted)"
    return f"{count:,} {what} (not those of {uncounted:,} replies, which were not counted)"


def _named(rows: Sequence[tuple[str, str]]) -> str:
    some = "; ".join(f"'{name}': {why}" for name, why in rows[:_SHOWN])
    return f"{len(rows):,} rows ({some}{_more(rows)})"


def _more(rows: Sequence[object]) -> str:
    return ", ..." if len(rows) > _SHOWN else ""
