"""`prefopt analyse credit`: which tokens of a response a trained policy rewards."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from prefopt.cli._credit import find_betas, stored
from prefopt.cli._data import add_render_arguments, data_options, render_settings

if TYPE_CHECKING:
    import argparse
    from collections.abc import Mapping, Sequence

    from prefopt.analysis.credit import CreditText
    from prefopt.analysis.tokens import FloatArray
    from prefopt.records import Preference
    from prefopt.values import JsonValue

NAME = "analyse"
HELP = """\
Look into trained models: `prefopt analyse credit FILE --policy P --reference R`.

credit: the implicit reward of every token of a response as a heat map (HTML) and, where the wrong step or
characters are known, as numbers."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the analyses."""
    verbs = parser.add_subparsers(dest="action", metavar="credit", required=True)
    credit = verbs.add_parser(
        "credit", help="token rewards: heat map, AUROC of the error span", allow_abbrev=False
    )
    credit.add_argument(
        "file", metavar="FILE", help="records: data file, folder saved by datasets, or hub id"
    )
    credit.add_argument(
        "--policy",
        metavar="FOLDER",
        action="append",
        required=True,
        help="trained model or run folder; repeat it to compare several",
    )
    credit.add_argument(
        "--reference", metavar="FOLDER", required=True, help="model that training started from"
    )
    credit.add_argument(
        "--name",
        metavar="NAME",
        action="append",
        default=[],
        help="what a policy is called, in their order (default: its folder)",
    )
    credit.add_argument(
        "--beta",
        type=float,
        action="append",
        default=[],
        metavar="X",
        help="of training: one for all policies, or one for each (that of the run folder, else 0.1)",
    )
    credit.add_argument(
        "--response",
        default="rejected",
        choices=["rejected", "chosen", "all"],
        help="which responses of the records (rejected)",
    )
    credit.add_argument(
        "-o", "--output", metavar="DIR", type=Path, default=Path("credit"), help="folder (credit)"
    )
    credit.add_argument(
        "--overwrite",
        action="store_true",
        help="replace results that were made with other settings",
    )
    credit.add_argument("--max-rows", type=int, metavar="N", help="only the first N records")
    credit.add_argument(
        "--batch-size", type=int, default=16, metavar="N", help="responses run together (16)"
    )
    _add_reading(credit)


def _add_reading(parser: argparse.ArgumentParser) -> None:
    """How records are read and models loaded."""
    parser.add_argument("--split", default="train", help="split of a saved or hub data set (train)")
    parser.add_argument(
        "--column",
        metavar="ROLE=NAME",
        action="append",
        default=[],
        help="what a column means, e.g. chosen=better; may be repeated",
    )
    add_render_arguments(parser)
    parser.add_argument("--device", help="cpu, cuda, ... (default: cuda where there is one)")
    parser.add_argument(
        "--dtype", default="float32", help="float32, bfloat16, float16 or auto (float32)"
    )


def run(arguments: argparse.Namespace) -> int:
    """Score, write page and numbers, print a summary; returns 0."""
    from prefopt.analysis.credit import ResponseCredit, credit_texts
    from prefopt.analysis.earlier import require_replaceable, require_writable
    from prefopt.analysis.heatmap import write_credit
    from prefopt.models.load import load_tokenizer
    from prefopt.models.quiet import quiet_transformers
    from prefopt.progress import say

    _check(arguments)
    folders = [model_folder(folder) for folder in [arguments.reference, *arguments.policy]]
    names = _names(arguments.policy, arguments.name)
    betas = find_betas(arguments.policy, names, arguments.beta)
    settings = stored(arguments, names, betas)
    require_writable(arguments.output)
    require_replaceable(arguments.output, settings, overwrite=arguments.overwrite)
    records = _read(arguments)
    tokenizer = load_tokenizer(folders[1], chat_template=arguments.chat_template)
    texts = credit_texts(
        records, tokenizer, which=arguments.response, render=render_settings(arguments)
    )
    with quiet_transformers():
        before, *after = [
            _logps(folder, name, tokenizer.get_vocab(), texts, arguments)
            for folder, name in zip(folders, ["reference", *names], strict=True)
        ]
    policies = {
        name: [ResponseCredit(*x, beta) for x in zip(texts, logps, before, strict=True)]
        for name, beta, logps in zip(names, betas, after, strict=True)
    }
    files = write_credit(
        arguments.output,
        policies,
        reference=str(arguments.reference),
        source=str(arguments.file),
        settings=settings,
    )
    _print_numbers(files.facts)
    say(f"wrote {files.page}, {files.rows.name} and {files.numbers.name}")
    print(files.page)
    return 0


