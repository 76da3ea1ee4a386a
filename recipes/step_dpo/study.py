"""Step-DPO and its relatives on the arithmetic world; prints the tables of README.md.

    python recipes/step_dpo/study.py --output study

All arms of a seed start from the same base model, see the same problems and train on equally many pairs. The learning
rate of each arm is the best of a grid on validation problems, over seeds of their own. Each line of results.jsonl is
one cell; started again, the script goes on where it stopped.

    DPO             a right and a wrong solution of the same problem, sampled independently
    DPO, corrected  the wrong solution against its own correction, both whole
    Step-DPO        the first wrong step against the corrected one
    ... other's     the same errors, corrected by the oracle in terse steps that the model never writes
    ... random      a judge that points at a random step, and corrections that need not reach the right answer
"""

from __future__ import annotations

import argparse
import random
import shutil
import statistics
import tempfile
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import torch

from prefopt.build.grading import Grade, one_by_one
from prefopt.build.step_pairs import mean_logps
from prefopt.build.steps import StepData, StepSettings, build_step_pairs, problem_id
from prefopt.config import parse
from prefopt.evals.cells import Cells, Row
from prefopt.evals.maths import evaluate
from prefopt.generate.base import Completion, Generator, Request, Sampling
from prefopt.generate.journal import complete
from prefopt.generate.local import LocalGenerator
from prefopt.grade.statistics import paired_t
from prefopt.judge.base import WrongSolution
from prefopt.judge.oracle import OracleLocator
from prefopt.methods.base import find_method
from prefopt.models.likelihood import response_logps
from prefopt.models.load import LoadedModel, load_model
from prefopt.records import JsonValue, Pair, Preference, Response, write_preferences
from prefopt.runs.base_model import base_model
from prefopt.runs.train import run_training
from prefopt.text.steps import split_steps
from prefopt.worlds.arithmetic import ArithmeticProblem, ArithmeticWorld

METHODS = {
    "dpo": "dpo",
    "dpo, corrected": "dpo",
    "step_dpo": "step_dpo",
    "step_dpo, other's corrections": "step_dpo",
    "step_dpo, random judge": "step_dpo",
}
"""Arm -> method."""
COLUMNS = {
    "accuracy": "accuracy",
    "step_accuracy": "step preference",
    "margin": "step margin",
    "prefix_logp": "correct prefix, change of log p",
    "chosen_logp": "chosen under the reference, log p",
}
TUNING = 1000
"""First seed of the runs that choose learning rates."""
MAX_NEW_TOKENS = 160


class Bench(NamedTuple):
    """What all cells share."""

    world: ArithmeticWorld
    base: LoadedModel
    folder: Path
    """Of the base model."""
    generator: LocalGenerator


def main() -> None:
    """Run what is missing, then print."""
    arguments = parser().parse_args()
    torch.set_num_threads(1)
    arguments.output.mkdir(parents=True, exist_ok=True)
    cells = Cells(arguments.output / "results.jsonl")
    bench = open_bench()
    settings = {k: v for k, v in vars(arguments).items() if k in {"pairs", "beta", "test"}}
    tuned = [
        {**settings, "arm": arm, "seed": TUNING + seed, "learning_rate": rate}
        for seed in range(arguments.tuning_seeds)
        for arm in arguments.arms
        for rate in arguments.rates
    ]
    fill(cells, tuned, bench)
    rates = {arm: best_rate(cells.of(tuned), arm) for arm in arguments.arms}
    wanted = [
        {**settings, "arm": arm, "seed": seed, "learning_rate": rate}
        for seed in range(arguments.seeds)
        for arm, rate in {"base": 0.0, **rates}.items()
    ]
    fill(cells, wanted, bench)
    text = tables(cells.of(wanted))
    (arguments.output / "table.md").write_text(text, encoding="utf-8")
    print(text)


def parser() -> argparse.ArgumentParser:
    """The options."""
    found = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    found.add_argument("--output", type=Path, default=Path("study"))
    found.add_argument("--arms", nargs="+", choices=METHODS, default=list(METHODS))
    found.add_argument("--seeds", type=int, default=6)
    found.add_argument("--tuning-seeds", type=int, default=2)
    found.add_argument("--pairs", type=int, default=100)
    found.add_argument("--beta", type=float, default=0.3)
    found.add_argument("--rates", type=float, nargs="+", default=[5e-5, 1e-4, 2e-4, 4e-4])
    found.add_argument("--test", type=int, default=1000, help="held-out problems")
    return found


