"""SCDPO against DPO on as many pairs: accuracy and credit on both worlds, several seeds, learning rates tuned per arm.

    python recipes/scdpo/study.py --output study

A seed changes problems, samples, pairs and the order of training; the base model is the same. First every arm is
trained with every learning rate on seeds of their own (100, 101, ...) and the one with the best mean accuracy on their
validation problems is taken; then all arms are trained on the seeds 0, 1, ... and measured. Every arm has the same
number of optimiser steps and, except plain DPO, of pairs. Each line of results.jsonl is one cell; started again, the
script goes on where it stopped. At the end it prints the tables of README.md: means over seeds, and differences of arms
with Student's t on the seeds (95% intervals).
"""

from __future__ import annotations

import argparse
import shutil
import statistics
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from pairs import MIXTURES, Numbers, build_pairs, mixture
from probes import measure_probes
from tasks import GREEDY, CodeTask, Sizes, Task, TextTask, Writing, open_sandbox

from prefopt.config import parse
from prefopt.evals.cells import Cells, Row, difference_cells, mean_cell
from prefopt.generate.journal import Journal
from prefopt.methods.base import find_method
from prefopt.models.load import LoadedModel, load_model
from prefopt.records import JsonValue, Preference, write_preferences
from prefopt.runs.train import run_training

ARMS: Mapping[str, Sequence[str]] = {
    "text": ("SFT", *MIXTURES),
    "code": ("SFT", "DPO", "data-equal DPO", "SCDPO", "SCDPO, crossed tails"),
}
TITLES = {"text": "Chain of thought", "code": "Code-integrated"}
METHODS = {"SFT": "sft", "DPO": "dpo", "data-equal DPO": "dpo", "Step-DPO": "step_dpo"}
CONTRASTS = (
    ("SCDPO", "data-equal DPO"),
    ("SCDPO", "DPO"),
    ("data-equal DPO", "DPO"),
    ("DPO", "SFT"),
    ("SCDPO", "SCDPO, crossed tails"),
    ("SCDPO", "Step-DPO"),
)
COLUMNS = {
    "accuracy": "accuracy, %",
    "auroc": "AUROC",
    "lowest": "first wrong step lowest, %",
    "margin": "margin",
    "prefix": "log p of correct prefix",
}
PERCENT = {"accuracy", "lowest"}
TUNING_SEED = 100


def main() -> None:
    """Train and measure what is missing, then print."""
    arguments = parser().parse_args()
    torch.set_num_threads(1)
    arguments.output.mkdir(parents=True, exist_ok=True)
    rows = Cells(arguments.output / "results.jsonl")
    with Journal(arguments.output / "journal.sqlite") as journal, open_sandbox() as sandbox:
        tasks = {"text": TextTask(), "code": CodeTask(sandbox, journal)}
        for name in arguments.tasks:
            run_task(tasks[name], rows, arguments)
    text = tables(rows.of(final_keys(rows, arguments)))
    (arguments.output / "table.md").write_text(text, encoding="utf-8")
    print(text)


def parser() -> argparse.ArgumentParser:
    """The options."""
    found = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    found.add_argument("--output", type=Path, default=Path("study"))
    found.add_argument("--tasks", nargs="+", choices=ARMS, default=list(ARMS))
    found.add_argument("--arms", nargs="+", choices=ARMS["text"], default=list(ARMS["text"]))
    found.add_argument("--seeds", type=int, default=5)
    found.add_argument("--tuning-seeds", type=int, default=2)
    found.add_argument("--rates", type=float, nargs="+", default=[3e-5, 1e-4, 3e-4])
    found.add_argument("--beta", type=float, default=0.3)
    found.add_argument(
        "--naive", type=int, default=80, help="naive pairs of SCDPO, and of plain DPO"
    )
    found.add_argument("--controlled", type=int, default=120, help="controlled pairs of SCDPO")
    found.add_argument("--steps", type=int, default=25, help="of every arm")
    found.add_argument("--batch-size", type=int, default=16)
    found.add_argument(
        "--problems", type=int, default=400, help="problems that pairs are built from"
    )
    found.add_argument("--samples", type=int, default=6, help="solutions of each")
    found.add_argument("--attempts", type=int, default=4, help="tails per cut until one is wrong")
    found.add_argument(
        "--schedule", default="code", help="temperatures of tails: a preset or a number"
    )
    found.add_argument("--test-problems", type=int, default=500)
    found.add_argument("--probes", type=int, default=200, help="wrong solutions for credit")
    return found


