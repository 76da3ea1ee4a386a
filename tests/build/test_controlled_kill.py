"""A build that is killed after every few texts loses none and repeats none."""

from __future__ import annotations

import os
import signal
import sqlite3
import subprocess
import sys
from pathlib import Path

import pytest

from prefopt.build.controlled import ControlledSettings
from prefopt.generate.schedule import Rising
from tests.build.scripted import FIRST, HOT, RIGHT, WRONG, Task

TASKS = [Task(name, f"Question {name}\n", "6") for name in ("a", "b", "c")]
SETTINGS = ControlledSettings(samples=2, attempts=3, schedule=Rising(1.1, 0.1, 1.4))
TEXTS = {
    **{(t.id, 0): RIGHT for t in TASKS},
    **{(t.id, 1): WRONG for t in TASKS},
    ("a/1", 0): HOT,
    ("b/1", 0): RIGHT,
    ("b/1", 1): HOT,
    ("c/1", 0): FIRST + "Step 2: 6\nThe answer is 6",
    ("c/1", 1): RIGHT,
    ("c/1", 2): FIRST + "Step 2: 3 + 3 = 8\nStep 3: no\nThe answer is 8",
}
ROOT = Path(__file__).parents[2]

KILLED = """
import sys
from prefopt.build.controlled import ControlledSettings, build_controlled_pairs
from prefopt.build.grading import one_by_one
from prefopt.generate.journal import Journal
from prefopt.records import write_preferences
from tests.build.scripted import Knowing, is_right
from tests.build.test_controlled_kill import SETTINGS, TASKS, TEXTS

limit = int(sys.argv[2])
with Journal(sys.argv[1]) as journal:
    data = build_controlled_pairs(
        TASKS, Knowing(TEXTS, limit=None if limit < 0 else limit), grade=one_by_one(is_right),
        settings=SETTINGS, journal=journal,
    )
write_preferences(sys.argv[3], [*data.mixed(), *data.data_equal])
"""


def run(journal: Path, limit: int, output: Path) -> int:
    command = [sys.executable, "-c", KILLED, str(journal), str(limit), str(output)]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        command, cwd=ROOT, env=environment, stderr=subprocess.DEVNULL, check=False
    )
    return done.returncode


def rows(journal: Path) -> list[tuple[object, ...]]:
    with sqlite3.connect(journal) as connection:
        found = connection.execute(
            "SELECT purpose, request, sample, text FROM completions ORDER BY purpose, request, sample, text"
        ).fetchall()
    connection.close()
    return found


@pytest.mark.slow
def test_kill_9_in_every_stage(tmp_path: Path) -> None:
    assert run(tmp_path / "whole.sqlite", -1, tmp_path / "whole.jsonl") == 0
    whole = rows(tmp_path / "whole.sqlite")
    stages = {str(purpose) for purpose, *_ in whole}
    assert stages == {"naive", "tails/0", "tails/1", "tails/2", "tails/3"}
    killed = tmp_path / "killed.sqlite"
    seen: set[str] = set()
    for finished in range(0, len(whole) + 4, 4):
        code = run(killed, 4, tmp_path / "killed.jsonl")
        found = rows(killed)
        assert len(found) == len(set(found)) == min(finished + 4, len(whole))
        seen |= {str(purpose) for purpose, *_ in found}
        if code == 0:
            break
        assert code == -signal.SIGKILL
        assert not (tmp_path / "killed.jsonl").exists()
    assert seen == stages
    assert rows(killed) == whole
    assert (tmp_path / "killed.jsonl").read_bytes() == (tmp_path / "whole.jsonl").read_bytes()
