"""Curry-DPO on the reviews world: single pairs, pooled pairs, stages in one run, stages with references of their own.

    python recipes/curry_dpo/study.py --output study

A seed changes prompts, samples and the order of training; the base model is the same. Each prompt has four of the base
model's samples with their rewards, so the best against each other one makes an easy, a medium and a hard pair. All arms
make equally many optimiser steps of equally many pairs with one constant learning rate, so that arms differ in pairs,
order and reference only. Each line of results.jsonl is one trained policy; started again, the script goes on where it
stopped. When all are there it draws study.png and prints the tables of README.md: means over seeds, and differences of
arms paired over seeds (Student's t, 95%).
"""

from __future__ import annotations

import argparse
import math
import statistics
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from picture import draw
from tables import COLUMNS, arm_table, contrast_table

from prefopt.config import parse
from prefopt.evals.cells import Cells, Row
from prefopt.evals.frontier import measure
from prefopt.generate.base import Sampling
from prefopt.generate.local import LocalGenerator
from prefopt.methods.base import find_method
from prefopt.models.likelihood import response_logps
from prefopt.models.load import LoadedModel, load_model
from prefopt.records import JsonValue, Preference, write_preferences
from prefopt.runs.base_model import base_model
from prefopt.runs.train import train_method
from prefopt.worlds.base import Split
from prefopt.worlds.reviews import ReviewWorld
from prefopt.worlds.scored import scored_samples

ARMS: Mapping[str, dict[str, JsonValue]] = {
    "SFT": {},
    "single pair, easiest": {"only": "easiest"},
    "single pair, middle": {"only": 2},
    "single pair, hardest": {"only": "hardest"},
    "pooled": {"stages": "pooled"},
    "single run": {"schedule": "single_run"},
    "iterative, easy to hard": {"order": "easy_to_hard"},
    "iterative, hard to easy": {"order": "hard_to_easy"},
    "iterative, random": {"order": "random"},
}
LEVELS = ("easy", "medium", "hard")
"""The best response against the worst, the third and the second."""
RESPONSES = 1 + len(LEVELS)
MAX_NEW_TOKENS = 48
SPARE = 1.25
"""Prompts sampled for each that is wanted: those with equal rewards among their responses are left out."""


def main() -> None:
    """Train and measure what is missing, then print."""
    arguments = parser().parse_args()
    if arguments.prompts % arguments.batch_size:
        raise SystemExit(
            f"--prompts {arguments.prompts} is no multiple of --batch-size {arguments.batch_size}: arms would differ "
            "in their numbers of steps"
        )
    torch.set_num_threads(1)
    arguments.output.mkdir(parents=True, exist_ok=True)
    study = Study(arguments)
    for seed in range(1, arguments.seeds + 1):
        for arm, beta in study.cells():
            study.run_missing(arm, beta, seed)
    found = arms_by_beta(study)
    draw(found, arguments.output / "study.png")
    text = tables(found)
    (arguments.output / "table.md").write_text(text, encoding="utf-8")
    print(text)


def parser() -> argparse.ArgumentParser:
    """The options."""
    found = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    found.add_argument("--output", type=Path, default=Path("study"))
    found.add_argument("--seeds", type=int, default=5, help="1, 2, ...; settings were chosen on 0")
    found.add_argument("--arms", nargs="+", choices=ARMS, default=list(ARMS))
    found.add_argument("--betas", type=float, nargs="+", default=[0.1, 1.0, 3.0])
    found.add_argument("--prompts", type=int, default=400, help="of training, four responses each")
    found.add_argument("--epochs", type=int, default=1, help="of each stage")
    found.add_argument("--batch-size", type=int, default=16, help="pairs")
    found.add_argument("--learning-rate", type=float, default=2e-4)
    found.add_argument("--held-out", type=int, default=200, help="prompts whose pairs are scored")
    found.add_argument("--test-prompts", type=int, default=128)
    found.add_argument("--test-samples", type=int, default=4, help="of each test prompt")
    return found