def run_task(task: Task[Any], rows: Cells, arguments: argparse.Namespace) -> None:
    """The cells of one task: tuning, then the real ones at the rates that it found."""
    arms = [arm for arm in ARMS[task.name] if arm in arguments.arms]
    reference = load_model(task.base())
    rates = arguments.rates if len(arguments.rates) > 1 else []
    for number in range(arguments.tuning_seeds if rates else 0):
        for rate in rates:
            for arm in arms:
                if arm != "SFT":
                    run_missing(task, reference, rows, arguments, arm, TUNING_SEED + number, rate)
    for seed in range(arguments.seeds):
        for arm in arms:
            rate = best_rate(rows, arguments, task.name, arm)
            run_missing(task, reference, rows, arguments, arm, seed, rate)


def cell_key(arguments: argparse.Namespace, task: str, arm: str, seed: int, rate: float) -> Row:
    """Everything that decides a cell."""
    evaluation = {"test_problems": arguments.test_problems, "probes": arguments.probes}
    if arm == "SFT":
        return {"task": task, "arm": arm, "seed": seed, "beta": arguments.beta, **evaluation}
    training = ("beta", "naive", "controlled", "steps", "batch_size")
    data = ("problems", "samples", "attempts", "schedule")
    settings = {name: getattr(arguments, name) for name in (*training, *data)}
    cell = {"task": task, "arm": arm, "seed": seed, "learning_rate": rate}
    return {**cell, **settings, **evaluation}


def best_rate(rows: Cells, arguments: argparse.Namespace, task: str, arm: str) -> float:
    """The learning rate with the best mean accuracy on the tuning seeds; the smaller one of equals."""
    if arm == "SFT":
        return 0.0
    if len(arguments.rates) == 1:
        return arguments.rates[0]
    seeds = range(TUNING_SEED, TUNING_SEED + arguments.tuning_seeds)

    def accuracy(rate: float) -> float:
        found = rows.of([cell_key(arguments, task, arm, seed, rate) for seed in seeds])
        return statistics.fmean(row["accuracy"] for row in found) if found else 0.0

    return max(sorted(arguments.rates), key=accuracy)


def final_keys(rows: Cells, arguments: argparse.Namespace) -> list[Row]:
    """The cells of the tables."""
    return [
        cell_key(arguments, task, arm, seed, best_rate(rows, arguments, task, arm))
        for task in arguments.tasks
        for arm in ARMS[task]
        if arm in arguments.arms
        for seed in range(arguments.seeds)
    ]


def run_missing(  # noqa: PLR0917 - what decides a cell
    task: Task[Any],
    reference: LoadedModel,
    rows: Cells,
    arguments: argparse.Namespace,
    arm: str,
    seed: int,
    rate: float,
) -> None:
    """Add a cell to the file unless it is there."""
    key = cell_key(arguments, task.name, arm, seed, rate)
    if rows.has(key):
        return
    start = time.perf_counter()
    policy = reference
    if arm != "SFT":
        sizes = Sizes(
            arguments.problems, arguments.samples, arguments.attempts, seed, arguments.schedule
        )
        data = build_pairs(
            task, task.generator(reference), sizes, data_folder(arguments, task.name, sizes)
        )
        built = time.perf_counter()
        records = mixture(arm, data, Numbers(arguments.naive, arguments.controlled))
        policy = train(task, records, key)
    else:
        built = start
    trained = time.perf_counter()
    found = measure(task, policy, reference, key)
    seconds = {
        "build_seconds": round(built - start, 1),
        "train_seconds": round(trained - built, 1),
        "measure_seconds": round(time.perf_counter() - trained, 1),
    }
    rows.append({**key, **found, **seconds})
    print(line(rows.rows[-1]), flush=True)


def data_folder(arguments: argparse.Namespace, task: str, sizes: Sizes) -> Path:
    """Where the pairs of a seed lie."""
    return arguments.output / "data" / f"{task}-{'-'.join(map(str, sizes))}"


