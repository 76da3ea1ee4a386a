"""DICE on the reviews world after a DPO whose labels favour length: alpha, the replay mix, two rounds, several seeds.

    python recipes/dice/study.py --output study

A seed changes prompts, samples, labels and the order of training; the base model (SFT) is the same. The base model is
trained by DPO on pairs of its own answers, in which the longer one is chosen with probability `--bias` whatever the
rewards. From there every arm makes its rounds: alpha 0, alpha fitted in each round (auto), twice that, and no replay
or nothing but replay at the fitted alpha. After each round the policy is measured on held-out prompts and its reward
on held-out pairs of the base model's answers. The judge of the win rates over the DPO model favours length too. Each
line of results.jsonl is one arm of one seed; started again, the script goes on where it stopped. When all are there it
draws study.png and prints the tables of README.md: means over seeds, differences paired over seeds (Student's t,
95%), and whether what has to come out at any size does.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from pathlib import Path
from typing import NamedTuple

import torch
from arms import ARMS, built, recipe_of_round
from gates import gates
from picture import draw
from planted import Outputs, WinRates, agreements, label_with_bias, win_rates
from tables import tables

from prefopt.config import parse
from prefopt.evals.cells import Cells, Row
from prefopt.evals.frontier import measure
from prefopt.generate.base import Sampling
from prefopt.generate.local import LocalGenerator
from prefopt.methods.base import find_method
from prefopt.models.load import load_model
from prefopt.records import JsonValue, Preference, write_preferences
from prefopt.runs.base_model import base_model
from prefopt.runs.rounds import run_recipe
from prefopt.runs.train import run_training
from prefopt.worlds.base import Split
from prefopt.worlds.reviews import ReviewWorld
from prefopt.worlds.scored import first_two, scored_samples

MAX_NEW_TOKENS = 48
_NOT_OF_A_CELL = {"output", "seeds", "arms"}
SPARE = 1.15
"""Prompts sampled for each pair that is wanted: two equal scores make none."""


class Start(NamedTuple):
    """What all arms of a seed share."""

    seed: int
    folder: Path
    offline: Path
    dpo: Path
    baseline: Outputs
    """Of the DPO model."""
    held_out: list[Preference]
    """Pairs by the oracle."""
    labels_right: float
    """Share of the offline pairs that the oracle agrees with."""


def main() -> None:
    """Train and measure what is missing, then print."""
    arguments = parser().parse_args()
    torch.set_num_threads(1)
    arguments.output.mkdir(parents=True, exist_ok=True)
    study = Study(arguments)
    seeds = range(1, arguments.seeds + 1)
    for seed in seeds:
        study.run_missing(seed)
    by_arm = {arm: study.rows.of([study.key(arm, s) for s in seeds]) for arm in arguments.arms}
    draw(by_arm, arguments.output / "study.png")
    text = "\n".join(
        [tables(by_arm), "**What has to come out at any size**", "", *gates(by_arm), ""]
    )
    (arguments.output / "table.md").write_text(text, encoding="utf-8")
    print(text)


def parser() -> argparse.ArgumentParser:
    """The options."""
    found = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    found.add_argument("--output", type=Path, default=Path("study"))
    found.add_argument("--seeds", type=int, default=8, help="1, 2, ...; settings were chosen on 0")
    found.add_argument("--arms", nargs="+", choices=ARMS, default=list(ARMS))
    found.add_argument("--pairs", type=int, default=400, help="offline; their prompts are answered")
    found.add_argument(
        "--bias", type=float, default=0.4, help="part of the labels that length decides"
    )
    found.add_argument("--beta", type=float, default=1.0)
    found.add_argument("--learning-rate", type=float, default=1e-4)
    found.add_argument("--batch-size", type=int, default=16, help="pairs")
    found.add_argument("--dpo-steps", type=int, default=60)
    found.add_argument("--rounds", type=int, default=2)
    found.add_argument("--steps", type=int, default=30, help="of each round")
    found.add_argument("--answers", type=int, default=8, help="to each prompt in a round")
    found.add_argument("--test-prompts", type=int, default=400, help="one answer each")
    found.add_argument("--held-out", type=int, default=300, help="pairs that are only scored")
    found.add_argument("--judge-bias", type=float, default=0.05, help="log-odds per character")
    return found


class Study:
    """The cells, and what they share."""

    def __init__(self, arguments: argparse.Namespace) -> None:
        self.arguments = arguments
        self.rows = Cells(arguments.output / "results.jsonl")
        self.world = ReviewWorld()
        self.base = base_model(self.world, find_method("sft"))
        self.reference = load_model(self.base)

    def key(self, arm: str, seed: int) -> Row:
        """Everything that decides a cell."""
        chosen = {k: v for k, v in vars(self.arguments).items() if k not in _NOT_OF_A_CELL}
        return {"arm": arm, "seed": seed, **chosen}

    def run_missing(self, seed: int) -> None:
        """Add the cells of a seed to the file, but those that are there."""
        arms = [arm for arm in self.arguments.arms if not self.rows.has(self.key(arm, seed))]
        if not arms:
            return
        with tempfile.TemporaryDirectory() as name:
            start = self.start(seed, Path(name))
            for arm in arms:
                began = time.perf_counter()
                found = self.run_arm(arm, start)
                seconds = round(time.perf_counter() - began, 1)
                row = {**self.key(arm, seed), "labels_right": start.labels_right, "stages": found}
                self.rows.append({**row, "seconds": seconds})
                print(line(self.rows.rows[-1]), flush=True)

    def start(self, seed: int, folder: Path) -> Start:
        """Offline pairs with biased labels, and the model that DPO makes of them."""
        a = self.arguments
        labelled, right = label_with_bias(
            self.sampled("preference", a.pairs, seed), bias=a.bias, seed=seed
        )
        offline = folder / "offline.jsonl"
        write_preferences(offline, labelled)
        method = find_method("dpo")
        recipe = {
            **self.training(seed),
            "method": "dpo",
            "model_name_or_path": str(self.base),
            "train_file": str(offline),
            "max_steps": a.dpo_steps,
            "output_dir": str(folder / "dpo"),
        }
        dpo = run_training(parse(recipe, method.config), method).model
        held_out = self.sampled("test", a.held_out, seed)
        return Start(seed, folder, offline, dpo, self.outputs(dpo, seed), held_out, right)

    def sampled(self, split: Split, wanted: int, seed: int) -> list[Preference]:
        """So many pairs of the base model's answers, by the oracle."""
        records = scored_samples(
            self.world.prompts(split, round(SPARE * wanted) + 10, seed=seed),
            LocalGenerator(self.reference.model, self.reference.tokenizer, batch_size=512),
            self.world.score,
            samples=2,
            sampling=Sampling(
                temperature=1.0, max_new_tokens=MAX_NEW_TOKENS, purpose="pairs", seed=seed
            ),
        )
        found = first_two(records).records
        if len(found) < wanted:
            raise SystemExit(f"{len(found)} pairs of {split}, {wanted} are wanted: raise SPARE")
        return found[:wanted]

    def training(self, seed: int) -> dict[str, JsonValue]:
        """What DPO and the rounds have in common."""
        a = self.arguments
        return {
            "beta": a.beta,
            "learning_rate": a.learning_rate,
            "lr_scheduler_type": "constant",
            "per_device_train_batch_size": a.batch_size,
            "max_length": 128,
            "save_strategy": "no",
            "seed": seed,
        }

    def run_arm(self, arm: str, start: Start) -> list[Row]:
        """What is measured after each round; of an arm without rounds, once."""
        if arm == "SFT":
            return [{"round": 0, **self.policy(self.base, start)}]
        if not ARMS[arm].rounds:
            return [{"round": 0, **self.measured(start.dpo, self.base, start)}]
        found: list[Row] = []
        models, recipe = [start.dpo], self.recipe(arm, start)
        for number in range(1, self.arguments.rounds + 1):
            own = recipe_of_round(ARMS[arm], number, models, recipe)
            done = run_recipe(own, find_method("dice"))[0]
            models.append(done.run.model)
            build = built(done.data.parent if done.data else start.folder, self.world)
            policy = self.measured(models[-1], models[-2], start)
            found.append({"round": number, **build, **policy})
        return found

    def recipe(self, arm: str, start: Start) -> dict[str, JsonValue]:
        """What the rounds of an arm have in common, but alpha and gamma.

        All arms of a seed build in one folder, one after the other: those that ask the same model find its answers
        in the journal.
        """
        a = self.arguments
        build: dict[str, JsonValue] = {
            "previous": str(self.base),
            "offline": str(start.offline),
            "rounds": a.rounds,
            "samples": a.answers,
            "temperature": 1.0,
            "max_new_tokens": MAX_NEW_TOKENS,
            "min_valid": max(2, a.answers // 2),
            "beta": a.beta,
            "batch_size": 256,
            "seed": start.seed,
            "output_dir": str(start.folder / "build"),
        }
        return {
            **self.training(start.seed),
            "method": "dice",
            "model_name_or_path": str(start.dpo),
            "max_steps": a.steps,
            "build": build,
            "output_dir": str(start.folder / arm.replace(" ", "-")),
        }

    def outputs(self, model: Path, seed: int) -> Outputs:
        """One answer to each test prompt."""
        prompts = self.world.prompts("test", self.arguments.test_prompts, seed=seed)
        found = measure(
            load_model(model).model,
            self.reference.model,
            self.reference.tokenizer,
            prompts=prompts,
            score=self.world.score,
            sampling=Sampling(
                temperature=1.0, max_new_tokens=MAX_NEW_TOKENS, purpose="test", seed=seed
            ),
        )
        texts = [completion.text for completion in found.completions]
        faithful = [self.world.is_faithful(*each) for each in zip(prompts, texts, strict=True)]
        return Outputs(
            rewards=tuple(self.world.score(text) for text in texts),
            lengths=tuple(map(len, texts)),
            kl=found.kl.mean,
            faithful=statistics.fmean(faithful),
        )

    def policy(self, model: Path, start: Start) -> Row:
        """What a policy writes, and its win rates over the DPO model (50 for that model itself)."""
        outputs = self.outputs(model, start.seed)
        rates = WinRates(50.0, 50.0, 50.0)
        if model != start.dpo:
            rates = win_rates(outputs, start.baseline, bias=self.arguments.judge_bias)
        return {
            "length": statistics.fmean(outputs.lengths),
            "reward": statistics.fmean(outputs.rewards),
            "kl": outputs.kl,
            "faithful": outputs.faithful,
            **rates._asdict(),
        }

    def measured(self, model: Path, previous: Path, start: Start) -> Row:
        """The policy, and its reward: relative to the model before, as the next round uses it, and to SFT."""
        beta = self.arguments.beta
        own = agreements(start.held_out, model, previous, beta=beta)
        whole = agreements(start.held_out, model, self.base, beta=beta)
        return {
            **self.policy(model, start),
            "agreement": own.oracle,
            "longer": own.longer,
            "agreement_sft": whole.oracle,
            "longer_sft": whole.longer,
        }


def line(row: Row) -> str:
    """A cell for people."""
    last = row["stages"][-1]
    values = "  ".join(f"{k} {v:.3g}" for k, v in last.items() if v is not None)
    return f"{row['arm']:11} seed {row['seed']}  {values}  ({row['seconds']:.1f} s)"


if __name__ == "__main__":
    main()
