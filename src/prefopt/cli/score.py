"""`prefopt score`: the implicit reward of every response of a file, under any two models."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from prefopt.cli._data import add_render_arguments, data_options, render_settings

if TYPE_CHECKING:
    import argparse
    from collections.abc import Iterator, Mapping, Sequence

    from prefopt.generate.journal import Journal
    from prefopt.judge.agreement import Agreement
    from prefopt.judge.implicit import ImplicitReward, ImplicitScore
    from prefopt.models.load import LoadedModel, ModelSettings
    from prefopt.records import Preference

NAME = "score"
HELP = """\
Score responses with an implicit reward: beta * (log policy - log reference).

FILE is any data that `prefopt train` reads: prompts with responses, pairs, ranked or scored lists, labels. OUT gets one
record a line with a `score` for each response, and prints how well the scores agree with the annotations that were
there. Log-probabilities are kept in OUT.journal.sqlite: started again, the same command goes on where it stopped."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the data, the two models and the output."""
    parser.add_argument(
        "file", metavar="FILE", help="data file, folder saved by datasets, or hub id"
    )
    parser.add_argument(
        "--policy", metavar="MODEL", required=True, help="trained model, adapter or run folder"
    )
    parser.add_argument(
        "--reference", metavar="MODEL", required=True, help="model that its training started from"
    )
    parser.add_argument(
        "--beta", type=float, default=0.1, metavar="X", help="of the policy's training (0.1)"
    )
    parser.add_argument("--output", required=True, metavar="OUT", help="JSON Lines file to write")
    parser.add_argument(
        "--overwrite",
        action="store_true",
        help="replace OUT even if this command has not written it",
    )
    parser.add_argument(
        "--pairing",
        choices=["best_vs_rest", "best_worst", "all", "adjacent"],
        help="write pairs by the new scores (default: the pairs that were there, none for lists)",
    )
    parser.add_argument("--split", default="train", help="split of a saved or hub data set (train)")
    parser.add_argument(
        "--column",
        metavar="ROLE=NAME",
        action="append",
        default=[],
        help="what a column means, e.g. chosen=better; may be repeated",
    )
    parser.add_argument("--max-rows", type=int, metavar="N", help="only the first N records")
    parser.add_argument(
        "--max-length",
        type=int,
        metavar="N",
        help="no score beyond N tokens (what the models read)",
    )
    parser.add_argument(
        "--batch-size", type=int, default=32, metavar="N", help="responses run together (32)"
    )
    add_render_arguments(parser)
    parser.add_argument("--device", help="cpu, cuda, ... (default: cuda where there is one)")
    parser.add_argument(
        "--dtype", default="float32", help="float32, bfloat16, float16 or auto (float32)"
    )


def run(arguments: argparse.Namespace) -> int:
    """Score, write and print; returns 0."""
    from prefopt.cli.analyse import model_folder
    from prefopt.judge.implicit import ImplicitReward, ScoringSettings
    from prefopt.judge.model_pair import require_some_reward, require_two_models
    from prefopt.models.quiet import quiet_transformers
    from prefopt.progress import counted

    target = Path(arguments.output)
    _check(arguments, target)
    records = _read(arguments)
    reward = ImplicitReward(
        model_folder(arguments.policy),
        model_folder(arguments.reference),
        beta=arguments.beta,
        settings=ScoringSettings(
            render_settings(arguments), arguments.batch_size, arguments.max_length
        ),
        load=lambda name: _load(name, arguments),
    )
    settings = _settings(arguments)
    require_two_models(reward.models, policy=settings, reference=settings)
    with _journal(target) as journal, quiet_transformers(), counted("scoring") as progress:
        scores = reward.score(records, journal=journal, progress=progress)
    require_some_reward((score for found in scores.values() for score in found), reward.models)
    _write(target, records, scores, reward, arguments.pairing)
    print("\n".join(_summary(records, scores)))
    return 0


def _check(arguments: argparse.Namespace, target: Path) -> None:
    from prefopt.errors import ConfigError
    from prefopt.text.whole import is_stream

    for option in ("max_rows", "max_length", "batch_size"):
        value = getattr(arguments, option)
        if value is not None and value < 1:
            raise ConfigError(f"--{option.replace('_', '-')} {value}: give 1 or more")
    source = Path(arguments.file)
    if target.exists() and source.exists() and target.samefile(source):
        raise ConfigError(f"--output {target} is the input file; give another name")
    if target.is_dir():
        raise ConfigError(f"--output {target} is a folder; give the name of a file")
    foreign = target.is_file() and not is_stream(target) and not _kept(target).exists()
    if foreign and not arguments.overwrite:
        raise ConfigError(
            f"--output {target} is there, and not from this command ({_kept(target).name} is not beside it): give "
            "another name, or --overwrite to replace it"
        )