def open_bench() -> Bench:
    """The world and its base model."""
    world = ArithmeticWorld()
    folder = base_model(world, find_method("sft"))
    base = load_model(folder)
    return Bench(world, base, folder, LocalGenerator(base.model, base.tokenizer, batch_size=512))


def fill(cells: Cells, wanted: Sequence[Row], bench: Bench) -> None:
    """Run the cells that are not there, those of one seed together."""
    missing = [key for key in wanted if not cells.has(key)]
    for seed in dict.fromkeys(key["seed"] for key in missing):
        mine = [key for key in missing if key["seed"] == seed]
        arms = [arm for arm in METHODS if any(key["arm"] == arm for key in mine)]
        material = make_material(bench, seed, mine[0]["pairs"], arms)
        for key in mine:
            cells.append({**key, **run_cell(bench, material, key)})
            print(line(cells.rows[-1]), flush=True)


class Material(NamedTuple):
    """The pairs of one seed."""

    arms: Mapping[str, list[Preference]]
    held_out: list[Preference]
    """Step pairs of other problems, with the model's own corrections."""
    logps: Mapping[str, float]
    """Mean log-probability of chosen sides under the base model, per token."""


def make_material(bench: Bench, seed: int, count: int, arms: Collection[str]) -> Material:
    """Equally many pairs for every arm, and step pairs to measure on."""
    world = bench.world
    chosen: dict[str, list[Preference]] = {}
    for arm in arms:
        records = PAIRS[arm](bench, seed, count)
        if len(records) < count:
            raise SystemExit(f"{arm}: {len(records)} pairs, {count} are wanted")
        chosen[arm] = records[:count]
    more = world.problems("preference", 3 * count, seed=seed + 500)
    held_out = build(bench, more, oracle(world, more), seed=seed + 500).steps
    logps = {
        arm: mean_logps(records, score(bench.base, records))["chosen"].per_token
        for arm, records in chosen.items()
    }
    return Material(chosen, held_out, logps)


def usual(bench: Bench, seed: int, count: int) -> list[ArithmeticProblem]:
    """The problems that most arms see."""
    return bench.world.problems("preference", 8 * count, seed=seed)


def corrected_pairs(bench: Bench, seed: int, count: int) -> list[Preference]:
    """Whole solutions: the wrong one and its own correction."""
    problems = usual(bench, seed, count)
    return build(bench, problems, oracle(bench.world, problems), seed=seed).solutions


def step_pairs(bench: Bench, seed: int, count: int) -> list[Preference]:
    """The first wrong step and the model's own corrected one."""
    problems = usual(bench, seed, count)
    return build(bench, problems, oracle(bench.world, problems), seed=seed).steps


def other_pairs(bench: Bench, seed: int, count: int) -> list[Preference]:
    """The first wrong step and one of another writer."""
    world, problems = bench.world, usual(bench, seed, count)
    terse = Terse(world, problems)
    return build(bench, problems, oracle(world, problems), seed=seed, corrector=terse).steps


def random_pairs(bench: Bench, seed: int, count: int) -> list[Preference]:
    """Any step, and any other one in its place; most attempts only repeat the step."""
    problems = bench.world.problems("preference", 20 * count, seed=seed)
    return build(bench, problems, random_judge(seed), seed=seed, graded=False).steps


def build(
    bench: Bench,
    problems: Sequence[ArithmeticProblem],
    locator: OracleLocator,
    *,
    seed: int,
    corrections: int = 8,
    corrector: Generator | None = None,
    graded: bool = True,
) -> StepData:
    """The step pairs of these problems, one a wrong solution."""
    grade = one_by_one(bench.world.grade)
    return build_step_pairs(
        problems,
        bench.generator,
        grade=grade if graded else solutions_only(grade),
        locator=locator,
        settings=StepSettings(
            samples=2,
            corrections=corrections,
            pairs_per_error=1,
            top_p=1.0,
            max_new_tokens=MAX_NEW_TOKENS,
            seed=seed,
        ),
        corrector=corrector,
    )


def oracle(world: ArithmeticWorld, problems: Sequence[ArithmeticProblem]) -> OracleLocator:
    """The judge that knows."""
    by_id = {p.id: p for p in problems}

    def first_wrong(solution: WrongSolution) -> int | None:
        return world.verify(by_id[problem_id(solution)], solution.text).first_wrong

    return OracleLocator(first_wrong)


def solutions_only(grade: Grade[ArithmeticProblem]) -> Grade[ArithmeticProblem]:
    """The grade for the solutions, which are graded first; every correction passes."""
    calls = 0

    def lenient(solutions: Sequence[tuple[ArithmeticProblem, str]]) -> Sequence[bool]:
        nonlocal calls
        calls += 1
        return grade(solutions) if calls == 1 else [True] * len(solutions)

    return lenient


