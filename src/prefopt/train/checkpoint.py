"""Checkpoints: ordinary model folders plus optimiser, counters and RNG, complete or not there at all.

A checkpoint is written beside its final name, gets a manifest of sizes and digests as its last file, is synced to
disk and renamed. `kill -9` at any moment leaves the previous checkpoints untouched.
"""

from __future__ import annotations

import hashlib
import json
import os
import random
import re
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import NamedTuple, cast

import numpy as np
import torch

from prefopt.errors import ResumeError, StorageError
from prefopt.progress import say

MANIFEST = "manifest.json"
STATE = "trainer_state.json"
OPTIMIZER = "optimizer.pt"


class TrainerState(NamedTuple):
    """What is needed to go on, beside weights, optimiser and RNG."""

    step: int
    """Optimiser steps done."""
    identity: Mapping[str, str]
    """Facts a resumed run must share."""


def checkpoint_path(folder: Path, step: int) -> Path:
    """`folder/checkpoint-<step>`."""
    return folder / f"checkpoint-{step}"


def list_checkpoints(folder: Path) -> list[Path]:
    """Finished checkpoints under `folder`, oldest first."""
    if not folder.is_dir():
        return []
    found = [
        (int(m[1]), p) for p in folder.iterdir() if (m := re.fullmatch(r"checkpoint-(\d+)", p.name))
    ]
    return [path for _, path in sorted(found)]


def write_checkpoint(
    folder: Path,
    state: TrainerState,
    *,
    save_weights: Callable[[Path], None],
    optimizer: Mapping[str, object],
    rng: list[dict[str, object]],
    keep: int | None,
) -> Path:
    """Write `checkpoint-<step>` and remove the oldest beyond `keep`.

    Args:
        folder: parent of the checkpoints.
        state: counters and identity.
        save_weights: writes the model into the folder it is given.
        optimizer: the optimiser's state dict.
        rng: `rng_state()` of every process, by rank.
        keep: how many checkpoints stay (None: all).

    Raises:
        StorageError: the disk is full or not writable; what was there before is intact.
    """
    final = checkpoint_path(folder, state.step)
    partial = folder / f".{final.name}.partial"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        shutil.rmtree(partial, ignore_errors=True)
        save_weights(partial)
        _save(dict(optimizer), partial / OPTIMIZER)
        for rank, one in enumerate(rng):
            _save(one, partial / f"rng-{rank}.pt")
        facts = {"step": state.step, "identity": dict(state.identity)}
        (partial / STATE).write_text(json.dumps(facts, indent=1), encoding="utf-8")
        _seal(partial)
        shutil.rmtree(final, ignore_errors=True)
        partial.rename(final)
        _sync(folder)
    except OSError as error:
        shutil.rmtree(partial, ignore_errors=True)
        raise StorageError(
            f"{final}: the checkpoint could not be written ({_problem(error)}); earlier checkpoints are intact: "
            "free space, then resume"
        ) from error
    for old in list_checkpoints(folder)[: -keep if keep else 0]:
        shutil.rmtree(old)
    return final


def read_state(checkpoint: Path) -> TrainerState:
    """Counters and identity of a whole checkpoint; `ResumeError` says what is missing or damaged."""
    if not checkpoint.is_dir():
        raise ResumeError(
            f"{checkpoint}: there is no such checkpoint; {_there_are(checkpoint.parent)}"
        )
    problem = find_damage(checkpoint)
    if problem:
        raise ResumeError(
            f"{checkpoint}: {problem}; resume from an earlier checkpoint (resume_from_checkpoint=PATH) or delete it"
        )
    facts = json.loads((checkpoint / STATE).read_text(encoding="utf-8"))
    return TrainerState(facts["step"], facts["identity"])


def _there_are(folder: Path) -> str:
    names = [path.name for path in list_checkpoints(folder)]
    return f"{folder} has {', '.join(names)}" if names else f"{folder} has none: start anew"


def find_damage(checkpoint: Path) -> str:
    """What is wrong with a checkpoint folder; empty when every file is as it was written."""
    if not checkpoint.is_dir():
        return "there is no such checkpoint"
    manifest = checkpoint / MANIFEST
    if not manifest.is_file():
        return f"half-written checkpoint ({MANIFEST} is missing)"
    try:
        files = cast("dict[str, list[str | int]]", json.loads(manifest.read_text(encoding="utf-8")))
    except json.JSONDecodeError:
        return f"damaged checkpoint ({MANIFEST} is no JSON)"
    for name, (size, digest) in files.items():
        path = checkpoint / name
        if not path.is_file():
            return f"half-written checkpoint ({name} is missing)"
        if path.stat().st_size != size:
            return f"half-written checkpoint ({name} has {path.stat().st_size} bytes, not {size})"
        if _digest(path) != digest:
            return f"damaged checkpoint ({name} has changed since it was written)"
    return ""


