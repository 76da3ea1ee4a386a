"""DMPO against DPO on whole trajectories, on `rooms`: gamma, clean and noisy losers, losers of growing length.

    python recipes/dmpo/study.py --output study

A seed changes tasks, roll-outs, pairs and the order of training; the base model is the same. Pairs are an expert's
trajectory and a loser of the base model's own; `--junk` says how many senseless turns are appended to each loser (0:
clean). The learning rate of each arm and kind of loser is the best of `--rates` by reward on validation tasks of a seed
of its own. Each line of results.jsonl is one trained policy; started again, the script goes on where it stopped. At the
end it prints the tables of README.md and draws gamma.png: means over seeds, differences paired over seeds (Student's
t, 95%).
"""

from __future__ import annotations

import argparse
import shutil
import statistics
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import torch
from trajectories import pairs, play

from prefopt.agents.environment import Task
from prefopt.agents.farm import Farm
from prefopt.agents.rollouts import Rollouts, roll_out
from prefopt.agents.trajectory import Trajectory
from prefopt.config import parse
from prefopt.evals.cells import Cells, Row
from prefopt.generate.local import LocalGenerator
from prefopt.grade.statistics import paired_t
from prefopt.methods.base import find_method
from prefopt.models.likelihood import response_logps
from prefopt.models.load import LoadedModel, load_model
from prefopt.records import JsonValue, Preference, write_preferences
from prefopt.runs.base_model import base_model
from prefopt.runs.train import run_training
from prefopt.worlds.rooms import RoomsWorld

ARMS: Mapping[str, dict[str, JsonValue]] = {
    "SFT": {},
    "DPO": {"weighting": "dpo"},
    **{f"DMPO {gamma:g}": {"gamma": gamma} for gamma in (0.1, 0.3, 0.5, 0.7, 0.9, 1.0)},
}
TUNING_SEED = 100
COLUMNS = {
    "seen": "reward, seen",
    "unseen": "reward, unseen",
    "solved": "solved, %",
    "early": "first two actions as the expert's, %",
    "chosen": "log p of chosen, change",
    "rejected": "log p of rejected, change",
}
PERCENT = {"solved", "early"}


def main() -> None:
    """Train and measure what is missing, then print."""
    arguments = parser().parse_args()
    torch.set_num_threads(1)
    arguments.output.mkdir(parents=True, exist_ok=True)
    study = Study(arguments)
    for junk in arguments.junk:
        for arm in arguments.arms:
            if arm != "SFT":
                for rate in arguments.rates if len(arguments.rates) > 1 else ():
                    study.run_missing(arm, study.tuned_on(junk), TUNING_SEED, rate)
            for seed in range(arguments.seeds):
                study.run_missing(arm, junk, seed, study.best_rate(arm, junk))
    text = tables(study, arguments)
    (arguments.output / "table.md").write_text(text, encoding="utf-8")
    print(text)


def parser() -> argparse.ArgumentParser:
    """The options."""
    found = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    found.add_argument("--output", type=Path, default=Path("study"))
    found.add_argument("--seeds", type=int, default=5)
    found.add_argument("--arms", nargs="+", choices=ARMS, default=list(ARMS))
    found.add_argument("--junk", type=int, nargs="+", default=[0, 4, 8], help="turns appended")
    found.add_argument(
        "--tune-junk",
        type=int,
        help="kind of loser that rates are tuned on (default: each on its own)",
    )
    found.add_argument("--rates", type=float, nargs="+", default=[3e-5, 1e-4, 3e-4])
    found.add_argument("--beta", type=float, default=0.3)
    found.add_argument("--pairs", type=int, default=120)
    found.add_argument("--steps", type=int, default=30)
    found.add_argument("--batch-size", type=int, default=16)
    found.add_argument("--tasks", type=int, default=150, help="training tasks of a seed")
    found.add_argument("--samples", type=int, default=3, help="roll-outs of each")
    found.add_argument("--test-tasks", type=int, default=200, help="of each split")
    return found


