"""DPO against ODPO on the reviews world: the frontier of reward against KL over beta, data size and seed.

    python recipes/odpo/frontier.py --output frontier

A seed changes prompts, samples and the order of training; the base model is the same. Each line of results.jsonl is one
trained policy; started again, the script goes on where it stopped. When all are there it draws frontier.png and
prints the tables of README.md: the share of each arm in the Pareto points of a seed, and the reward at a fixed KL
with its difference from DPO, paired over seeds (95% bootstrap interval).
"""

from __future__ import annotations

import argparse
import shutil
import statistics
import tempfile
import time
from collections.abc import Mapping, Sequence
from itertools import product
from pathlib import Path

import torch
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from prefopt.config import parse
from prefopt.evals.cells import Cells, Row
from prefopt.evals.frontier import FrontierPoint, measure, pareto, reward_at
from prefopt.generate.base import Sampling
from prefopt.generate.local import LocalGenerator
from prefopt.grade.statistics import paired_bootstrap
from prefopt.methods.base import find_method
from prefopt.models.load import LoadedModel, load_model
from prefopt.records import JsonValue, write_preferences
from prefopt.runs.base_model import base_model
from prefopt.runs.train import run_training
from prefopt.worlds.reviews import ReviewWorld
from prefopt.worlds.scored import first_two, scored_samples

ARMS: Mapping[str, dict[str, JsonValue]] = {
    "dpo": {"method": "dpo"},
    "odpo log 0.5": {"method": "odpo", "offset": "log", "alpha": 0.5},
    "odpo log 1": {"method": "odpo", "offset": "log", "alpha": 1.0},
    "odpo difference": {"method": "odpo", "offset": "difference", "alpha": 1.0},
    "odpo log_ratio": {"method": "odpo", "offset": "log_ratio", "alpha": 1.0},
}
COLOURS = ("#222222", "#e08a00", "#c2185b", "#1976d2", "#2e9e5b")
MAX_NEW_TOKENS = 48
SPARE = 1.1
"""Prompts sampled for each pair that is wanted: two equal scores make none."""


def main() -> None:
    """Train and measure what is missing, then draw and print."""
    arguments = parser().parse_args()
    torch.set_num_threads(1)
    arguments.output.mkdir(parents=True, exist_ok=True)
    rows = Cells(arguments.output / "results.jsonl")
    world = ReviewWorld()
    base = base_model(world, find_method("sft"))
    cells = [("base", 0, 0.0), *product(arguments.arms, arguments.pairs, arguments.betas)]
    for seed in range(arguments.seeds):
        for arm, pairs, beta in cells:
            key = cell_key(arguments, arm, pairs, beta, seed)
            if not rows.has(key):
                rows.append({**key, **run_cell(world, base, key)})
                print(line(rows.rows[-1]), flush=True)
    wanted = [cell_key(arguments, *cell, seed) for cell in cells for seed in range(arguments.seeds)]
    found = rows.of(wanted)
    draw(found, arguments.pairs, arguments.output / "frontier.png")
    table = tables(found, arguments.pairs, arguments.at)
    (arguments.output / "table.md").write_text(table, encoding="utf-8")
    print(table)


def parser() -> argparse.ArgumentParser:
    """The options."""
    found = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    found.add_argument("--output", type=Path, default=Path("frontier"))
    found.add_argument("--seeds", type=int, default=5)
    found.add_argument("--arms", nargs="+", choices=ARMS, default=list(ARMS))
    found.add_argument("--pairs", type=int, nargs="+", default=[50, 400])
    found.add_argument(
        "--betas", type=float, nargs="+", default=[0.1, 1.0, 2.0, 3.0, 5.5, 10.0, 17.0, 30.0]
    )
    found.add_argument("--steps", type=int, default=60)
    found.add_argument("--batch-size", type=int, default=16)
    found.add_argument("--learning-rate", type=float, default=5e-4)
    found.add_argument("--prompts", type=int, default=128, help="test prompts")
    found.add_argument("--samples", type=int, default=4, help="samples of each")
    found.add_argument("--at", type=float, nargs="+", default=[0.2, 0.5, 1.0], help="KLs (nats)")
    return found


def cell_key(arguments: argparse.Namespace, arm: str, pairs: int, beta: float, seed: int) -> Row:
    """Everything that decides a cell."""
    evaluation = {"prompts": arguments.prompts, "samples": arguments.samples}
    training = {
        "steps": arguments.steps,
        "batch_size": arguments.batch_size,
        "learning_rate": arguments.learning_rate,
    }
    cell = {"arm": arm, "pairs": pairs, "beta": beta, "seed": seed, **evaluation}
    return cell if arm == "base" else {**cell, **training}