def random_judge(seed: int) -> OracleLocator:
    """A judge that points at any step."""

    def step(solution: WrongSolution) -> int | None:
        count = len(split_steps(solution.text).steps)
        return random.Random(f"{seed}/{solution.id}").randint(1, count) if count else None

    return OracleLocator(step)


class Terse:
    """The oracle as a writer: right, but in steps of a surface that the model never writes (`Step 2: 9`)."""

    identity = "terse oracle"

    def __init__(self, world: ArithmeticWorld, problems: Sequence[ArithmeticProblem]) -> None:
        self.world = world
        self.by_id = {p.id: p for p in problems}

    def generate(self, requests: Sequence[Request], sampling: Sampling) -> Iterator[Completion]:
        """The rest of the solution after each prefix; nothing about it is drawn."""
        del sampling
        for request in requests:
            problem = self.by_id[request.id.rpartition("/")[0]]
            values = self.world.values(problem)
            k = len(split_steps(request.prefix).steps)
            steps = [f"Step {i}: {v}" for i, v in enumerate(values, start=1)][k - 1 :]
            text = "\n".join([*steps, f"The answer is {problem.answer}"])
            rest = text.removeprefix(f"Step {k}:")
            yield Completion(request.id, request.sample, rest, "stop", 0)


def independent_pairs(bench: Bench, seed: int, count: int) -> list[Preference]:
    """The first right and the first wrong of four solutions of each problem that has both."""
    world, problems = bench.world, usual(bench, seed, count)
    sampling = Sampling(
        temperature=0.8, max_new_tokens=MAX_NEW_TOKENS, seed=seed, purpose="independent"
    )
    requests = [Request(p.id, k, p.prompt) for p in problems for k in range(4)]
    texts: dict[str, list[str]] = {p.id: [] for p in problems}
    for done in complete(bench.generator, requests, sampling):
        if done.finish_reason == "stop":
            texts[done.id].append(done.text)
    pairs: list[Preference] = []
    for problem in problems:
        right = [t for t in texts[problem.id] if world.grade(problem, t)]
        wrong = [t for t in texts[problem.id] if not world.grade(problem, t)]
        if right and wrong:
            responses = (Response(right[0]), Response(wrong[0]))
            pairs.append(Preference(problem.id, problem.prompt, responses, (Pair(0, 1),)))
    return pairs


def score(loaded: LoadedModel, records: Sequence[Preference]):  # noqa: ANN201 - as response_logps
    """Log-probabilities of the responses."""
    return response_logps(loaded.model, loaded.tokenizer, records, batch_size=64)


def run_cell(bench: Bench, material: Material, key: Row) -> Row:
    """Train one arm and measure it."""
    if key["arm"] == "base":
        return {**measure(bench, bench.base, material, key), "chosen_logp": 0.0}
    folder = Path(tempfile.mkdtemp())
    try:
        write_preferences(folder / "pairs.jsonl", material.arms[key["arm"]])
        policy = load_model(train(bench, folder, key))
    finally:
        shutil.rmtree(folder)
    found = measure(bench, policy, material, key)
    return {**found, "chosen_logp": material.logps[key["arm"]]}


def train(bench: Bench, folder: Path, key: Row) -> Path:
    """The trained model's folder."""
    method = find_method(METHODS[key["arm"]])
    recipe: dict[str, JsonValue] = {
        "method": method.name,
        "model_name_or_path": str(bench.folder),
        "train_file": str(folder / "pairs.jsonl"),
        "output_dir": str(folder / "run"),
        "beta": key["beta"],
        "learning_rate": key["learning_rate"],
        "per_device_train_batch_size": 16,
        "num_train_epochs": 2.0,
        "lr_scheduler_type": "linear",
        "warmup_ratio": 0.1,
        "max_length": 256,
        "save_strategy": "no",
        "seed": key["seed"],
    }
    return run_training(parse(recipe, method.config), method).model