def _read(arguments: argparse.Namespace) -> list[Preference]:
    """The records as people annotated them, though this command may have scored them before.

    Lists get no pairs, for those by their annotations would contradict the new scores.
    """
    from prefopt.judge.rewarded import as_given
    from prefopt.ledger import Ledger
    from prefopt.progress import say
    from prefopt.text.sources import load_preferences

    options = data_options(arguments)
    ledger = Ledger(arguments.file)
    records = load_preferences(
        arguments.file,
        split=options.split,
        columns=options.columns,
        ledger=ledger,
        pairing=None,
        limit=arguments.max_rows,
    ).preferences
    ledger.keep_undecided()
    for line in ledger.summary():
        say(line)
    return [as_given(record) for record in records]


def _load(name: str, arguments: argparse.Namespace) -> LoadedModel:
    from prefopt.models.load import load_model

    return load_model(name, _settings(arguments))


def _settings(arguments: argparse.Namespace) -> ModelSettings:
    import torch

    from prefopt.models.load import ModelSettings

    template = arguments.chat_template
    return ModelSettings(
        dtype=arguments.dtype,
        device=arguments.device or ("cuda" if torch.cuda.is_available() else "cpu"),
        chat_template=None if template is None else str(template),
    )


def _journal(target: Path) -> Journal:
    from prefopt.generate.journal import Journal
    from prefopt.text.whole import is_stream

    return Journal(":memory:" if is_stream(target) else _kept(target))


def _kept(target: Path) -> Path:
    """Where the log-probabilities of an output are kept."""
    return target.with_name(f"{target.name}.journal.sqlite")


def _write(
    target: Path,
    records: Sequence[Preference],
    scores: Mapping[str, Sequence[ImplicitScore]],
    reward: ImplicitReward,
    pairing: str | None,
) -> None:
    """The records in their order, whole or not at all; a pipe or device gets them one by one."""
    import json

    from prefopt.judge.rewarded import with_reward
    from prefopt.records import preference_to_json
    from prefopt.text.whole import write_whole

    def lines() -> Iterator[str]:
        for record in records:
            scored = with_reward(record, scores[record.id], reward, pairing=pairing)
            yield json.dumps(preference_to_json(scored), ensure_ascii=False) + "\n"

    write_whole(target, lines())


def _summary(
    records: Sequence[Preference], scores: Mapping[str, Sequence[ImplicitScore]]
) -> list[str]:
    """How many responses have a score, and how well the scores agree with what was there."""
    from collections import Counter

    from prefopt.judge.agreement import agreement_with_labels, agreement_with_pairs

    each = [score for found in scores.values() for score in found]
    missing = Counter(score.missing for score in each if score.missing)
    lines = [f"{len(each) - missing.total():,} of {len(each):,} responses have a score"]
    lines += [f"  no score: {why}: {count:,}" for why, count in missing.items()]
    rewards = {name: [score.reward for score in found] for name, found in scores.items()}
    pairs = agreement_with_pairs([_compared(record) for record in records], rewards)
    labels = agreement_with_labels(records, rewards)
    lines += _agreement("pairs: chosen scores higher than rejected", pairs)
    return lines + _agreement("labels: desirable just where the score is above 0", labels)


def _compared(record: Preference) -> Preference:
    """The record with its pairs, or with every two of a list that are annotated differently."""
    from dataclasses import replace

    from prefopt.text.pairing import pair_responses

    if record.pairs:
        return record
    return replace(record, pairs=pair_responses(record.responses, "all"))


def _agreement(title: str, found: Agreement) -> list[str]:
    if not found.total:
        return []
    low, high = found.interval
    rest = [f"{found.ties:,} ties"] if found.ties else []
    rest += [f"{found.missing:,} without a score, left out"] if found.missing else []
    remark = f" ({'; '.join(rest)})" if rest else ""
    share = f"{100 * found.right / found.total:.2f}% ({found.right:,} of {found.total:,})"
    return [f"{title}: {share}, 95% interval {100 * low:.2f}% to {100 * high:.2f}%{remark}"]