def run_cell(world: ReviewWorld, base: Path, key: Row) -> Row:
    """Train one policy and measure it."""
    start = time.perf_counter()
    reference = load_model(base)
    folder = Path(tempfile.mkdtemp())
    try:
        model = base if key["arm"] == "base" else train(world, base, reference, key, folder)
        policy = load_model(model)
    finally:
        shutil.rmtree(folder)
    trained = time.perf_counter()
    prompts = world.prompts("test", int(key["prompts"]), seed=int(key["seed"]))
    found = measure(
        policy.model,
        reference.model,
        reference.tokenizer,
        prompts=prompts,
        score=world.score,
        sampling=Sampling(
            temperature=1.0, max_new_tokens=MAX_NEW_TOKENS, purpose="test", seed=int(key["seed"])
        ),
        samples=int(key["samples"]),
    )
    asked = {prompt.id: prompt for prompt in prompts}
    faithful = [world.is_faithful(asked[c.id], c.text) for c in found.completions]
    kl = found.kl._asdict()
    del kl["per_sample"]
    return {
        "reward": list(found.reward),
        "kl": kl,
        "faithful": statistics.mean(faithful),
        "train_seconds": round(trained - start, 2),
        "measure_seconds": round(time.perf_counter() - trained, 2),
    }


def train(
    world: ReviewWorld,
    base: Path,
    reference: LoadedModel,
    key: Row,
    folder: Path,
) -> Path:
    """The model folder of a policy trained on the first pairs of its seed; smaller data are part of larger."""
    wanted, seed = int(key["pairs"]), int(key["seed"])
    records = scored_samples(
        world.prompts("preference", round(SPARE * wanted) + 10, seed=seed),
        LocalGenerator(reference.model, reference.tokenizer, batch_size=512),
        world.score,
        samples=2,
        sampling=Sampling(
            temperature=1.0, max_new_tokens=MAX_NEW_TOKENS, purpose="pairs", seed=seed
        ),
    )
    data = first_two(records)
    if len(data.records) < wanted:
        raise SystemExit(f"{len(data.records)} pairs, {wanted} are wanted: raise SPARE")
    write_preferences(folder / "pairs.jsonl", data.records[:wanted])
    arm = ARMS[str(key["arm"])]
    method = find_method(str(arm["method"]))
    recipe: dict[str, JsonValue] = {
        **arm,
        "model_name_or_path": str(base),
        "train_file": str(folder / "pairs.jsonl"),
        "output_dir": str(folder / "run"),
        "beta": key["beta"],
        "learning_rate": key["learning_rate"],
        "per_device_train_batch_size": key["batch_size"],
        "max_steps": key["steps"],
        "lr_scheduler_type": "linear",
        "warmup_ratio": 0.1,
        "max_length": 128,
        "save_strategy": "no",
        "seed": seed,
    }
    return run_training(parse(recipe, method.config), method).model


def point(row: Row) -> FrontierPoint:
    """Where a policy stands."""
    return FrontierPoint(row["kl"]["mean"], row["reward"][0])


def line(row: Row) -> str:
    """A cell for people."""
    reward, low, high = row["reward"]
    kl = row["kl"]
    return (
        f"{row['arm']:16} {row['pairs']:4} pairs  beta {row['beta']:<5g} seed {row['seed']}  "
        f"reward {reward:.3f} ({low:.3f} to {high:.3f})  KL {kl['mean']:.3f} ({kl['low']:.3f} to {kl['high']:.3f})  "
        f"k1 {kl['k1']:.2f}  k3 {kl['k3']:.2f}  {row['train_seconds'] + row['measure_seconds']:.1f} s"
    )


def curves(rows: Sequence[Row], pairs: int) -> dict[str, dict[int, list[FrontierPoint]]]:
    """Points by arm and seed for one data size; the base model is the start of every curve."""
    start = {row["seed"]: point(row) for row in rows if row["arm"] == "base"}
    arms: dict[str, dict[int, list[FrontierPoint]]] = {}
    for row in rows:
        if row["pairs"] == pairs and row["arm"] != "base":
            by_seed = arms.setdefault(row["arm"], {})
            by_seed.setdefault(row["seed"], [start[row["seed"]]]).append(point(row))
    return {arm: arms[arm] for arm in ARMS if arm in arms}