class Study:
    """The cells, and what they share."""

    def __init__(self, arguments: argparse.Namespace) -> None:
        self.arguments = arguments
        self.rows = Cells(arguments.output / "results.jsonl")
        self.world = RoomsWorld()
        self.suite, self.format = self.world.suite, self.world.format
        self.base = base_model(self.world, find_method("sft"))
        self.reference = load_model(self.base)

    def key(self, arm: str, junk: int, seed: int, rate: float) -> Row:
        """Everything that decides a cell."""
        a = self.arguments
        if arm == "SFT":
            return {"arm": arm, "seed": seed, "test_tasks": a.test_tasks}
        names = ("beta", "pairs", "steps", "batch_size", "tasks", "samples", "test_tasks")
        settings = {name: getattr(a, name) for name in names}
        return {"arm": arm, "junk": junk, "seed": seed, "learning_rate": rate, **settings}

    def tuned_on(self, junk: int) -> int:
        """The kind of loser that the rate for this kind is tuned on."""
        return junk if self.arguments.tune_junk is None else self.arguments.tune_junk

    def best_rate(self, arm: str, junk: int) -> float:
        """The learning rate with the best reward on the validation tasks; the smaller one of equals."""
        rates = self.arguments.rates
        if arm == "SFT" or len(rates) == 1:
            return rates[0]

        def reward(rate: float) -> float:
            return self.rows.of([self.key(arm, self.tuned_on(junk), TUNING_SEED, rate)])[0]["seen"]

        return max(sorted(rates), key=reward)

    def run_missing(self, arm: str, junk: int, seed: int, rate: float) -> None:
        """Add a cell to the file unless it is there."""
        key = self.key(arm, junk, seed, rate)
        if self.rows.has(key):
            return
        start = time.perf_counter()
        records = [] if arm == "SFT" else self.records(junk, seed)
        built = time.perf_counter()
        policy = self.reference if arm == "SFT" else self.train(records, key)
        trained = time.perf_counter()
        found = self.measure(policy, records, seed)
        seconds = {
            "build_seconds": round(built - start, 1),
            "train_seconds": round(trained - built, 1),
            "measure_seconds": round(time.perf_counter() - trained, 1),
        }
        self.rows.append({**key, **found, **seconds})
        print(line(self.rows.rows[-1]), flush=True)

    def records(self, junk: int, seed: int) -> list[Preference]:
        """The pairs of a seed; tasks of different seeds overlap by chance only."""
        a = self.arguments
        everything = self.suite.tasks("train")
        place = (seed % TUNING_SEED + (seed >= TUNING_SEED) * a.seeds) * a.tasks
        tasks = [everything[(place + i) % len(everything)] for i in range(a.tasks)]
        folder = a.output / "journals"
        folder.mkdir(exist_ok=True)
        name = f"{seed}-{a.tasks}-{a.samples}.sqlite"
        experts, rollouts = play(
            self.suite,
            self.format,
            tasks,
            self.generator(self.reference),
            folder / name,
            samples=a.samples,
            seed=seed,
        )
        return pairs(
            experts, rollouts, self.suite, self.format, junk=junk, count=a.pairs, seed=seed
        )

    def generator(self, loaded: LoadedModel) -> LocalGenerator:
        """The model as an agent."""
        return LocalGenerator(loaded.model, loaded.tokenizer, batch_size=256)

    def train(self, records: Sequence[Preference], key: Row) -> LoadedModel:
        """The base model, trained on the pairs."""
        method = find_method("dmpo")
        folder = Path(tempfile.mkdtemp())
        try:
            write_preferences(folder / "pairs.jsonl", records)
            recipe: dict[str, JsonValue] = {
                **ARMS[key["arm"]],
                "method": "dmpo",
                "model_name_or_path": str(self.base),
                "train_file": str(folder / "pairs.jsonl"),
                "output_dir": str(folder / "run"),
                "beta": key["beta"],
                "learning_rate": key["learning_rate"],
                "per_device_train_batch_size": key["batch_size"],
                "max_steps": key["steps"],
                "lr_scheduler_type": "linear",
                "warmup_ratio": 0.1,
                "max_length": 1024,
                "save_strategy": "no",
                "seed": key["seed"],
            }
            return load_model(run_training(parse(recipe, method.config), method).model)
        finally:
            shutil.rmtree(folder)

    def measure(self, policy: LoadedModel, records: Sequence[Preference], seed: int) -> Row:
        """Greedy episodes on both test splits, and how far the log-probabilities of the pairs moved (unweighted)."""
        count = self.arguments.test_tasks
        if seed >= TUNING_SEED:  # validation: the rest of the seen split, which no table uses
            tasks = self.suite.tasks("seen")[count:]
            return {"seen": reward(self.episodes(policy, tasks))}
        # Both splits hold exactly the tasks of one test; seeds share them.
        seen, unseen = (
            self.episodes(policy, self.suite.tasks(split, count)) for split in ("seen", "unseen")
        )
        both = [*seen, *unseen]
        return {
            "seen": reward(seen),
            "unseen": reward(unseen),
            "solved": statistics.fmean(t.success for t in both),
            "early": statistics.fmean(self.starts_well(t) for t in both),
            "turns": statistics.fmean(t.steps for t in both),
            **self.drift(policy, records),
        }

    def episodes(self, policy: LoadedModel, tasks: Sequence[Task]) -> list[Trajectory]:
        """One greedy episode of each task."""
        settings = Rollouts(format=self.format, max_new_tokens=16, purpose="test")
        with Farm(self.suite, workers=1) as farm:
            return roll_out(tasks, self.generator(policy), farm, settings)

    def starts_well(self, trajectory: Trajectory) -> bool:
        """Whether the agent's first two actions are the expert's (one shortest way of several)."""
        own = [self.format.read(m.content) for m in trajectory.turns if m.role == "assistant"][:2]
        expert = [move.action for move in self.suite.open().expert(trajectory.task)][:2]
        return own == expert

    def drift(self, policy: LoadedModel, records: Sequence[Preference]) -> Row:
        """Mean change of the chosen and rejected sides' log-probability, in nats."""
        if not records:
            return {}
        bare = [replace(record, pairs=()) for record in records]
        now = response_logps(policy.model, policy.tokenizer, bare)
        then = response_logps(self.reference.model, self.reference.tokenizer, bare)
        change = [
            [a.total - b.total for a, b in zip(n, t, strict=True)]
            for n, t in zip(now, then, strict=True)
        ]
        return {
            "chosen": statistics.fmean(each[0] for each in change),
            "rejected": statistics.fmean(each[1] for each in change),
        }


