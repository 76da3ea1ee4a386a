"""What starting anew removes from a run folder: the run, and what was said about its model; nothing else."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest

from prefopt.errors import ConfigError, ResumeError
from prefopt.evals import agent_files, agents, files, suite
from prefopt.train.folder import RunFolder, open_folder

RUN = ["run.yaml", "metrics.jsonl", "finished.json", "model/config.json"]
OF_PROBLEMS = [
    files.RESULT_FILE,
    files.OUTPUTS_FILE,
    suite.JOURNAL_FILE,
    f"{suite.JOURNAL_FILE}-wal",
]
OF_AGENTS = [agent_files.RESULT_FILE, agent_files.TRAJECTORIES_FILE, agents.JOURNAL_FILE]


def fill(folder: Path, *names: str) -> None:
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text("{}")


def left(folder: Path) -> list[str]:
    return sorted(str(p.relative_to(folder)) for p in folder.rglob("*") if p.is_file())


def test_evaluations_of_the_old_model_go_with_it(tmp_path: Path) -> None:
    several = [f"evaluations/gsm8k/{name}" for name in OF_PROBLEMS]
    fill(tmp_path, *RUN, *OF_PROBLEMS, *OF_AGENTS, *several)
    fill(tmp_path, "notes.txt", "evaluations/gsm8k/notes.txt")
    RunFolder(tmp_path).clear()
    assert left(tmp_path) == ["evaluations/gsm8k/notes.txt", "notes.txt"]


def test_trajectories_of_a_build_in_the_same_folder_stay(tmp_path: Path) -> None:
    fill(tmp_path, *RUN, "trajectories.jsonl", "pairs.jsonl")
    RunFolder(tmp_path).clear()
    assert left(tmp_path) == ["pairs.jsonl", "trajectories.jsonl"]


def test_an_evaluation_that_the_run_reads_is_not_removed(tmp_path: Path) -> None:
    fill(tmp_path, *RUN, *OF_AGENTS)
    read = str(tmp_path / agent_files.TRAJECTORIES_FILE)
    with pytest.raises(ConfigError, match=r"--overwrite would delete .*trajectories\.jsonl, which"):
        open_folder(RunFolder(tmp_path), resume=False, overwrite=True, inputs=[read])


def test_a_removal_that_was_killed_leaves_no_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fill(tmp_path, *RUN, "checkpoints/checkpoint-1/manifest.json", "notes.txt")
    folder = RunFolder(tmp_path)
    remove = shutil.rmtree

    def stop(path: Path, **options: Any) -> None:
        if path == folder.checkpoints:
            raise KeyboardInterrupt
        remove(path, **options)

    with monkeypatch.context() as patch:
        patch.setattr(shutil, "rmtree", stop)
        with pytest.raises(KeyboardInterrupt):
            folder.clear()
    assert not folder.finished.exists()
    assert folder.model.exists()
    with pytest.raises(ResumeError, match="is in the way of a new run|already holds a run"):
        open_folder(folder, resume=False, overwrite=False)
    assert open_folder(folder, resume=True, overwrite=False) is None, "it starts at step 0"
    assert left(tmp_path) == ["notes.txt"]


@pytest.mark.parametrize("overwrite", [False, True])
def test_what_comes_after_a_removal_is_not_taken_for_its_rest(
    tmp_path: Path, *, overwrite: bool
) -> None:
    """The kill came when all was gone but the sign of it."""
    fill(tmp_path, ".removing")
    folder = RunFolder(tmp_path)
    open_folder(folder, resume=False, overwrite=overwrite)
    fill(tmp_path, *RUN)
    folder.finish_removal()
    assert left(tmp_path) == sorted(RUN)


@pytest.mark.parametrize("there", [RUN, RUN[:3]])
def test_a_run_is_left_as_it_is_where_no_removal_was_begun(
    there: list[str], tmp_path: Path
) -> None:
    fill(tmp_path, *there)
    RunFolder(tmp_path).finish_removal()
    assert open_folder(RunFolder(tmp_path), resume=True, overwrite=False) is None
    assert left(tmp_path) == sorted(there)