def measure(bench: Bench, policy: LoadedModel, material: Material, key: Row) -> Row:
    """Accuracy on held-out problems; preference, margin and prefix on held-out step pairs."""
    generator = LocalGenerator(policy.model, policy.tokenizer, batch_size=512)
    problems = bench.world.problems("test", key["test"], seed=key["seed"])
    sampling = Sampling(max_new_tokens=MAX_NEW_TOKENS, purpose="evaluation")
    accuracy = evaluate(generator, problems, bench.world.grade, sampling=sampling).value
    after, before = (score(m, material.held_out) for m in (policy, bench.base))
    margins = [
        sum(
            sign * (new[i].total - old[i].total)
            for sign, i in ((1, p.pairs[0].chosen), (-1, p.pairs[0].rejected))
        )
        for p, new, old in zip(material.held_out, after, before, strict=True)
    ]
    prefixes = [as_response(p) for p in material.held_out if split_steps(p.prefix).steps[1:]]
    moved = [
        (new[0].total - old[0].total)
        for new, old in zip(score(policy, prefixes), score(bench.base, prefixes), strict=True)
    ]
    return {
        "accuracy": accuracy,
        "step_accuracy": statistics.fmean(m > 0 for m in margins),
        "margin": key["beta"] * statistics.fmean(margins),
        "prefix_logp": statistics.fmean(moved),
    }


def as_response(record: Preference) -> Preference:
    """The correct steps before a pair as a response of their own."""
    return replace(record, prefix="", pairs=(), responses=(Response(record.prefix, ends=False),))


def best_rate(rows: Sequence[Row], arm: str) -> float:
    """The learning rate with the highest mean accuracy."""
    by_rate: dict[float, list[float]] = {}
    for row in rows:
        if row["arm"] == arm:
            by_rate.setdefault(row["learning_rate"], []).append(row["accuracy"])
    return max(by_rate, key=lambda rate: statistics.fmean(by_rate[rate]))


def line(row: Row) -> str:
    """A cell for people."""
    values = "  ".join(f"{name} {row[name]:.3f}" for name in COLUMNS)
    return f"{row['arm']:32} seed {row['seed']:4} rate {row['learning_rate']:g}  {values}"


def tables(rows: Sequence[Row]) -> str:
    """Markdown: means over seeds with standard errors, then paired differences of accuracy."""
    lines = [
        f"| arm | learning rate | {' | '.join(COLUMNS.values())} |",
        f"|{'---|' * (2 + len(COLUMNS))}",
    ]
    for arm in ("base", *METHODS):
        mine = [row for row in rows if row["arm"] == arm]
        if not mine:
            continue
        cells = [mean_and_error([r[name] for r in mine], FORMATS[name]) for name in COLUMNS]
        lines.append(f"| {arm} | {mine[0]['learning_rate']:g} | {' | '.join(cells)} |")
    lines += [
        "",
        "| accuracy, difference in points | mean | 95% interval | p |",
        "|---|---|---|---|",
    ]
    there = {row["arm"] for row in rows}
    lines += [difference(rows, *pair) for pair in CONTRASTS if there.issuperset(pair)]
    return "\n".join(lines) + "\n"


PAIRS: Mapping[str, Callable[[Bench, int, int], list[Preference]]] = {
    "dpo": independent_pairs,
    "dpo, corrected": corrected_pairs,
    "step_dpo": step_pairs,
    "step_dpo, other's corrections": other_pairs,
    "step_dpo, random judge": random_pairs,
}
CONTRASTS = (
    ("dpo", "base"),
    ("step_dpo", "dpo"),
    ("step_dpo", "dpo, corrected"),
    ("step_dpo", "step_dpo, other's corrections"),
    ("step_dpo", "step_dpo, random judge"),
    ("step_dpo, random judge", "base"),
)
FORMATS: Mapping[str, Callable[[float], str]] = {
    "accuracy": lambda x: f"{100 * x:.1f}",
    "step_accuracy": lambda x: f"{100 * x:.1f}",
    "margin": lambda x: f"{x:.2f}",
    "prefix_logp": lambda x: f"{x:+.2f}",
    "chosen_logp": lambda x: f"{x:.2f}",
}


def mean_and_error(values: Sequence[float], shown: Callable[[float], str]) -> str:
    """Mean and standard error over seeds."""
    error = statistics.stdev(values) / len(values) ** 0.5 if len(values) > 1 else 0.0
    return f"{shown(statistics.fmean(values))} ± {shown(error).lstrip('+')}"


def difference(rows: Sequence[Row], first: str, second: str) -> str:
    """A line of the second table."""
    by_seed = {
        arm: {r["seed"]: r["accuracy"] for r in rows if r["arm"] == arm} for arm in (first, second)
    }
    test = paired_t([100 * (by_seed[first][s] - by_seed[second][s]) for s in by_seed[first]])
    return f"| {first} minus {second} | {test.value:+.1f} | {test.low:+.1f} to {test.high:+.1f} | {test.p:.3f} |"


if __name__ == "__main__":
    main()
