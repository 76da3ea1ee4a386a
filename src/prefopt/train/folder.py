"""The run folder: what is in it, whether a run may start there, and how its files are written."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterable, Mapping
from pathlib import Path

from prefopt.errors import ResumeError, StorageError
from prefopt.train.checkpoint import find_damage, latest_checkpoint, list_checkpoints, read_state
from prefopt.train.track import MetricsFile

FINISHED = "finished.json"


class RunFolder:
    """Paths of one run. Files are written whole (temporary file, sync, rename)."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.recipe = path / "run.yaml"
        self.environment = path / "env.json"
        self.ledger = path / "data-ledger.json"
        self.plan = path / "plan.json"
        self.metrics = path / "metrics.jsonl"
        self.samples = path / "samples.jsonl"
        self.checkpoints = path / "checkpoints"
        self.trackers = path / "trackers"
        self.model = path / "model"
        self.report = path / "report.html"
        self.finished = path / FINISHED

    def write_json(self, path: Path, facts: Mapping[str, object]) -> None:
        """Write one JSON file."""
        self._write(path, json.dumps(dict(facts), indent=1, ensure_ascii=False) + "\n")

    def write_lines(self, path: Path, rows: Iterable[Mapping[str, object]]) -> None:
        """Write a JSON-lines file."""
        self._write(path, "".join(json.dumps(dict(r), ensure_ascii=False) + "\n" for r in rows))

    def _write(self, path: Path, text: str) -> None:
        temporary = path.with_name(f".{path.name}.partial")
        try:
            with temporary.open("w", encoding="utf-8") as file:
                file.write(text)
                file.flush()
                os.fsync(file.fileno())
            temporary.replace(path)
        except OSError as error:
            temporary.unlink(missing_ok=True)
            raise StorageError(
                f"{path}: cannot be written ({error.strerror}); free space or choose another output_dir"
            ) from error


def open_folder(
    path: Path, *, resume: bool | str, overwrite: bool
) -> tuple[RunFolder, Path | None]:
    """The folder, and the checkpoint to go on from (None: start at step 0).

    Args:
        path: `output_dir`.
        resume: True for the newest whole checkpoint of this folder, or the path of one.
        overwrite: remove what an earlier run left in this folder.

    Raises:
        ResumeError: the folder holds a run and neither was asked for, or the named checkpoint is damaged.
    """
    folder = RunFolder(path)
    if isinstance(resume, str):
        read_state(Path(resume))
    elif overwrite:
        _clear(folder)
    elif not resume and _holds_run(folder):
        raise ResumeError(
            f"{path}: already holds a run ({_state(folder)}); pass --resume to go on, --overwrite to start anew, or "
            "set another output_dir"
        )
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise StorageError(
            f"{path}: cannot make output_dir ({error.strerror}); choose another"
        ) from error
    if isinstance(resume, str):
        return folder, Path(resume)
    checkpoint = latest_checkpoint(folder.checkpoints) if resume else None
    if checkpoint is None and not folder.finished.exists():
        MetricsFile(folder.metrics).rewind(0)
    return folder, checkpoint


def _holds_run(folder: RunFolder) -> bool:
    return bool(
        folder.metrics.exists() or folder.finished.exists() or list_checkpoints(folder.checkpoints)
    )


def _state(folder: RunFolder) -> str:
    if folder.finished.exists():
        return "finished"
    whole = [p for p in list_checkpoints(folder.checkpoints) if not find_damage(p)]
    return (
        f"unfinished, newest checkpoint {whole[-1].name}"
        if whole
        else "unfinished, no checkpoint yet"
    )


def _clear(folder: RunFolder) -> None:
    """Remove the files a run makes, and nothing else that may lie in the folder."""
    for path in vars(folder).values():
        if path == folder.path:
            continue
        if path.is_dir():
            shutil.rmtree(path)
        else:
            path.unlink(missing_ok=True)