class Study:
    """The cells, and what they share."""

    def __init__(self, arguments: argparse.Namespace) -> None:
        self.arguments = arguments
        self.rows = Cells(arguments.output / "results.jsonl")
        self.world = ReviewWorld()
        self.base = base_model(self.world, find_method("sft"))
        self.reference = load_model(self.base)
        self.kept: dict[tuple[str, int, int], list[Preference]] = {}

    def cells(self) -> list[tuple[str, float]]:
        """Arm and beta of every cell of a seed; SFT has no beta."""
        a = self.arguments
        trained = [(arm, beta) for beta in a.betas for arm in a.arms if arm != "SFT"]
        return [*([("SFT", 0.0)] if "SFT" in a.arms else []), *trained]

    def key(self, arm: str, beta: float, seed: int) -> Row:
        """Everything that decides a cell."""
        a = self.arguments
        tested = {"test_prompts": a.test_prompts, "test_samples": a.test_samples}
        key = {"arm": arm, "beta": beta, "seed": seed, **tested}
        if arm == "SFT":
            return key
        names = ("prompts", "epochs", "batch_size", "learning_rate", "held_out")
        return {**key, **{name: getattr(a, name) for name in names}}

    def run_missing(self, arm: str, beta: float, seed: int) -> None:
        """Add a cell to the file unless it is there."""
        key = self.key(arm, beta, seed)
        if self.rows.has(key):
            return
        start = time.perf_counter()
        records = [] if arm == "SFT" else self.ranked("preference", self.arguments.prompts, seed)
        built = time.perf_counter()
        policy = self.reference if arm == "SFT" else self.train(records, key)
        trained = time.perf_counter()
        found = self.measure(policy, seed)
        if arm != "SFT":
            found |= self.accuracies(policy, seed)
        seconds = {
            "build_seconds": round(built - start, 1),
            "train_seconds": round(trained - built, 1),
            "measure_seconds": round(time.perf_counter() - trained, 1),
        }
        self.rows.append({**key, **found, **seconds})
        print(line(self.rows.rows[-1]), flush=True)

    def ranked(self, split: Split, wanted: int, seed: int) -> list[Preference]:
        """So many prompts with four of the base model's samples each, all of different reward; made once a seed."""
        place = (split, wanted, seed)
        if place in self.kept:
            return self.kept[place]
        records = scored_samples(
            self.world.prompts(split, math.ceil(SPARE * wanted) + 10, seed=seed),
            LocalGenerator(self.reference.model, self.reference.tokenizer, batch_size=512),
            self.world.score,
            samples=RESPONSES,
            sampling=Sampling(
                temperature=1.0, max_new_tokens=MAX_NEW_TOKENS, purpose="responses", seed=seed
            ),
        )
        found = [r for r in records if len({one.score for one in r.responses}) == RESPONSES]
        if len(found) < wanted:
            raise SystemExit(f"{len(found)} prompts of {split}, {wanted} are wanted: raise SPARE")
        self.kept[place] = found[:wanted]
        return self.kept[place]

    def train(self, records: Sequence[Preference], key: Row) -> LoadedModel:
        """The base model, trained as the arm says; the arms of one pair see it three times as often."""
        method = find_method("curry_dpo")
        own = ARMS[key["arm"]]
        with tempfile.TemporaryDirectory() as name:
            folder = Path(name)
            write_preferences(folder / "ranked.jsonl", records)
            recipe: dict[str, JsonValue] = {
                **own,
                "method": "curry_dpo",
                "model_name_or_path": str(self.base),
                "train_file": str(folder / "ranked.jsonl"),
                "output_dir": str(folder / "run"),
                "beta": key["beta"],
                "learning_rate": key["learning_rate"],
                "lr_scheduler_type": "constant",
                "per_device_train_batch_size": key["batch_size"],
                "num_train_epochs": key["epochs"] * (len(LEVELS) if "only" in own else 1),
                "max_length": 128,
                "save_strategy": "no",
                "seed": key["seed"],
            }
            return load_model(train_method(parse(recipe, method.config), method).model)

    def measure(self, policy: LoadedModel, seed: int) -> Row:
        """Mean reward of samples on held-out prompts, and their exact KL per prompt to the base model."""
        a = self.arguments
        prompts = self.world.prompts("test", a.test_prompts, seed=seed)
        found = measure(
            policy.model,
            self.reference.model,
            self.reference.tokenizer,
            prompts=prompts,
            score=self.world.score,
            sampling=Sampling(
                temperature=1.0, max_new_tokens=MAX_NEW_TOKENS, purpose="test", seed=seed
            ),
            samples=a.test_samples,
        )
        asked = {prompt.id: prompt for prompt in prompts}
        faithful = [self.world.is_faithful(asked[c.id], c.text) for c in found.completions]
        return {
            "reward": found.reward.value,
            "kl": found.kl.mean,
            "faithful": statistics.fmean(faithful),
        }

    def accuracies(self, policy: LoadedModel, seed: int) -> Row:
        """How often the better response of a held-out pair gained more on the base model, by level."""
        records = self.ranked("test", self.arguments.held_out, seed)
        after, before = (
            response_logps(loaded.model, loaded.tokenizer, records, batch_size=64)
            for loaded in (policy, self.reference)
        )
        right: dict[str, list[bool]] = {level: [] for level in LEVELS}
        for record, new, old in zip(records, after, before, strict=True):
            gain = [a.total - b.total for a, b in zip(new, old, strict=True)]
            best, *others = sorted(
                range(RESPONSES), key=lambda k: record.responses[k].score or 0.0, reverse=True
            )
            for level, other in zip(LEVELS, reversed(others), strict=True):
                right[level].append(gain[best] > gain[other])
        return {level: statistics.fmean(values) for level, values in right.items()}


def line(row: Row) -> str:
    """A cell for people."""
    values = "  ".join(f"{name} {row[name]:.3f}" for name in COLUMNS if name in row)
    seconds = [row[f"{stage}_seconds"] for stage in ("build", "train", "measure")]
    return (
        f"{row['arm']:23} beta {row['beta']:<4g} seed {row['seed']}  {values}  "
        f"({' + '.join(f'{s:.1f}' for s in seconds)} s)"
    )


def arms_by_beta(study: Study) -> dict[float, dict[str, list[Row]]]:
    """The cells of all seeds."""
    seeds = range(1, study.arguments.seeds + 1)
    return {
        beta: {
            arm: study.rows.of([study.key(arm, 0.0 if arm == "SFT" else beta, s) for s in seeds])
            for arm in study.arguments.arms
        }
        for beta in study.arguments.betas
    }


def tables(by_beta: Mapping[float, Mapping[str, Sequence[Row]]]) -> str:
    """Markdown: what each arm reaches at each beta, then differences of arms paired over seeds."""
    parts: list[str] = []
    for beta, by_arm in by_beta.items():
        parts += [f"**beta {beta:g}**", "", *arm_table(by_arm), "", *contrast_table(by_arm), ""]
    return "\n".join(parts)


if __name__ == "__main__":
    main()
