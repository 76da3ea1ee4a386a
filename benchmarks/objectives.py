"""One training step with each objective: same pairs, model and settings, time relative to DPO.

    python benchmarks/objectives.py --output benchmarks/results/objectives-cpu.json
    python benchmarks/objectives.py --objectives kto tdpo --rounds 3

Every objective trains by the ordinary recipe route (`method: dpo` with its `loss_type`). Timed is the loop's own
time of a whole optimiser step, from collating the batch to the update, without the first step of a run; the cached
reference is scored before. Objectives take turns, round after round, each round in another order and with DPO at both
ends; an objective's relative time is the median over rounds of its time over DPO's in that round.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import random
import statistics
import tempfile
from pathlib import Path

from shapes import make_model, make_records
from vs_trl import machine

from prefopt.methods.base import find_method
from prefopt.objectives import find_objective, needs_of, objective_names
from prefopt.runs.train import run_training

BASE = "dpo"


def main() -> None:
    """Run all rounds, print the table, write the JSON."""
    arguments = parse_arguments()
    names = [BASE, *(name for name in arguments.objectives if name != BASE)]
    with tempfile.TemporaryDirectory() as temporary:
        work = Path(temporary)
        make_model(work / "model", hidden=arguments.hidden, layers=arguments.layers)
        write_pairs(work / "pairs.jsonl", arguments.records * arguments.steps)
        rounds = [one_round(names, number, arguments, work) for number in range(arguments.rounds)]
    results = {name: summary(name, rounds) for name in names}
    for name, result in sorted(results.items(), key=lambda item: item[1]["relative_to_dpo"]):
        print(f"{name:18} {result['seconds_per_step']:8.4f} s  {result['relative_to_dpo']:5.2f}x")
    if arguments.output:
        facts = {
            "machine": machine(arguments.device, ("prefopt", "torch", "transformers")),
            "settings": {
                k: v for k, v in vars(arguments).items() if k not in {"output", "objectives"}
            },
            "objectives": results,
        }
        Path(arguments.output).write_text(json.dumps(facts, indent=1) + "\n", encoding="utf-8")


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    names = objective_names()
    parser.add_argument("--objectives", nargs="+", default=names, choices=names, metavar="NAME")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--steps", type=int, default=4, help="per run, the first not timed")
    parser.add_argument("--records", type=int, default=4, help="per step")
    parser.add_argument("--micro-batches", type=int, default=1, help="per step")
    parser.add_argument("--device", default="cpu", choices=("cpu", "cuda"))
    parser.add_argument("--hidden", type=int, default=256)
    parser.add_argument("--layers", type=int, default=4)
    parser.add_argument("--output", help="JSON file for the results")
    return parser.parse_args()


def write_pairs(path: Path, count: int) -> None:
    """Pairs with everything that some objective needs: scores and a margin. The separating space is the response's."""
    with path.open("w", encoding="utf-8") as file:
        for number, record in enumerate(make_records("plain", count)):
            row = {
                "prompt": record.prompt,
                "chosen": " " + record.responses[0],
                "rejected": " " + record.responses[1],
                "score_chosen": 2.0 + number % 3,
                "score_rejected": 1.0,
                "margin": 0.5,
            }
            file.write(json.dumps(row) + "\n")


def one_round(
    names: list[str], number: int, arguments: argparse.Namespace, work: Path
) -> dict[str, list[float]]:
    """Seconds of every timed step by objective, DPO at both ends and the others shuffled between."""
    others = names[1:]
    random.Random(number).shuffle(others)
    seconds: dict[str, list[float]] = {}
    for turn, name in enumerate([BASE, *others, BASE]):
        seconds.setdefault(name, []).extend(train(name, f"{number}-{turn}", arguments, work))
    print(f"round {number + 1} of {arguments.rounds}", flush=True)
    return seconds


def train(name: str, run: str, arguments: argparse.Namespace, work: Path) -> list[float]:
    """Seconds per step of a short run, without its first step."""
    method = find_method("dpo")
    folder = work / f"{name}-{run}"
    config = method.config(
        method="dpo",
        loss_type=[name],
        model_name_or_path=str(work / "model"),
        train_file=str(work / "pairs.jsonl"),
        output_dir=str(folder),
        cache_dir=str(work / "cache"),
        max_length=2048,
        learning_rate=1e-6,
        lr_scheduler_type="constant",
        per_device_train_batch_size=arguments.records // arguments.micro_batches,
        gradient_accumulation_steps=arguments.micro_batches,
        logging_steps=1,
        save_strategy="no",
    )
    with contextlib.redirect_stderr(io.StringIO()):
        run_training(config, method)
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [row["seconds_per_step"] for row in rows[1:]]


def summary(name: str, rounds: list[dict[str, list[float]]]) -> dict[str, object]:
    """Median step of an objective, its time over DPO's in the same round, and what it makes the learner do."""
    need = needs_of(find_objective(name))
    ratios = [statistics.median(r[name]) / statistics.median(r[BASE]) for r in rounds]
    return {
        "seconds_per_step": statistics.median(s for r in rounds for s in r[name]),
        "relative_to_dpo": statistics.median(ratios),
        "relative_by_round": ratios,
        "reference": need.reference,
        "extras": list(need.extras),
        "coupled": need.coupled,
        "mismatched": need.mismatched,
    }


if __name__ == "__main__":
    main()
