"""`prefopt generate`: a model's answers to a file of questions."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from prefopt.cli._writer import add_sampling_arguments, add_writer_arguments, writer_settings

if TYPE_CHECKING:
    import argparse

    from prefopt.evals.answering import Answers

NAME = "generate"
HELP = """\
Answer a file of questions: `prefopt generate FILE --model M --output OUT`.

  prefopt generate mt_bench.jsonl --model runs/dpo --output answers.jsonl
  prefopt generate prompts.jsonl --model NAME --server URL --output answers.jsonl

FILE holds rows with a question (`prompt`, `instruction`, `question`, `problem` or `turns`: a text, a list of the
user's turns, or messages). Turns are answered one after the other. OUT gets the same rows in the same order with `id`,
`prompt`, `output`, `generator`, `finish_reason` and `tokens`. Killed at any time, the same command goes on where it
stopped."""

_SHOWN = 3


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare questions, model and sampling."""
    parser.add_argument("file", metavar="FILE", help="questions: JSON Lines, JSON, CSV or Parquet")
    parser.add_argument(
        "--model",
        required=True,
        metavar="M",
        help="run folder, model or adapter folder, or hub id; with --server the model's name there",
    )
    parser.add_argument("--output", required=True, type=Path, metavar="OUT", help="file to write")
    parser.add_argument(
        "--overwrite", action="store_true", help="replace a file that was made with other settings"
    )
    parser.add_argument("--name", help="of the model in the rows (its own)")
    parser.add_argument("--limit", type=int, metavar="N", help="first N questions")
    parser.add_argument(
        "--system", default="", metavar="TEXT", help="system text where a question has none"
    )
    parser.add_argument(
        "--format",
        choices=["chat", "text"],
        help="questions as conversations or as plain text (chat, where the model has a chat template)",
    )
    add_sampling_arguments(parser, tokens=1024)
    parser.add_argument(
        "--stop", action="append", default=[], metavar="TEXT", help="ends a text; may be repeated"
    )
    add_writer_arguments(parser)


def run(arguments: argparse.Namespace) -> int:
    """Answer, write and say what became of the rows; returns 0."""
    from prefopt.errors import ConfigError
    from prefopt.evals.answering import AnswerSettings, write_answers
    from prefopt.evals.target import find_target
    from prefopt.evals.writer import open_writer
    from prefopt.generate.base import Sampling

    if arguments.limit is not None and arguments.limit < 1:
        raise ConfigError(f"--limit {arguments.limit}: give 1 or more")
    writer = writer_settings(arguments, arguments.model)
    own = arguments.model if writer.server is not None else find_target(arguments.model).name
    settings = AnswerSettings(
        model=arguments.name or own,
        server=writer.server,
        sampling=Sampling(
            temperature=arguments.temperature,
            top_p=arguments.top_p,
            max_new_tokens=arguments.max_new_tokens,
            stop=tuple(arguments.stop),
            seed=arguments.seed,
            purpose="answers",
        ),
        system=arguments.system,
        talk=None if arguments.format is None else arguments.format == "chat",
        limit=arguments.limit,
        extra_body=writer.extra_body,
        known_as=writer.known_as,
    )
    answers = write_answers(
        Path(arguments.file),
        arguments.output,
        open_writer(writer),
        settings,
        overwrite=arguments.overwrite,
    )
    print("\n".join(_told(answers, settings.sampling.max_new_tokens)))
    return 0


def _told(answers: Answers, limit: int) -> list[str]:
    tokens = f"{answers.tokens:,} tokens"
    if answers.uncounted:
        some = f"{tokens} (not those of {answers.uncounted:,} texts, which were not counted)"
        tokens = some if answers.tokens else "tokens unknown (not counted)"
    lines = [
        f"{answers.rows:,} rows, {tokens}; {answers.new:,} texts are new, the others were there"
    ]
    tally = answers.tally
    if tally.retries:
        lines.append(
            f"in this run: {tally.retries:,} further attempts; {tally.timeouts:,} brought no reply in time"
        )
    if answers.cut:
        lines.append(f"{answers.cut:,} texts were cut at --max-new-tokens {limit}")
    if answers.failed:
        some = "; ".join(f"'{name}': {why}" for name, why in answers.failed[:_SHOWN])
        lines.append(
            f"{len(answers.failed):,} rows have no output, the next run asks again: {some}"
        )
    return [*lines, f"answers: {answers.path}"]
