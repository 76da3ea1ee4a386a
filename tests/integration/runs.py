"""Recipes and data small enough for a whole run in half a second, and readers of what runs leave."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file

from prefopt.config import load_recipe, parse
from prefopt.methods.base import find_method, train
from prefopt.runs.train import RunResult

ENVIRONMENT = {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}
COMMAND = [sys.executable, "-m", "prefopt", "train"]

Row = dict[str, Any]


def write_rows(path: Path, rows: Iterable[Row]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def string_pairs(count: int = 12) -> list[Row]:
    return [
        {
            "prompt": f"What is {i} + 4?\n",
            "chosen": f"The answer is {i + 4}.",
            "rejected": f"The answer is {i + 5}" + " or so" * (i % 4 + 1),
        }
        for i in range(count)
    ]


class Settings(dict[str, Any]):
    """The keys of a recipe; `with_` changes some of them."""

    @classmethod
    def of(cls, folder: Path, *, model: Path) -> Settings:
        return cls(
            method="dpo",
            model_name_or_path=str(model),
            train_file=str(write_rows(folder / "pairs.jsonl", string_pairs())),
            learning_rate=1e-3,
            per_device_train_batch_size=4,
            num_train_epochs=2.0,
            logging_steps=1,
            save_strategy="no",
            output_dir=str(folder / "run"),
            cache_dir=str(folder / "cache"),
        )

    def with_(self, **changes: Any) -> Settings:
        return Settings(self | changes)

    def train(self) -> RunResult:
        """Run in this process, through the public function."""
        return train(parse(self, find_method(self["method"]).config))

    def write(self, path: Path) -> Path:
        """The recipe file (JSON is YAML)."""
        path.write_text("".join(f"{k}: {json.dumps(v)}\n" for k, v in self.items()))
        return path


def train_recipe(path: Path, *overrides: str) -> RunResult:
    """Run a recipe file in this process."""
    raw = load_recipe(path, overrides)
    return train(parse(raw, find_method(str(raw["method"])).config))


def read_rows(path: Path) -> list[Row]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def read_json(path: Path) -> Any:
    return json.loads(path.read_text(encoding="utf-8"))


def losses(folder: Path) -> list[float]:
    return [row["loss"] for row in read_rows(folder / "metrics.jsonl") if "loss" in row]


def weights(folder: Path) -> dict[str, torch.Tensor]:
    """Stored tensors of a model or adapter folder."""
    (file,) = folder.glob("*model.safetensors")
    return load_file(file)


def weight_bytes(folder: Path) -> bytes:
    (file,) = folder.glob("*model.safetensors")
    return file.read_bytes()


def largest_difference(a: Mapping[str, torch.Tensor], b: Mapping[str, torch.Tensor]) -> float:
    """Largest |a - b| relative to the largest |a| of each tensor."""
    assert a.keys() == b.keys()
    return max(float((a[k] - b[k]).abs().max() / a[k].abs().max().clamp_min(1e-12)) for k in a)


def errors_in(text: str) -> list[str]:
    return [line for line in text.splitlines() if line.startswith("error")]


def run(*words: str | Path, command: list[str] = COMMAND) -> subprocess.CompletedProcess[str]:
    """A finished command."""
    return subprocess.run(
        [*command, *words],
        env=os.environ | ENVIRONMENT,
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
    )


def kill_when(ready: Callable[[], bool], *words: str | Path) -> str:
    """Start a run, send SIGKILL as soon as `ready` holds; what it had printed on stderr by then."""
    with subprocess.Popen(
        [*COMMAND, *words], env=os.environ | ENVIRONMENT, stderr=subprocess.PIPE, text=True
    ) as process:
        while not ready():
            assert process.poll() is None, "it ended before it could be killed"
            time.sleep(0.001)
        process.kill()
        return process.communicate()[1]