def tables(rows: Sequence[Row], sizes: Sequence[int], at: Sequence[float]) -> str:
    """Markdown."""
    head = ["pairs", "arm", "Pareto share", *(f"reward at KL {kl:g} | minus DPO" for kl in at)]
    lines = [f"| {' | '.join(head)} |", f"|{'---|' * (3 + 2 * len(at))}"]
    nulls: list[str] = []
    for pairs in sizes:
        arms = curves(rows, pairs)
        shares = pareto_shares(arms)
        for arm, by_seed in arms.items():
            cells = [cell for kl in at for cell in reward_cells(by_seed, arms.get("dpo", {}), kl)]
            lines.append(f"| {pairs} | {arm} | {shares[arm]:.2f} | {' | '.join(cells)} |")
        nulls += [f"{interpolation(arms['dpo'], kl):.3f}" for kl in at if "dpo" in arms]
    note = f"What interpolation alone can do (DPO read at every other beta, row by row): {', '.join(nulls)}."
    return "\n".join([*lines, "", note]) + "\n"


def interpolation(by_seed: Mapping[int, list[FrontierPoint]], kl: float) -> float:
    """The difference between two readings of the same curve, each at half of its points; mean over seeds."""
    found: list[float] = []
    for start, *points in by_seed.values():
        ordered = sorted(points)
        halves = [reward_at([start, *ordered[k::2]], kl) for k in (0, 1)]
        if None not in halves:
            found.append(halves[0] - halves[1])
    return abs(statistics.mean(found)) if found else float("nan")


def reward_cells(
    by_seed: Mapping[int, list[FrontierPoint]],
    baseline: Mapping[int, list[FrontierPoint]],
    kl: float,
) -> tuple[str, str]:
    """Mean reward at a KL over the seeds that reach it, and the paired difference from the baseline."""
    rewards = {s: r for s, points in by_seed.items() if (r := reward_at(points, kl)) is not None}
    others = {s: r for s, points in baseline.items() if (r := reward_at(points, kl)) is not None}
    if not rewards:
        return "-", "-"
    mean = f"{statistics.mean(rewards.values()):.3f} (n = {len(rewards)})"
    shared = sorted(rewards.keys() & others.keys())
    if not shared or by_seed is baseline:
        return mean, "-"
    found = paired_bootstrap([others[s] for s in shared], [rewards[s] for s in shared])
    return mean, f"{found.value:+.3f} ({found.low:+.3f} to {found.high:+.3f})"


def pareto_shares(arms: Mapping[str, Mapping[int, list[FrontierPoint]]]) -> dict[str, float]:
    """The part of each arm in the Pareto points of a seed, averaged over seeds; the base model is left out."""
    shares: dict[str, list[float]] = {arm: [] for arm in arms}
    for seed in sorted({seed for by_seed in arms.values() for seed in by_seed}):
        owned = [(arm, p) for arm, by_seed in arms.items() for p in by_seed.get(seed, [])[1:]]
        front = [
            arm for (arm, _), on in zip(owned, pareto([p for _, p in owned]), strict=True) if on
        ]
        for arm in arms:
            shares[arm].append(front.count(arm) / len(front))
    return {arm: statistics.mean(values) for arm, values in shares.items()}


def center(points: Sequence[FrontierPoint]) -> FrontierPoint:
    """The mean of some points."""
    return FrontierPoint(*(statistics.mean(values) for values in zip(*points, strict=True)))


def draw(rows: Sequence[Row], sizes: Sequence[int], path: Path) -> None:
    """Reward against KL: a panel for each data size, a colour for each arm, a dot for each policy.

    Lines join the means over seeds of each beta.
    """
    figure = Figure(figsize=(5.2 * len(sizes), 4.2), layout="constrained")
    FigureCanvasAgg(figure)
    for axes, pairs in zip(figure.subplots(1, len(sizes), squeeze=False)[0], sizes, strict=True):
        for arm, colour in zip(ARMS, COLOURS, strict=True):
            by_beta: dict[float, list[FrontierPoint]] = {}
            for row in rows:
                if (row["arm"], row["pairs"]) == (arm, pairs):
                    by_beta.setdefault(row["beta"], []).append(point(row))
            if not by_beta:
                continue
            points = [p for found in by_beta.values() for p in found]
            axes.scatter(*zip(*points, strict=True), s=12, color=colour, alpha=0.45, linewidths=0)
            means = [center(found) for found in by_beta.values()]
            axes.plot(*zip(*sorted(means), strict=True), color=colour, linewidth=1.5, label=arm)
        axes.set_title(f"{pairs} pairs")
        axes.set_xlabel("KL(policy || reference), nats")
        axes.set_ylabel("mean reward")
        axes.grid(alpha=0.3)
        axes.legend(frameon=False, fontsize=8)
    figure.savefig(path, dpi=150)


if __name__ == "__main__":
    main()
