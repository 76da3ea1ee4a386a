"""Evaluations of agents on disk: `agent-evaluation.json` (numbers) and `trajectories.jsonl` (one episode a line)."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from prefopt.agents.environment import Task
from prefopt.agents.trajectory import Trajectory, trajectory_from_json, trajectory_to_json
from prefopt.errors import ConfigError, PrefoptError, StorageError
from prefopt.evals.agent_outcome import SplitResult, result_to_json
from prefopt.evals.files import read_facts, write_whole
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
    *,
    events: Mapping[str, int],
) -> None:
    """Nothing; both files then stand in the folder, each whole or not at all, the numbers last.

    Where they take the place of the same evaluation, its events count too: the same command only tries again what
    failed.

    Args:
        folder: is made.
        name: of the model.
        results: the numbers, one for each split.
        found: the episodes, by split.
        settings: everything that decided the numbers.
        events: what happened to environments (`Farm.counts`).

    Raises:
        StorageError: they cannot be written.
    """
    total = Counter(_events_of(folder, settings)) + Counter(events)
    rows = [trajectory_to_json(t) for group in found.values() for t in group]
    lines = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
    write_whole(folder / TRAJECTORIES_FILE, lines)
    facts: dict[str, JsonValue] = {
        "name": name,
        "metric": "average reward",
        "environment": settings["environment"],
        "splits": {result.split: result_to_json(result) for result in results},
        "events": dict(sorted(total.items())),
        "settings": dict(settings),
    }
    write_whole(folder / RESULT_FILE, json.dumps(facts, indent=1, ensure_ascii=False) + "\n")


def _events_of(folder: Path, settings: Mapping[str, JsonValue]) -> dict[str, int]:
    """The events of an evaluation with these settings that the folder holds; none where it holds another one."""
    try:
        facts = read_facts(folder, RESULT_FILE)
    except PrefoptError:  # none, or a broken one that is replaced
        return {}
    found = facts.get("events")
    if facts.get("settings") != json.loads(json.dumps(dict(settings))) or not isinstance(
        found, dict
    ):
        return {}
    return {name: count for name, count in found.items() if isinstance(count, int)}


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


class EarlierAgent(NamedTuple):
    """An evaluation on disk."""

    episodes: Mapping[str, Sequence[Trajectory]]
    """By split."""
    settings: Mapping[str, JsonValue]
    """Everything that decided its numbers."""


def read_comparable(
    folder: Path, tasks: Mapping[str, Sequence[Task]], identity: str
) -> EarlierAgent:
    """The evaluation of exactly these tasks that a folder holds.

    Ids alone do not tell: under other options of an environment the same ids are other tasks.

    Args:
        folder: of the evaluation.
        tasks: by split.
        identity: of the suite that they are tasks of.

    Raises:
        ConfigError: it is about other tasks, or another form of the environment; says which.
        StorageError, RecordError: it cannot be read.
    """
    found = read_episodes(folder)
    stated = read_facts(folder, RESULT_FILE).get("settings")
    settings = stated if isinstance(stated, dict) else {}
    before = settings.get("environment_identity")
    for split, wanted in tasks.items():
        played = [trajectory.task for trajectory in found.get(split, [])]
        if [task.id for task in played] != [task.id for task in wanted]:
            raise ConfigError(
                f"{folder}: its {len(played)} tasks of split {split!r} are not the {len(wanted)} of this evaluation; "
                "evaluate both on the same ones"
            )
        pairs = zip(played, wanted, strict=True)
        other = next((new.id for old, new in pairs if dict(old.meta) != dict(new.meta)), None)
        if other is not None or before != identity:
            what = "the environment" if other is None else f"task {other!r}"
            raise ConfigError(
                f"{folder}: there {what} was another one, under other options or in another version of the "
                "environment; evaluate both with the same ones"
            )
    return EarlierAgent(found, settings)
