"""ASFT, ORPO, DPO and SFT on the reviews world: likelihood of held-out pairs, overlap with references, reward.

    python recipes/asft/compare.py --output compare

A seed changes prompts, samples and the order of training; the base model is the same. Each line of results.jsonl is one
arm of one seed; started again, the script goes on where it stopped. When all are there it prints the table of
README.md: means over seeds with 95% bootstrap intervals. Log-probabilities are means per token of chosen and
rejected responses of held-out pairs, as differences from the base model; BLEU-4 and ROUGE-L are of greedy outputs
against the references, reward and KL of samples at temperature 1.
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

from prefopt.config import parse
from prefopt.evals.cells import Cells, Row
from prefopt.evals.frontier import measure
from prefopt.generate.base import Request, Sampling
from prefopt.generate.journal import complete
from prefopt.generate.local import LocalGenerator
from prefopt.grade.statistics import bootstrap_mean
from prefopt.grade.text import bleu4, rouge_l
from prefopt.methods.base import find_method
from prefopt.models.likelihood import response_logps
from prefopt.models.load import LoadedModel, load_model
from prefopt.records import JsonValue, Pair, Preference, Response, write_preferences
from prefopt.runs.base_model import base_model
from prefopt.runs.train import run_training
from prefopt.worlds.reviews import ReviewPrompt, ReviewWorld
from prefopt.worlds.scored import first_two, scored_samples

ARMS: Mapping[str, tuple[dict[str, JsonValue], ...]] = {
    "base": (),
    "sft": ({"method": "sft"},),
    "asft": ({"method": "asft"},),
    "sft, then align only": ({"method": "sft"}, {"method": "asft", "ce_coef": 0.0}),
    "orpo": ({"method": "dpo", "loss_type": ["orpo"], "beta": 0.1},),
    "dpo": ({"method": "dpo", "beta": 0.1},),
    "dpo, beta 1": ({"method": "dpo", "beta": 1.0},),
}
"""The stages of each arm; a later one starts from the model of the one before it."""
COLUMNS = {
    "chosen_logp": "log p chosen",
    "rejected_logp": "log p rejected",
    "bleu4": "BLEU-4",
    "rouge_l": "ROUGE-L",
    "reward": "reward",
    "kl": "KL",
    "faithful": "faithful",
}
MAX_NEW_TOKENS = 48
SPARE = 1.1
"""Prompts sampled for each pair that is wanted: two equal scores make none."""


def main() -> None:
    """Train and measure what is missing, then print."""
    arguments = parser().parse_args()
    torch.set_num_threads(1)
    arguments.output.mkdir(parents=True, exist_ok=True)
    rows = Cells(arguments.output / "results.jsonl")
    world = ReviewWorld()
    base = base_model(world, find_method("sft"))
    settings = {k: v for k, v in vars(arguments).items() if k not in {"output", "seeds", "arms"}}
    wanted = [
        {**settings, "arm": arm, "seed": seed}
        for seed in range(arguments.seeds)
        for arm in ["base", *(arm for arm in arguments.arms if arm != "base")]
    ]
    for key in wanted:
        if not rows.has(key):
            rows.append({**key, **run_cell(world, base, key)})
            print(line(rows.rows[-1]), flush=True)
    found = rows.of(wanted)
    text = table(found)
    (arguments.output / "table.md").write_text(text, encoding="utf-8")
    print(text)


def parser() -> argparse.ArgumentParser:
    """The options."""
    found = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    found.add_argument("--output", type=Path, default=Path("compare"))
    found.add_argument("--seeds", type=int, default=5)
    found.add_argument("--arms", nargs="+", choices=ARMS, default=list(ARMS))
    found.add_argument("--pairs", type=int, default=400)
    found.add_argument("--held-out", type=int, default=200, help="pairs that are only scored")
    found.add_argument(
        "--chosen",
        choices=("references", "samples"),
        default="references",
        help="pairs of the reference and a sample, or of two samples by reward",
    )
    found.add_argument("--steps", type=int, default=60, help="of each stage")
    found.add_argument("--batch-size", type=int, default=16)
    found.add_argument("--learning-rate", type=float, default=1e-3)
    found.add_argument("--prompts", type=int, default=128, help="test prompts")
    found.add_argument("--samples", type=int, default=4, help="samples of each")
    return found


def run_cell(world: ReviewWorld, base: Path, key: Row) -> Row:
    """Train one arm and measure it."""
    start = time.perf_counter()
    reference = load_model(base)
    pairs = make_pairs(world, reference, key)
    training, held_out = pairs[: key["pairs"]], pairs[key["pairs"] :]
    folder = Path(tempfile.mkdtemp())
    try:
        write_preferences(folder / "pairs.jsonl", training)
        model = base
        for number, stage in enumerate(ARMS[key["arm"]]):
            model = train(stage, model, folder, number, key)
        policy = load_model(model)
    finally:
        shutil.rmtree(folder)
    trained = time.perf_counter()
    found = {
        **likelihoods(policy, reference, held_out),
        **outputs(world, policy, reference, key),
        "train_seconds": round(trained - start, 2),
    }
    return {**found, "measure_seconds": round(time.perf_counter() - trained, 2)}


def make_pairs(world: ReviewWorld, reference: LoadedModel, key: Row) -> list[Preference]:
    """Training pairs and then held-out ones, of different prompts."""
    wanted = key["pairs"] + key["held_out"]
    prompts = world.prompts("preference", round(SPARE * wanted) + 10, seed=key["seed"])
    records = scored_samples(
        prompts,
        LocalGenerator(reference.model, reference.tokenizer, batch_size=512),
        world.score,
        samples=2,
        sampling=Sampling(
            temperature=1.0, max_new_tokens=MAX_NEW_TOKENS, purpose="pairs", seed=key["seed"]
        ),
    )
    if key["chosen"] == "references":
        pairs = [with_reference(p, r, world) for p, r in zip(prompts, records, strict=True)]
    else:
        pairs = first_two(records).records
    if len(pairs) < wanted:
        raise SystemExit(f"{len(pairs)} pairs, {wanted} are wanted: raise SPARE")
    return pairs[:wanted]


def with_reference(prompt: ReviewPrompt, record: Preference, world: ReviewWorld) -> Preference:
    """The reference of a prompt against the first sample."""
    chosen = Response(prompt.answer, score=world.score(prompt.answer))
    return replace(record, responses=(chosen, record.responses[0]), pairs=(Pair(0, 1),))


def train(stage: dict[str, JsonValue], model: Path, folder: Path, number: int, key: Row) -> Path:
    """The model folder after one more stage."""
    method = find_method(str(stage["method"]))
    recipe: dict[str, JsonValue] = {
        **stage,
        "model_name_or_path": str(model),
        "train_file": str(folder / "pairs.jsonl"),
        "output_dir": str(folder / f"stage-{number}"),
        "learning_rate": key["learning_rate"],
        "per_device_train_batch_size": key["batch_size"],
        "max_steps": key["steps"],
        "lr_scheduler_type": "linear",
        "warmup_ratio": 0.1,
        "max_length": 128,
        "save_strategy": "no",
        "seed": key["seed"],
    }
    return run_training(parse(recipe, method.config), method).model


def likelihoods(policy: LoadedModel, reference: LoadedModel, pairs: Sequence[Preference]) -> Row:
    """Change of the log-probability per token of chosen and rejected held-out responses, in nats."""
    after, before = (
        response_logps(loaded.model, reference.tokenizer, pairs) for loaded in (policy, reference)
    )
    change = [
        [a.mean - b.mean for a, b in zip(new, old, strict=True)]
        for new, old in zip(after, before, strict=True)
    ]
    return {
        "chosen_logp": statistics.mean(
            c[p.pairs[0].chosen] for c, p in zip(change, pairs, strict=True)
        ),
        "rejected_logp": statistics.mean(
            c[p.pairs[0].rejected] for c, p in zip(change, pairs, strict=True)
        ),
    }


def outputs(world: ReviewWorld, policy: LoadedModel, reference: LoadedModel, key: Row) -> Row:
    """Overlap of greedy outputs with the references; reward and KL of samples."""
    prompts = world.prompts("test", key["prompts"], seed=key["seed"])
    generator = LocalGenerator(policy.model, policy.tokenizer, batch_size=512)
    greedy = complete(
        generator,
        [Request(p.id, 0, p.prompt) for p in prompts],
        Sampling(max_new_tokens=MAX_NEW_TOKENS, purpose="test"),
    )
    texts, references = [c.text for c in greedy], [p.answer for p in prompts]
    found = measure(
        policy.model,
        reference.model,
        reference.tokenizer,
        prompts=prompts,
        score=world.score,
        sampling=Sampling(
            temperature=1.0, max_new_tokens=MAX_NEW_TOKENS, purpose="test", seed=key["seed"]
        ),
        samples=key["samples"],
    )
    asked = {prompt.id: prompt for prompt in prompts}
    return {
        "bleu4": bleu4(texts, references).value,
        "rouge_l": rouge_l(texts, references).value,
        "reward": found.reward.value,
        "kl": found.kl.mean,
        "faithful": statistics.mean(
            world.is_faithful(asked[c.id], c.text) for c in found.completions
        ),
    }


def line(row: Row) -> str:
    """A cell for people."""
    values = "  ".join(f"{name} {row[name]:.3f}" for name in COLUMNS)
    seconds = row["train_seconds"] + row["measure_seconds"]
    return f"{row['arm']:20} seed {row['seed']}  {values}  {seconds:.1f} s"


def table(rows: Sequence[Row]) -> str:
    """Markdown: mean over seeds and its interval."""
    lines = [
        f"| arm | seeds | {' | '.join(COLUMNS.values())} |",
        f"|{'---|' * (2 + len(COLUMNS))}",
    ]
    for arm in ARMS:
        mine = [row for row in rows if row["arm"] == arm]
        if mine:
            cells = [interval([row[name] for row in mine]) for name in COLUMNS]
            lines.append(f"| {arm} | {len(mine)} | {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def interval(values: Sequence[float]) -> str:
    """A mean over seeds with its interval."""
    value, low, high = bootstrap_mean(values)
    digits = 1 if abs(value) >= 10 else 3
    return f"{value:.{digits}f} ({low:.{digits}f} to {high:.{digits}f})"


if __name__ == "__main__":
    main()
