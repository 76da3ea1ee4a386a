"""The files of a curriculum, and those of an earlier one until the first training on the new one has begun.

curriculum/stage-1.jsonl   the pairs of each stage, in the order of training
held-out.jsonl             the evaluation data as records, whatever columns they came in
curriculum.json            what they were made from, how many and how easy they are, what was left out
.earlier/                  the same files of the run that is being written over, and its chain.json, while they may
                           still be needed
"""

from __future__ import annotations

import json
import shutil
from contextlib import suppress
from pathlib import Path

from prefopt.errors import ResumeError, StorageError
from prefopt.report.folder import CHAIN
from prefopt.runs.chain import link_or_copy
from prefopt.train.folder import RunFolder

FOLDER = "curriculum"
INDEX = "curriculum.json"
HELD_OUT = "held-out.jsonl"

_EARLIER = ".earlier"
_PARTIAL = ".earlier.partial"
_RUNS = "runs.json"


def remove_files(folder: Path) -> None:
    """Remove a curriculum, the index first, so that it never speaks of files that are half there."""
    for path in (folder / INDEX, *_texts(folder)):
        path.unlink(missing_ok=True)


def keep_earlier(output_dir: Path) -> None:
    """Keep a copy of the curriculum that is there, if any; `settle_earlier` says what becomes of it.

    A run that is to be written over stays whole until the new one is ready, and the new one is not ready before it
    has read its own curriculum.

    Raises:
        StorageError: there is no room.
    """
    folder = output_dir / FOLDER
    if not (folder / INDEX).exists():
        return
    partial = folder / _PARTIAL
    try:
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir()
        for path in (*_texts(folder), folder / INDEX, output_dir / CHAIN):
            if path.exists():
                link_or_copy(str(path), str(partial / path.name))
        RunFolder(partial).write_json(partial / _RUNS, {"runs": _runs(output_dir)})
        partial.replace(folder / _EARLIER)
    except OSError as error:
        raise StorageError(
            f"{partial}: the curriculum of the earlier run cannot be kept ({error.strerror}); free space, or set "
            "another output_dir"
        ) from error


def settle_earlier(output_dir: Path) -> None:
    """`settle`, unless another process works in `output_dir`, which does it itself."""
    if (output_dir / FOLDER / _EARLIER).is_dir():
        top = RunFolder(output_dir)
        with suppress(ResumeError):
            top.acquire()
            try:
                settle(output_dir)
            finally:
                top.release()


def settle(output_dir: Path) -> None:
    """Put the earlier curriculum back if no training on the new one has begun, and forget it otherwise.

    A training that begins removes what the earlier run left. Killed at any point, this can be done again.
    """
    folder = output_dir / FOLDER
    earlier = folder / _EARLIER
    if not earlier.is_dir():
        return
    runs = json.loads((earlier / _RUNS).read_text(encoding="utf-8"))["runs"]
    if runs == _runs(output_dir):
        remove_files(folder)
        (output_dir / CHAIN).unlink(missing_ok=True)
        if (earlier / CHAIN).exists():
            link_or_copy(str(earlier / CHAIN), str(output_dir / CHAIN))
        for path in (*_texts(earlier), earlier / INDEX):
            link_or_copy(str(path), str(folder / path.name))
    shutil.rmtree(folder / _PARTIAL, ignore_errors=True)
    earlier.replace(folder / _PARTIAL)
    shutil.rmtree(folder / _PARTIAL, ignore_errors=True)


def _texts(folder: Path) -> list[Path]:
    held_out = [folder / HELD_OUT] if (folder / HELD_OUT).exists() else []
    return [*sorted(folder.glob("stage-*.jsonl")), *held_out]


def _runs(output_dir: Path) -> list[list[str | int]]:
    """What a training that begins changes: the files of the run, which is one of all stages or the first stage's."""
    found: list[list[str | int]] = []
    for run in (RunFolder(output_dir), RunFolder(output_dir / "stage-1")):
        for path in (run.recipe, run.metrics, run.finished):
            with suppress(FileNotFoundError):
                status = path.stat()
                found.append([str(path.relative_to(output_dir)), status.st_ino, status.st_mtime_ns])
    return found