def reward(trajectories: Sequence[Trajectory]) -> float:
    """The average; an episode without a reward counts 0."""
    return statistics.fmean(t.reward or 0.0 for t in trajectories)


def line(row: Row) -> str:
    """A cell for people."""
    values = "  ".join(f"{k} {row[k]:.3f}" for k in COLUMNS if k in row)
    seconds = [row[f"{stage}_seconds"] for stage in ("build", "train", "measure")]
    return (
        f"{row['arm']:9} junk {row.get('junk', '-'):>2} seed {row['seed']:3} rate {row.get('learning_rate', 0):6g} "
        f"{values}  ({' + '.join(f'{s:.0f}' for s in seconds)} s)"
    )


def tables(study: Study, arguments: argparse.Namespace) -> str:
    """Markdown: what each arm reaches with each kind of loser, then differences from DPO paired over seeds."""
    parts: list[str] = []
    for junk in arguments.junk:
        by_arm: dict[str, list[Row]] = {}
        for arm in arguments.arms:
            rate = study.best_rate(arm, junk)
            wanted = [study.key(arm, junk, seed, rate) for seed in range(arguments.seeds)]
            by_arm[arm] = study.rows.of(wanted)
        title = "clean losers" if junk == 0 else f"losers with {junk} turns of junk"
        parts += [f"**{title}**", "", *arm_table(by_arm), ""]
    return "\n".join(parts)


def arm_table(by_arm: Mapping[str, Sequence[Row]]) -> list[str]:
    """Mean over seeds and its standard error; difference of the unseen reward from DPO."""
    lines = [
        f"| arm | rate | {' | '.join(COLUMNS.values())} | reward, unseen, minus DPO | p |",
        f"|---|{'---:|' * (len(COLUMNS) + 1)}---|---:|",
    ]
    for arm, found in by_arm.items():
        rate = f"{found[0]['learning_rate']:g}" if "learning_rate" in found[0] else ""
        cells = [mean_cell([row[k] for row in found if k in row], k) for k in COLUMNS]
        lines.append(
            f"| {arm} | {rate} | {' | '.join(cells)} | {difference(found, by_arm.get('DPO', []))} |"
        )
    return lines


def mean_cell(values: Sequence[float], column: str) -> str:
    """A mean and its standard error."""
    if not values:
        return ""
    scale, digits = (100, 1) if column in PERCENT else (1, 3 if "seen" in column else 1)
    mean = f"{scale * statistics.fmean(values):.{digits}f}"
    if len(values) < 2:
        return mean
    error = statistics.stdev(values) / len(values) ** 0.5
    return f"{mean} ± {scale * error:.{digits}f}"


def difference(found: Sequence[Row], base: Sequence[Row]) -> str:
    """Mean difference of the unseen reward with its interval, and its p-value."""
    if not base or found[0]["arm"] == "DPO":
        return " | "
    other = {row["seed"]: row["unseen"] for row in base}
    gaps = [row["unseen"] - other[row["seed"]] for row in found if row["seed"] in other]
    if len(gaps) < 2:
        return " | "
    test = paired_t(gaps)
    p = f"{test.p:.3f}" if test.p >= 0.001 else "< 0.001"
    return f"{test.value:+.3f} ({test.low:+.3f} to {test.high:+.3f}) | {p}"


if __name__ == "__main__":
    main()
