"""`prefopt winrate`: win rates of judged models, of one over another, and a ranking."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import argparse
    from collections.abc import Sequence

    from prefopt.evals.pairings import Pairing
    from prefopt.evals.standings import Standing
    from prefopt.evals.winrates import Comparisons
    from prefopt.grade.bradley_terry import Ranking
    from prefopt.grade.winrate import WinRate

NAME = "winrate"
HELP = """\
Win rates of judged models: each against the baseline, one over another, and a ranking.

  prefopt winrate judgements/dpo-against-base                                     what `prefopt judge --against` wrote
  prefopt winrate judgements/dpo-against-base judgements/dice-against-base        and which of the two is better
  prefopt winrate annotations.json --gamed df_gamed.csv --difficulty instruction_difficulty.csv      AlpacaEval's number

Nobody is asked anything. Models are compared on the prompts on which both have a verdict of the same judge, against the
same baseline, and ranked on those on which all have one."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare what was judged and AlpacaEval's files."""
    parser.add_argument(
        "judged",
        nargs="+",
        type=Path,
        metavar="JUDGED",
        help="folders of `prefopt judge --against`, or AlpacaEval's annotations.json",
    )
    parser.add_argument(
        "--gamed", type=Path, metavar="FILE", help="AlpacaEval's df_gamed.csv, for its LC win rate"
    )
    parser.add_argument(
        "--difficulty",
        type=Path,
        metavar="FILE",
        help="AlpacaEval's instruction_difficulty.csv, for win rates of one model over another",
    )
    parser.add_argument("--anchor", metavar="NAME", help="the model that is rated 1000 (the mean)")
    parser.add_argument(
        "--prior",
        type=float,
        default=0.0,
        metavar="N",
        help="ties added to each pair that met, for a model that never lost (0)",
    )
    parser.add_argument(
        "--mixed-judges",
        action="store_true",
        help="compare models although judges, their settings or the order of answers differ",
    )
    parser.add_argument("--output", type=Path, metavar="FILE", help="write the numbers as JSON")


def run(arguments: argparse.Namespace) -> int:
    """Read, compute, print and maybe write; returns 0."""
    import json

    from prefopt.evals.entrants import read_entrants
    from prefopt.evals.standings import read_length_data
    from prefopt.evals.winrates import compare_entrants
    from prefopt.text.whole import write_whole

    found = compare_entrants(
        read_entrants(arguments.judged),
        read_length_data(arguments.gamed, arguments.difficulty),
        anchor=arguments.anchor,
        prior=arguments.prior,
        mixed=arguments.mixed_judges,
    )
    print("\n".join(_lines(found)))
    if arguments.output is not None:
        files = {
            "gamed": None if arguments.gamed is None else str(arguments.gamed),
            "difficulty": None if arguments.difficulty is None else str(arguments.difficulty),
        }
        text = json.dumps({**found.to_json(), "files": files}, indent=1, ensure_ascii=False)
        write_whole(arguments.output, f"{text}\n")
        print(f"results: {arguments.output}")
    return 0


def _lines(found: Comparisons) -> list[str]:
    lines = [f"against {found.baseline}, in percent with 95% intervals:", *_table(found.standings)]
    for standing in found.standings:
        lines += [f"{standing.entrant.name}: {note}" for note in _notes(standing)]
    if found.pairings:
        above = {f"{s.entrant.name}: {remark}" for s in found.standings for remark in s.remarks}
        lines += ["", "one over another, on the prompts that both were judged on:"]
        for pairing in found.pairings:
            lines.append(f"  {_pairing(pairing)}")
            lines += [f"    length-controlled: {r}" for r in pairing.remarks if r not in above]
            if above.intersection(pairing.remarks):
                lines.append(
                    "    length-controlled: the remarks on each model above hold here, too"
                )
    if found.ranking is not None:
        lines += ["", *_ranking(found.ranking)]
    if found.remarks:
        lines += ["", *found.remarks]
    return lines


def _table(standings: Sequence[Standing]) -> list[str]:
    rows = [["model", "win rate", "adjusted for position", "length-controlled", "characters"]]
    for standing in standings:
        controlled = standing.controlled
        interval = None if controlled is None else controlled.interval
        rows.append(
            [
                standing.entrant.name,
                _rate(standing.raw),
                _rate(standing.adjusted),
                "50.0"
                if standing.entrant.itself
                else "-"
                if controlled is None or interval is None
                else _spanned(controlled.value, interval.low, interval.high),
                f"{standing.lengths[0]:.0f} / {standing.lengths[1]:.0f}",
            ]
        )
    return _aligned(rows)


def _aligned(rows: Sequence[Sequence[str]]) -> list[str]:
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return [
        "  "
        + "  ".join(f"{cell:<{width}}" for cell, width in zip(row, widths, strict=True)).rstrip()
        for row in rows
    ]


def _rate(rate: WinRate | None) -> str:
    return "-" if rate is None else _spanned(rate.value, rate.low, rate.high)


def _spanned(value: float, low: float, high: float) -> str:
    return f"{value:.1f} ({low:.1f} to {high:.1f})"


def _notes(standing: Standing) -> list[str]:
    """Counts, and what a reader should know of the length-controlled rate."""
    notes: list[str] = []
    if standing.raw is not None:
        raw = standing.raw
        missing = f", {raw.missing:,} missing" if raw.missing else ""
        notes.append(f"{raw.wins:,} won, {raw.ties:,} drawn, {raw.losses:,} lost{missing}")
    if standing.adjusted is not None:
        notes[-1] += f"; {standing.adjusted.inconsistent:,} changed with the order"
    if standing.entrant.left_out:
        notes.append(f"{standing.entrant.left_out:,} rows were not judged")
    return [*notes, *(f"length-controlled: {remark}" for remark in standing.remarks)]


def _pairing(pairing: Pairing) -> str:
    name = f"{pairing.second} over {pairing.first} ({pairing.shared:,} prompts"
    name += f", {pairing.apart:,} only in one)" if pairing.apart else ")"
    found = pairing.difference
    if found is None:
        return f"{name}: no prompt has verdicts for both"
    missing = f"; {found.missing:,} verdicts are missing for one or both" if found.missing else ""
    text = (
        f"{name}: {found.value:+.1f} points ({found.low:+.1f} to {found.high:+.1f}); better on {found.better:,}, "
        f"worse on {found.worse:,}, equal on {found.equal:,}; p = {found.p:.2g} (sign test)"
    )
    if pairing.controlled is not None:
        value, interval, _ = pairing.controlled
        rate = f"{value:.1f}" if interval is None else _spanned(value, *interval)
        text += f"; length-controlled win rate {rate}"
    return text + missing


def _ranking(ranking: Ranking) -> list[str]:
    rows = [["rating", "95% interval", "verdicts", "model"]]
    rows += [
        [f"{s.elo:.0f}", f"{s.low:.0f} to {s.high:.0f}", f"{s.matches:,}", name]
        for name, s in ranking.models.items()
    ]
    lines = ["ranking (Bradley-Terry, on the scale of Elo):", *_aligned(rows)]
    if ranking.unbounded:
        lines.append(
            f"  {ranking.unbounded:,} resamples have no rating (a model won or lost everything) and are not in the "
            "intervals, which are too narrow; give --prior 1"
        )
    return lines
