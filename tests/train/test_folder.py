"""What starting anew removes from a run folder: the run, and what was said about its model; nothing else."""

from __future__ import annotations

from pathlib import Path

import pytest

from prefopt.errors import ConfigError
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