def latest_checkpoint(folder: Path) -> Path | None:
    """The newest undamaged checkpoint; damaged ones are skipped with a line that says so."""
    for path in reversed(list_checkpoints(folder)):
        problem = find_damage(path)
        if not problem:
            return path
        say(f"warning: {path}: {problem}; trying the one before")
    return None


def load_optimizer(checkpoint: Path) -> dict[str, object]:
    """The optimiser's state dict, in main memory: `load_state_dict` moves it to where the weights are."""
    return torch.load(checkpoint / OPTIMIZER, map_location="cpu", weights_only=True)


def check_identity(saved: Mapping[str, str], current: Mapping[str, str], checkpoint: Path) -> None:
    """Refuse to resume a run that is not the same one, listing every difference.

    The model may have another name where its weights are the same: a folder that was moved, or is spelled otherwise.
    """
    weights = saved.get(_WEIGHTS)
    known = {_MODEL} if weights is not None and weights == current.get(_WEIGHTS) else set[str]()
    differences = [
        line
        for key in sorted((set(saved) | set(current)) - known)
        for line in _differences(key, saved.get(key, _ABSENT), current.get(key, _ABSENT))
    ]
    if differences:
        raise ResumeError(
            f"{checkpoint}: not the same run: "
            + "; ".join(differences)
            + ". Restore these settings, or start "
            "anew with --overwrite or another output_dir"
        )


_ABSENT = "(absent)"
_WEIGHTS, _MODEL = "starting weights", "model_name_or_path"


def _differences(name: str, before: str, now: str) -> list[str]:
    """How two facts differ; sections of the recipe key by key, so that one changed key does not show all the others."""
    if before == now:
        return []
    if not (before.startswith("{") and now.startswith("{")):
        return [f"{name}: {before} in the checkpoint, {now} now"]
    one = cast("dict[str, object]", json.loads(before))
    other = cast("dict[str, object]", json.loads(now))
    return [
        line
        for key in {**one, **other}
        for line in _differences(f"{name}.{key}", _written(one, key), _written(other, key))
    ]


def _written(section: Mapping[str, object], key: str) -> str:
    return json.dumps(section[key]) if key in section else _ABSENT


def rng_state() -> dict[str, object]:
    """States of all random generators of this process."""
    numpy_state = np.random.get_state(legacy=True)  # noqa: NPY002 - third-party code may use the global generator
    state: dict[str, object] = {
        "python": repr(random.getstate()),
        "numpy": repr([numpy_state[0], numpy_state[1].tolist(), *numpy_state[2:]]),  # pyright: ignore[reportArgumentType, reportAttributeAccessIssue]
        "torch": torch.get_rng_state(),
    }
    if torch.cuda.is_available():
        state["cuda"] = torch.cuda.get_rng_state()
    return state


def restore_rng(checkpoint: Path, rank: int) -> None:
    """Set all random generators as they were; another number of processes starts from rank 0's."""
    import ast

    path = checkpoint / f"rng-{rank}.pt"
    state = torch.load(path if path.exists() else checkpoint / "rng-0.pt", weights_only=True)
    random.setstate(ast.literal_eval(state["python"]))
    name, keys, *rest = ast.literal_eval(state["numpy"])
    np.random.set_state((name, np.array(keys, dtype=np.uint32), *rest))  # noqa: NPY002 - see rng_state
    torch.set_rng_state(state["torch"])
    if "cuda" in state and torch.cuda.is_available():
        torch.cuda.set_rng_state(state["cuda"])


def _save(value: dict[str, object], file: Path) -> None:
    try:
        torch.save(value, file)
    except RuntimeError as error:
        # All that torch's C++ writer says about a full disk is "enforce fail at inline_container.cc".
        raise StorageError(f"no space left for {file.name}") from error


def _seal(folder: Path) -> None:
    files = sorted(p for p in folder.rglob("*") if p.is_file())
    facts = {str(p.relative_to(folder)): [p.stat().st_size, _digest(p)] for p in files}
    (folder / MANIFEST).write_text(json.dumps(facts, indent=1), encoding="utf-8")
    for path in [*files, folder / MANIFEST]:
        _sync(path)
    _sync(folder)


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "blake2b").hexdigest()[:32]


def _problem(error: BaseException) -> str:
    """What went wrong, on one line and without a remedy that does not hold for checkpoints."""
    first = str(error).splitlines()[0] if str(error) else type(error).__name__
    return first.partition("; ")[0] if isinstance(error, StorageError) else first