def _check(arguments: argparse.Namespace) -> None:
    from prefopt.errors import ConfigError

    for option in ("max_rows", "batch_size"):
        value = getattr(arguments, option)
        if value is not None and value < 1:
            raise ConfigError(f"--{option.replace('_', '-')} {value}: give 1 or more")
    for beta in arguments.beta:
        if not 0 < beta < float("inf"):
            raise ConfigError(f"--beta {beta}: give a number above 0, that of the training")
    if len(arguments.beta) not in {0, 1, len(arguments.policy)}:
        raise ConfigError(
            f"{len(arguments.beta)} --beta for {len(arguments.policy)} --policy; give one for each, one for all, or "
            "none"
        )


def model_folder(given: str) -> str:
    """The model of a run folder (`RUN/model`), or what was given."""
    inner = Path(given) / "model"
    is_run = not (Path(given) / "config.json").is_file() and inner.is_dir()
    return str(inner) if is_run else given


def _names(policies: Sequence[str], given: Sequence[str]) -> list[str]:
    """What the policies are called: as given, else by their folders, made different."""
    from prefopt.errors import ConfigError

    if given and len(given) != len(policies):
        raise ConfigError(
            f"{len(given)} --name for {len(policies)} --policy; give one for each, or none"
        )
    names = list(given) or [_folder_name(policy) for policy in policies]
    if len(set(names)) < len(names):
        raise ConfigError(f"two policies are called {max(names, key=names.count)!r}; use --name")
    return names


def _folder_name(policy: str) -> str:
    path = Path(policy).absolute()
    return path.parent.name if path.name == "model" else path.name


def _read(arguments: argparse.Namespace) -> list[Preference]:
    from prefopt.ledger import Ledger
    from prefopt.progress import say
    from prefopt.text.sources import load_preferences

    arguments.pairing = "best_vs_rest"
    options = data_options(arguments)
    ledger = Ledger(arguments.file)
    records = load_preferences(
        arguments.file,
        split=options.split,
        columns=options.columns,
        ledger=ledger,
        pairing=options.pairing,
        limit=arguments.max_rows,
    ).preferences
    ledger.keep_undecided()
    for line in ledger.summary():
        say(line)
    return records


def _logps(
    folder: str,
    name: str,
    vocabulary: Mapping[str, int],
    texts: Sequence[CreditText],
    arguments: argparse.Namespace,
) -> list[FloatArray]:
    """Log-probabilities under one model, which is gone from memory afterwards."""
    import torch

    from prefopt.analysis.credit import text_logps
    from prefopt.errors import ModelError
    from prefopt.models.load import ModelSettings, load_model
    from prefopt.progress import counted

    device = arguments.device or ("cuda" if torch.cuda.is_available() else "cpu")
    loaded = load_model(folder, ModelSettings(dtype=arguments.dtype, device=device))
    if loaded.tokenizer.get_vocab() != vocabulary:
        raise ModelError(
            f"{folder} has another vocabulary than the first policy; credit compares models of one tokenizer"
        )
    with counted(f"scoring {name}") as progress:
        return text_logps(loaded.model, texts, batch_size=arguments.batch_size, progress=progress)


def _print_numbers(facts: Mapping[str, JsonValue]) -> None:
    """The main lines of `credit.json`."""
    from prefopt.values import read_object

    for name, values in read_object(facts["policies"], "policies", "credit.json").items():
        numbers = read_object(values, name, "credit.json")
        print(f"{name}: {numbers['responses']} responses, error known in {numbers['located']}")
        if not numbers["located"]:
            continue
        chance = f"   by chance {_shown(numbers['random_rank'])}" if numbers["random_rank"] else ""
        print(f"  AUROC of -r   {_shown(numbers['auroc'])}   by chance 0.500")
        print(f"  all together  {_shown(numbers['auroc_pooled'])}   by chance 0.500")
        print(f"  rank by sum   {_shown(numbers['sum_rank'])}{chance}")
        print(f"  rank by mean  {_shown(numbers['mean_rank'])}{chance}")
    comparisons = facts["comparisons"]
    for item in comparisons if isinstance(comparisons, list) else []:
        pair = read_object(item, "comparisons", "credit.json")
        difference = _shown(pair["auroc_difference"])
        print(f"AUROC of {pair['second']} minus {pair['first']}, paired: {difference}")
    remarks = read_object(facts["responses_without_span"], "remarks", "credit.json")
    for remark, count in remarks.items():
        print(f"no error span in {count}: {remark}")


def _shown(value: JsonValue) -> str:
    if isinstance(value, dict):
        return f"{_shown(value['value'])} ({_shown(value['low'])} to {_shown(value['high'])})"
    return f"{value:.3f}" if isinstance(value, int | float) else "-"
