"""Evaluations of agents on disk: `agent-evaluation.json` (numbers) and `trajectories.jsonl` (one episode a line)."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path

from prefopt.agents.trajectory import Trajectory, trajectory_from_json, trajectory_to_json
from prefopt.errors import StorageError
from prefopt.evals.agent_outcome import SplitResult, result_to_json
from prefopt.evals.files import write_whole
from prefopt.records import parse_line
from prefopt.values import JsonValue

RESULT_FILE = "agent-evaluation.json"
TRAJECTORIES_FILE = "trajectories.jsonl"


def write_agent_evaluation(
    folder: Path,
    name: str,
    results: Sequence[SplitResult],
    found: Mapping[str, Sequence[Trajectory]],
    settings: Mapping[str, JsonValue],
) -> None:
    """Nothing; both files then stand in the folder, each whole or not at all, the numbers last.

    Args:
        folder: is made.
        name: of the model.
        results: the numbers, one for each split.
        found: the episodes, by split.
        settings: everything that decided the numbers.

    Raises:
        StorageError: they cannot be written.
    """
    rows = [trajectory_to_json(t) for group in found.values() for t in group]
    lines = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
    write_whole(folder / TRAJECTORIES_FILE, lines)
    facts: dict[str, JsonValue] = {
        "name": name,
        "metric": "average reward",
        "environment": settings["environment"],
        "splits": {result.split: result_to_json(result) for result in results},
        "settings": dict(settings),
    }
    write_whole(folder / RESULT_FILE, json.dumps(facts, indent=1, ensure_ascii=False) + "\n")


def read_episodes(folder: Path) -> dict[str, list[Trajectory]]:
    """The episodes of an evaluation, by split.

    Raises:
        StorageError: the folder holds none.
        RecordError: a line is broken; the message names file and line.
    """
    path = folder / TRAJECTORIES_FILE
    try:
        text = path.read_text(encoding="utf-8")
    except OSError as error:
        raise StorageError(
            f"{folder}: holds no {TRAJECTORIES_FILE} ({error.strerror}); give a folder that `prefopt eval "
            "--environment` wrote"
        ) from error
    found: dict[str, list[Trajectory]] = {}
    for number, line in enumerate(text.split("\n"), start=1):
        if line.strip():
            origin = f"{path}:{number}"
            trajectory = trajectory_from_json(parse_line(line, origin), origin=origin)
            found.setdefault(trajectory.task.split, []).append(trajectory)
    return found
