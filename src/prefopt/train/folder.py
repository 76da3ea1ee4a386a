"""The run folder: what is in it, whether a run may start there, and how its files are written."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import TextIO

from prefopt.errors import ConfigError, ResumeError, StorageError
from prefopt.progress import say
from prefopt.text.lock import PROCESS, acquire, release
from prefopt.train.checkpoint import find_damage, latest_checkpoint, list_checkpoints, read_state
from prefopt.train.track import MetricsFile
from prefopt.values import encoded

FINISHED = "finished.json"
LOCK = ".lock"
_BUSY = f"another run is working here (process {PROCESS}); wait for it, or set another output_dir"
REMOVING = ".removing"
"""There while a run is being removed: what is left of it is no run any more."""
EVALUATIONS = ("evaluation.json", "evaluation-outputs.jsonl", "evaluation.sqlite*")
"""What evaluations on problems leave in the folder of the run, and for several files in `evaluations/<name>`."""
AGENT_EVALUATION = "agent-evaluation.json"
AGENT_EVALUATIONS = ("trajectories.jsonl", "agent-evaluation.sqlite*", AGENT_EVALUATION)
"""What evaluations in environments leave; builds call a file of theirs `trajectories.jsonl` too."""


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
        self._lock: TextIO | None = None

    def contents(self) -> list[Path]:
        """Everything that a run makes in the folder."""
        return [p for p in vars(self).values() if isinstance(p, Path) and p != self.path]

    def evaluations(self) -> list[Path]:
        """What evaluations of the run's model have left in the folder; with another model it is not true any more."""
        names = [*EVALUATIONS, *(f"evaluations/*/{name}" for name in EVALUATIONS)]
        if (self.path / AGENT_EVALUATION).exists():
            names += AGENT_EVALUATIONS
        return [path for name in names for path in sorted(self.path.glob(name))]

    def clear(self) -> None:
        """Remove what a run makes and what evaluations say about it, and nothing else that may lie in the folder.

        Killed at any point, `finish_removal` does the rest.
        """
        removing = self.path / REMOVING
        with suppress(
            OSError
        ):  # there is no folder, or the disk is full: what is there goes all the same
            removing.touch()
        # First what says that the run is finished, which is not true any more once anything is gone.
        for path in [self.finished, *self.contents(), *self.evaluations(), removing]:
            try:
                if path.is_dir() and not path.is_symlink():
                    shutil.rmtree(path)
                else:
                    path.unlink(missing_ok=True)
            except OSError as error:
                raise StorageError(
                    f"{path}: cannot be removed ({error.strerror}); remove it by hand or set another output_dir"
                ) from error

    def finish_removal(self) -> None:
        """Remove what a `clear` that was killed has left, which no run can go on from; otherwise nothing."""
        if (self.path / REMOVING).exists():
            say(f"{self.path}: removing what is left of the run that was being written over")
            self.clear()

    def begin(self) -> None:
        """Forget how an earlier attempt that left no checkpoint ended, and its metrics."""
        self.finished.unlink(missing_ok=True)
        MetricsFile(self.metrics).rewind(0)

    def acquire(self) -> None:
        """Keep other processes from running in this folder until this one ends or releases it.

        Raises:
            ResumeError: another process is running here.
        """
        try:
            self._lock = acquire(self.path / LOCK, busy=_BUSY)
        except OSError as error:
            raise StorageError(
                f"{self.path}: cannot make output_dir ({error.strerror}); choose another"
            ) from error

    def release(self) -> None:
        """Let others in again."""
        if self._lock is not None:
            release(self.path / LOCK, self._lock)
            self._lock = None

    def write_json(self, path: Path, facts: Mapping[str, object]) -> None:
        """Write one JSON file; raises as `write_lines`."""
        self._write(path, json.dumps(dict(facts), indent=1, ensure_ascii=False) + "\n")

    def write_lines(self, path: Path, rows: Iterable[Mapping[str, object]]) -> None:
        """Write a JSON-lines file.

        Raises:
            StorageError: it cannot be written.
            RecordError: a text holds half of a surrogate pair; the file is then as it was before.
        """
        self._write(path, "".join(json.dumps(dict(r), ensure_ascii=False) + "\n" for r in rows))

    def _write(self, path: Path, text: str) -> None:
        content = encoded(text, f"{path}: it")
        temporary = path.with_name(f".{path.name}.partial")
        try:
            with temporary.open("wb") as file:
                file.write(content)
                file.flush()
                os.fsync(file.fileno())
            temporary.replace(path)
        except OSError as error:
            temporary.unlink(missing_ok=True)
            raise StorageError(
                f"{path}: cannot be written ({error.strerror}); free space or choose another output_dir"
            ) from error


def open_folder(
    folder: RunFolder, *, resume: bool | str, overwrite: bool, inputs: Sequence[str] = ()
) -> Path | None:
    """The checkpoint to go on from; None: start at step 0. Nothing is removed or changed yet, see `clear`.

    Only a removal that was killed is finished first.

    Args:
        folder: of the run; it is made if it is not there.
        resume: True for the newest whole checkpoint of this folder, or the path of one.
        overwrite: whether what an earlier run left may be removed once the new run is ready.
        inputs: files and folders that the new run reads.

    Raises:
        ResumeError: the folder holds a run and neither was asked for, or the named checkpoint is damaged.
        ConfigError: overwriting would remove what the new run reads.
    """
    if isinstance(resume, str):
        read_state(Path(resume))
        elsewhere = Path(resume).resolve().parent != folder.checkpoints.resolve()
        if elsewhere:
            _refuse_to_mix(folder)
    elif overwrite:
        _refuse_to_remove(folder, inputs)
    elif not resume:
        _refuse_to_mix(folder)
    try:
        folder.path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise StorageError(
            f"{folder.path}: cannot make output_dir ({error.strerror}); choose another"
        ) from error
    if overwrite or resume is True:
        folder.finish_removal()
    else:  # nothing else is there, or what is left is gone on with
        (folder.path / REMOVING).unlink(missing_ok=True)
    if isinstance(resume, str):
        return Path(resume)
    return _newest(folder) if resume and not folder.finished.exists() else None


def _newest(folder: RunFolder) -> Path | None:
    """The newest whole checkpoint; None where there are none."""
    checkpoint = latest_checkpoint(folder.checkpoints)
    if checkpoint is None:
        if list_checkpoints(folder.checkpoints):
            raise ResumeError(
                f"{folder.checkpoints}: no checkpoint here is whole; pass --overwrite to start anew, or set another "
                "output_dir"
            )
        say(f"{folder.path}: no checkpoint to resume from, starting at step 0")
    return checkpoint


def _refuse_to_mix(folder: RunFolder) -> None:
    """A new run starts only where nothing lies that it would write over."""
    if _holds_run(folder):
        raise ResumeError(
            f"{folder.path}: already holds a run ({_state(folder)}); pass --resume to go on, --overwrite to start "
            "anew, or set another output_dir"
        )
    there = [p for p in folder.contents() if p.exists()]
    if there:
        raise ResumeError(
            f"{there[0]}: is in the way of a new run; move it, pass --overwrite to delete it, or set another output_dir"
        )


def _refuse_to_remove(folder: RunFolder, inputs: Sequence[str]) -> None:
    for name in inputs:
        source = Path(name).resolve()
        for path in [*folder.contents(), *folder.evaluations()]:
            target = path.resolve()
            if source == target or target in source.parents:
                raise ConfigError(
                    f"--overwrite would delete {path}, which this run reads ({name}): set another output_dir"
                )


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