def train(task: Task[Any], records: Sequence[Preference], key: Row) -> LoadedModel:
    """The base model, trained on the pairs of an arm."""
    method = find_method(METHODS.get(key["arm"], "scdpo"))
    folder = Path(tempfile.mkdtemp())
    try:
        write_preferences(folder / "pairs.jsonl", records)
        recipe: dict[str, JsonValue] = {
            "method": method.name,
            "model_name_or_path": str(task.base()),
            "train_file": str(folder / "pairs.jsonl"),
            "output_dir": str(folder / "run"),
            "beta": key["beta"],
            "learning_rate": key["learning_rate"],
            "per_device_train_batch_size": key["batch_size"],
            "max_steps": key["steps"],
            "lr_scheduler_type": "linear",
            "warmup_ratio": 0.1,
            "max_length": 512,
            "save_strategy": "no",
            "seed": key["seed"],
        }
        return load_model(run_training(parse(recipe, method.config), method).model)
    finally:
        shutil.rmtree(folder)


def measure(task: Task[Any], policy: LoadedModel, reference: LoadedModel, key: Row) -> Row:
    """Greedy accuracy; for the seeds of the tables also credit, margins and the correct prefix."""
    problems = task.problems("test", key["test_problems"], key["seed"])
    writings = [Writing(problem) for problem in problems]
    done = task.write(writings, task.generator(policy), GREEDY, purpose="test")
    found: Row = {
        "accuracy": statistics.fmean(w.correct for w in done),
        "unreadable": statistics.fmean(not w.readable for w in done),
    }
    if key["seed"] >= TUNING_SEED:
        return found
    return {**found, **measure_probes(task, policy, reference, problems, key)}


def line(row: Row) -> str:
    """A cell for people."""
    rate = f"{row['learning_rate']:g}" if "learning_rate" in row else "-"
    values = "  ".join(f"{k} {row[k]:.3f}" for k in COLUMNS if row.get(k) is not None)
    seconds = [row[f"{stage}_seconds"] for stage in ("build", "train", "measure")]
    return (
        f"{row['task']:5} {row['arm']:21} seed {row['seed']:3} rate {rate:6} {values}  "
        f"({' + '.join(f'{s:.0f}' for s in seconds)} s)"
    )


def tables(rows: Sequence[Row]) -> str:
    """Markdown: what each arm reaches, then differences of arms paired over seeds."""
    parts: list[str] = []
    for task, title in TITLES.items():
        by_arm = {
            arm: {row["seed"]: row for row in rows if (row["task"], row["arm"]) == (task, arm)}
            for arm in ARMS[task]
        }
        by_arm = {arm: found for arm, found in by_arm.items() if found}
        if by_arm:
            parts += [f"**{title}**", "", *arm_table(by_arm), "", *contrast_table(by_arm), ""]
    return "\n".join(parts)


def arm_table(by_arm: Mapping[str, Mapping[int, Row]]) -> list[str]:
    """Mean over seeds and its standard error."""
    lines = [
        f"| arm | seeds | learning rate | {' | '.join(COLUMNS.values())} |",
        f"|{'---|' * (3 + len(COLUMNS))}",
    ]
    for arm, found in by_arm.items():
        first = next(iter(found.values()))
        rate = f"{first['learning_rate']:g}" if "learning_rate" in first else "-"
        cells = [
            mean_cell([row.get(k) for row in found.values()], scale=form(k)[0], digits=form(k)[1])
            for k in COLUMNS
        ]
        lines.append(f"| {arm} | {len(found)} | {rate} | {' | '.join(cells)} |")
    return lines


def contrast_table(by_arm: Mapping[str, Mapping[int, Row]]) -> list[str]:
    """Differences of two arms on the same seeds."""
    lines = [
        "| difference | accuracy, points | p | AUROC | p |",
        f"|{'---|' * 5}",
    ]
    for first, second in CONTRASTS:
        if first not in by_arm or second not in by_arm:
            continue
        seeds = sorted(by_arm[first].keys() & by_arm[second].keys())
        sides = [[by_arm[arm][seed] for seed in seeds] for arm in (first, second)]
        cells = [*difference(sides, "accuracy"), *difference(sides, "auroc")]
        lines.append(f"| {first} - {second} | {' | '.join(cells)} |")
    return lines


def difference(sides: Sequence[Sequence[Row]], column: str) -> tuple[str, str]:
    """The mean difference with its interval, and its p-value."""
    pairs = [(a.get(column), b.get(column)) for a, b in zip(*sides, strict=True)]
    there = [a - b for a, b in pairs if a is not None and b is not None]
    scale, digits = form(column)
    return difference_cells([scale * d for d in there], digits=digits)


def form(column: str) -> tuple[float, int]:
    """What a number is multiplied with, and its digits."""
    return (100, 1) if column in PERCENT else (1, 3)


if __name__ == "__main__":
    main()
