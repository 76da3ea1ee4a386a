"""Tables of the study of DICE: means over seeds by arm and round, and differences from the usual arm."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from prefopt.evals.cells import Row, difference_cells, mean_cell

POLICY = {
    "length": "length",
    "reward": "reward",
    "kl": "KL to SFT",
    "faithful": "faithful, %",
    "raw": "win rate, %",
    "length_controlled": "length-controlled, %",
    "true": "without the judge's bias, %",
}
REWARD = {
    "agreement": "agrees with the oracle, %",
    "longer": "prefers the longer, %",
    "agreement_sft": "to SFT: agrees, %",
    "longer_sft": "to SFT: the longer, %",
}
BUILD = {
    "alpha": "alpha, 1/1000",
    "gap_0": "gap at alpha 0",
    "gap": "gap",
    "margin": "margin",
    "pairs_right": "pairs that the oracle agrees with, %",
    "duplicates": "repeated answers, %",
}
TITLES = {
    "The policy": POLICY,
    "Its implicit reward on held-out pairs": REWARD,
    "The data of the round": BUILD,
}
SHARES = {*REWARD, "faithful", "pairs_right", "duplicates"}
COMPARED = ("length", "reward", "raw", "length_controlled", "true", "agreement_sft")
USUAL = "alpha auto"


def tables(by_arm: Mapping[str, Sequence[Row]]) -> str:
    """Markdown."""
    parts: list[str] = []
    for title, columns in TITLES.items():
        parts += [f"**{title}**", "", *arm_table(by_arm, columns), ""]
    if by_arm.get(USUAL):
        parts += ["**Differences after the last round**", "", *contrast_table(by_arm), ""]
    return "\n".join(parts)


def stages(rows: Sequence[Row]) -> dict[int, dict[int, Row]]:
    """By round and seed."""
    found: dict[int, dict[int, Row]] = {}
    for row in rows:
        for stage in row["stages"]:
            found.setdefault(stage["round"], {})[row["seed"]] = stage
    return found


def arm_table(by_arm: Mapping[str, Sequence[Row]], columns: Mapping[str, str]) -> list[str]:
    """Mean over seeds and its standard error; arms without any of the numbers are left out."""
    lines = [
        f"| arm | round | seeds | {' | '.join(columns.values())} |",
        f"|---|{'---:|' * (2 + len(columns))}",
    ]
    for arm, rows in by_arm.items():
        for number, found in sorted(stages(rows).items()):
            cells = [
                mean_cell(
                    [each.get(k) for each in found.values()], scale=form(k)[0], digits=form(k)[1]
                )
                for k in columns
            ]
            if set(cells) != {"-"}:
                lines.append(f"| {arm} | {number or ''} | {len(found)} | {' | '.join(cells)} |")
    return lines


def form(column: str) -> tuple[float, int]:
    """What a number is multiplied with, and its digits."""
    if column in SHARES:
        return 100, 1
    if column == "alpha":
        return 1000, 2
    return 1, 3 if column in {"reward", "kl", "margin"} else 1


def contrast_table(by_arm: Mapping[str, Sequence[Row]]) -> list[str]:
    """Differences from the usual arm on the same seeds, with p-values; its own is that from DPO."""
    names = {**POLICY, **REWARD}
    head = [cell for column in COMPARED for cell in (names[column], "p")]
    lines = [f"| difference | {' | '.join(head)} |", f"|---|{'---|---:|' * len(COMPARED)}"]
    pairs = [(USUAL, "DPO"), *((arm, USUAL) for arm in by_arm if arm not in {USUAL, "DPO", "SFT"})]
    for first, second in pairs:
        if by_arm.get(first) and by_arm.get(second):
            sides = last_stages(by_arm[first]), last_stages(by_arm[second])
            cells = [difference(*sides, column) for column in COMPARED]
            lines.append(f"| {first} - {second} | {' | '.join(cells)} |")
    return lines


def last_stages(rows: Sequence[Row]) -> dict[int, Row]:
    """What is there after the last round, by seed."""
    return {row["seed"]: row["stages"][-1] for row in rows}


def difference(first: Mapping[int, Row], second: Mapping[int, Row], column: str) -> str:
    """The mean difference with its interval, and its p-value."""
    scale, digits = form(column)
    shared = [s for s in sorted(first) if column in first[s] and column in second.get(s, {})]
    gaps = [scale * (first[seed][column] - second[seed][column]) for seed in shared]
    return " | ".join(difference_cells(gaps, digits=digits))
