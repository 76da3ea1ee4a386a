"""Realistic run folders for the report's tests: an untrained base, a DPO and a Step-DPO run on made-up sums."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np


class Trained(NamedTuple):
    """How a made-up training run goes."""

    name: str
    slope: float
    """Reward margin per step."""
    drift: float
    """Reward of the chosen responses per step."""
    correct: int
    tokens_tree: int
    learning_rate: float = 1e-5


DPO = Trained("dpo", slope=0.018, drift=-0.006, correct=391, tokens_tree=30_412)
STEP_DPO = Trained("step_dpo", slope=0.022, drift=0.003, correct=424, tokens_tree=21_870)


def write_json(path: Path, value: object) -> None:
    path.write_text(json.dumps(value), encoding="utf-8")


def write_lines(path: Path, rows: Sequence[object]) -> None:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


def evaluation(name: str, correct: int, *, total: int = 500) -> dict[str, object]:
    share, z = correct / total, 1.96
    middle = (share + z * z / (2 * total)) / (1 + z * z / total)
    half = z / (1 + z * z / total) * math.sqrt(share * (1 - share) / total + z * z / (4 * total**2))
    return {
        "name": name,
        "metric": "accuracy",
        "correct": correct,
        "total": total,
        "value": share,
        "low": middle - half,
        "high": middle + half,
        "split": "held-out problems",
    }


def metrics(run: Trained, *, steps: int = 90) -> Iterator[dict[str, float | int]]:
    generator = np.random.default_rng(len(run.name))
    for step in range(1, steps + 1):
        margin = run.slope * step * float(np.exp(-step / 250)) + generator.normal(0, 0.05)
        chosen = run.drift * step + generator.normal(0, 0.02)
        yield {
            "step": step,
            "epoch": step / 45,
            "loss": float(np.log1p(np.exp(-margin))),
            "learning_rate": run.learning_rate * (1 - step / steps),
            "grad_norm": float(2.4 * np.exp(-step / 60) + generator.gamma(2, 0.08)),
            "tokens": step * 300,
            "seconds": step * 0.11,
            "rewards/chosen": chosen,
            "rewards/rejected": chosen - margin,
            "rewards/margins": margin,
            "rewards/accuracies": float(
                np.clip(0.5 + margin / 2.4 + generator.normal(0, 0.05), 0, 1)
            ),
            "logps/chosen": -14.0 + chosen / 0.3 + generator.normal(0, 0.6),
            "logps/rejected": -21.0 + (chosen - margin) / 0.3 + generator.normal(0, 0.6),
        }
        if step % 30 == 0:
            yield {
                "step": step,
                "eval_loss": float(np.log1p(np.exp(-0.8 * margin))),
                "eval_rewards/margins": 0.8 * margin,
                "eval_rewards/chosen": 0.8 * chosen,
                "eval_rewards/rejected": 0.8 * (chosen - margin),
                "eval_rewards/accuracies": float(np.clip(0.5 + margin / 3, 0, 1)),
            }


def samples(run: Trained, *, number: int = 60) -> Iterator[dict[str, object]]:
    generator = np.random.default_rng(number)
    for row in range(number):
        start, *operands = (int(x) for x in generator.integers(1, 10, size=6))
        state, lines = start, []
        for place, operand in enumerate(operands, start=1):
            lines.append(f"Step {place}: {state} + {operand} = {(state + operand) % 20}")
            state = (state + operand) % 20
        wrong = int(generator.integers(0, 5))
        bad = f"{lines[wrong].rpartition(' ')[0]} {int(lines[wrong].rpartition(' ')[2]) + 1}"
        margin = float(generator.normal(1.1, 0.9))
        whole = run.name == "dpo"
        yield {
            "id": f"train-{row:04d}",
            "prompt": f"Start with {start}, then add {', '.join(map(str, operands))} (modulo 20).",
            "prefix": "" if whole else "".join(f"{line}\n" for line in lines[:wrong]),
            "chosen": "\n".join([*lines, f"Answer: {state}"]) if whole else lines[wrong],
            "rejected": "\n".join([*lines[:wrong], bad, *lines[wrong + 1 :], "Answer: 3"])
            if whole
            else bad,
            "reward_chosen": 0.3 * margin,
            "reward_rejected": -0.7 * margin,
            "margin": margin,
        }


def ledger(source: str, read: int, cut: int, dropped: int) -> dict[str, object]:
    rows = [
        {
            "id": f"row-{place}",
            "origin": f"{source}:{7 * place + 3}",
            "fate": "cut" if place < cut else "dropped",
            "reason": "response longer than max_length"
            if place < cut
            else "chosen equals rejected",
            "tokens": 12 if place < cut else None,
        }
        for place in range(cut + dropped)
    ]
    return {
        "source": source,
        "read": read,
        "kept": read - cut - dropped,
        "cut": cut,
        "dropped": dropped,
        "reasons": {"chosen equals rejected": dropped, "response longer than max_length": cut},
        "notes": {"chosen is longer by more than half": 3},
        "rows": rows,
    }


def write_base(folder: Path) -> Path:
    folder.mkdir(parents=True)
    write_json(folder / "evaluation.json", evaluation("base", 306))
    return folder


def write_trained(folder: Path, run: Trained, *, steps: int = 90) -> Path:
    folder.mkdir(parents=True)
    (folder / "run.yaml").write_text(
        f"method: {run.name}\nmodel_name_or_path: base/model\ntrain_file: data/{run.name}-pairs.jsonl\n"
        f"learning_rate: {run.learning_rate}\nbeta: 0.3\nper_device_train_batch_size: 8\nseed: 42\n"
        f"num_train_epochs: 2.0\nmax_length: 1024\nlayout: tree\ncolumns: {{}}\nreport_to: []\n",
        encoding="utf-8",
    )
    write_json(
        folder / "env.json",
        {
            "python": "3.12.4",
            "torch": "2.13.0",
            "platform": "Linux",
            "device": {"type": "cpu", "threads": 2},
        },
    )
    write_json(
        folder / "data-ledger.json",
        {
            "train": ledger(f"data/{run.name}-pairs.jsonl", 366, 2, 4),
            "eval": ledger("data/eval.jsonl", 40, 0, 1),
        },
    )
    write_json(
        folder / "plan.json",
        {
            "layout": "tree",
            "steps": steps,
            "batch_size": 8,
            "world_size": 1,
            "examples": 360,
            "responses": 720,
            "pairs": 360,
            "tokens_rows": 47_300,
            "tokens_tree": run.tokens_tree,
            "tokens_scored": 15_020,
            "saved": 1 - run.tokens_tree / 47_300,
            "longest": {"id": "train-0117", "tokens": 96},
            "peak_memory_bytes": 214_000_000,
        },
    )
    write_lines(folder / "metrics.jsonl", list(metrics(run, steps=steps)))
    write_lines(folder / "samples.jsonl", list(samples(run)))
    write_json(folder / "evaluation.json", evaluation(run.name, run.correct))
    return folder


def write_three(root: Path) -> list[Path]:
    return [
        write_base(root / "base"),
        write_trained(root / "dpo", DPO),
        write_trained(root / "step_dpo", STEP_DPO),
    ]
