"""prefopt against TRL's DPOTrainer: the same pairs, model and steps, one process after the other.

    python benchmarks/vs_trl.py                      # CPU, all shapes (needs: pip install 'prefopt[bench]')
    python benchmarks/vs_trl.py --device cuda --hidden 1024 --layers 16

Each side runs in a process of its own on an otherwise idle machine, in turn, `--repeats` times. Timed are optimiser
steps after the first; the reference pass of either side is not counted. TRL runs with its best settings for this:
precomputed reference, no gradient checkpointing, float32 on CPU and bfloat16 mixed precision on a GPU.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from importlib.metadata import version
from pathlib import Path

from shapes import SHAPES, make_model, make_records, write_records

SIDES = ("trl", "rows", "tree")
BETA, LEARNING_RATE = 0.1, 1e-5
RECORDS_PER_STEP = {"step": 8, "plain": 4, "ranked": 2}


def main() -> None:
    """Run all sides and shapes, print the table, write the JSON."""
    arguments = parse_arguments()
    if arguments.side:
        result = run_side(arguments, Path(arguments.work))
        print("RESULT " + json.dumps(result), flush=True)
        return
    facts = {"machine": machine(arguments.device), "settings": settings(arguments), "shapes": {}}
    with tempfile.TemporaryDirectory() as temporary:
        work = Path(temporary)
        make_model(work / "model", hidden=arguments.hidden, layers=arguments.layers)
        for shape in arguments.shapes:
            facts["shapes"][shape] = compare(shape, arguments, work)
            print_shape(shape, facts["shapes"][shape])
    if arguments.output:
        Path(arguments.output).write_text(json.dumps(facts, indent=1) + "\n", encoding="utf-8")


def settings(arguments: argparse.Namespace) -> dict[str, object]:
    """What was asked for, without paths."""
    return {
        k: v for k, v in vars(arguments).items() if k not in {"output", "side", "shape", "work"}
    }


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--shapes", nargs="+", default=list(SHAPES), choices=SHAPES)
    parser.add_argument("--steps", type=int, default=5, help="optimiser steps, the first not timed")
    parser.add_argument("--repeats", type=int, default=1)
    parser.add_argument("--device", default="cpu", choices=("cpu", "cuda"))
    parser.add_argument("--hidden", type=int, default=384)
    parser.add_argument("--layers", type=int, default=6)
    parser.add_argument("--records", type=int, help="records per step (default: by shape)")
    parser.add_argument("--output", help="JSON file for the results")
    parser.add_argument("--side", choices=SIDES, help=argparse.SUPPRESS)
    parser.add_argument("--shape", help=argparse.SUPPRESS)
    parser.add_argument("--work", help=argparse.SUPPRESS)
    return parser.parse_args()


def compare(shape: str, arguments: argparse.Namespace, work: Path) -> dict:
    """All sides of one shape, in turn."""
    runs: dict[str, list[dict]] = {side: [] for side in SIDES}
    for _ in range(arguments.repeats):
        for side in SIDES:
            runs[side].append(launch(side, shape, arguments, work))
    out = {side: min(many, key=lambda r: r["seconds_per_pair"]) for side, many in runs.items()}
    seconds = {side: out[side]["seconds_per_pair"] for side in SIDES}
    reference = out["trl"]["losses"]
    return {
        **out,
        "speedup_tree_over_trl": seconds["trl"] / seconds["tree"],
        "speedup_rows_over_trl": seconds["trl"] / seconds["rows"],
        "speedup_tree_over_rows": seconds["rows"] / seconds["tree"],
        "largest_relative_loss_difference": {
            side: max(
                abs(a - b) / abs(b) for a, b in zip(out[side]["losses"], reference, strict=True)
            )
            for side in ("rows", "tree")
        },
    }


def launch(side: str, shape: str, arguments: argparse.Namespace, work: Path) -> dict:
    command = [sys.executable, __file__, "--side", side, "--shape", shape, "--work", str(work)]
    for key in ("steps", "device", "hidden", "layers"):
        command += [f"--{key}", str(getattr(arguments, key))]
    if arguments.records:
        command += ["--records", str(arguments.records)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    lines = [line for line in done.stdout.splitlines() if line.startswith("RESULT ")]
    if done.returncode or not lines:
        sys.exit(f"{side} on {shape} failed:\n{done.stdout[-2000:]}\n{done.stderr[-4000:]}")
    return json.loads(lines[-1][7:])


def run_side(arguments: argparse.Namespace, work: Path) -> dict:
    """One side in this process."""
    per_step = arguments.records or RECORDS_PER_STEP[arguments.shape]
    records = make_records(arguments.shape, per_step * arguments.steps)
    pairs_per_step = per_step * (len(records[0].responses) - 1)
    if arguments.side == "trl":
        result = run_trl(arguments, work, records, pairs_per_step)
    else:
        result = run_prefopt(arguments, work, records, per_step)
    timed = result.pop("seconds")[1:]
    return {
        **result,
        "seconds_per_pair": statistics.median(timed) / pairs_per_step,
        "peak_memory_mib": peak_memory(arguments.device),
        "pairs_per_step": pairs_per_step,
    }


def run_prefopt(arguments: argparse.Namespace, work: Path, records: list, per_step: int) -> dict:
    from prefopt.methods.base import find_method
    from prefopt.runs.train import run_training

    method = find_method("dpo")
    name = f"{arguments.shape}-{arguments.side}-{os.getpid()}"
    layout = arguments.side if arguments.device == "cpu" or arguments.side == "rows" else "packed"
    config = method.config(
        method="dpo",
        model_name_or_path=str(work / "model"),
        train_file=str(write_records(records, work / f"{name}.jsonl")),
        output_dir=str(work / name),
        cache_dir=str(work / f"{name}-cache"),
        layout=layout,
        attn_implementation=None if arguments.device == "cpu" or layout == "packed" else "sdpa",
        beta=BETA,
        max_length=2048,
        learning_rate=LEARNING_RATE,
        lr_scheduler_type="constant",
        per_device_train_batch_size=per_step,
        logging_steps=1,
        save_strategy="no",
    )
    run_training(config, method)
    rows = [json.loads(line) for line in (work / name / "metrics.jsonl").read_text().splitlines()]
    plan = json.loads((work / name / "plan.json").read_text())
    return {
        "seconds": [row["seconds_per_step"] for row in rows],
        "losses": [row["loss"] for row in rows],
        "tokens": plan["tokens_rows"],
        "distinct_tokens": plan["tokens_tree"],
    }


def run_trl(arguments: argparse.Namespace, work: Path, records: list, pairs_per_step: int) -> dict:
    from datasets import Dataset
    from transformers import AutoModelForCausalLM, AutoTokenizer, TrainerCallback
    from trl import DPOConfig, DPOTrainer

    from prefopt.pack.plan import shuffled

    class Clock(TrainerCallback):
        def __init__(self) -> None:
            self.seconds: list[float] = []
            self.started = 0.0

        def on_step_begin(self, *args: object, **kwargs: object) -> None:
            synchronise(arguments.device)
            self.started = time.perf_counter()

        def on_step_end(self, *args: object, **kwargs: object) -> None:
            synchronise(arguments.device)
            self.seconds.append(time.perf_counter() - self.started)

    order = shuffled(len(records), seed=42, epoch=0)
    rows = [
        {"prompt": r.prompt, "chosen": " " + r.responses[0], "rejected": " " + worse}
        for r in (records[i] for i in order)
        for worse in r.responses[1:]
    ]
    clock = Clock()
    gpu = arguments.device == "cuda"
    trainer = DPOTrainer(
        model=AutoModelForCausalLM.from_pretrained(work / "model", dtype="float32"),
        args=DPOConfig(
            output_dir=str(work / "trl"),
            beta=BETA,
            max_length=2048,
            learning_rate=LEARNING_RATE,
            lr_scheduler_type="constant",
            per_device_train_batch_size=pairs_per_step,
            max_steps=arguments.steps,
            logging_steps=1,
            precompute_ref_log_probs=True,
            gradient_checkpointing=False,
            train_sampling_strategy="sequential",
            use_cpu=not gpu,
            bf16=gpu,
            report_to="none",
            save_strategy="no",
            disable_tqdm=True,
        ),
        train_dataset=Dataset.from_list(rows),
        processing_class=AutoTokenizer.from_pretrained(work / "model"),
        callbacks=[clock],
    )
    trainer.train()
    losses = [row["loss"] for row in trainer.state.log_history if "loss" in row]
    return {"seconds": clock.seconds, "losses": losses}


def synchronise(device: str) -> None:
    if device == "cuda":
        import torch

        torch.cuda.synchronize()


def peak_memory(device: str) -> float:
    """MiB: of the process on CPU, of torch's allocator on a GPU."""
    if device == "cuda":
        import torch

        return torch.cuda.max_memory_allocated() / 2**20
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def machine(
    device: str, packages: tuple[str, ...] = ("prefopt", "trl", "torch", "transformers")
) -> dict:
    """What the numbers were measured on."""
    import torch

    commit = subprocess.run(
        ["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True, check=False
    ).stdout.strip()
    return {
        "processor": platform.processor() or platform.machine(),
        "cores": os.cpu_count(),
        "device": torch.cuda.get_device_name() if device == "cuda" else "cpu",
        "threads": torch.get_num_threads(),
        "commit": commit,
        **{name: version(name) for name in packages},
    }


def print_shape(shape: str, result: dict) -> None:
    tree = result["tree"]
    print(f"\n{shape}: {tree['tokens']} tokens, {tree['distinct_tokens']} distinct")
    for side in SIDES:
        r = result[side]
        print(f"  {side:5} {r['seconds_per_pair']:8.4f} s/pair  {r['peak_memory_mib']:8.0f} MiB")
    print(
        f"  tree over TRL {result['speedup_tree_over_trl']:.2f}x, "
        f"rows over TRL {result['speedup_rows_over_trl']:.2f}x, "
        f"tree over rows {result['speedup_tree_over_rows']:.2f}x; largest relative loss difference "
        f"{result['largest_relative_loss_difference']['tree']:.1e}"
    )


if __name__ == "__main__":
    main()
